"""How times, sizes and bytes are written for people and programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import hexdump

_SECOND = 1_000_000_000


class WallClock:
    """Turns CLOCK_MONOTONIC nanoseconds into the time of day.

    The offset between the two clocks is taken anew every second of events, so that steps of the system's clock
    are followed; the text of the running second is kept.
    """

    def __init__(self) -> None:
        self._read_at = 0
        self._offset = 0
        self._began = 0
        """When, in monotonic nanoseconds, the second began whose texts are kept."""
        self._until = 0
        """When it ends."""
        self._utc = ""
        self._local = ""

    def _split(self, at: int) -> int:
        """Nanoseconds within the second of ``at``; the texts of that second are ready then."""
        if not self._began <= at < self._until:
            self._turn_to(at)
        return at - self._began

    def _turn_to(self, at: int) -> None:
        if not -_SECOND < at - self._read_at < _SECOND:
            self._read_at = at
            self._offset = time.time_ns() - time.monotonic_ns()
        second, nanos = divmod(at + self._offset, _SECOND)
        self._began = at - nanos
        self._until = self._began + _SECOND
        moment = datetime.fromtimestamp(second, UTC)
        self._utc = moment.strftime("%Y-%m-%dT%H:%M:%S.")
        self._local = moment.astimezone().strftime("%Y/%m/%d %H:%M:%S.")

    def rfc3339(self, at: int) -> str:
        """``2026-11-23T06:10:04.718335Z``."""
        if not self._began <= at < self._until:
            self._turn_to(at)
        return f"{self._utc}{(at - self._began) // 1000:06d}Z"

    def time_of_day(self, at: int) -> str:
        """``06:10:04.718``, local."""
        nanos = self._split(at)
        return f"{self._local[11:]}{nanos // 1_000_000:03d}"

    def socat(self, at: int) -> str:
        """``2026/11/23 06:10:04.718335``, local."""
        nanos = self._split(at)
        return f"{self._local}{nanos // 1000:06d}"


def duration(seconds: float) -> str:
    """``1.3 ms``: three figures or so, right for a column of 8."""
    if seconds < 0.0995:
        return f"{seconds * 1e3:.2f} ms" if seconds < 0.00995 else f"{seconds * 1e3:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def size(nbytes: int) -> str:
    """``1.3 KiB``."""
    if nbytes < 1024:
        return f"{nbytes} B"
    value = float(nbytes)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{value / 1024:.1f} TiB"


def hexdump_lines(data: bytes, most: int) -> Iterator[str]:
    """The hexdump of at most ``most`` bytes, line by line, and a line that says what was left out."""
    if most > 0:
        yield from hexdump.hexdump(data[:most], result="generator")
    if len(data) > most:
        yield f"({len(data) - most} more bytes)"
