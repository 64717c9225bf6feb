"""The end of nginx's error log: which of its lines are about a socket, how many of each kind, and when.

nginx writes its local time, and no zone. The zone is told by the time at which the file was written last, which is
that of its last line.

Rules: pure; in bounded memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from udsproxy.doctor.facts import ErrorLog, Logged
from udsproxy.doctor.reading import shown
from udsproxy.logs.nginx_error import NginxError, parse_line

_MARKS = (b"unix:", b"no live upstreams")
"""What a line has that is about a Unix socket."""
_SOCKET = "unix:"
_NO_LIVE = "no live upstreams"
_CLOSED = "upstream prematurely closed"
_FAILED = "failed ("
_FULL = "connect 11"
"""It is told first: others may come of it."""
_MAX_KINDS = 32
_MAX_SLACK_S = 300.0
"""Between the last line and the time of the file."""
_QUARTER_S = 900.0
_DAY_S = 86400.0
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - times in the log have no zone
_TEXT = "%Y-%m-%d %H:%M:%S"


@dataclass(slots=True)
class _Kind:
    words: str
    upstream: str
    count: int = 0
    since_start: int = 0
    last: datetime | None = None


def summarize(
    log: ErrorLog,
    data: bytes,
    written_at: float,
    began_at: float | None,
    is_same: Callable[[str], bool],
    upstreams: Container[str],
) -> ErrorLog:
    """The log with what its end, ``data``, says. ``written_at``: when the file was written last, and ``began_at``:
    when the process that listens was started (seconds since 1970; None: not known); ``upstreams``: the names of
    blocks that have the socket."""
    lines = data.split(b"\n")
    if not log.is_whole:
        lines = lines[1:]
    zone_s = _zone(written_at, lines)
    start = None if began_at is None or zone_s is None else _local(began_at, zone_s)
    kinds: dict[str, _Kind] = {}
    known: dict[str, bool] = {}
    for line in lines:
        if not any(mark in line for mark in _MARKS):
            continue
        record = parse_line(os.fsdecode(line))
        if record is None or (kind := _kind(record)) is None or not _is_about(record, is_same, upstreams, known):
            continue
        if kind not in kinds and len(kinds) >= _MAX_KINDS:
            continue
        words, upstream = _words(record), _upstream(record)
        counted = kinds.setdefault(kind, _Kind(words, upstream))
        if words != counted.words:
            counted.words = _in_both(counted.words, words)
        if upstream != counted.upstream:
            counted.upstream = ""
        counted.count += 1
        counted.since_start += start is not None and (record.at is None or record.at >= start)
        counted.last = record.at if counted.last is None or record.at is None else max(counted.last, record.at)
    first = next((at for line in lines[:100] if (at := _time_of(line)) is not None), None)
    return msgspec.structs.replace(
        log,
        path=shown(log.path),
        begin="" if first is None else first.strftime(_TEXT),
        zone="" if zone_s is None else _offset(zone_s),
        files=tuple(map(shown, log.files)),
        logged=tuple(
            Logged(
                kind=kind,
                words=shown(each.words),
                count=each.count,
                last="" if each.last is None else each.last.strftime(_TEXT),
                since_start=None if start is None else each.since_start,
                upstream=shown(each.upstream),
            )
            for kind, each in sorted(kinds.items(), key=lambda item: (item[0] != _FULL, -item[1].count))
        ),
    )


def _kind(record: NginxError) -> str | None:
    """None: it tells of no failure of the socket."""
    if record.stderr:
        return None
    if record.timed_out:
        return f"timed out {record.errno}"
    if record.call is not None and record.errno is not None:
        return f"{record.call} {record.errno}"
    if record.message.startswith(_NO_LIVE):
        return _NO_LIVE
    return "closed" if record.message.startswith(_CLOSED) else None


def _words(record: NginxError) -> str:
    """What failed, in nginx's own words: a search for it must find the line."""
    said = record.message
    if record.errno is None:
        return _NO_LIVE if said.startswith(_NO_LIVE) else _CLOSED
    error = f"({record.errno}: {record.words})"
    return said[: said.find(error) + len(error)]


def _upstream(record: NginxError) -> str:
    """How nginx names the socket in a line whose words do not."""
    if record.upstream is None or (record.path is not None and record.path in _words(record)):
        return ""
    begin = record.upstream.find(_SOCKET) + len(_SOCKET) if record.path else record.upstream.find("://") + 3
    end = record.upstream.find(":" if record.path else "/", begin)
    return record.upstream[: end + 1] if end >= 0 else f'{record.upstream}"'


def _in_both(some: str, others: str) -> str:
    """What two lines of one kind have in common, though they name two paths."""
    error = others[max(0, others.find(_FAILED)) :]
    return error if some.endswith(error) else error[: error.find(":") + 1]


def _is_about(
    record: NginxError, is_same: Callable[[str], bool], upstreams: Container[str], known: dict[str, bool]
) -> bool:
    if record.path is None:
        name = (record.upstream or "").partition("://")[2].partition("/")[0]
        return name in upstreams
    if record.path not in known and len(known) < 1000:
        known[record.path] = is_same(record.path)
    return known.get(record.path, False)


def _time_of(line: bytes) -> datetime | None:
    record = parse_line(os.fsdecode(line[:200]))
    return None if record is None else record.at


def _zone(written_at: float, lines: list[bytes]) -> float | None:
    """How far nginx's clock is before UTC, in seconds: it has written its last line when the file was written last.
    None: that cannot be told."""
    last = next((found for line in lines[:-100:-1] if (found := _time_of(line)) is not None), None)
    if last is None:
        return None
    offset = (last - _EPOCH).total_seconds() - written_at
    zone = round(offset / _QUARTER_S) * _QUARTER_S
    return zone if abs(offset - zone) <= _MAX_SLACK_S and abs(zone) < _DAY_S else None


def _local(at: float, zone_s: float) -> datetime | None:
    """A time as nginx would write it: whole seconds."""
    try:
        return (_EPOCH + timedelta(seconds=at + zone_s)).replace(microsecond=0)
    except OverflowError:
        return None


def _offset(zone_s: float) -> str:
    """``+0100``."""
    minutes = round(abs(zone_s) / 60)
    return f"{'-' if zone_s < 0 else '+'}{minutes // 60:02}{minutes % 60:02}"
