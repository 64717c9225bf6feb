"""When an incident begins and ends: the signs that a proxy sees, and what becomes of them.

Signs: somebody waits; somebody met what makes it an incident (the queue was full, somebody waited for long, was
refused, or met an error); nothing of that; nothing of that for `QUIET_NS`. What is seen is gathered from the first
of them on, so that an incident has its true beginning, and thrown away where nothing came of it.

Rules: sans I/O, and no clock: times are given, in ns. The phases are a table.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from udsproxy.events import Incident, InFlight
from udsproxy.inspection.workers import Sample
from udsproxy.proxy.incident import Gathered

QUIET_NS = 1_000_000_000
"""An incident is over when there was no sign for so long: bursts that are nearer to each other are one."""
_MAX_LEFT = 1000


class Phase(enum.Enum):
    """Where we are."""

    QUIET = enum.auto()
    GATHERING = enum.auto()
    """Somebody waits."""
    OPEN = enum.auto()


class Sign(enum.Enum):
    """What is seen."""

    WAITING = enum.auto()
    MET = enum.auto()
    NOTHING = enum.auto()
    OVER = enum.auto()


PHASES: dict[tuple[Phase, Sign], Phase] = {
    (Phase.QUIET, Sign.WAITING): Phase.GATHERING,
    (Phase.QUIET, Sign.MET): Phase.OPEN,
    (Phase.QUIET, Sign.NOTHING): Phase.QUIET,
    (Phase.QUIET, Sign.OVER): Phase.QUIET,
    (Phase.GATHERING, Sign.WAITING): Phase.GATHERING,
    (Phase.GATHERING, Sign.MET): Phase.OPEN,
    (Phase.GATHERING, Sign.NOTHING): Phase.QUIET,
    (Phase.GATHERING, Sign.OVER): Phase.QUIET,
    (Phase.OPEN, Sign.WAITING): Phase.OPEN,
    (Phase.OPEN, Sign.MET): Phase.OPEN,
    (Phase.OPEN, Sign.NOTHING): Phase.OPEN,
    (Phase.OPEN, Sign.OVER): Phase.QUIET,
}


class Incidents:
    """Of one proxy."""

    def __init__(
        self, proxy: str, limit_ns: int, since_text: Callable[[int], str], *, hidden: bool = False
    ) -> None:
        """``limit_ns``: somebody may wait for so long. ``since_text``: a time for people. ``hidden``: as of
        `Gathered`."""
        self._proxy = proxy
        self.limit_ns = limit_ns
        self._since_text = since_text
        self._hidden = hidden
        self.phase = Phase.QUIET
        self._gathered: Gathered | None = None
        self._met = False
        """Since `step` was last called somebody met what makes an incident."""
        self._told = False
        """It was told that it has begun."""
        self._waiting = False
        self._full = False
        """The queue is, as far as it was told."""
        self._lasts = False
        """Somebody met what makes an incident, and the queue was never empty since: who waits is a part of it."""
        self._counted_from: int | None = None
        """Since when the kernel has counted refusals for us."""
        self._counted_to = 0
        """Until when these are known."""
        self._why_not: str | None = None
        """Why they are not."""
        self._left_unanswered = 0
        """Clients that have left, since it was last seen that no worker holds the connection of one."""

    @property
    def is_open(self) -> bool:
        return self.phase is Phase.OPEN

    @property
    def is_quiet(self) -> bool:
        return self.phase is Phase.QUIET

    def age_s(self, now: int) -> float:
        return 0.0 if self._gathered is None else (now - self._gathered.began_at) / 1e9

    # --- signs ---

    def _gather(self, at: int) -> Gathered:
        if self._gathered is None:
            self._gathered = Gathered(at, hidden=self._hidden)
        return self._gathered

    def level(self, at: int, queue: int, backlog: int) -> bool:
        """So many wait in the upstream's queue, which is full where that is more than ``backlog``. Returns whether
        an incident begins with that."""
        is_full = self._full = queue > backlog
        if not queue and self._gathered is None:
            return False
        gathered = self._gather(at)
        gathered.level(at, queue, backlog)
        if not queue:
            self._is_empty(at)
            return False
        begins = is_full and not (self._met or self.is_open)
        if is_full:
            self._meet()
        if self._lasts or not self.is_open:
            gathered.sign(at)
        return begins

    def _meet(self) -> None:
        self._met = self._lasts = True

    def _is_empty(self, at: int | None) -> None:
        """Nobody waits any more. ``at``: since then; None: since some time ago."""
        if self._lasts and at is not None and self._gathered is not None:
            self._gathered.sign(at)
        self._lasts = False
        if not (self._met or self.is_open):
            self._forget()

    def error(self, what: str, at: int) -> None:
        """A client met this."""
        self._gather(at).error(what, at)
        self._meet()

    def left(self) -> None:
        """A client has left whose request was not answered."""
        self._left_unanswered = min(self._left_unanswered + 1, _MAX_LEFT)

    def logged(self, number: int, count: int, at: int) -> None:
        """nginx has logged so many errors of this number; ``at``: about."""
        self._gather(at).logged(number, count, at)
        self._meet()

    def left_out(self) -> None:
        """Not all of nginx's log was read."""
        if self._gathered is not None:
            self._gathered.left_out()

    def waited(self, since: int | None, until: int) -> None:
        """Somebody waits since then, and still does; None: nobody does. ``until``: when that was seen."""
        self._waiting = since is not None or self._full
        if self._full:
            # (Others than our clients may wait there.)
            since = until if since is None else since
            self._meet()
        if since is None:
            self._is_empty(None)
            return
        is_long = until - since >= self.limit_ns
        if is_long:
            self._meet()
        gathered = self._gather(since)
        if self._lasts or not self.is_open:
            gathered.sign(since)
            gathered.sign(until)

    def goes_on(self, now: int) -> None:
        """Clients are refused, for a reason that was told."""
        if self.is_open:
            self._gather(now).sign(now)

    def answered(self, now: int, sample: Sample | None) -> None:
        """What the observer, which was asked to count them, says of refusals; None: it does not answer."""
        counted = None if sample is None else sample.refused
        if counted is None:
            self._counted_from, self._why_not = None, None if sample is None else sample.why_not
            return
        if self._counted_from is None:
            self._counted_from = counted.since or now
        self._counted_to = now
        if counted.count:
            self._gather(counted.first).refusals(counted)
            self._meet()
        elif self._gathered is not None:
            self._gathered.refusals(counted)

    def exchange(self, ended: InFlight) -> None:
        """An exchange has ended, after so long."""
        if self._gathered is not None:
            self._gathered.exchange(ended)

    def sample(self, now: int, sample: Sample, in_flight: Sequence[InFlight]) -> None:
        """What the observer has seen. ``in_flight``: oldest first."""
        if self._gathered is not None:
            # (A worker that holds the connection of a client that has left may have answered it.)
            if sample.queue and self._lasts:
                self._gathered.sign(now)
            if not sample.gone_running:
                self._left_unanswered = 0
            gone = min(sample.gone_running, self._left_unanswered)
            self._gathered.sample(now, replace(sample, gone_running=gone), in_flight)

    # --- phases ---

    def step(self, now: int) -> bool:
        """Go on to the phase that follows; but only `ended` ends an incident, so that its end is told. Returns
        whether one has begun that was not told yet."""
        if not self.is_ending(now):
            self.phase = PHASES[self.phase, self._sign(now)]
        self._met = False
        if self.phase is Phase.QUIET:
            self._forget()
        return self.is_open and not self._told

    def is_ending(self, now: int) -> bool:
        """It is over, as far as is known."""
        return self.is_open and not self._met and self._sign(now) is Sign.OVER

    def _sign(self, now: int) -> Sign:
        if self._met:
            return Sign.MET
        gathered = self._gathered
        if self._waiting and (self._lasts or not self.is_open):
            return Sign.WAITING
        quiet = gathered is None or now - gathered.seen_at > QUIET_NS
        return Sign.OVER if quiet else Sign.NOTHING

    def _forget(self) -> None:
        self._gathered = None
        self._told = self._lasts = False

    # --- events ---

    def begun(self, now: int, active: int) -> Incident:
        """It has begun. ``active``: connections that are open."""
        self._told = True
        return self._event(now, active, is_over=False)

    def ended(self, now: int, active: int) -> Incident:
        """It is over, or we are."""
        event = self._event(now, active, is_over=True)
        self.phase = PHASES[Phase.OPEN, Sign.OVER]
        self._met = False
        self._forget()
        return event

    def _event(self, now: int, active: int, *, is_over: bool) -> Incident:
        gathered = self._gathered
        assert gathered is not None
        if self._counted_from is None:
            gathered.uncounted(self._why_not or "the observer does not answer")
        elif self._counted_from > gathered.began_at:
            gathered.uncounted("counting began later")
        elif is_over and self._counted_to < gathered.seen_at:
            gathered.uncounted("we ended before the last were told")
        return gathered.event(now, self._since_text(gathered.began_at), self._proxy, active, is_over=is_over)
