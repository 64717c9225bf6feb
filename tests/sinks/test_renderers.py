"""What each sink makes of each event."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from udsproxy.events import (
    Accepted,
    Client,
    Close,
    Data,
    DecodeError,
    Doing,
    Dropped,
    Event,
    Incident,
    Listening,
    Load,
    Message,
    Open,
    ProxyError,
    Queue,
    Request,
    Slow,
    Snapshot,
    Summary,
    UpstreamError,
    WaitingOn,
    Worker,
)
from udsproxy.sinks.console import ConsoleRenderer
from udsproxy.sinks.json_lines import JsonRenderer
from udsproxy.sinks.sink import Renderer
from udsproxy.sinks.socat import SocatRenderer
from udsproxy.sinks.text import WallClock

AT = time.monotonic_ns()
WHERE: Any = {"at": AT, "proxy": "p", "conn": 3}

REQUEST = Request(
    **WHERE, protocol="fastcgi", request=1, method="GET", uri="/a?b", script="/a", status=200, app_status=0,
    protocol_status="REQUEST_COMPLETE", c2s_bytes=500, s2c_bytes=5000, ttfb_s=0.0123, total_s=0.5,
)  # fmt: skip

EVENTS: list[Event] = [
    Listening(at=AT, proxy="p", listen="/l", upstream="/u", backlog=5, mode="660", owner="a:b"),
    Open(**WHERE, client=Client(1, 2, 3, "nginx"), connect_s=0.001),
    Open(**WHERE),
    REQUEST,
    Request(**WHERE, protocol="fastcgi", request=2, c2s_bytes=1, s2c_bytes=0, total_s=1, incomplete="client left"),
    Message(**WHERE, direction="c2s", protocol="fastcgi", kind="STDIN", nbytes=5, fields={"request": 1}),
    Close(**WHERE, by="client", c2s_bytes=1, s2c_bytes=2, total_s=0.1, requests=0),
    UpstreamError(**WHERE, op="connect", errno="ENOENT", message="No such file or directory"),
    ProxyError(at=AT, proxy="p", op="accept", errno="EMFILE", message="Too many open files", hint="raise it"),
    DecodeError(**WHERE, direction="s2c", protocol="fastcgi", offset=7, reason="version 9"),
    Dropped(at=AT, proxy="p", observer="tap", count=4, nbytes=4000),
    Summary(at=AT, proxy="p", connections=1, requests=2, incomplete=0, upstream_errors=1, decode_errors=0,
            dropped=0, c2s_bytes=10, s2c_bytes=20, total_s=60.0),
    Accepted(**WHERE, accept_wait_s=0.99, accept_error_s=0.001, worker=Worker(812, "php-fpm8.2")),
    Slow(**WHERE, request=1, method="GET", uri="/a?b", script="/a", snapshot=Snapshot(
         at_s=1.0, worker=Worker(812, "php-fpm8.2"), doing=Doing(
             what="socket", call="poll", on="tcp 10.0.0.5:3306", who="mysqld, pid 9", for_s=0.5,
             stack=("a", "b")))),
    Slow(**WHERE, request=1, snapshot=Snapshot(at_s=1.0, queued=True)),
    Incident(at=AT, proxy="p", what="from then on", phase="open", since="2026-11-24T14:02:11.250000Z", active=3,
             waiting_on=(WaitingOn("poll() on tcp 10.0.0.5:3306", 8),), in_flight=(Load("/a", 9, 2.7),),
             unseen="nothing"),
    Queue(at=AT, proxy="p", queue=3, backlog=2, active=2),
]  # fmt: skip


def console(*, color: bool = False, verbosity: int = 0, several: bool = False) -> ConsoleRenderer:
    return ConsoleRenderer(WallClock(), color=color, verbosity=verbosity, hexdump=64, several=several)


def render(renderer: Renderer, event: Event) -> str:
    rendered = renderer.render(event)
    if rendered is None:
        return ""
    return (rendered if isinstance(rendered, bytes) else b"".join(rendered)).decode()


# --- JSON ---

JSON_KEYS = {
    "listening": {"listen", "upstream", "backlog", "mode", "owner"},
    "open": {"client", "connect_s"},
    "request": {"protocol", "request", "method", "uri", "script", "status", "app_status", "protocol_status",
                "c2s_bytes", "s2c_bytes", "ttfb_s", "total_s"},
    "accepted": {"accept_wait_s", "accept_error_s", "worker"},
    "slow": {"request", "method", "uri", "script", "snapshot"},
    "incident": {"what", "phase", "since", "active", "waiting_on", "in_flight", "unseen"},
    "queue": {"queue", "backlog", "active"},
    "message": {"direction", "protocol", "kind", "nbytes", "fields"},
    "close": {"by", "c2s_bytes", "s2c_bytes", "total_s", "requests"},
    "upstream_error": {"op", "errno", "message"},
    "proxy_error": {"op", "errno", "message", "hint"},
    "decode_error": {"direction", "protocol", "offset", "reason"},
    "dropped": {"observer", "count", "nbytes"},
}  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_json_lines(event: Event) -> None:
    """Each event is one line, one object: ts, event, proxy and conn first, its own keys, and no null."""
    line = render(JsonRenderer(WallClock(), hexdump=16), event)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    found = json.loads(line)
    assert list(found)[:3] == ["ts", "event", "proxy"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", found["ts"])
    assert found["event"] == event.name
    assert None not in found.values()
    assert "at" not in found


def test_json_keys_are_stable() -> None:
    """The keys of the events are those of docs/events.md; what is unknown is absent."""
    renderer = JsonRenderer(WallClock(), hexdump=16)
    first: dict[str, set[str]] = {}
    for event in EVENTS:
        found = json.loads(render(renderer, event))
        first.setdefault(event.name, set(found) - {"ts", "event", "proxy", "conn"})
    assert {name: first[name] for name in JSON_KEYS} == JSON_KEYS
    assert json.loads(render(renderer, EVENTS[1]))["client"] == {"pid": 1, "uid": 2, "gid": 3, "comm": "nginx"}


def test_json_data_is_a_hexdump() -> None:
    """Bytes are shown as a hexdump of bounded size, in one line."""
    event = Data(**WHERE, direction="c2s", offset=5, data=b"hello\x1b" + bytes(100))
    found = json.loads(render(JsonRenderer(WallClock(), hexdump=16), event))
    assert (found["offset"], found["nbytes"]) == (5, 106)
    assert found["text"].startswith("00000000: 68 65 6C 6C 6F 1B")
    assert found["text"].endswith("(90 more bytes)")


# --- console ---


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("verbosity", [0, 1, 2])
def test_console_lines(event: Event, verbosity: int) -> None:
    """Without colour no line has an escape; with it, taking the escapes out gives the same text."""
    plain = render(console(verbosity=verbosity), event)
    colored = render(console(verbosity=verbosity, color=True), event)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain


def test_an_exchange_is_a_line_under_its_heading() -> None:
    """The columns of an exchange stand under their names, which are written once."""
    renderer = console()
    heading, line = render(renderer, REQUEST).splitlines()
    for name, value in (("METHOD", "GET"), ("STATUS", "200"), ("URI", "/a?b")):
        assert line.index(value) == heading.index(name)
    for name, value in (("TTFB", "12.3 ms"), ("TOTAL", "500 ms"), ("SENT", "500 B"), ("RECEIVED", "4.9 KiB")):
        assert line.index(value) + len(value) == heading.index(name) + len(name)
    assert len(render(renderer, REQUEST).splitlines()) == 1


def test_trouble_is_in_words() -> None:
    """Errors name the operation, the errno and the kernel's words; an incomplete exchange says why."""
    assert "connect() failed: No such file or directory (ENOENT)" in render(console(), EVENTS[7])
    assert "accept() failed: Too many open files (EMFILE); raise it" in render(console(), EVENTS[8])
    assert "not fastcgi from upstream's byte 7 on: version 9" in render(console(), EVENTS[9])
    assert "incomplete: client left" in render(console(), EVENTS[4])


