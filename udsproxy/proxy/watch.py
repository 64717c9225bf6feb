"""What a proxy watches for: exchanges that take long, incidents, and who has accepted a connection.

Rules: it is a task, and only looks: at the connections, and by way of the observer at the server's processes. Where
there is nothing to see it wakes a few times a second.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from time import monotonic_ns

import trio

from udsproxy.events import Doing, InFlight, Slow, Snapshot, Worker
from udsproxy.inspection.workers import Ask, Sample
from udsproxy.protocols.decoder import Pending
from udsproxy.protocols.tap import Tap
from udsproxy.proxy.connection import Connection, Connections
from udsproxy.proxy.incident import Gathered
from udsproxy.proxy.observer import Observer
from udsproxy.proxy.waits import Waiting
from udsproxy.sinks.text import WallClock

_MOST_ASKED = 200
"""Connections that one question names: the oldest exchanges, and who has been accepted last."""
_MOST_IN_FLIGHT = 500
"""Exchanges that are looked at for an incident."""
_TICK_S = 0.25
_FIRST_LOOK_S, _LAST_LOOK_S = 0.1, 1.0
"""Between two looks at the workers in an incident: a tenth of its age, within these."""
_QUIET_S = 1.0
"""An incident is over when nobody has waited, and nobody met an error, for so long."""
_COUNT_NS = 2_000_000_000
"""How long refusals are counted once somebody has waited: to begin with that touches every processor. So often the
observer is asked meanwhile, which ends it otherwise."""
_SHARE, _LOOK_SHARE, _SCAN_SHARE = 100, 5, 20
"""The time between two looks, in times of what the last one took, at least: who has accepted; what workers do;
which exchanges take long."""


class Watch:
    """Of one proxy."""

    def __init__(
        self,
        proxy: str,
        connections: Connections,
        tap: Tap,
        observer: Observer,
        listener: Callable[[], int],
        is_gone: Callable[[], bool],
        slow_s: float | None,
        incident_s: float | None,
    ) -> None:
        """``listener``: the inode of the upstream's, 0 where it is not known. ``is_gone``: clients are refused
        because the upstream is not there. None: that is not watched for."""
        self._is_gone = is_gone
        self._proxy = proxy
        self._connections = connections
        self._tap = tap
        self._observer = observer
        self._listener = listener
        self._slow_s = slow_s
        self._incident_s = incident_s
        self._clock = WallClock()
        self._woken = trio.Event()
        self._accepted: deque[Connection] = deque(maxlen=_MOST_ASKED)
        """Of whom it is to be told which worker has accepted them."""
        self._slow_at = 0
        """When it is next looked which exchanges take long (ns)."""
        self._next: dict[tuple[int, int, int], float] = {}
        """The age (s) at which an exchange is looked at next."""
        self._incident: Gathered | None = None
        self._look_at = 0
        """When the workers are looked at next, in an incident (ns)."""
        self._took_s = 0.0
        """How long the last look took."""
        self._counting: bool | None = False
        """The observer counts refusals; None: it has not answered, and may or may not."""
        self._asked_at = 0
        self._refused = 0
        """Before there was an incident."""
        self._crowded_at = 0
        self._identify_at = 0
        self.errors: deque[tuple[str, int]] = deque(maxlen=_MOST_ASKED)
        """What clients met, and when, that has not been looked at."""
        connections.waits.accepted = self._is_accepted
        connections.waits.crowded = self._wake
        connections.on_end = self._has_ended

    # --- calls from the traffic's side: they only take note ---

    def _is_accepted(self, connection: Waiting) -> None:
        assert isinstance(connection, Connection)
        if len(self._accepted) == self._accepted.maxlen:
            self._accepted.popleft().tell_accepted(None)
        self._accepted.append(connection)
        if monotonic_ns() >= self._identify_at:
            self._wake()

    def _has_ended(self, connection: Connection) -> None:
        if connection.wait is not None and connection in self._accepted:
            self._accepted.remove(connection)
            connection.tell_accepted(None)
        if connection.left == "upstream" and connection.c2s.nbytes and not connection.s2c.nbytes:
            self.error("reset before an answer" if connection.errno == "ECONNRESET" else "closed without an answer")

    def error(self, what: str) -> None:
        """A client meets this."""
        if self._incident_s is not None:
            self.errors.append((what, monotonic_ns()))
            self._wake()

    def _wake(self) -> None:
        self._woken.set()

    # --- the task ---

    async def run(self) -> None:
        """Until cancelled; an incident that is not over then is told as it is."""
        try:
            while True:
                with trio.move_on_after(self._pause_s()):
                    await self._woken.wait()
                self._woken = trio.Event()
                await self._look()
        except Exception as error:
            # A bug here costs what it would have told, and no traffic.
            self._connections.waits.accepted = self._connections.waits.crowded = None
            self._connections.on_end = None
            self._observer.tell_failure(f"BUG: {type(error).__name__}: {error}")
        finally:
            now = monotonic_ns()
            while self._accepted:
                self._accepted.popleft().tell_accepted(None)
            if self._incident is not None:
                active = self._connections.active
                self._tap.put(self._incident.event(now, self._proxy, active, is_over=True))

    def _pause_s(self) -> float:
        pauses = [_TICK_S]
        if self._slow_s is not None:
            pauses.append(max(0.01, self._slow_s / 4))
        if self._incident is not None:
            pauses.append(_FIRST_LOOK_S / 2)
        elif self._connections.waits.since is not None and self._incident_s is not None:
            pauses.append(max(0.005, self._incident_s / 4))
        if self._accepted:
            pauses.append(max(0.0, (self._identify_at - monotonic_ns()) / 1e9))
        return min(pauses)

    async def _look(self) -> None:
        now = monotonic_ns()
        slow = self._slow_ones(now)
        starts = self._incident is None and self._starts(now)
        continues = self._incident is not None and now >= self._look_at
        identify = list(self._accepted) if self._accepted and now >= self._identify_at else []
        crowded = self._incident_s is not None and self._is_crowded(now)
        sample = None
        is_due = crowded and now - self._asked_at > _COUNT_NS
        if slow or starts or continues or identify or crowded != self._counting or is_due:
            asked = {each.number: each for each, _, _ in slow} | {each.number: each for each in identify}
            doing = bool(slow or starts or continues)
            sample = await self._ask(asked, doing=doing, stack=bool(slow), count=crowded)
            self._counting, self._asked_at = None if sample is None else crowded, now
            if sample is not None and sample.refused and self._incident is None and not doing:
                # It begins with those.
                self._refused += sample.refused
                starts = True
                sample = await self._ask(asked, doing=True, stack=False, count=True) or sample
            took = monotonic_ns() - now
            self._took_s = took / 1e9
            self._identify_at = now + (_SHARE + 1) * took
        workers = _by_connection(sample)
        for each in identify:
            if each in self._accepted:
                self._accepted.remove(each)
                each.tell_accepted(workers.get(each.number, (None, None))[0])
        for connection, pending, is_told in slow:
            self._tell_slow(connection, pending, sample, is_told=is_told)
        self._go_on(monotonic_ns(), starts, sample, looked=starts or continues)

    async def _ask(self, asked: dict[int, Connection], *, doing: bool, stack: bool, count: bool) -> Sample | None:
        named = []
        for number, connection in list(asked.items())[:_MOST_ASKED]:
            if not connection.ended:
                named.append((number, os.fstat(connection.upstream.fileno()).st_ino))
        return await self._observer.ask(
            Ask(
                number=0,
                proxy=self._proxy,
                listener=self._listener(),
                connections=tuple(named),
                doing=doing,
                stack=stack,
                count_refusals=count,
                clients=tuple(self._connections.clients()),
            )
        )

    # --- slow ---

    def _slow_ones(self, now: int) -> list[tuple[Connection, Pending, bool]]:
        """The exchanges that are to be looked at now, oldest first, and whether that is to be told: the first look
        is early, so that the next can say for how long it has been so."""
        if self._slow_s is None or now < self._slow_at:
            return []
        before = now - int(self._slow_s / 2 * 1e9)
        still: dict[tuple[int, int, int], float] = {}
        due: list[tuple[int, Connection, int]] = []
        for connection in self._connections.open_ones():
            for began_at, request in connection.begun(before):
                key = (connection.number, request, began_at)
                still[key] = self._next.get(key, self._slow_s / 2)
                if (now - began_at) / 1e9 >= still[key]:
                    due.append((began_at, connection, request))
        due.sort(key=lambda each: each[0])
        found = []
        for began_at, connection, request in due[:_MOST_ASKED]:
            age_s, at_s = (now - began_at) / 1e9, self._slow_s
            while at_s <= age_s:
                at_s *= 2
            still[connection.number, request, began_at] = at_s
            pending = connection.pending(request)
            if pending is not None:
                found.append((connection, pending, age_s >= self._slow_s))
        self._next = still
        took = monotonic_ns() - now
        self._slow_at = now + max(int(min(self._slow_s / 4, _TICK_S) * 1e9), _SCAN_SHARE * took)
        return found

    def _tell_slow(self, connection: Connection, pending: Pending, sample: Sample | None, *, is_told: bool) -> None:
        if not is_told or sample is None or connection.ended:
            return
        still = connection.pending(pending.request)
        if still is None or still.began_at != pending.began_at:
            return  # it was answered while we looked
        now = monotonic_ns()
        worker, doing = _by_connection(sample).get(connection.number, (None, None))
        snapshot = Snapshot(
            at_s=(now - pending.began_at) / 1e9,
            queued=connection.number in sample.waiting,
            worker=worker,
            doing=doing,
        )
        connection.snapshot(pending.request, snapshot)
        self._tap.put(
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

    # --- incidents ---

    def _is_crowded(self, now: int) -> bool:
        """Clients may be refused soon, or were lately."""
        if self._connections.waits.since is not None or self._incident is not None:
            self._crowded_at = now
        return self._crowded_at > 0 and now - self._crowded_at < _COUNT_NS

    def _starts(self, now: int) -> bool:
        if self._incident_s is None:
            return False
        since = self._connections.waits.since
        return bool(self.errors or self._refused or (since is not None and (now - since) / 1e9 >= self._incident_s))

    def _go_on(self, now: int, starts: bool, sample: Sample | None, *, looked: bool) -> None:
        incident, waits = self._incident, self._connections.waits
        counted = 0 if sample is None else sample.refused or 0
        if incident is None:
            self._refused += counted
            if not starts:
                return
            times = [at for _, at in self.errors] + ([waits.since] if waits.since is not None else [])
            began_at = min(times, default=now)
            incident = self._incident = Gathered(began_at, self._clock.rfc3339(began_at), hidden=os.geteuid() != 0)
            counted, self._refused = self._refused, 0
        while self.errors:
            incident.error(*self.errors.popleft())
        if waits.since is not None or self._is_gone():
            incident.seen_at = now
        if sample is not None:
            if self._counting or counted:
                incident.refusals(counted if sample.refused is not None else None, sample.why_not, now)
            if looked:
                incident.sample(now, sample, self._in_flight(now))
                age_s = (now - incident.began_at) / 1e9
                pause_s = max(min(max(age_s / 10, _FIRST_LOOK_S), _LAST_LOOK_S), _LOOK_SHARE * self._took_s)
                self._look_at = now + int(pause_s * 1e9)
        if starts:
            self._tap.put(incident.event(now, self._proxy, self._connections.active, is_over=False))
        elif (now - incident.seen_at) / 1e9 > _QUIET_S:
            self._incident = None
            self._tap.put(incident.event(now, self._proxy, self._connections.active, is_over=True))

    def _in_flight(self, now: int) -> list[InFlight]:
        """Oldest first, and not more than `_MOST_IN_FLIGHT`."""
        begun = [
            (began_at, connection.number, request, connection)
            for connection in self._connections.open_ones()
            for began_at, request in connection.begun(now)
        ]
        begun.sort(key=lambda each: each[:3])
        found = []
        for began_at, number, request, connection in begun[:_MOST_IN_FLIGHT]:
            pending = connection.pending(request)
            if pending is not None:
                found.append(
                    InFlight(
                        conn=number,
                        request=request,
                        method=pending.method,
                        uri=pending.uri,
                        script=pending.script,
                        age_s=(now - began_at) / 1e9,
                    )
                )
        return found


def _by_connection(sample: Sample | None) -> dict[int, tuple[Worker | None, Doing | None]]:
    """Who has each connection that was asked for, and what that one does."""
    if sample is None:
        return {}
    return {
        number: (Worker(worker.pid, worker.comm, worker.inner_pid), worker.doing)
        for worker in sample.workers
        for number in worker.connections
    }
