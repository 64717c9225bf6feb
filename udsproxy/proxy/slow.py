"""Exchanges that take long: when each is to be looked at, and what is told of it.

Rules: there is one clock, from the client's connect(); who still waits in the queue is told of by it too. An
exchange is looked at when it is half as old as the limit (so that the next look can say for how long it has been
so), and told of when it is as old, and two, four, eight times. Finding them takes a small part of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns

from udsproxy.events import Doing, Event, Slow, Snapshot, Worker
from udsproxy.inspection.workers import Sample
from udsproxy.protocols.decoder import Pending
from udsproxy.proxy.connection import Connection, Connections

MAX_ASKED = 200
"""Connections that one question names: the oldest exchanges, and who has been accepted last."""
_TICK_S = 0.25
_SHARE = 20
"""The time between two scans, in times of what the last one took, at least."""

Due = list[tuple[Connection, Pending, bool]]
"""Exchanges, and whether they are to be told of."""


class SlowOnes:
    """Of one proxy."""

    def __init__(
        self,
        proxy: str,
        slow_s: float,
        connections: Connections,
        put: Callable[[Event], None],
        queued: Callable[[int], list[tuple[int, int]]],
    ) -> None:
        """``queued``: who came before a time (ns) and has not been accepted: number, and since when."""
        self._proxy = proxy
        self._slow_s = slow_s
        self._connections = connections
        self._put = put
        self._queued = queued
        self._look_at = 0
        """When it is next looked which exchanges take long (ns)."""
        self._next: dict[tuple[int, int | None, int], float] = {}
        """The age (s) at which an exchange is looked at next; request None: one that is in the queue."""
        self.pause_s = max(0.01, slow_s / 4)
        """How soon after a look there may be something new."""

    def due(self, now: int) -> Due:
        """The exchanges that are to be looked at now, oldest first. Who is in the queue is told of at once."""
        if now < self._look_at:
            return []
        still: dict[tuple[int, int | None, int], float] = {}
        self._tell_queued(now, still)
        before = now - int(self._slow_s / 2 * 1e9)
        due: list[tuple[int, Connection, int]] = []
        for connection in self._connections.open_ones():
            for began_at, request in connection.begun(before):
                key = (connection.number, request, began_at)
                still[key] = self._next.get(key, self._slow_s / 2)
                if (now - began_at) / 1e9 >= still[key]:
                    due.append((began_at, connection, request))
        due.sort(key=lambda each: each[0])
        found: Due = []
        for began_at, connection, request in due[:MAX_ASKED]:
            age_s = (now - began_at) / 1e9
            still[connection.number, request, began_at] = self._next_age_s(age_s)
            pending = connection.pending(request)
            if pending is not None:
                found.append((connection, pending, age_s >= self._slow_s))
        self._next = still
        took = monotonic_ns() - now
        self._look_at = now + max(int(min(self._slow_s / 4, _TICK_S) * 1e9), _SHARE * took)
        return found

    def _next_age_s(self, age_s: float) -> float:
        at_s = self._slow_s
        while at_s <= age_s:
            at_s *= 2
        return at_s

    def _tell_queued(self, now: int, still: dict[tuple[int, int | None, int], float]) -> None:
        for number, since in self._queued(now - int(self._slow_s * 1e9))[:MAX_ASKED]:
            key, age_s = (number, None, since), (now - since) / 1e9
            still[key] = self._next.get(key, self._slow_s)
            if age_s >= still[key]:
                still[key] = self._next_age_s(age_s)
                snapshot = Snapshot(at_s=age_s, queued=True)
                self._put(Slow(at=now, proxy=self._proxy, conn=number, snapshot=snapshot))

    def tell(self, due: Due, sample: Sample | None) -> None:
        """What was seen of these."""
        found = by_connection(sample)
        for connection, pending, is_told in due:
            if not is_told or sample is None or connection.ended:
                continue
            still = connection.pending(pending.request)
            if still is None or still.began_at != pending.began_at:
                continue  # it was answered while we looked
            now = monotonic_ns()
            worker, doing = found.get(connection.number, (None, None))
            snapshot = Snapshot(
                at_s=(now - pending.began_at) / 1e9,
                queued=connection.number in sample.waiting,
                accept_wait_s=connection.accept_wait_s(pending.began_at),
                worker=worker,
                doing=doing,
            )
            connection.snapshot(pending.request, snapshot)
            self._put(
                Slow(
                    at=now,
                    proxy=self._proxy,
                    conn=connection.number,
                    request=pending.request,
                    method=pending.method,
                    uri=pending.uri,
                    script=pending.script,
                    snapshot=snapshot,
                )
            )


def by_connection(sample: Sample | None) -> dict[int, tuple[Worker | None, Doing | None]]:
    """Who has each connection that was asked for, and what that one does."""
    if sample is None:
        return {}
    return {
        number: (Worker(worker.pid, worker.comm, worker.inner_pid), worker.doing)
        for worker in sample.workers
        for number in worker.connections
    }
