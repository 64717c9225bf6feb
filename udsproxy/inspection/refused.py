"""Whose the refused connect() calls were that the kernel has counted (`udsproxy.kernel.refusals`): of all on this
machine, those at one proxy's socket.

Rules: a call that named a socket is counted for that one alone. Where it could not be told what it named, it counts
for the proxy that its process was a client of; who is not known to be one now may be soon, and so waits `KEPT_NS`.
Counting begins when a proxy first asks for it, or before us where our parent has begun it, and ends when none does
any more. Everything is bounded.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic_ns

from udsproxy.inspection.machine import Machine
from udsproxy.inspection.workers import Ask, Counted
from udsproxy.kernel.diag_codec import UnixSocket
from udsproxy.kernel.refusals import MAX_KINDS, Refusals, Refused

KEPT_NS = 10_000_000_000


class Refusers:
    """See the module."""

    def __init__(self, inherited: Sequence[int] = (), since: int = 0) -> None:
        """``inherited``: descriptors of our parent's that have counted since then (ns)."""
        self._refusals: Refusals | None = None
        self._inherited_since = since
        self._early: list[Refused] = []
        """For proxies that have not asked yet."""
        self._since: dict[str, int] = {}
        """Since when it is counted for each."""
        if inherited:
            with contextlib.suppress(OSError):
                self._refusals = Refusals(inherited=inherited)
        self._untold: dict[str, deque[Refused]] = {}
        """Who wants them counted, and those that they have not been told of."""
        self._missed: dict[str, int] = {}
        self.why_not: str | None = None
        """Why nothing can be counted."""

    @property
    def descriptors(self) -> list[int]:
        """As of `Refusals`."""
        return [] if self._refusals is None else self._refusals.descriptors

    def read(self) -> None:
        """Somebody was refused."""
        if self._refusals is not None:
            self._refusals.read()

    def told(self, ask: Ask, machine: Callable[[], Machine]) -> Counted | None:
        """Those since the last time; None: it is not counted."""
        if self.why_not is not None or (self._refusals is None and not ask.count_refusals):
            return None
        try:
            self._take()
            if ask.count_refusals and ask.proxy not in self._untold:
                self._untold[ask.proxy], self._missed[ask.proxy] = deque(self._early, maxlen=MAX_KINDS), 0
                self._since[ask.proxy] = self._inherited_since or monotonic_ns()
            found = self._of(ask, machine)
            if not ask.count_refusals:
                self._untold.pop(ask.proxy, None)
            assert self._refusals is not None
            self._refusals.count(on=bool(self._untold))
        except OSError as error:
            takes_root = "the kernel's tracing takes root"
            self.why_not = takes_root if os.geteuid() else f"the kernel's tracing cannot be used: {error.strerror}"
            self.close()
            return None
        return found

    def _take(self) -> None:
        if self._refusals is None:
            self._refusals = Refusals()
        found, missed = self._refusals.taken()
        if self._inherited_since and monotonic_ns() - self._inherited_since > KEPT_NS:
            self._inherited_since, self._early = 0, []
        elif self._inherited_since:
            self._early = (self._early + found)[:MAX_KINDS]
        for proxy, untold in self._untold.items():
            self._missed[proxy] += missed + max(0, len(untold) + len(found) - MAX_KINDS)
            untold.extend(found)

    def _of(self, ask: Ask, machine: Callable[[], Machine]) -> Counted:
        untold = self._untold.get(ask.proxy)
        missed = self._missed.pop(ask.proxy, 0)
        self._missed[ask.proxy] = 0
        since = self._since.get(ask.proxy, 0)
        if not untold:
            return Counted(missed=missed, since=since)
        door, clients = machine().unix.get(ask.door), set(ask.clients)
        ours, later = [], []
        for each in untold:
            is_ours = _is_at(each, door)
            if is_ours or (is_ours is None and each.pid in clients):
                ours.append(each)
            elif is_ours is None and monotonic_ns() - each.last < KEPT_NS:
                later.append(each)
        untold.clear()
        untold.extend(later)
        if not ours:
            return Counted(missed=missed, since=since)
        return Counted(
            sum(each.count for each in ours),
            min(each.first for each in ours),
            max(each.last for each in ours),
            missed,
            since,
        )

    def rest(self) -> None:
        """Nobody has asked for a while: count no longer."""
        self._untold.clear()
        self._missed.clear()
        self._inherited_since, self._early = 0, []
        if self._refusals is not None:
            with contextlib.suppress(OSError):
                self._refusals.count(on=False)

    def close(self) -> None:
        if self._refusals is not None:
            self._refusals.close()
            self._refusals = None


def _is_at(refused: Refused, door: UnixSocket | None) -> bool | None:
    """Was it at this socket? None: that could not be told."""
    if refused.name is None or door is None:
        return None
    if refused.name.startswith(b"\0"):
        return refused.name == door.name
    return None if refused.file is None else refused.file.is_of(door)
