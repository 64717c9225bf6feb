"""EAGAINs of connect(), counted by the kernel's tracing, or why they are not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.tools import LIMIT_S, until
from tests.stage import REPOSITORY
from tests.tracing import TRACED, traces
from udsproxy.kernel.refusals import Refusals

ROOT = os.geteuid() == 0
COUNTING = f"""
import os, sys, time
sys.path.insert(0, {REPOSITORY!r})
from tests.kernel.test_refusals import refuse
from udsproxy.kernel import refusals
refusals.STILL_S = int(sys.argv[1])
counted = refusals.Refusals()
refuse(2)
counted.count(on=True)
"""


def refuse(count: int) -> None:
    """So many EAGAINs, and one connect() that gets none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        name = f"\0udsproxy-refusals-{os.getpid()}"
        listener.bind(name)
        listener.listen(0)
        for number in range(count + 1):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
                assert (client.connect_ex(name) == 0) == (number == 0)


@contextlib.contextmanager
def counting(code: str, still_s: int = 1000) -> Iterator[subprocess.Popen[bytes]]:
    """A process that counts and does this, and has said so."""
    argv = [
        *TRACED,
        sys.executable,
        "-c",
        COUNTING + code + "\nprint('!', flush=True)\ntime.sleep(1000)",
        str(still_s),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"!\n"
            yield process
        finally:
            process.kill()


def test_without_the_right() -> None:
    """Where the kernel does not let us count, that is an OSError."""
    if not ROOT:
        with pytest.raises((PermissionError, FileNotFoundError)):
            Refusals().count(on=True)


if ROOT:

    def test_refusals_are_counted() -> None:
        """Each EAGAIN of a process while it is on, and nothing before or after; more than one ring holds, too."""
        code = """
refuse(5)
assert counted.taken()[os.getpid()] == 5
refuse(3)
counted.count(on=False)
refuse(4)
assert counted.taken()[os.getpid()] == 3
assert counted.taken()[os.getpid()] == 0
counted.count(on=True)
for _ in range(5):
    refuse(4000)
    assert counted.taken()[os.getpid()] == 4000
"""
        with counting(code) as process:
            assert traces(process.pid)

    def test_nothing_is_traced_while_it_is_off() -> None:
        """Neither before it is on for the first time nor after it."""
        with counting("counted.count(on=False)") as process:
            assert not traces(process.pid)

    def test_nothing_is_left_of_a_process_that_was_killed() -> None:
        """What it has had the kernel do ends with it."""
        with counting("") as process:
            assert traces(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait(LIMIT_S)
            assert not os.path.exists(f"/proc/{process.pid}")
            assert not os.path.exists(f"/sys/kernel/tracing/instances/udsproxy-{process.pid}")

    def test_a_process_that_stands_still_does_not_count_for_ever() -> None:
        """One that was stopped is ended by the kernel; one that goes on looking is not."""
        looks = "for _ in range(15):\n    time.sleep(0.1)\n    counted.taken()"
        with counting(looks, still_s=1) as process:
            os.kill(process.pid, signal.SIGSTOP)
            assert process.wait(LIMIT_S) == -signal.SIGKILL
        with counting("counted.count(on=False)\ntime.sleep(1.1)", still_s=1) as process:
            until(lambda: not traces(process.pid), "the end of it")
