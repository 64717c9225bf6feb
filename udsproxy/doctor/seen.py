"""What a log of ``udsproxy run --log json`` says of the traffic: requests a second, and how long each takes.

Rules: a file of any size is read once, in bounded memory; a line that is no event is counted and skipped. A
request holds a worker for ``total_s`` less its wait in the queue (docs/events.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import BinaryIO

import msgspec

MOST_LINE = 1 << 20
"""Bytes; what is longer is skipped."""
MIN_REQUESTS = 100
"""With fewer a single slow one decides what the mean is, and chance which second is the busiest."""
MIN_SPAN_S = 10.0
_MOST_PROXIES = 64
_MOST_SECONDS = 4096
"""Seconds that are counted at once: requests are logged when they end, in another order than they began."""
_STEP = math.log(1.01)
"""Times are counted in steps of 1 %."""
_LEAST_S, _MOST_S = 1e-7, 1e9


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen."""

    requests: int
    span_s: float
    """From the first request to the last."""
    mean_rate: float
    """Requests a second."""
    busiest_rate: float
    """Of the busiest second."""
    mean_s: float
    p99_s: float
    times_full: int = 0
    """How often the queue became full."""
    skipped: int = 0
    """Lines that are no event."""

    @property
    def is_enough(self) -> bool:
        """To tell from it how many workers are needed."""
        return self.requests >= MIN_REQUESTS and self.span_s >= MIN_SPAN_S


class _Line(msgspec.Struct):
    event: str
    proxy: str
    ts: str = ""
    total_s: float = 0.0
    accept_wait_s: float = 0.0
    upstream: str = ""
    listen: str = ""
    queue: int = 0
    backlog: int = 0


class _Counted:
    """Of one proxy."""

    def __init__(self) -> None:
        self.requests = 0
        self.total_s = 0.0
        self.first = math.inf
        self.last = -math.inf
        self.busiest = 0
        self.times_full = 0
        self.is_asked_for = False
        self._seconds: dict[int, int] = {}
        self._times: dict[int, int] = {}

    def add(self, began: float, total_s: float) -> None:
        self.requests += 1
        self.total_s += total_s
        self.first, self.last = min(self.first, began), max(self.last, began)
        second = math.floor(began)
        count = self._seconds[second] = self._seconds.get(second, 0) + 1
        self.busiest = max(self.busiest, count)
        if len(self._seconds) > _MOST_SECONDS:
            for each in sorted(self._seconds)[: _MOST_SECONDS // 2]:
                del self._seconds[each]
        step = round(math.log(max(_LEAST_S, total_s)) / _STEP)
        self._times[step] = self._times.get(step, 0) + 1

    def percentile(self, share: float) -> float:
        wanted = math.ceil(share * self.requests)
        for step in sorted(self._times):
            wanted -= self._times[step]
            if wanted <= 0:
                return math.exp(step * _STEP)
        return 0.0


def read(file: BinaryIO, is_here: Callable[[str], bool]) -> Traffic | None:
    """The traffic of the proxy whose upstream or own socket is here, or else of the one that has most. None: there
    is no request in it. Raises OSError."""
    decode = msgspec.json.Decoder(_Line).decode
    counted: dict[str, _Counted] = {}
    skipped = 0
    for text in _lines(file):
        try:
            line = decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            skipped += 1
            continue
        if line.event not in ("request", "queue", "listening"):
            continue
        if line.proxy not in counted and len(counted) >= _MOST_PROXIES:
            skipped += 1
            continue
        one = counted.setdefault(line.proxy, _Counted())
        if line.event == "listening":
            one.is_asked_for |= is_here(line.upstream) or is_here(line.listen)
        elif line.event == "queue":
            one.times_full += line.queue > line.backlog
        elif (began := _began(line)) is None:
            skipped += 1
        else:
            one.add(began, max(0.0, line.total_s - line.accept_wait_s))
    some = [each for each in counted.values() if each.requests]
    if not some:
        return None
    one = max(some, key=lambda each: (each.is_asked_for, each.requests))
    span_s = one.last - one.first
    return Traffic(
        requests=one.requests,
        span_s=span_s,
        mean_rate=one.requests / max(1.0, span_s),
        busiest_rate=float(one.busiest),
        mean_s=one.total_s / one.requests,
        p99_s=one.percentile(0.99),
        times_full=one.times_full,
        skipped=skipped,
    )


def _began(line: _Line) -> float | None:
    """When the request came, in seconds since 1970; None: that cannot be."""
    if not 0 <= line.total_s <= _MOST_S or not 0 <= line.accept_wait_s <= _MOST_S:
        return None
    try:
        return datetime.fromisoformat(line.ts).timestamp() - line.total_s
    except (ValueError, OverflowError, OSError):
        return None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Whole lines; of one that is too long, its end, which is no event."""
    while line := file.readline(MOST_LINE):
        yield line
