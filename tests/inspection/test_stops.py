"""Processes that stand still: by a signal, a tracer, or with their control group."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.tools import read, until
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.stops import Stop, stops
from udsproxy.kernel.procfs import Activity


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


@pytest.mark.parametrize(
    ("state", "wchan", "held"),
    [
        ("S", "do_epoll_wait", False),
        ("R", None, False),
        ("Z", None, False),
        ("T", "do_signal_stop", True),
        ("t", "ptrace_stop", True),
        ("S", "get_signal", True),
        ("S", "do_freezer_trap", True),
        ("D", "__refrigerator", True),
    ],
)
def test_what_is_held(state: str, wchan: str | None, held: bool) -> None:
    """State and kernel function, as /proc shows them."""
    seen = Activity(7, "x", state, 0, 0, None, (), wchan, hidden=False)
    assert seen.is_held == held


def test_a_process_that_is_stopped(machine: Machine) -> None:
    """It is told from one that sleeps, and from one that is not there any more."""
    with contextlib.ExitStack() as stack:
        sleeping, stopped, gone = (stack.enter_context(subprocess.Popen(["sleep", "60"])) for _ in range(3))
        gone.kill()
        gone.wait()
        os.kill(stopped.pid, signal.SIGSTOP)
        until(lambda: read(f"/proc/{stopped.pid}/stat").split()[2] == "T", "it to stop")
        assert stops(machine, [each.pid for each in (sleeping, stopped, gone)]) == {stopped.pid: Stop("signal")}
        for each in (sleeping, stopped):
            each.kill()
