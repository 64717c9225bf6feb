"""The zones of logs' times: what a reader has to know before two clocks are compared.

Rules: sans I/O, as all of `udsproxy.explain`. No time is changed: that a log is of another zone can only be likely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

_QUARTER = timedelta(minutes=15)
"""Zones differ by whole quarters of an hour."""
_LEAST, _MOST = timedelta(minutes=30), timedelta(hours=26)
_LATE = timedelta(seconds=3)
"""How much later or earlier than the time in its last line a file may have been written."""
_AHEAD = timedelta(minutes=1)


class Clock(NamedTuple):
    """What is known of a log's times, in local time."""

    log: str
    newest: datetime | None
    has_zone: bool
    """Its lines name one."""
    written: datetime | None = None
    """When the file was written last."""


def notes(clocks: Sequence[Clock], now: datetime) -> Iterator[str]:
    """A line for each thing to know."""
    without = [each for each in clocks if each.newest is not None and not each.has_zone]
    others = {each.log: why for each in without if (why := _other(each, now)) is not None}
    unsure = [each.log for each in without if each.log not in others and not _is_local(each)]
    if unsure and len(clocks) > 1:
        zone = now.tzname() or "local"
        named = ", ".join(unsure)
        yield f"The times of {named} name no zone: they are taken as local ones ({zone}), as all are shown."
    for log, why in others.items():
        yield f"{log} is likely to be of another time zone: {why}. Its times are shown as they stand there."


def _is_local(clock: Clock) -> bool:
    """Whether the file was written at the time that its last line has in our zone."""
    if clock.written is None or clock.newest is None:
        return False
    return -_LATE <= clock.written - clock.newest < _QUARTER


def _other(clock: Clock, now: datetime) -> str | None:
    """Why the log is likely to be of another zone."""
    newest, written = clock.newest, clock.written
    if newest is not None and written is not None and (off := _hours_off(written - newest)) is not None:
        return f"it was written last at {written:%H:%M:%S}, and its newest line says {newest:%H:%M:%S}, {off}"
    if newest is not None and newest > now + _AHEAD:
        return f"its newest line says {newest:%H:%M:%S}, which is yet to come"
    return None


def _hours_off(late: timedelta) -> str | None:
    """``1 h behind``, where a file was written a number of quarters of an hour after its last line, or before."""
    quarters = round(late / _QUARTER)
    rest = late - quarters * _QUARTER
    if not _LEAST <= abs(quarters * _QUARTER) <= _MOST or abs(rest) > _LATE:
        return None
    return f"{abs(quarters) / 4:g} h {'behind' if quarters > 0 else 'ahead of'} ours"
