"""A line of any program's log, as the record that `udsproxy.logs.reading.read` makes of it.

Rules: ``said`` holds the program's own words only. What others wrote into the line (a visitor's request, a script's
message, a file's name) is cut out of it, and stands in a field of its own, or nowhere.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

CUT = "…"
"""Stands in ``said`` for what others wrote."""


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. ``at`` has no zone where the line names none: it is local time then."""

    said: str
    program: str = ""
    """``nginx``, ``php-fpm``, ``apache`` ...; empty where the line does not tell."""
    at: datetime | None = None
    call: str | None = None
    """The system call that failed, where the format has a place for it."""
    number: int | None = None
    words: str | None = None
    """The errno, as number and as words, where the format has a place for them."""
    doing: str | None = None
    """nginx: ``sending to client``, ``connecting to upstream`` ..."""
    path: str | None = None
    """Of the Unix socket."""
    file: str | None = None
    """Of an ordinary file that could not be opened."""
    tcp: str | None = None
    """The address, where the line is about TCP."""
    client: str | None = None
    request: str | None = None
    script: str | None = None
    text: str | None = None
    """What a script wrote to standard error, which nginx, Apache and php-fpm log."""
