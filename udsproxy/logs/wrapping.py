"""What stands around a program's line: the journal's words, docker's, and JSON.

Rules: `unwrap` never raises. The layers are taken off from the outside: docker compose, a container's log, the
journal or syslog, JSON or logfmt. Of JSON only the keys of `_MESSAGE` and `_ERROR` are read as words: all others
may hold what a visitor wrote.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Any

import msgspec

from udsproxy.logs.times import FORMS, from_seconds, parse_time

_COMPOSE = re.compile(r"[\w.-]{1,80} +\| +")
_CONTAINER = re.compile(rf"(?P<at>{FORMS['iso']}) (?:std(?:out|err) [FP] )?(?=\S)")
"""``docker logs -t``, and the files of containerd."""
_SYSLOG = re.compile(
    rf"(?:<\d{{1,3}}>)?(?P<at>{FORMS['syslog']}|{FORMS['iso']}) (?P<host>[\w.:-]{{1,255}}) "
    r"(?P<program>[\w./@-]{1,64})(?:\[\d{1,10}\])?: "
)
_OWN_TIME = re.compile(rf"\[?(?:{FORMS['nginx']}|{FORMS['php']}|{FORMS['apache']}|{FORMS['syslog']})|\{{")
_IS_LOGFMT = re.compile(r"(?:time|level|t|ts|msg|lvl)=")
_LOGFMT = re.compile(
    r"(?P<key>[a-z_.]{1,40})=(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<bare>[^\s\"]*))(?: |$)", re.IGNORECASE
)
_ESCAPE = re.compile(r"\\(.)")
_MESSAGE = ("msg", "message", "MESSAGE", "log")
_ERROR = ("error", "err", "Error", "exception")
_TIME = ("ts", "time", "timestamp", "@timestamp", "__REALTIME_TIMESTAMP")
_REQUEST = ("request", "httpRequest")
MAX_LAYERS = 4


class Wrapped(msgspec.Struct, frozen=True):
    """What is inside, and what the layers around it told."""

    text: str
    at: datetime | None = None
    program: str = ""
    """As the journal names it: ``nginx``, ``php-fpm8.2``, ``kernel``."""
    request: str | None = None
    layers: int = 0
    """Those that were taken off."""


def unwrap(text: str, today: date | None = None, layers: int = MAX_LAYERS) -> Wrapped:
    """The program's own line in ``text``, with no more than this many ``layers`` around it."""
    found = Wrapped(text.strip())
    for number in range(min(layers, MAX_LAYERS)):
        inner = _one_layer(found, today)
        if inner is None:
            break
        found = msgspec.structs.replace(inner, layers=number + 1)
    return found


def _one_layer(outer: Wrapped, today: date | None) -> Wrapped | None:
    text = outer.text
    if text.startswith("{"):
        return _json(outer)
    if (compose := _COMPOSE.match(text)) is not None:
        return msgspec.structs.replace(outer, text=text[compose.end() :])
    if (syslog := _SYSLOG.match(text)) is not None:
        at = parse_time(syslog["at"], today)
        return msgspec.structs.replace(
            outer, text=text[syslog.end() :], at=at or outer.at, program=syslog["program"] or outer.program
        )
    if (container := _CONTAINER.match(text)) is not None and _is_a_line(text[container.end() :]):
        at = parse_time(container["at"], today)
        return msgspec.structs.replace(outer, text=text[container.end() :], at=at or outer.at)
    return _logfmt(outer)


def _is_a_line(text: str) -> bool:
    """Whether the program writes the time itself, so that the one before it is the container's."""
    return _OWN_TIME.match(text) is not None


def _json(outer: Wrapped) -> Wrapped | None:
    try:
        said = msgspec.json.decode(outer.text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    words = [_first(said, _MESSAGE), _first(said, _ERROR)]
    return Wrapped(
        ": ".join(word for word in words if word).strip(),
        at=_json_time(said) or outer.at,
        program=outer.program,
        request=_json_request(said) or outer.request,
    )


def _first(said: dict[Any, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        if isinstance(value := said.get(key), str) and value:
            return value
    return ""


def _json_time(said: dict[Any, Any]) -> datetime | None:
    for key in _TIME:
        value = said.get(key)
        if isinstance(value, int | float):
            return from_seconds(value)
        if isinstance(value, str) and value.isascii() and value.isdigit():  # the journal's: microseconds
            return from_seconds(int(value[:20]) / 1e6)
        if isinstance(value, str):
            return parse_time(value)
    return None


def _json_request(said: dict[Any, Any]) -> str | None:
    for key in _REQUEST:
        request = said.get(key)
        if isinstance(request, dict):
            parts = [request.get("method"), request.get("uri")]
            return " ".join(part for part in parts if isinstance(part, str)) or None
    return None


def _logfmt(outer: Wrapped) -> Wrapped | None:
    """``time="..." level=error msg="..." error="..."``."""
    if _IS_LOGFMT.match(outer.text) is None:
        return None
    said: dict[Any, Any] = {}
    for pair in _LOGFMT.finditer(outer.text):
        value = pair["bare"] if pair["quoted"] is None else _ESCAPE.sub(r"\1", pair["quoted"])
        said.setdefault(pair["key"], value)
    words = [_first(said, _MESSAGE), _first(said, _ERROR)]
    if not any(words):
        return None
    return Wrapped(
        ": ".join(word for word in words if word),
        at=_json_time(said) or outer.at,
        program=outer.program,
        request=outer.request,
    )
