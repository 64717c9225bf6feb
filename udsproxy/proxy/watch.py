"""What a proxy watches for: exchanges that take long, incidents, and who has accepted a connection.

Rules: it is a task, and only looks: at the connections, by way of the observer at the server's processes, and at
nginx's log where there is one. Where there is nothing to see it wakes a few times a second. What an incident is, is
decided in `udsproxy.proxy.incidents`.
"""

from __future__ import annotations

import os
from collections import deque
from time import monotonic_ns
from typing import Protocol

import trio
from msgspec.structs import replace

from udsproxy.config import ProxyConfig
from udsproxy.events import Close, Event, InFlight, Request
from udsproxy.inspection.workers import Ask, Sample
from udsproxy.protocols.tap import Tap
from udsproxy.proxy.connection import Connection, Connections
from udsproxy.proxy.doors import Limits
from udsproxy.proxy.incidents import Incidents
from udsproxy.proxy.nginx_log import NginxLog
from udsproxy.proxy.observer import Observer
from udsproxy.proxy.slow import MAX_ASKED, SlowOnes, by_connection
from udsproxy.proxy.waits import Waiting
from udsproxy.sinks.text import WallClock

_MAX_IN_FLIGHT = 500
"""Exchanges that are looked at for an incident."""
_TICK_S = 0.25
_FIRST_LOOK_S, _LAST_LOOK_S = 0.1, 1.0
"""Between two looks at the workers in an incident: a tenth of its age, within these."""
_ASKED_NS = 2_000_000_000
"""So often the observer is asked for refusals at least: it counts no longer where nobody asks."""
_SHARE, _LOOK_SHARE = 100, 5
"""The time between two looks, in times of what the last one took, at least: who has accepted; what workers do."""
_LAST_LOG_S = 1.0
"""How long an incident's end waits for the rest of nginx's log."""
_LATE_LOG_S = 0.05
"""nginx may write so long after its client was refused."""
_CUT = {"upstream closed": "closed", "reset by upstream": "reset"}
"""What the upstream did to an exchange, by why that is incomplete."""


class Door(Protocol):
    """Where clients come in, as it is now."""

    @property
    def is_gone(self) -> bool: ...

    @property
    def own_inode(self) -> int: ...

    def upstream_inode(self) -> int: ...

    def queued(self, before: int) -> list[tuple[int, int]]: ...

    def limits(self) -> Limits | None: ...


