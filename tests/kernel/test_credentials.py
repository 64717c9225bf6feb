"""Who is at the other end."""

from __future__ import annotations

import os
import socket
import subprocess

from udsproxy.kernel.credentials import Peers
from udsproxy.kernel.procfs import read_comm


def test_ourselves() -> None:
    """The other end of a pair is this process, by number, user, group and name."""
    one, two = socket.socketpair()
    with one, two:
        who = Peers().of(one, 0)
    assert (who.pid, who.uid, who.gid, who.comm) == (os.getpid(), os.getuid(), os.getgid(), read_comm(os.getpid()))


def test_kept_for_a_second() -> None:
    """What was found is not asked for again within a second, and is after it."""
    one, two = socket.socketpair()
    peers = Peers()
    with one, two:
        first = peers.of(one, 0)
        assert peers.of(two, 10**9 - 1) is first
        assert peers.of(two, 10**9) is not first


def test_a_process_that_is_gone() -> None:
    """A process that has ended, or that cannot be seen from here, has no name."""
    with subprocess.Popen(["true"]) as ended:
        pass
    assert read_comm(ended.pid) is None
    assert read_comm(0) is None
