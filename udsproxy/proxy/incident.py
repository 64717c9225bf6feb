"""What is gathered of one incident, from its first sign to its last.

Rules: sans I/O, and no clock: times are given, in ns. The start, the end and the longest queue come from whoever
knew best (the mirror, the kernel's count of refusals); a later sample only adds. Everything kept is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from udsproxy.events import Incident, InFlight, Level, Load, WaitingOn
from udsproxy.inspection.workers import Counted, Did, Sample
from udsproxy.proxy.incident_text import sentence

MAX_LEVELS = 60
"""Of the queue over time; of a long incident each stands for two, four, eight ..., the longest of these."""
_MAX_LOADS = 10
_MAX_WAITS = 10
_MAX_KEPT_WAITS = 100
_MAX_ERRORS = 20
_NO_WHOS: Counter[str] = Counter()


class Gathered:
    """What is known of an incident so far."""

    def __init__(self, began_at: int, *, hidden: bool = False) -> None:
        """``hidden``: we may not see everybody's processes."""
        self._hidden = hidden
        self.began_at = began_at
        """Its first sign."""
        self.seen_at = began_at
        """Its last."""
        self.refused: int | None = None
        self._uncounted: list[str] = []
        """What of the refusals is not counted."""
        self._log_left_out = False
        """So is something of nginx's log."""
        self._errors: Counter[str] = Counter()
        self._nginx: Counter[int] = Counter()
        self._queue = self._busy = self._workers = 0
        self._backlog: int | None = None
        self._gone_waiting = self._gone_running = 0
        self._began_with: InFlight | None = None
        self._slowest: InFlight | None = None
        self._in_flight: Sequence[InFlight] = ()
        """As it was when there was most."""
        self._waits: Counter[Did] = Counter()
        """Without who is behind it."""
        self._whos: dict[Did, Counter[str]] = {}
        self._levels: list[Level] = []
        self._activator: str | None = None
        self._each = 1
        """So many levels one stands for."""
        self._of_last = 0
        """So many the last of them stands for as yet."""

    # --- signs ---

    def sign(self, at: int) -> None:
        """It was so at this time."""
        self.began_at, self.seen_at = min(self.began_at, at), max(self.seen_at, at)

    def level(self, at: int, queue: int, backlog: int) -> None:
        """So many waited."""
        self._backlog = backlog
        self._add_level(at, queue, backlog, None)

    def error(self, what: str, at: int) -> None:
        """A client met this."""
        self.sign(at)
        if what in self._errors or len(self._errors) < _MAX_ERRORS:
            self._errors[what] += 1

    def refusals(self, counted: Counted) -> None:
        """So many more connect() calls got EAGAIN."""
        self.refused = (self.refused or 0) + counted.count
        if counted.count:
            self.sign(counted.first)
            self.sign(counted.last)
        if counted.missed:
            self.uncounted("there were more at once than could be read")

    def uncounted(self, why: str) -> None:
        """Some refusals, or all, are not counted."""
        if why not in self._uncounted and len(self._uncounted) < _MAX_ERRORS:
            self._uncounted.append(why)

    def logged(self, number: int, count: int, at: int) -> None:
        """nginx has written that so many connect() failed with this errno. ``at``: about, so that it does not make
        longer what is better known."""
        if not (self._queue or self.refused):
            self.sign(at)
        if number in self._nginx or len(self._nginx) < _MAX_ERRORS:
            self._nginx[number] += count

    def left_out(self) -> None:
        """Not all of nginx's log was read."""
        self._log_left_out = True

    def sample(self, at: int, sample: Sample, in_flight: Sequence[InFlight]) -> None:
        """What was seen at this time. ``in_flight``: oldest first."""
        self._busy, self._workers = max(self._busy, sample.busy), max(self._workers, len(sample.workers))
        self._backlog = sample.backlog if sample.backlog is not None else self._backlog
        self._gone_waiting = max(self._gone_waiting, sample.gone_waiting)
        self._gone_running = max(self._gone_running, sample.gone_running)
        self._activator = sample.activator
        for did, count in sample.what_they_do().items():
            what = replace(did, who=None)
            if what in self._waits or len(self._waits) < _MAX_KEPT_WAITS:
                self._waits[what] += count
                if did.who is not None:
                    self._whos.setdefault(what, Counter())[did.who] += count
        self._add_level(at, sample.queue, sample.backlog, sample)
        if in_flight:
            oldest = in_flight[0]
            self._began_with = self._began_with or oldest
            if self._slowest is None or oldest.age_s > self._slowest.age_s:
                self._slowest = oldest
            if len(in_flight) >= len(self._in_flight):
                self._in_flight = in_flight

    def exchange(self, ended: InFlight) -> None:
        """It has ended: shorter than a look takes, maybe."""
        if self._slowest is None or ended.age_s > self._slowest.age_s:
            self._slowest = ended

    def _add_level(self, at: int, queue: int, backlog: int | None, sample: Sample | None) -> None:
        self._queue = max(self._queue, queue)
        limit = None if backlog is None else backlog + 1
        busy, workers = (None, None) if sample is None else (sample.busy, len(sample.workers))
        new = Level(at / 1e9, queue, limit, busy, workers)  # (since when it counts is known at the end)
        levels = self._levels
        if levels and self._of_last < self._each:
            levels[-1] = _higher(levels[-1], new)
            self._of_last += 1
            return
        levels.append(new)
        self._of_last = 1
        if len(levels) > MAX_LEVELS:
            levels[:] = [_higher(*levels[n : n + 2]) for n in range(0, len(levels), 2)]
            self._each *= 2

    # --- the event ---

    def event(self, at: int, since: str, proxy: str, active: int, *, is_over: bool) -> Incident:
        """``since``: when it began, for people."""
        event = Incident(
            at=at,
            proxy=proxy,
            what="",
            phase="close" if is_over else "open",
            since=since,
            total_s=(self.seen_at - self.began_at) / 1e9 if is_over else None,
            queue=self._queue,
            backlog=self._backlog,
            active=active,
            busy=min(self._busy, self._workers) if self._workers else None,
            workers=self._workers or None,
            refused=self.refused,
            nginx={str(number): count for number, count in sorted(self._nginx.items())} or None,
            errors=dict(self._errors) or None,
            gone_waiting=self._gone_waiting or None,
            gone_running=min(self._gone_running, self._busy) or None,
            began_with=self._began_with,
            slowest=self._slowest,
            in_flight=loads(self._in_flight, self._slowest) or None,
            waiting_on=self._waiting_on() or None,
            levels=self._levels_since_it_began() if is_over and self._levels else None,
            unseen=self._unseen(),
        )
        return replace(event, what=sentence(event))

    def _waiting_on(self) -> tuple[WaitingOn, ...]:
        """What so many of the busy workers did: the average of all looks, in whole workers."""
        total = self._waits.total()
        if not total:
            return ()
        parts: Counter[str] = Counter()
        for what, count in self._waits.items():
            whos = self._whos.get(what, _NO_WHOS).most_common(1)
            parts[what.text(whos[0][0] if whos else None)] += count
        shares = _shared_out(parts, self._busy)
        return tuple(WaitingOn(doing, count) for doing, count in shares.most_common(_MAX_WAITS) if count)

    def _levels_since_it_began(self) -> tuple[Level, ...]:
        began_s = self.began_at / 1e9
        return tuple(replace(each, at_s=max(0.0, each.at_s - began_s)) for each in self._levels)

    def _unseen(self) -> str | None:
        counted = "not counted" if self.refused is None else "not all counted"
        parts = [f"EAGAINs are {counted}: {why}" for why in self._uncounted]
        if self._log_left_out:
            parts.append("nginx's lines are not all counted: its log grew faster than it was read")
        if not self._workers and self._activator is not None:
            parts.append(f"no worker runs yet: {self._activator}, is to start the service")
        elif not self._workers:
            parts.append("the workers cannot be seen" + (" (run as root)" if self._hidden else ""))
        return "; ".join(parts) or None


