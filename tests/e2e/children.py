"""What is left of a process that has ended: its children become ours (prctl(2), PR_SET_CHILD_SUBREAPER)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tests.e2e.tools import read, until

_PR_SET_CHILD_SUBREAPER = 36


class Orphans:
    """Those that were left to us, and have not ended."""

    def __init__(self) -> None:
        self._others = _children()

    def await_none(self, *started: int) -> None:
        """Until nobody is left. ``started``: who has been started since, and is waited for by others."""
        until(lambda: not self._left(started), "nobody to be left")

    def _left(self, started: tuple[int, ...]) -> list[str]:
        left = []
        for pid in _children() - self._others - {*started}:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    left.append(read(f"/proc/{pid}/cmdline"))
        return left


@contextmanager
def adopting() -> Iterator[Orphans]:
    """Whoever loses its parent becomes our child meanwhile."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield Orphans()
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    """Ours, zombies too."""
    found = set()
    for name in os.listdir("/proc/self/task"):
        found |= {int(pid) for pid in read(f"/proc/self/task/{name}/children").split()}
    return found
