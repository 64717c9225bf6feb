"""Processes that stand still: who is connected to them waits, and nothing says so.

Rule: a process that is traced (strace) is held for a moment at each of its system calls; only one that was not let
go between two looks stands still.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

import msgspec

from udsproxy.inspection.machine import Machine
from udsproxy.kernel import procfs
from udsproxy.kernel.procfs import Activity

How = Literal["signal", "tracer", "freezer"]
"""SIGSTOP, SIGTSTP (Ctrl-Z) and their like; ptrace(2), as a debugger does; its control group is frozen (docker
pause, systemctl freeze)."""

_BY_STATE: dict[str, How] = {"T": "signal", "t": "tracer"}
_BETWEEN_S = 0.02
"""From one look at a process that is traced to the next."""


class Stop(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a process stands still."""

    how: How
    tracer: str | None = None
    """``gdb, pid 9``."""

    @property
    def text(self) -> str:
        """``SIGSTOP or Ctrl-Z``."""
        if self.how == "tracer":
            return f"by {self.tracer or 'a debugger'}"
        return "SIGSTOP or Ctrl-Z" if self.how == "signal" else "its control group is frozen"


def stops(machine: Machine, pids: Iterable[int]) -> dict[int, Stop]:
    """Those of them that stand still."""
    looks = {pid: procfs.read_activity(pid) for pid in pids}
    found = {pid: _how(seen) for pid, seen in looks.items() if seen is not None}
    if "tracer" in found.values():
        time.sleep(_BETWEEN_S)
        for pid in [pid for pid, how in found.items() if how == "tracer"]:
            before, now = looks[pid], procfs.read_activity(pid)
            if before is None or now is None or (now.state, now.switches) != (before.state, before.switches):
                del found[pid]
    return {pid: Stop(how, _tracer(machine, pid)) for pid, how in found.items() if how is not None}


def _how(seen: Activity) -> How | None:
    if not seen.is_held:
        return None
    return _BY_STATE.get(seen.state, "freezer")


def _tracer(machine: Machine, pid: int) -> str | None:
    tracer = procfs.read_tracer(pid)
    return None if tracer is None else f"{machine.name_of(tracer)}, pid {tracer}"