def test_a_full_queue_is_in_words() -> None:
    """A queue that is full, one that no longer is, and a wait that is long enough to be worth a word."""
    full = Queue(at=AT, proxy="p", queue=3, backlog=2, active=2)
    assert "queue full: 3 of 3, 2 connected; the next client gets EAGAIN" in render(console(), full)
    assert "queue no longer full: 1 of 3" in render(
        console(), Queue(at=AT, proxy="p", queue=1, backlog=2, active=2)
    )
    assert "queue" not in render(console(), REQUEST)
    assert "queue" not in render(console(), replace(REQUEST, accept_wait_s=0.001))
    waited = replace(REQUEST, accept_wait_s=0.99, accept_error_s=0.001, total_s=1.0)
    assert "after 990 ms in the queue" in render(console(), waited)
    # The wait is known to within some time, and never told as longer than the request.
    assert "after 980 ms in the queue" in render(console(), replace(waited, total_s=0.98))


def test_what_holds_a_request_is_in_words() -> None:
    """What a worker waits on, and for how long; the kernel's stack with -v only; that there is no worker."""
    worker, queued, incident = EVENTS[13:16]
    line = render(console(), worker)
    assert (
        "slow 1.00 s GET /a?b  php-fpm8.2, pid 812: poll() on tcp 10.0.0.5:3306 (mysqld, pid 9) for 500 ms" in line
    )
    assert "kernel: a < b" in render(console(verbosity=1), worker)
    assert "kernel" not in line
    assert "in the queue, not yet accepted" in render(console(), queued)
    unasked = Slow(at=AT, proxy="p", conn=3, snapshot=Snapshot(at_s=0.232, queued=True))
    assert "slow 232 ms  in the queue" in render(console(), unasked)
    assert isinstance(worker, Slow)
    waited = replace(worker, snapshot=replace(worker.snapshot, at_s=6.04, accept_wait_s=5.87))
    assert "slow 6.04 s (5.87 s of it in the queue) GET /a?b  php-fpm8.2, pid 812" in render(console(), waited)
    first, *more = render(console(), incident).splitlines()
    assert re.search(r"incident since \d\d:\d\d:11\.250: from then on$", first)
    assert [each.strip() for each in more] == [
        "8 × poll() on tcp 10.0.0.5:3306",
        "9 × /a, the oldest 2.70 s",
        "nothing",
    ]
    assert "accepted by php-fpm8.2 (pid 812) after 990 ms" in render(console(verbosity=1), EVENTS[12])