class Watch:
    """Of one proxy."""

    def __init__(
        self,
        config: ProxyConfig,
        connections: Connections,
        tap: Tap,
        observer: Observer,
        door: Door,
        log: NginxLog | None = None,
    ) -> None:
        """``log``: nginx's."""
        self._proxy = config.name
        self._connections = connections
        self._tap = tap
        self._observer = observer
        self._door = door
        self._woken = trio.Event()
        self._accepted: deque[Connection] = deque(maxlen=MAX_ASKED)
        """Of whom it is to be told which worker has accepted them."""
        self._slow: SlowOnes | None = None
        if config.slow_s is not None:
            self._slow = SlowOnes(config.name, config.slow_s, connections, tap.put, door.queued)
        self._incidents: Incidents | None = None
        if config.incident_s is not None:
            limit_ns, clock = int(config.incident_s * 1e9), WallClock()
            self._incidents = Incidents(config.name, limit_ns, clock.rfc3339, hidden=os.geteuid() != 0)
        self._log = log
        self._look_at = 0
        """When the workers are looked at next, in an incident (ns)."""
        self._took_s = 0.0
        """How long the last look took."""
        self._asked_at = -_ASKED_NS
        """When the observer last answered."""
        self._identify_at = 0
        connections.waits.accepted = self._is_accepted
        connections.waits.crowded = self._wake
        connections.on_end = self._has_ended
        tap.watchers[config.name] = self._is_told

    # --- calls from the traffic's side, and from the tap's: they only take note ---

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

    def _is_told(self, event: Event) -> None:
        """An exchange or a connection has ended. (Only what was decoded says whether an answer was owed.)"""
        if self._incidents is None:
            return
        if isinstance(event, Request):
            if not self._incidents.is_quiet and event.conn is not None:
                self._incidents.exchange(_ended(event, event.conn))
            if event.incomplete is None:
                return
            if event.incomplete == "client left":
                self._incidents.left()
            elif (how := _CUT.get(event.incomplete)) is not None:
                self._meet(
                    f"{how} before the answer's end" if event.ttfb_s is not None else f"{how} without an answer"
                )
        elif isinstance(event, Close) and event.errno is not None and event.by == "upstream" and not event.requests:
            self._meet(f"connection ended by {event.errno}")

    def error(self, what: str) -> None:
        """A client meets this."""
        self._meet(what)

    def _meet(self, what: str) -> None:
        if self._incidents is not None:
            self._incidents.error(what, monotonic_ns())
            self._wake()

    def level(self, queue: int, backlog: int) -> None:
        """So many clients wait for the upstream; more than the backlog: it takes nobody more."""
        if self._incidents is not None and self._incidents.level(monotonic_ns(), queue, backlog):
            self._wake()

    def _wake(self) -> None:
        self._woken.set()

    # --- the task ---

    async def run(self) -> None:
        """Until cancelled; an incident that is not over then is told as it is."""
        try:
            async with trio.open_nursery() as nursery:
                if self._log is not None:
                    nursery.start_soon(self._follow, self._log)
                while True:
                    await self._look()
                    with trio.move_on_after(self._pause_s()):
                        await self._woken.wait()
                    self._woken = trio.Event()
        except Exception as error:
            # A bug here costs what it would have told, and no traffic.
            self._connections.waits.accepted = self._connections.waits.crowded = None
            self._connections.on_end = None
            self._tap.watchers.pop(self._proxy, None)
            self._log = None  # (it may be that which failed)
            found = error
            while isinstance(found, ExceptionGroup):
                found = found.exceptions[0]
            self._observer.tell_failure(f"{type(found).__name__}: {found}", "BUG")
        finally:
            while self._accepted:
                self._accepted.popleft().tell_accepted(None)
            if self._incidents is not None:
                await self._end(self._incidents)

    async def _follow(self, log: NginxLog) -> None:
        """Read nginx's log as it grows."""
        while True:
            await self._read_log(log)
            await trio.sleep(_TICK_S)

    async def _read_log(self, log: NginxLog) -> None:
        """To its end."""
        incidents = self._incidents
        async for number, count, at in log.read():
            if incidents is not None:
                incidents.logged(number, count, at)
                if not incidents.is_open:
                    self._wake()
        if log.take_left_out() and incidents is not None:
            incidents.left_out()

    async def _read_last(self, log: NginxLog, incidents: Incidents, wait_s: float) -> None:
        """To its end, but not for long; ``wait_s``: what is written so soon after it counts too."""
        with trio.move_on_after(_LAST_LOG_S) as scope:
            await self._read_log(log)
            await trio.sleep(wait_s)
            await self._read_log(log)
        if scope.cancelled_caught:
            incidents.left_out()

    async def _end(self, incidents: Incidents) -> None:
        """We end: an incident that goes on is told as it is."""
        if self._log is not None:
            with trio.CancelScope(shield=True):
                await self._read_last(self._log, incidents, _LATE_LOG_S)
        now, active = monotonic_ns(), self._connections.active
        if incidents.step(now):
            self._tap.put(incidents.begun(now, active))
        if incidents.is_open:
            self._tap.put(incidents.ended(now, active))

    def _pause_s(self) -> float:
        pauses = [_TICK_S]
        if self._slow is not None:
            pauses.append(self._slow.pause_s)
        if (incidents := self._incidents) is not None:
            if incidents.is_open:
                pauses.append(_FIRST_LOOK_S / 2)
            elif self._connections.waits.since is not None:
                pauses.append(max(0.005, incidents.limit_ns / 4e9))
        if self._accepted:
            pauses.append(max(0.0, (self._identify_at - monotonic_ns()) / 1e9))
        return min(pauses)

    async def _look(self) -> None:
        now = monotonic_ns()
        incidents = self._incidents
        slow = [] if self._slow is None else self._slow.due(now)
        starts = ends = continues = is_due = False
        if incidents is not None:
            incidents.waited(self._connections.waits.since, now)
            if self._door.is_gone:
                incidents.goes_on(now)
            ends = incidents.is_ending(now)
            starts = not ends and incidents.step(now)
            continues = incidents.is_open and not ends and now >= self._look_at
            is_due = now - self._asked_at > _ASKED_NS
        looked = bool(slow or starts or continues)
        identify = list(self._accepted) if looked or now >= self._identify_at else []
        if not (looked or identify or ends or is_due):
            return
        asked = {each.number: each for each, _, _ in slow} | {each.number: each for each in identify}
        sample = await self._ask(asked, looked=looked, stack=bool(slow))
        if looked or identify:  # (else it was asked for refusals alone, the first time when it starts)
            took = monotonic_ns() - now
            self._took_s = took / 1e9
            self._identify_at = now + (_SHARE + 1) * took
        workers = by_connection(sample)
        for each in identify:
            if each in self._accepted:
                self._accepted.remove(each)
                each.tell_accepted(workers.get(each.number, (None, None))[0])
        if self._slow is not None:
            self._slow.tell(slow, sample)
        if incidents is not None:
            await self._go_on(incidents, sample if starts or continues else None, starts=starts, ends=ends)

    async def _ask(self, asked: dict[int, Connection], *, looked: bool, stack: bool) -> Sample | None:
        """``looked``: at what the workers do."""
        named = []
        for number, connection in list(asked.items())[:MAX_ASKED]:
            if not connection.ended:
                named.append((number, os.fstat(connection.upstream.fileno()).st_ino))
        sample = await self._observer.ask(
            Ask(
                number=0,
                proxy=self._proxy,
                listener=self._door.upstream_inode() if looked or named else 0,
                connections=tuple(named),
                doing=looked,
                stack=stack,
                count_refusals=self._incidents is not None,
                door=self._door.own_inode,
                clients=tuple(self._connections.clients()),
            )
        )
        if sample is not None and (limits := self._door.limits()) is not None:
            sample = as_limited(sample, limits)
        now = monotonic_ns()
        self._asked_at = now if sample is not None else now - _ASKED_NS + int(_TICK_S * 1e9)
        if self._incidents is not None:
            self._incidents.answered(now, sample)
        return sample

    # --- incidents ---

    async def _go_on(self, incidents: Incidents, sample: Sample | None, *, starts: bool, ends: bool) -> None:
        if not starts and not ends and incidents.step(monotonic_ns()):
            # It begins with refusals that were told just now.
            starts = True
            sample = await self._ask({}, looked=True, stack=False)
        now = monotonic_ns()
        if sample is not None:
            incidents.sample(now, sample, self._in_flight(now))
            pause_s = max(
                min(max(incidents.age_s(now) / 10, _FIRST_LOOK_S), _LAST_LOOK_S), _LOOK_SHARE * self._took_s
            )
            self._look_at = now + int(pause_s * 1e9)
        if starts:
            self._tap.put(incidents.begun(now, self._connections.active))
        if ends:
            if self._log is not None:
                await self._read_last(self._log, incidents, 0)
            now = monotonic_ns()
            if incidents.is_ending(now):
                self._tap.put(incidents.ended(now, self._connections.active))

    def _in_flight(self, now: int) -> list[InFlight]:
        """Oldest first, and not more than `_MAX_IN_FLIGHT`."""
        begun = [
            (began_at, connection.number, request, connection)
            for connection in self._connections.open_ones()
            for began_at, request in connection.begun(now)
        ]
        begun.sort(key=lambda each: each[:3])
        found = []
        for began_at, number, request, connection in begun[:_MAX_IN_FLIGHT]:
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
                        accept_wait_s=connection.accept_wait_s(began_at),
                    )
                )
        return found


def as_limited(sample: Sample, limits: Limits) -> Sample:
    """As a server with these limits would show it."""
    workers = sorted(sample.workers, key=lambda worker: not worker.is_busy)[: limits.workers]  # (None: all)
    return replace(sample, queue=limits.queue, backlog=limits.backlog, workers=tuple(workers))


def _ended(event: Request, conn: int) -> InFlight:
    return InFlight(
        conn=conn,
        request=event.request,
        method=event.method,
        uri=event.uri,
        script=event.script,
        age_s=event.total_s,
        accept_wait_s=event.accept_wait_s,
    )
