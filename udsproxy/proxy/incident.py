"""One incident, from its first sign to its end: what is gathered, and the sentence that tells it.

Rules: sans I/O, and no clock: times are given, in ns. Everything kept is bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from udsproxy.events import Incident, InFlight, Level, Load, WaitingOn
from udsproxy.inspection.workers import Sample

MOST_LEVELS = 60
"""Of the queue over time; of a long incident, every other one, every fourth ..."""
_MOST_LOADS = 10
_MOST_WAITS = 10
_MOST_ERRORS = 20
_MOST_NAME = 200


class Gathered:
    """What is known of an incident so far."""

    def __init__(self, began_at: int, since: str, *, hidden: bool = False) -> None:
        """``since``: the same time, for people. ``hidden``: we may not see everybody's processes."""
        self._hidden = hidden
        self.began_at = began_at
        self.since = since
        self.seen_at = began_at
        """When it was last seen to go on."""
        self.refused: int | None = None
        self._why_not: str | None = None
        self._errors: Counter[str] = Counter()
        self._queue = self._busy = self._workers = 0
        self._backlog: int | None = None
        self._gone_waiting = self._gone_running = 0
        self._began_with: InFlight | None = None
        self._slowest: InFlight | None = None
        self._loads: tuple[Load, ...] = ()
        self._waits: Counter[str] = Counter()
        self._looks = 0
        """At which somebody was busy."""
        self._samples = 0
        self._levels: list[Level] = []
        self._activator: str | None = None
        self._every = 1

    def error(self, what: str, at: int) -> None:
        """A client met this."""
        self.seen_at = max(self.seen_at, at)
        if what in self._errors or len(self._errors) < _MOST_ERRORS:
            self._errors[what] += 1

    def refusals(self, count: int | None, why_not: str | None, at: int) -> None:
        """So many more connect() calls got EAGAIN; None: it cannot be told, and why."""
        if count is None:
            self._why_not = why_not or self._why_not
            return
        self.refused = (self.refused or 0) + count
        if count:
            self.seen_at = max(self.seen_at, at)

    def sample(self, at: int, sample: Sample, in_flight: Sequence[InFlight]) -> None:
        """What was seen at this time. ``in_flight``: oldest first."""
        if sample.queue:
            self.seen_at = max(self.seen_at, at)
        self._queue = max(self._queue, sample.queue)
        self._busy, self._workers = max(self._busy, sample.busy), max(self._workers, len(sample.workers))
        self._backlog = sample.backlog if sample.backlog is not None else self._backlog
        self._gone_waiting = max(self._gone_waiting, sample.gone_waiting)
        self._gone_running = max(self._gone_running, sample.gone_running)
        for doing, count in sample.what_they_do():
            if doing in self._waits or len(self._waits) < 10 * _MOST_WAITS:
                self._waits[doing] += count
        self._looks += bool(sample.busy)
        self._activator = sample.activator
        self._add_level(at, sample)
        if in_flight:
            oldest = in_flight[0]
            self._began_with = self._began_with or oldest
            if self._slowest is None or oldest.age_s > self._slowest.age_s:
                self._slowest = oldest
            if len(in_flight) >= sum(load.count for load in self._loads):
                self._loads = loads(in_flight)

    def _add_level(self, at: int, sample: Sample) -> None:
        if self._samples % self._every == 0:
            limit = None if sample.backlog is None else sample.backlog + 1
            at_s = (at - self.began_at) / 1e9
            self._levels.append(Level(at_s, sample.queue, limit, sample.busy, len(sample.workers)))
            if len(self._levels) > MOST_LEVELS:
                del self._levels[1::2]
                self._every *= 2
        self._samples += 1

    def event(self, at: int, proxy: str, active: int, *, is_over: bool) -> Incident:
        limit = None if self._backlog is None else self._backlog + 1
        looks = max(1, self._looks)
        waits = tuple(
            WaitingOn(what, max(1, round(count / looks))) for what, count in self._waits.most_common(_MOST_WAITS)
        )
        is_full = limit is not None and self._queue >= limit
        return Incident(
            at=at,
            proxy=proxy,
            what=self._sentence(at, limit, is_over=is_over),
            phase="close" if is_over else "open",
            since=self.since,
            total_s=(self.seen_at - self.began_at) / 1e9 if is_over else None,
            queue=self._queue,
            backlog=self._backlog,
            active=active,
            busy=self._busy if self._workers else None,
            workers=self._workers or None,
            refused=None if not self.refused and is_full else self.refused,
            errors=dict(self._errors) or None,
            gone_waiting=self._gone_waiting or None,
            gone_running=self._gone_running or None,
            began_with=self._began_with,
            slowest=self._slowest,
            in_flight=self._loads or None,
            waiting_on=waits or None,
            levels=tuple(self._levels) if is_over and self._levels else None,
            unseen=self._unseen(is_full=is_full),
        )

    def _unseen(self, *, is_full: bool) -> str | None:
        parts = []
        if self.refused is None and self._why_not:
            parts.append(f"EAGAINs are not counted ({self._why_not})")
        elif not self.refused and is_full:
            parts.append("who got EAGAIN in the first moments is not counted")
        if not self._workers and self._activator is not None:
            parts.append(f"no worker runs yet: {self._activator}, is to start the service")
        elif not self._workers:
            parts.append("the workers cannot be seen" + (" (run as root)" if self._hidden else ""))
        return "; ".join(parts) or None

    def _sentence(self, at: int, limit: int | None, *, is_over: bool) -> str:
        took = f" for {_short((self.seen_at - self.began_at) / 1e9)}" if is_over else ""
        start = f"from {self.since[11:23]} UTC{took}"
        of = f" of {limit}" if limit is not None else ""
        what = "clients met errors" if self._errors or self.refused else "clients waited"
        parts = [f"{start} the queue grew to {self._queue}{of}" if self._queue else f"{start} {what}"]
        met = [f"{self.refused} connect() got EAGAIN"] if self.refused else []
        met += [f"{count} × {what}" for what, count in self._errors.most_common(3)]
        if met:
            parts[0] += f" ({', '.join(met)})"
        if self._workers:
            busy = f"{self._busy} of {self._workers} workers busy"
            total = self._waits.total()
            if total:
                doing, count = self._waits.most_common(1)[0]
                share = round(count / total * self._busy)
                busy += f", {share} of them {_in(doing)}" if share < self._busy else f", all {_in(doing)}"
            parts.append(busy)
        if self._slowest is not None:
            parts.append(f"the oldest is {named(self._slowest)}, {_short(self._slowest.age_s)}")
        if self._began_with is not None and is_over:
            parts.append(f"it began with {named(self._began_with)}")
        gone = [
            text
            for count, text in (
                (self._gone_running, f"{self._gone_running} of them for clients that have left"),
                (self._gone_waiting, f"{self._gone_waiting} in the queue have left"),
            )
            if count
        ]
        return "; ".join(parts + gone)


def named(exchange: InFlight) -> str:
    """``GET /report.php``."""
    what = (exchange.script or exchange.uri or f"connection {exchange.conn}")[:_MOST_NAME]
    return f"{exchange.method} {what}" if exchange.method else what


def loads(in_flight: Sequence[InFlight]) -> tuple[Load, ...]:
    """By script, the most first."""
    counts: Counter[str] = Counter()
    oldest: dict[str, float] = {}
    for each in in_flight:
        script = each.script or "?"
        counts[script] += 1
        oldest[script] = max(oldest.get(script, 0.0), each.age_s)
    return tuple(Load(script, count, oldest[script]) for script, count in counts.most_common(_MOST_LOADS))


def _in(doing: str) -> str:
    return f"in {doing}" if "()" in doing else doing


def _short(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"