def test_what_cannot_be_seen_of_incidents_is_said_once() -> None:
    """Of each proxy, and again where it is something else."""
    incident, console_ = EVENTS[15], console()
    assert isinstance(incident, Incident)
    others = (replace(incident, unseen="more"), replace(incident, proxy="other"))
    said = [render(console_, each).splitlines()[-1].strip() for each in (incident, incident, *others, *others)]
    assert [line in ("nothing", "more") for line in said] == [True, False, True, True, False, False]


def test_connections_without_exchanges_are_shown() -> None:
    """A raw connection has a line of its own at its end; one whose exchanges were shown has not, but at -v."""
    close = EVENTS[6]
    told = Close(**WHERE, by="client", c2s_bytes=1, s2c_bytes=2, total_s=0.1, requests=1)
    assert "closed by client" in render(console(), close)
    assert render(console(), told) == ""
    assert "closed by client" in render(console(verbosity=1), told)


def test_several_proxies_are_named() -> None:
    """Where there are several proxies each line says whose it is."""
    assert " p " in render(console(several=True), REQUEST).splitlines()[1]


def test_console_data() -> None:
    """Bytes are a hexdump under a line that says whose they are."""
    text = render(console(), Data(**WHERE, direction="s2c", offset=9, data=b"abc"))
    assert "< 3 bytes from 9" in text
    assert "61 62 63" in text


# --- socat ---


def socat(data: bytes, direction: str = "c2s", offset: int = 0) -> str:
    event = Data(**WHERE, direction="s2c" if direction == "s2c" else "c2s", offset=offset, data=data)
    return render(SocatRenderer(WallClock()), event)


def test_socat_format() -> None:
    """The line of ``socat -v`` with the connection's number, then the text with its escapes."""
    head, *text = socat(b'hello\r\nwor\tld\0\x01\x7f\xff\\\a\b\v\f\x1b" end').split("\n")
    assert re.fullmatch(r"> \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6}  length=28 from=0 to=27 conn=3", head)
    assert text == ["hello\\r", 'wor\tld....\\\\\\a\\b\\v\\f." end', ""]
    assert socat(b"x\n", "s2c", 5).startswith("< ")
    assert "length=2 from=5 to=6" in socat(b"x\n", "s2c", 5)


@given(st.binary(max_size=10_000))
def test_socat_text_is_safe(data: bytes) -> None:
    """Newline and tab aside nothing but printable ASCII comes out, and nothing is lost or added."""
    text = socat(data).split("\n", 1)[1]
    assert all(char in "\n\t" or " " <= char <= "~" for char in text)
    plain = text.removesuffix("\n") if not data.endswith(b"\n") else text
    assert len(re.sub(r"\\[abvfr\\]", "?", plain)) == len(data)


def test_socat_shows_bytes_and_what_was_dropped() -> None:
    """Other events have no line in that format, but for lost ones."""
    rendered = [render(SocatRenderer(WallClock()), event) for event in EVENTS]
    assert [text for text in rendered if text] == ["(dropped: 4 chunks, 4000 bytes)\n"]


# --- all ---


@pytest.mark.parametrize(
    "renderer", [console(), JsonRenderer(WallClock(), hexdump=1 << 20), SocatRenderer(WallClock())]
)
def test_large_chunks_are_rendered_in_small_steps(renderer: Renderer) -> None:
    """The longest that rendering goes on without a pause does not grow with the chunk."""
    rendered = renderer.render(Data(**WHERE, direction="c2s", offset=0, data=os.urandom(65536)))
    assert isinstance(rendered, Iterator)
    assert len(list(rendered)) > 4
