"""procfs: what it says of processes that this test starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from udsproxy.kernel.procfs import holders_of, read_comm, read_parent, servers_of

MASTER = """
import os, sys
children = []
while len(children) < 3 and (child := os.fork()):
    children.append(child)
if len(children) == 3:
    print(*children, flush=True)
sys.stdin.read()
"""


def test_who_holds_a_socket() -> None:
    """A master and its children hold the listener that they inherited; the children are those who serve."""
    with socket.socket(socket.AF_UNIX) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        assert holders_of(inode) == [os.getpid()]
        assert servers_of(inode) == 1
        with subprocess.Popen(
            [sys.executable, "-c", MASTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        ) as master:
            assert master.stdout is not None
            children = [int(pid) for pid in master.stdout.readline().split()]
            assert len(children) == 3
            assert sorted(holders_of(inode)) == sorted([os.getpid(), master.pid, *children])
            assert servers_of(inode) == 3
            assert {read_parent(child) for child in children} == {master.pid}
            master.communicate()


def test_a_process_that_is_gone() -> None:
    """Nothing is raised."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert read_parent(done.pid) is None
    assert read_comm(done.pid) is None
    assert servers_of(1) == 0
