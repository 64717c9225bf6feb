"""Which connections of a proxy may still wait in the upstream's accept queue, and for how long they did.

A queue is first come, first served: of these connections, in the order of their connect(), the accepted ones are
the first. So one question is enough (sock_diag: whose peer is known is accepted), and a search finds where they
end. An answer says it too, and costs nothing; most connections of a healthy upstream are never asked for.

Rules: nothing waits; a look costs 15 µs and more, and is had while somebody waits, for a small part of the time.
What is known is an interval: between the last look at which it waited and the first sign that it does not.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

from udsproxy.endpoints import Socket
from udsproxy.kernel.sock_diag import SockDiag
from udsproxy.protocols.decoder import AcceptWait

FIRST_NS = 200_000
"""The age at which it is first looked whether a connection was accepted; more where nobody is seen to wait."""
MOST_FIRST_NS = 4_000_000
LAST_NS = 5_000_000
"""How long at most until the next look, while somebody waits and no connection ends."""
_FREED_NS = 50_000
"""A worker whose connection has ended takes the next after about so long."""
_FEW = 64
_LONG_NS = 500_000
"""One look goes on for about so long at most."""
_SHARE, _FREED_SHARE = 10, 5
"""The time between two looks, in times of what the last one took: at least so much, and where a connection ends."""


class Waiting(Protocol):
    """A connection."""

    @property
    def left_queue(self) -> bool:
        """It was answered, or has ended."""
        ...

    @property
    def answered(self) -> bool:
        """So it was accepted."""
        ...

    @property
    def wait(self) -> AcceptWait | None: ...

    @property
    def upstream(self) -> Socket: ...


class Waits:
    """See the module."""

    def __init__(self, call_at: Callable[[int, Callable[[int], None]], object], diag: SockDiag | None) -> None:
        """``call_at``: the relay's. ``diag``: None where the kernel has none."""
        self._call_at = call_at
        self._queue: deque[Waiting] = deque()
        self.accepted: Callable[[Waiting], None] | None = None
        """Is told of each that was seen to be accepted; None: nobody wants to know, and it is not looked."""
        self._diag = diag
        self.counted = False
        """Somebody wants to know how many may wait."""
        self._kept = _FEW
        self._look_at = 0
        """When the next look is due; of calls that were asked for, only this one counts. 0: none is."""
        self._freed_from = 0
        self._first = FIRST_NS
        self._pause = FIRST_NS
        self._looked_at = 0
        """Nobody who was here then, and still is, had been accepted (ns)."""
        self._since: int | None = None
        self._ahead_since: int | None = None
        self.crowded: Callable[[], None] | None = None
        """Is called when somebody begins to wait where nobody did."""

    @property
    def since(self) -> int | None:
        """Since when (ns) the queue is known not to have been empty."""
        known = [at for at in (self._since, self._ahead_since) if at is not None]
        return min(known) if known else None

    def wait_ahead(self, since: int | None) -> None:
        """Somebody for whom a connection was made ahead waits, since then (`udsproxy.proxy.mirror`); or nobody."""
        begins = since is not None and self.since is None
        if since is None or self._ahead_since is None:
            self._ahead_since = since
        if begins and self.crowded is not None:
            self.crowded()

    def __len__(self) -> int:
        """How many may wait."""
        return len(self._queue)

    def add(self, connection: Waiting) -> None:
        """It has been made just now."""
        if self.accepted is None and not self.counted:
            return
        self.prune()
        self._queue.append(connection)
        if len(self._queue) > 2 * self._kept:
            self.prune_all()
            self._kept = max(_FEW, len(self._queue))
        if not self._look_at and self.accepted is not None and self._diag is not None:
            self._look_when(monotonic_ns() + self._first)

    def freed(self) -> None:
        """A connection has ended: a worker takes the next now."""
        if self._since is not None and self._look_at:
            at = max(monotonic_ns() + _FREED_NS, self._freed_from)
            if at < self._look_at:
                self._pause = FIRST_NS
                self._look_when(at)

    def has_answer(self, wait: AcceptWait) -> bool:
        """An answer of a connection is decoded, or it has ended. Returns whether its wait is worth telling."""
        if not wait.ended and self._looked_at > wait.connected_at:
            wait.end(self._looked_at, monotonic_ns())  # it waited when we looked; `prune` has not come to it yet
        return self.accepted is not None and wait.was_seen

    def _look_when(self, at: int) -> None:
        self._look_at = at
        self._call_at(at, self._look)

    def prune(self) -> None:
        """Forget those who have left. (At once, not when there are many: what is kept alive here is memory that
        others cannot use again.)"""
        queue = self._queue
        while queue and queue[0].left_queue:
            self._leaves(queue.popleft(), None)

    def prune_all(self) -> None:
        """`prune`, also behind one who has not left. (Who has ended may not have been accepted.)"""
        queue = self._queue
        self._queue = deque(each for each in queue if not each.left_queue)
        for each in queue:
            if each.left_queue:
                self._leaves(each, None)

    def keep(self, count: int) -> None:
        """So many wait at most, now: the last ones."""
        now = monotonic_ns()
        while len(self._queue) > count:
            self._leaves(self._queue.popleft(), now)

    def _leaves(self, connection: Waiting, seen_at: int | None) -> None:
        """``seen_at``: when it was seen that it does not wait, where its own bytes do not say that."""
        wait = connection.wait
        if wait is None:
            return
        if seen_at is None and self._looked_at > wait.connected_at and connection.answered:
            seen_at = monotonic_ns()  # it waited when we looked, and was answered meanwhile
        wait.end(self._looked_at, seen_at)
        if seen_at is not None and self.accepted is not None and not wait.told:
            self.accepted(connection)

    def _look(self, at: int) -> None:
        if at != self._look_at:
            return
        began = monotonic_ns()
        self.prune_all()
        queue = self._queue
        if not queue:
            self._look_at = 0
            self._since = None
            self._first = min(self._first + self._first // 4, MOST_FIRST_NS)
            return
        wait = queue[0].wait
        young = 0 if wait is None else wait.connected_at + self._first - began
        if young > 0:
            self._look_when(began + young)
            return
        accepted = self._count_accepted()
        # Where nobody waits, answers only take longer than that: it is looked later, and mostly not at all.
        self._first = FIRST_NS if accepted < len(queue) else min(2 * self._first, MOST_FIRST_NS)
        now = monotonic_ns()
        for _ in range(accepted):
            self._leaves(queue.popleft(), now)
        before, self._looked_at = self._looked_at, began
        if not queue:
            self._since = None
        elif self._since is None or (queue[0].wait is not None and queue[0].wait.connected_at > before):
            # (Who was there at the last look has left: it may have been empty meanwhile.)
            begins, first = self._since is None, queue[0].wait
            self._since = began if first is None else first.connected_at
            if begins and self.crowded is not None:
                self.crowded()
        self._pause = FIRST_NS if accepted else min(self._pause + self._pause // 2, LAST_NS)
        self._freed_from = now + _FREED_SHARE * (now - began)
        self._look_when(now + max(self._pause, _SHARE * (now - began)))

    def _count_accepted(self) -> int:
        """How many of the first."""
        queue = self._queue
        known, beyond = 0, 1  # so many are accepted; is the one before this?
        while beyond <= len(queue) and self._is_accepted(queue[beyond - 1]):
            known, beyond = beyond, 2 * beyond
        beyond = min(beyond, len(queue) + 1)
        until = monotonic_ns() + _LONG_NS
        while beyond - known > 1 and monotonic_ns() < until:
            middle = (known + beyond) // 2
            if self._is_accepted(queue[middle - 1]):
                known = middle
            else:
                beyond = middle
        return known

    def _is_accepted(self, connection: Waiting) -> bool:
        if self._diag is not None:
            with contextlib.suppress(OSError):
                return bool(self._diag.peer_of(os.fstat(connection.upstream.fileno()).st_ino))
        return False
