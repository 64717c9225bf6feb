"""EAGAINs of connect(), counted by the kernel's tracing, or why they are not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

import pytest

from tests.namespaces import NEWPID, in_own_mounts, unshare
from udsproxy.kernel.refusals import Refusals


def refuse(count: int) -> None:
    """So many EAGAINs, and one connect() that gets none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        name = f"\0udsproxy-refusals-{os.getpid()}"
        listener.bind(name)
        listener.listen(0)
        for number in range(count + 1):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            assert (client.connect_ex(name) == 0) == (number == 0)


def test_in_a_container() -> None:
    """Where pids are others than the kernel's tracing tells, nothing is counted that would be somebody else's."""

    def refuse_to_count() -> None:
        unshare(NEWPID)
        if (pid := os.fork()) == 0:
            try:
                Refusals()
            except OSError as error:
                os._exit(5 if error.errno == errno.EXDEV else 6)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5

    in_own_mounts(refuse_to_count)


def test_refusals_are_counted() -> None:
    """Each EAGAIN of this process while it is on, and nothing before or after. Where the kernel does not let us
    count, that is an OSError."""
    if not os.access("/sys/kernel/tracing/instances", os.W_OK):
        with pytest.raises((PermissionError, FileNotFoundError)):
            Refusals()
        return
    instance = f"/sys/kernel/tracing/instances/udsproxy-{os.getpid()}"
    with contextlib.closing(Refusals()) as made:
        refuse(2)
        made.count(on=True)
        refuse(5)
        assert made.taken()[os.getpid()] == 5
        refuse(3)
        made.count(on=False)
        refuse(4)
        assert made.taken()[os.getpid()] == 3
        assert made.taken()[os.getpid()] == 0
        assert os.path.exists(instance)
    assert not os.path.exists(instance)
