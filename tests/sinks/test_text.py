"""How times, sizes and bytes are written."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from udsproxy.sinks.text import WallClock, duration, hexdump_lines, size


def test_times_of_day_follow_the_monotonic_clock() -> None:
    """A monotonic time comes out as the time of day it was, to the microsecond, in any order."""
    clock, now = WallClock(), time.monotonic_ns()
    wall = time.time()
    for offset in (0, 1_500_000_000, -30_000_000_000, 250_000_000):
        told = datetime.fromisoformat(clock.rfc3339(now + offset))
        assert told.timestamp() == pytest.approx(wall + offset / 1e9, abs=0.5)
        assert clock.rfc3339(now + offset).endswith("Z")
    moment = clock.rfc3339(now)[-10:-1]
    assert clock.socat(now).split(".")[1] == moment[3:]
    assert clock.time_of_day(now).split(".")[1] == moment[3:6]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00 ms"), (0.0012345, "1.23 ms"), (0.012345, "12.3 ms"), (0.0996, "100 ms"), (0.5, "500 ms"),
     (0.9996, "1.00 s"), (12.345, "12.35 s"), (99.96, "100 s"), (3600, "3600 s")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    """Three figures or so, and never wider than their column."""
    assert duration(seconds) == text
    assert len(text) <= 8


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (102_298, "99.9 KiB"), (1024**2 - 1, "1.0 MiB"),
     (5 * 1024**3, "5.0 GiB"), (3 * 1024**4, "3.0 TiB")],
)  # fmt: skip
def test_sizes(nbytes: int, text: str) -> None:
    """Three figures or so, and never wider than their column."""
    assert size(nbytes) == text
    assert len(text) <= 9


def test_hexdumps_are_capped() -> None:
    """A hexdump shows no more than was asked for and says what it left out."""
    assert list(hexdump_lines(b"A\x1b[31m", 100)) == [
        "00000000: 41 1B 5B 33 31 6D                                 A.[31m"
    ]
    lines = list(hexdump_lines(bytes(100), 16))
    assert len(lines) == 2
    assert lines[-1] == "(84 more bytes)"
    assert list(hexdump_lines(bytes(3), 0)) == ["(3 more bytes)"]
