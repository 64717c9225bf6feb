"""What /proc says of a process (proc(5)).

Rules: never raises because a process is gone or hidden: then the answer is None.
"""

from __future__ import annotations

_KEEP_NS = 1_000_000_000
_MAX_KEPT = 1024


class ProcessNames:
    """The names (comm) of processes, kept for a second: a busy client connects thousands of times in one."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[int, str | None]] = {}

    def get(self, pid: int, now: int) -> str | None:
        """The name of process ``pid`` at ``now`` (monotonic ns); None where it is gone or cannot be seen."""
        kept = self._kept.get(pid)
        if kept is not None and now - kept[0] < _KEEP_NS:
            return kept[1]
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        name = read_comm(pid)
        self._kept[pid] = now, name
        return name


def read_comm(pid: int) -> str | None:
    """``/proc/PID/comm``: the first 15 bytes of the process's name."""
    if pid <= 0:
        return None  # a process outside our pid namespace (pid_namespaces(7))
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode("utf-8", "backslashreplace")
    except OSError:
        return None
