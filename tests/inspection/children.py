"""Child processes that wait where a test wants them to."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

from tests.e2e.tools import until
from udsproxy.events import Doing
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine

_SETUP = "import fcntl, os, select, socket, sys, threading, time\n"

NOBODY = 65534


@contextlib.contextmanager
def child(code: str, *arguments: str, **options: object) -> Iterator[int]:
    """The pid of a process that runs this, and prints ``!`` when it has come so far; ended in the end with all that
    it has started."""
    with subprocess.Popen(  # type: ignore[call-overload]
        [sys.executable, "-c", _SETUP + code, *arguments],
        stdout=subprocess.PIPE,
        start_new_session=True,
        **options,
    ) as process:
        try:
            assert process.stdout.read(1) == b"!"
            yield process.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def doing(pid: int, *, diag: bool = True) -> Doing:
    """What it does now."""
    with contextlib.closing(Machine(diag=diag)) as machine:
        found = Doer().doing(pid, machine, 0.0)
    assert found is not None
    return found


def wait_for(pid: int, condition: Callable[[Doing], bool]) -> Doing:
    """What it does, as soon as that is what a test waits for."""
    until(lambda: condition(doing(pid)), f"not {doing(pid)}")
    return doing(pid)


def as_nobody(function: Callable[[], str]) -> str:
    """What it returns in a child of this process that has become nobody, where we are root; else in one of us."""

    def called() -> str:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        return function()

    return in_a_child(called)


def in_a_child(function: Callable[[], str]) -> str:
    """What it returns in a child of this process. An exception's name and text in place of that."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        text = ""
        try:
            text = function()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            with open(writer, "w", encoding="utf-8") as file:
                file.write(text)
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said
