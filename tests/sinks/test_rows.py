"""The console on a terminal: nothing is wider than it, and the table stays whole."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len

from tests.sinks.test_renderers import AT, EVENTS, REQUEST, WHERE, render
from udsproxy.events import Close, Data, Event, Incident, Load, Message, ProxyError, Queue, Request, WaitingOn
from udsproxy.events import printable as made_printable
from udsproxy.sinks.console import ConsoleRenderer
from udsproxy.sinks.text import WallClock

LONG_URI = "/shop/checkout/confirm/payment/index.php?order=12345678&step=confirmation&lang=en_GB&from=basket"
FIRST = ["CONN", "METHOD", "STATUS", "TOTAL", "URI"]


def on_terminal(
    width: int | None, *, color: bool = False, verbosity: int = 0, several: bool = False
) -> ConsoleRenderer:
    return ConsoleRenderer(
        WallClock(), color=color, verbosity=verbosity, hexdump=64, several=several, width=lambda: width
    )


def lines_of(renderer: ConsoleRenderer, event: Event) -> list[str]:
    return re.sub(r"\x1b\[[\d;]*m", "", render(renderer, event)).splitlines()


# --- any event, any width ---

TEXT = st.one_of(
    st.text("abc/.-?=& ", max_size=120), st.text("日本語e\u0301× ", max_size=60), st.text(max_size=40)
).map(made_printable)
NUMBERS = st.integers(0, 10**13)
SECONDS = st.floats(0, 1e6)
REQUESTS = st.builds(
    Request, at=st.just(AT), proxy=TEXT, conn=st.integers(1, 10**9), protocol=TEXT, request=st.just(1),
    method=st.none() | TEXT, uri=st.none() | TEXT, status=st.none() | st.integers(100, 999),
    app_status=st.none() | st.integers(0, 255), stderr=st.none() | TEXT, c2s_bytes=NUMBERS, s2c_bytes=NUMBERS,
    protocol_status=st.sampled_from((None, "REQUEST_COMPLETE", "OVERLOADED")), accept_wait_s=st.none() | SECONDS,
    ttfb_s=st.none() | SECONDS, total_s=SECONDS, incomplete=st.none() | TEXT, unseen=st.none() | TEXT,
    faults=st.none() | st.lists(TEXT, min_size=1, max_size=3).map(tuple),
)  # fmt: skip
CLOSES = st.builds(
    Close, at=st.just(AT), proxy=TEXT, conn=st.integers(1, 10**9), by=st.just("client"), errno=st.none() | TEXT,
    c2s_bytes=NUMBERS, s2c_bytes=NUMBERS, total_s=SECONDS, protocol=st.none() | TEXT, requests=st.just(0),
)  # fmt: skip
INCIDENTS = st.builds(
    Incident, at=st.just(AT), proxy=TEXT, what=TEXT, phase=st.sampled_from(("open", "close")),
    since=st.just("2026-11-24T14:02:11.250000Z"), active=st.just(1), unseen=st.none() | TEXT,
    waiting_on=st.lists(st.builds(WaitingOn, TEXT, NUMBERS), max_size=2).map(tuple),
    in_flight=st.lists(st.builds(Load, TEXT, NUMBERS, SECONDS), max_size=2).map(tuple),
)  # fmt: skip
MESSAGES = st.builds(
    Message, at=st.just(AT), proxy=TEXT, conn=st.just(3), direction=st.just("c2s"), protocol=st.just("fastcgi"),
    kind=TEXT, nbytes=NUMBERS, fields=st.dictionaries(TEXT, TEXT | NUMBERS, max_size=8),
)  # fmt: skip
DATA = st.builds(
    Data, at=st.just(AT), proxy=TEXT, conn=st.just(3), direction=st.just("c2s"), offset=NUMBERS,
    data=st.binary(max_size=200),
)  # fmt: skip
TROUBLES = st.builds(
    ProxyError, at=st.just(AT), proxy=TEXT, op=TEXT, errno=TEXT, message=TEXT, hint=st.none() | TEXT
)  # fmt: skip
ANY = st.one_of(st.sampled_from(EVENTS), REQUESTS, CLOSES, INCIDENTS, MESSAGES, DATA, TROUBLES)


@given(ANY, st.integers(40, 200), st.booleans(), st.booleans())
def test_no_line_is_wider_than_the_terminal(event: Event, width: int, several: bool, color: bool) -> None:
    """Whatever the event holds, and however wide the terminal is."""
    for line in lines_of(on_terminal(width, color=color, verbosity=2, several=several), event):
        assert cell_len(line) <= width


@given(st.one_of(MESSAGES, TROUBLES), st.integers(60, 200))
def test_what_is_folded_loses_nothing(event: Event, width: int) -> None:
    """A line that is no row of the table has all its characters but spaces, at any width."""
    event = replace(event, proxy="p")
    kept = "".join("".join(lines_of(on_terminal(width, verbosity=1), event)).split())
    whole = "".join("".join(lines_of(on_terminal(None, verbosity=1), event)).split())
    assert kept[12:].endswith(whole[16:])
    assert kept.removesuffix(whole[16:])[:8] == whole[:8]


@given(REQUESTS, st.integers(60, 200))
def test_a_row_loses_nothing_but_the_middle_of_its_uri(event: Request, width: int) -> None:
    """What is noted of an exchange is there at any width, and so is what the server wrote to stderr."""
    shown = "".join("".join(lines_of(on_terminal(width), replace(event, proxy="p"))).split())
    for text in (event.incomplete and f"incomplete: {event.incomplete}", event.unseen, event.stderr):
        assert "".join((text or "").split()) in shown


@given(REQUESTS, st.booleans())
def test_elsewhere_nothing_is_folded_or_cut(event: Request, several: bool) -> None:
    """Where there is no terminal an exchange is one line with all of its text, and stderr is one more."""
    lines = lines_of(on_terminal(None, several=several), event)
    assert len(lines) == 2 + bool(event.stderr)
    for text in (event.method, event.uri, event.incomplete, event.unseen):
        assert (text or "") in lines[1]
    assert "…" in f"{event}" or "…" not in lines[1]


# --- the table ---


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (None, ["TIME", "CONN", "METHOD", "STATUS", "TTFB", "TOTAL", "SENT", "RECEIVED", "URI"]),
        (100, ["TIME", "CONN", "METHOD", "STATUS", "TTFB", "TOTAL", "SENT", "RECEIVED", "URI"]),
        (80, ["TIME", "CONN", "METHOD", "STATUS", "TTFB", "TOTAL", "URI"]),
        (60, ["TIME", *FIRST]),
        (50, FIRST),
    ],
)
@pytest.mark.parametrize("color", [False, True])
def test_columns_of_each_width(width: int | None, names: list[str], color: bool) -> None:
    """A narrow terminal has fewer columns; a request is one line under them, each value under its name."""
    heading, line = lines_of(on_terminal(width, color=color), replace(REQUEST, uri=LONG_URI))
    assert heading.split() == names
    for name, value in (("METHOD", "GET"), ("STATUS", "200"), ("URI", "/shop/")):
        assert line.index(value) == heading.index(name)
    for name, value in (("CONN", "#3"), ("TTFB", "12.3 ms"), ("TOTAL", "500 ms"), ("SENT", "500 B")):
        if name in names:
            assert line.index(value) + len(value) == heading.index(name) + len(name)
    assert line.endswith(LONG_URI if width is None else LONG_URI[-4:])
    assert ("…" in line) == (width is not None)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_notes_that_do_not_fit_go_below(width: int) -> None:
    """Why an exchange has no end is never cut: it stands beside the URI, or under it."""
    changes = {"incomplete": "client left", "faults": ("latency",), "accept_wait_s": 0.99, "total_s": 1.0}
    event = replace(REQUEST, uri=LONG_URI, **changes)
    _, row, *below = lines_of(on_terminal(width), event)
    assert "#3" in row
    notes = " ".join((row + " " + " ".join(below)).split())
    for note in ("incomplete: client left", "fault: latency", "after 990 ms in the queue"):
        assert note in notes
    assert all(line.startswith(" " * 8) for line in below)


@pytest.mark.parametrize("width", [None, 60, 80, 120])
def test_a_connection_without_exchanges_is_a_row(width: int | None) -> None:
    """Its end stands where an URI would, and goes below where that has no room; nothing of it is cut."""
    event = Close(
        **WHERE,
        by="client",
        errno="ECONNRESET",
        c2s_bytes=14,
        s2c_bytes=7,
        total_s=0.1,
        requests=0,
        faults=("latency",),
    )
    heading, row, *below = lines_of(on_terminal(width), event)
    assert row.index("raw") == heading.index("METHOD")
    end = "closed by client, ECONNRESET; fault: latency"
    if width is None:
        assert row.index(end) == heading.index("URI")
    else:
        assert end in " ".join(" ".join([row, *below]).split())


def test_a_resized_terminal_is_followed() -> None:
    """The width of each event counts; where other columns are shown, they are named again."""
    width = 120
    renderer = ConsoleRenderer(WallClock(), color=False, verbosity=0, hexdump=64, width=lambda: width)
    assert len(lines_of(renderer, REQUEST)) == 2
    assert len(lines_of(renderer, REQUEST)) == 1
    width = 110
    assert len(lines_of(renderer, REQUEST)) == 1
    width = 60
    assert lines_of(renderer, REQUEST)[0].split() == ["TIME", *FIRST]
    assert len(lines_of(renderer, REQUEST)) == 1


@pytest.mark.parametrize("width", [None, 60, 80, 120])
def test_several_proxies_have_a_column(width: int | None) -> None:
    """With several proxies the table says which one it was, and its columns stay aligned."""
    renderer = on_terminal(width, several=True)
    names = ["p", "a-name-that-is-much-longer-than-its-column"] if width else ["p", "twelve-cells"]
    heading, *rows = [line for name in names for line in lines_of(renderer, replace(REQUEST, proxy=name, uri="/a"))]
    assert "PROXY" in heading.split()
    for row in rows:
        if "GET" in row:
            assert row.index("GET") == heading.index("METHOD")
    queue = lines_of(renderer, Queue(at=AT, proxy="p", queue=3, backlog=2, active=2))[0]
    assert queue.index("queue full") == heading.index("METHOD")


@pytest.mark.parametrize(("width", "expected"), [(None, 16), (120, 16), (80, 8), (60, 8), (40, 4)])
def test_a_hexdump_fits(width: int | None, expected: int) -> None:
    """A narrow terminal has fewer bytes a line; all bytes are there, and as text beside them."""
    _, first, *others = lines_of(
        on_terminal(width), Data(**WHERE, direction="c2s", offset=0, data=b"The quick brown fox.\n")
    )
    assert len(re.findall(r"(?<= )[0-9A-F]{2}(?= )", first.partition(":")[2])) == expected
    assert first.endswith("The quick brown fox."[:expected])
    offset = int(others[0].split(":")[0], 16)
    assert offset == expected


# --- times ---


def test_one_kind_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console's times of day are local, those of events are UTC: an incident's beginning is told in the time
    that its line has, too."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        event = Incident(
            at=AT, proxy="p", what="the queue grew", phase="close", since="2026-11-24T14:02:11.250999Z", active=3
        )
        [line] = lines_of(on_terminal(None), event)
        assert line.endswith("incident over, since 19:32:11.250: the queue grew")
    finally:
        monkeypatch.undo()
        time.tzset()
