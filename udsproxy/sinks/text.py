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


def local_time(rfc3339: str) -> str:
    """The local time of day of an RFC 3339 time: ``07:10:04.718`` for ``2026-11-23T06:10:04.718335Z``."""
    return datetime.fromisoformat(rfc3339).astimezone().strftime("%H:%M:%S.%f")[:-3]


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


_HEXDUMP_WIDTH = 76
"""Of a line with 16 bytes."""


def hexdump_lines(data: bytes, limit: int, width: int | None = None) -> Iterator[str]:
    """The hexdump of at most ``limit`` bytes, line by line, and a line that says what was left out. ``width``: the
    cells that a line may take; None: any number."""
    if limit > 0:
        if width is None or width >= _HEXDUMP_WIDTH:
            yield from hexdump.hexdump(data[:limit], result="generator")
        else:
            yield from _narrow_hexdump(data[:limit], 8 if width >= 43 else 4)
    if len(data) > limit:
        yield f"({len(data) - limit} more bytes)"


def _narrow_hexdump(data: bytes, count: int) -> Iterator[str]:
    """Lines of ``count`` bytes, which take 11 + 4 * count cells."""
    for start in range(0, len(data), count):
        piece = data[start : start + count]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in piece)
        yield f"{start:08X}: {hexdump.dump(piece):<{3 * count - 1}}  {text}"
