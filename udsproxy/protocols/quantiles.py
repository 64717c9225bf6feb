"""Percentiles of durations, in little memory: a histogram whose buckets grow by a constant factor, as DDSketch and
HdrHistogram have it.

Rules:

* A percentile is within `RELATIVE_ERROR` of the exact one (nearest rank), or within `LEAST_S`; the least and the
  longest duration are exact. Those above `MOST_S` are not told apart.
* Memory is bounded by `MAX_BUCKETS`. Only buckets that have counted something are kept.
* Two of them can be merged; that loses nothing.
"""

from __future__ import annotations

import math
from math import log

RELATIVE_ERROR = 0.05
LEAST_S, MOST_S = 1e-6, 1e6

_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_E = 1 / log(_GROWTH)
_SCALE = 1 / LEAST_S
_MIDDLE_S = 2 * LEAST_S * _GROWTH / (_GROWTH + 1)
"""Of the first bucket: as far, relatively, from its begin as from its end."""
MAX_BUCKETS = int(log(MOST_S * _SCALE) * _PER_E) + 1


class Quantiles:
    """Of durations in seconds."""

    __slots__ = ("_counts", "least", "longest")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.least, self.longest = math.inf, 0.0

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self._counts.values())

    def add(self, seconds: float) -> None:
        """Count one. (This is called for each request: it is as short as it can be.)"""
        if LEAST_S < seconds < MOST_S:
            bucket = int(log(seconds * _SCALE) * _PER_E)
        else:
            bucket = 0 if seconds <= LEAST_S else MAX_BUCKETS - 1
        if seconds > self.longest:
            self.longest = seconds
        if seconds < self.least:
            self.least = seconds
        try:
            self._counts[bucket] += 1
        except KeyError:
            self._counts[bucket] = 1

    def merge(self, other: Quantiles) -> None:
        """Count all of another's."""
        counts = self._counts
        for bucket, count in other._counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.least, self.longest = min(self.least, other.least), max(self.longest, other.longest)

    def at(self, share: float) -> float | None:
        """The least duration that this share (0.99) of all do not exceed. None: there are none."""
        left = max(1, math.ceil(share * self.count))
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                about = _MIDDLE_S * _GROWTH**bucket if bucket else LEAST_S
                return min(max(about, self.least), self.longest)
        return None
