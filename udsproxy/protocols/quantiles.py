"""Percentiles of durations, in little memory: exact while there are few durations, then from a histogram whose
buckets grow by a constant factor, as in DDSketch and HdrHistogram.

Rules:

* Up to `MAX_EXACT` durations are kept, and percentiles (nearest rank) are exact.
* With more of them, a percentile is within `RELATIVE_ERROR` of the exact one, or within `LEAST_S`. The least and
  the longest duration stay exact. Durations above `MOST_S` are not told apart.
* Memory is bounded by `MAX_EXACT` and `MAX_BUCKETS`. Only buckets that have counted something are kept.
* Merging two of them gives the same as counting all durations in one.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from math import log

MAX_EXACT = 64
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

    __slots__ = ("_counts", "_exact", "least", "longest")

    def __init__(self) -> None:
        self._exact: array[float] | None = array("d")
        """All durations; None: there are more than `MAX_EXACT`, and they are in `_counts`."""
        self._counts: dict[int, int] = {}
        """How many durations are in each bucket."""
        self.least, self.longest = math.inf, 0.0

    @property
    def count(self) -> int:
        """How many were counted."""
        return sum(self._counts.values()) if self._exact is None else len(self._exact)

    def add(self, seconds: float) -> None:
        """Count one. (This is called for each request: it is as short as it can be.)"""
        if seconds > self.longest:
            self.longest = seconds
        if seconds < self.least:
            self.least = seconds
        if self._exact is not None:
            if len(self._exact) < MAX_EXACT:
                self._exact.append(seconds)
                return
            self._fill_buckets()
        bucket = _bucket(seconds)
        try:
            self._counts[bucket] += 1
        except KeyError:
            self._counts[bucket] = 1

    def merge(self, other: Quantiles) -> None:
        """Count all of another's."""
        self.least, self.longest = min(self.least, other.least), max(self.longest, other.longest)
        one, two = self._exact, other._exact
        if one is not None and two is not None and len(one) + len(two) <= MAX_EXACT:
            one.extend(two)
            return
        self._fill_buckets()
        counts = self._counts
        for bucket, count in (other._counts if other._exact is None else _counted(other._exact)).items():
            counts[bucket] = counts.get(bucket, 0) + count

    def at(self, share: float) -> float | None:
        """The least duration that this share (0.99) of all do not exceed. None: there are none."""
        count = self.count
        if not count:
            return None
        rank = max(1, math.ceil(share * count))
        if self._exact is not None:
            return sorted(self._exact)[rank - 1]
        if rank in (1, count):
            return self.least if rank == 1 else self.longest
        return min(max(self._about(rank), self.least), self.longest)

    def _about(self, rank: int) -> float:
        """The middle of the bucket that has the duration of this rank."""
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return _MIDDLE_S * _GROWTH**bucket if bucket else LEAST_S
        return self.longest

    def _fill_buckets(self) -> None:
        """From now on only the buckets count."""
        if self._exact is not None:
            self._counts, self._exact = _counted(self._exact), None


def _bucket(seconds: float) -> int:
    if LEAST_S < seconds < MOST_S:
        return int(log(seconds * _SCALE) * _PER_E)
    return 0 if seconds <= LEAST_S else MAX_BUCKETS - 1


def _counted(durations: array[float]) -> dict[int, int]:
    return dict(Counter(map(_bucket, durations)))
