"""The times that programs write."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.logs.times import from_seconds, parse_time

TODAY = date(2026, 11, 29)
MOMENT = datetime(2026, 11, 23, 9, 33, 42)  # noqa: DTZ001 - local time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026/11/23 09:33:42", MOMENT),
        ("23-Nov-2026 09:33:42", MOMENT),
        ("23-Nov-2026 09:33:42.500000", MOMENT + timedelta(milliseconds=500)),
        ("23-Nov-2026 09:33:42 UTC", MOMENT.replace(tzinfo=UTC)),
        ("23-Nov-2026 09:33:42 Europe/Berlin", MOMENT.replace(tzinfo=ZoneInfo("Europe/Berlin"))),
        ("Mon Nov 23 09:33:42.500 2026", MOMENT + timedelta(milliseconds=500)),
        ("Mon Nov  2 09:33:42 2026", MOMENT.replace(day=2)),
        ("23/Nov/2026:09:33:42 +0100", MOMENT.replace(tzinfo=timezone(timedelta(hours=1)))),
        ("2026-11-23T09:33:42Z", MOMENT.replace(tzinfo=UTC)),
        ("2026-11-23 09:33:42,500", MOMENT + timedelta(milliseconds=500)),
        ("2026-11-23 09:33:42 +0000", MOMENT.replace(tzinfo=UTC)),
        (
            "2026-11-23T09:33:42.718335123+01:00",
            MOMENT.replace(microsecond=718335, tzinfo=timezone(timedelta(hours=1))),
        ),
        ("23 Nov 2026 09:33:42.500", MOMENT + timedelta(milliseconds=500)),
        ("Nov 23 09:33:42", MOMENT),
        ("Dec 23 09:33:42", MOMENT.replace(year=2025, month=12)),
        ("Feb 29 09:33:42", None),
        ("2026-02-31 09:33:42", None),
        ("23-Nov-2026 09:33:42 No/Such", None),
        ("23-Nov-2026 09:33:42 /etc/passwd", None),
        ("yesterday", None),
    ],
)
def test_times(text: str, expected: datetime | None) -> None:
    """Each form; a time without a zone keeps none, and one without a year is of the past."""
    assert parse_time(text, TODAY) == expected


def test_the_journal_without_a_day() -> None:
    """Where today is not known, a time without a year is not known."""
    assert parse_time("Nov 23 09:33:42") is None


@pytest.mark.parametrize("seconds", [1_763_890_422, 1_763_890_422_000])
def test_seconds(seconds: float) -> None:
    """JSON has seconds or milliseconds."""
    assert from_seconds(seconds) == datetime(2025, 11, 23, 9, 33, 42, tzinfo=UTC)


@given(st.text(), st.floats(allow_nan=True))
def test_nothing_raises(text: str, seconds: float) -> None:
    """Whatever the text or the number is."""
    parse_time(text, TODAY)
    from_seconds(seconds)
