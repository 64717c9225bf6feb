"""What is said of the zones of logs."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.explain.zones import Clock, notes

CET = timezone(timedelta(hours=1), "CET")
NOW = datetime(2026, 11, 29, 14, 0, tzinfo=CET)
HOUR = timedelta(hours=1)


def said(*clocks: Clock) -> list[str]:
    return [*notes(clocks, NOW)]


def clock(name: str, newest: timedelta, *, has_zone: bool = False, written: timedelta | None = None) -> Clock:
    return Clock(name, NOW + newest, has_zone, None if written is None else NOW + written)


def test_logs_without_a_zone() -> None:
    """Where several logs are compared, it is told whose times were taken as local ones, unless it is sure that they
    are: the file was written then."""
    first, second = clock("error.log", -HOUR), clock("access.log", -HOUR, has_zone=True)
    assert said(first) == []
    assert said(second, second) == []
    assert said(clock("error.log", -HOUR, written=-HOUR + timedelta(minutes=9)), second) == []
    assert said(first, second) == [
        "The times of error.log name no zone: they are taken as local ones (CET), as all are shown."
    ]


@pytest.mark.parametrize(
    ("newest", "written", "off"),
    [(-2 * HOUR, -HOUR, "1 h behind ours"), (-HOUR, -6.5 * HOUR, "5.5 h ahead of ours")],
)
def test_a_log_of_another_zone(newest: timedelta, written: timedelta, off: str) -> None:
    """A file that was written hours before or after the time in its last line, to the second."""
    [note] = said(clock("error.log", newest, written=written + timedelta(seconds=1)))
    assert off in note
    assert said(clock("error.log", newest, written=written, has_zone=True)) == []


def test_a_log_of_the_future() -> None:
    """It is of another zone, whenever the file was written (it was copied)."""
    [note] = said(clock("error.log", HOUR, written=-timedelta(minutes=7)))
    assert "15:00:00, which is yet to come" in note


@given(st.integers(4, 1700))
def test_a_log_that_is_quiet(seconds: int) -> None:
    """That the last line is older than the file, by less than half an hour, says nothing."""
    assert said(clock("error.log", -HOUR, written=-HOUR + timedelta(seconds=seconds))) == []
