"""The times that programs write before their lines.

Rules: a time without a zone stays without one (it is local). One without a year gets the year that puts it last
before ``today``; without ``today`` it is unknown.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

_FRACTION = r"(?:[.,]\d{1,9})?"
_ZONE = r"(?: ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d))?"
_CLOCK = r"\d\d:\d\d:\d\d"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"

FORMS = {
    "iso": rf"\d{{4}}-\d\d-\d\d[T ]{_CLOCK}{_FRACTION}{_ZONE}",
    "nginx": rf"\d{{4}}/\d\d/\d\d {_CLOCK}",
    "php": rf"\d\d-{_MONTH}-\d{{4}} {_CLOCK}{_FRACTION}(?: [A-Za-z/_]{{1,40}})?",
    "apache": rf"{_DAY} {_MONTH} [ \d]?\d {_CLOCK}{_FRACTION} \d{{4}}",
    "access": rf"\d\d/{_MONTH}/\d{{4}}:{_CLOCK}{_FRACTION}(?: [+-]\d{{4}})?",
    "redis": rf"\d\d {_MONTH} \d{{4}} {_CLOCK}{_FRACTION}",
    "syslog": rf"{_MONTH} [ \d]?\d {_CLOCK}",
}
"""A regular expression for each form, without groups."""
ANY = "|".join(FORMS.values())

_PATTERNS = {
    "nginx": "%Y/%m/%d %H:%M:%S",
    "php": "%d-%b-%Y %H:%M:%S",
    "apache": "%a %b %d %H:%M:%S %Y",
    "access": "%d/%b/%Y:%H:%M:%S",
    "redis": "%d %b %Y %H:%M:%S",
}
_FORMS = {name: re.compile(form) for name, form in FORMS.items()}
_FRACTION_OF = re.compile(r"(?<=\d\d:\d\d:\d\d)[.,](\d{1,9})")
_OFFSET = re.compile(r" ?(Z|UTC|GMT|[+-]\d\d:?\d\d)$")
_PLACE_NAME = re.compile(r" ([A-Za-z/_]{1,40})$")
"""PHP writes date.timezone: Europe/Berlin."""


def parse_time(text: str, today: date | None = None) -> datetime | None:
    """The time that ``text`` is, in any of the forms; None where it is none (the 31st of February)."""
    for name, form in _FORMS.items():
        if form.fullmatch(text) is not None:
            try:
                return _parse(name, text, today)
            except (ValueError, OverflowError, KeyError, OSError):  # (the last two: a zone that is none)
                return None
    return None


def from_seconds(seconds: float) -> datetime | None:
    """A time as JSON logs have it: seconds since 1970, or milliseconds."""
    try:
        return datetime.fromtimestamp(seconds / 1000 if seconds > 1e11 else seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _parse(name: str, text: str, today: date | None, place: tzinfo | None = None) -> datetime | None:
    fraction = _FRACTION_OF.search(text)
    whole = text if fraction is None else text[: fraction.start()] + text[fraction.end() :]
    zone = _OFFSET.search(whole)
    whole = whole if zone is None else whole[: zone.start()]
    if name == "iso":
        moment = datetime.fromisoformat(whole)
    elif name == "syslog":
        return None if today is None else _in_year(" ".join(whole.split()), today)
    else:
        if name == "php" and (named := _PLACE_NAME.search(whole)) is not None:
            return _parse(name, text.removesuffix(named[0]), today, ZoneInfo(named[1]))
        moment = datetime.strptime(" ".join(whole.split()), _PATTERNS[name])  # noqa: DTZ007 - the zone comes below
    if fraction is not None:
        moment += timedelta(microseconds=int(fraction[1][:6].ljust(6, "0")))
    return moment.replace(tzinfo=place if zone is None else _offset(zone[1]))


def _offset(zone: str) -> tzinfo | None:
    if zone in ("Z", "UTC", "GMT"):
        return UTC
    return datetime.strptime(zone, "%z").tzinfo


def _in_year(text: str, today: date) -> datetime | None:
    """(The next day still counts as the past: the log may be of another zone.)"""
    for year in (today.year, today.year - 1):
        try:
            moment = datetime.strptime(f"{year} {text}", "%Y %b %d %H:%M:%S")  # noqa: DTZ007 - the line names no zone
        except ValueError:  # the 29th of February
            continue
        if moment.date() <= today + timedelta(days=1):
            return moment
    return None