def loads(in_flight: Sequence[InFlight], slowest: InFlight | None) -> tuple[Load, ...]:
    """By script, the most first; the slowest is among them in any case."""
    counts: Counter[str] = Counter()
    oldest: dict[str, InFlight] = {}
    for each in in_flight:
        counts[_script(each)] += 1
        oldest[_script(each)] = _older(each, oldest.get(_script(each)))
    if slowest is not None:
        script = _script(slowest)
        counts[script] = max(counts[script], 1)
        oldest[script] = _older(slowest, oldest.get(script))
    kept = counts.most_common(_MAX_LOADS)
    if slowest is not None and all(script != _script(slowest) for script, _ in kept):
        kept[-1] = (_script(slowest), counts[_script(slowest)])
    return tuple(Load(script, count, oldest[script].age_s, oldest[script].accept_wait_s) for script, count in kept)


def _script(exchange: InFlight) -> str:
    return exchange.script or exchange.uri or "?"


def _older(one: InFlight, other: InFlight | None) -> InFlight:
    return one if other is None or one.age_s >= other.age_s else other


def _higher(one: Level, other: Level | None = None) -> Level:
    return one if other is None or one.queue >= other.queue else other


def _shared_out(parts: Counter[str], whole: int) -> Counter[str]:
    """``whole`` in these proportions, in whole numbers that add up to it (largest remainders)."""
    total = parts.total()
    shares = Counter({part: count * whole // total for part, count in parts.items()})
    by_remainder = sorted(parts, key=lambda part: (-(parts[part] * whole % total), -parts[part]))
    for part in by_remainder[: whole - shares.total()]:
        shares[part] += 1
    return shares
