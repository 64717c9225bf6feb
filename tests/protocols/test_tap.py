"""The tap: what is handed over comes out as events, in order, or is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from udsproxy.events import (
    Accepted,
    Close,
    Data,
    DecodeError,
    Direction,
    Dropped,
    Event,
    Message,
    Open,
    ProxyError,
    Request,
    Worker,
)
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.decoder import AcceptWait, RawDecoder
from udsproxy.protocols.secrets import Masking
from udsproxy.protocols.tap import QUEUE_ITEMS, Mark, Tap

QUESTION = wire.encode_request({b"REQUEST_METHOD": b"GET", b"SCRIPT_NAME": b"/a", b"HTTP_COOKIE": b"sesame"})
REPLY = wire.encode_stream(wire.STDOUT, 1, b"Status: 200\r\n\r\nhi") + wire.encode_end(1)


class Kept:
    """A sink that keeps the events; with ``steps``, each takes so many steps of rendering."""

    name = "kept"
    total_dropped = 0

    def __init__(self, steps: int = 0) -> None:
        self.events: list[Event] = []
        self.flushed = 0
        self._steps = steps

    def emit(self, event: Event) -> Iterator[None] | None:
        if not self._steps:
            self.events.append(event)
            return None
        return self._slowly(event)

    def _slowly(self, event: Event) -> Iterator[None]:
        for _ in range(self._steps):
            yield
        self.events.append(event)

    def flush(self) -> None:
        self.flushed += 1


def make(sink: Kept | None, *, decode: str = "auto", verbosity: int = 0, limit: int = 1 << 20) -> Tap:
    sinks = [] if sink is None else [sink]
    return Tap(list(sinks), name="p", decode={"p": decode}, verbosity=verbosity, masking=Masking(), limit=limit)


def closed(at: int = 9) -> Close:
    return Close(at=at, proxy="p", conn=1, by="client", c2s_bytes=5, s2c_bytes=6, total_s=1.0, requests=0)


def run(tap: Tap) -> None:
    while tap.work(1):
        pass


def test_events_in_order() -> None:
    """What happened first is told first, decoded or not; a close says what the connection was."""
    sink = Kept()
    tap = make(sink)
    tap.put(Open(at=1, proxy="p", conn=1))
    seen = tap.observe("p", 1)
    seen.data("c2s", 2, QUESTION)
    seen.data("s2c", 3, REPLY)
    seen.close(closed(), "client left")
    assert sink.events == []
    run(tap)
    assert [type(event) for event in sink.events] == [Open, Request, Close]
    last = sink.events[-1]
    assert isinstance(last, Close)
    assert (last.protocol, last.requests) == ("fastcgi", 1)
    assert sink.flushed == 1
    assert not tap.urgency()


@pytest.mark.parametrize("verbosity", [0, 1])
@pytest.mark.parametrize("named", ["before the answer", "before it is decoded", "afterwards", "never"])
def test_accepted_comes_before_the_answer(verbosity: int, named: str) -> None:
    """Whenever the worker's name is learned, `accepted` is told once, before what the server says and before the
    exchange's end; and with the name if that is known by then."""
    sink = Kept()
    tap = make(sink, verbosity=verbosity)
    wait = AcceptWait(1, 0, 1)
    seen = tap.observe("p", 1, wait, lambda _: True)
    worker = Worker(7, "php-fpm")
    seen.data("c2s", 2, QUESTION)
    run(tap)
    if named == "before the answer":
        seen.accepted(worker)
        run(tap)
    seen.data("s2c", 3, REPLY)
    if named == "before it is decoded":
        seen.accepted(worker)
    run(tap)
    if named == "afterwards":
        seen.accepted(worker)
    seen.close(closed(), "client left")
    run(tap)
    seen.accepted(worker)
    run(tap)
    told = [event for event in sink.events if not (isinstance(event, Message) and event.direction == "c2s")]
    assert isinstance(told[0], Accepted)
    assert told[0].worker == (worker if named.startswith("before") else None)
    assert not any(isinstance(event, Accepted) for event in told[1:])
    assert [type(event) for event in told[-2:]] == [Request, Close]


def test_a_wait_that_nobody_saw_is_not_told() -> None:
    """A connection that was answered before anybody looked has no `accepted`."""
    sink = Kept()
    tap = make(sink)
    seen = tap.observe("p", 1, AcceptWait(1), lambda wait: wait.was_seen)
    seen.data("c2s", 2, QUESTION)
    seen.data("s2c", 3, REPLY)
    seen.close(closed(), "client left")
    run(tap)
    assert [type(event) for event in sink.events] == [Request, Close]


def test_work_is_done_in_small_units() -> None:
    """Each call does at most so many steps, slow rendering included, and says whether any are left."""
    sink = Kept(steps=10)
    tap = make(sink)
    for at in range(3):
        tap.put(Open(at=at, proxy="p", conn=1))
    calls = 0
    while tap.work(1):
        calls += 1
        assert len(sink.events) <= calls / 10
    assert len(sink.events) == 3


def test_overflow_is_counted_and_told() -> None:
    """What does not fit is dropped: one event says how much, the decoder stops guessing, the rest goes on."""
    sink = Kept()
    tap = make(sink, limit=4096)
    lost, fine = tap.observe("p", 1), tap.observe("p", 2)
    lost.data("c2s", 1, QUESTION)
    for _ in range(5):
        lost.data("c2s", 2, bytes(1000) * 4)
    lost.data("s2c", 3, REPLY)
    lost.close(closed(), "client left")
    run(tap)
    fine.data("c2s", 4, QUESTION)
    fine.data("s2c", 5, REPLY)
    run(tap)
    [dropped] = [event for event in sink.events if isinstance(event, Dropped)]
    assert (dropped.observer, dropped.count, dropped.nbytes) == ("tap", 5, 20_000)
    assert len([event for event in sink.events if isinstance(event, DecodeError)]) == 1
    requests = [event for event in sink.events if isinstance(event, Request)]
    assert [(each.conn, each.incomplete) for each in requests] == [(1, None), (2, None)]
    assert tap.held == 0


def test_connections_that_come_too_fast_are_counted() -> None:
    """Events without bytes are bounded too."""
    sink = Kept()
    tap = make(sink)
    for at in range(QUEUE_ITEMS + 10):
        tap.put(Open(at=at, proxy="p", conn=at))
    run(tap)
    assert len([event for event in sink.events if isinstance(event, Open)]) == QUEUE_ITEMS
    assert [event.count for event in sink.events if isinstance(event, Dropped)] == [10]


def test_bytes_are_shown_masked() -> None:
    """At -vv the bytes come with their offsets, before what they mean, and without secrets."""
    sink = Kept()
    tap = make(sink, verbosity=2)
    seen = tap.observe("p", 1)
    half = QUESTION.index(b"sesame") + 3
    seen.data("c2s", 1, QUESTION[:half])
    seen.data("c2s", 1, QUESTION[half:])
    run(tap)
    shown = [event for event in sink.events if isinstance(event, Data)]
    assert [event.offset for event in shown] == [0, half]
    assert b"".join(event.data for event in shown) == QUESTION.replace(b"sesame", b"******")
    assert isinstance(sink.events[0], Data)


def test_nobody_looks() -> None:
    """Without sinks nothing is queued or decoded, but the summary counts."""
    tap = make(None)
    seen = tap.observe("p", 1)
    assert tap.quiet
    assert not seen.wants_data
    seen.close(closed(), "client left")
    assert not tap.urgency()
    summary = tap.finish(1.0, 10)
    assert (summary.connections, summary.c2s_bytes, summary.s2c_bytes) == (1, 5, 6)


def test_decode_none_does_not_look() -> None:
    """With decode ``none`` bytes are not asked for; opening and closing is still told."""
    sink = Kept()
    tap = make(sink, decode="none")
    seen = tap.observe("p", 1)
    assert not seen.wants_data
    seen.close(closed(), "client left")
    run(tap)
    assert [type(event) for event in sink.events] == [Close]


def test_the_summary() -> None:
    """The last event says what was seen in all; what nobody had the time to look at is counted."""
    sink = Kept()
    tap = make(sink)
    for conn, reply in ((1, REPLY), (2, b"")):
        seen = tap.observe("p", conn)
        seen.data("c2s", 1, QUESTION)
        if reply:
            seen.data("s2c", 2, reply)
        seen.close(closed(), "client left")
    run(tap)
    summary = tap.finish(2.0, 10)
    assert (summary.requests, summary.incomplete, summary.connections, summary.dropped) == (2, 1, 2, 0)
    assert sink.events[-1] == summary
    seen = tap.observe("p", 3)
    seen.data("c2s", 1, QUESTION)
    seen.close(closed(), "client left")
    assert tap.finish(2.0, 10).dropped == 2


def test_a_dense_chunk_is_decoded_in_slices() -> None:
    """Many records in one chunk take many units; a body of one record takes few."""
    sink = Kept()
    for chunk, dense in (
        (wire.encode_begin(1) + wire.encode_record(wire.STDIN, 1) * 20_000, True),
        (wire.encode_begin(1) + wire.encode_record(wire.STDIN, 1, bytes(65535)) * 3, False),
    ):
        tap, units = make(sink, decode="fastcgi", verbosity=2), 1
        tap.observe("p", 1).data("c2s", 1, chunk)
        while tap.work(1):
            units += 1
        assert units > 70 if dense else units < 20
    shown = [event for event in sink.events if isinstance(event, Data)]
    assert [len(event.data) for event in shown] == [16 + 8 * 20_000, 16 + 3 * (8 + 65535 + 1)]


class BrokenDecoder(RawDecoder):
    """A decoder with a bug."""

    def feed(self, direction: Direction, at: int, data: bytes) -> list[Event]:
        raise ZeroDivisionError("oops")

    def ahead(self, direction: Direction) -> int:
        return 0

    def mark(self, request: int | None, rule: str) -> None:
        raise ZeroDivisionError("oops")


class BrokenAtTheEnd(BrokenDecoder):
    """A decoder with a bug in what it does rarely."""

    def lost(self, direction: Direction, at: int) -> list[Event]:
        raise ZeroDivisionError("oops")

    def close(self, at: int, why: str) -> list[Event]:
        raise ZeroDivisionError("oops")


def test_a_decoders_bug_costs_its_connection_and_no_other() -> None:
    """An exception in a decoder is told once; that connection is raw then, and the others go on."""
    sink = Kept()
    tap = make(sink)
    broken, fine = tap.observe("p", 1), tap.observe("p", 2)
    broken._decoder = BrokenDecoder()
    for seen in (broken, fine):
        seen.data("c2s", 1, QUESTION)
        seen.data("s2c", 2, REPLY)
        seen.close(closed(), "client left")
    run(tap)
    [told] = [event for event in sink.events if isinstance(event, ProxyError)]
    assert (told.conn, told.op, told.message) == (1, "decode", "ZeroDivisionError: oops")
    assert [event.conn for event in sink.events if isinstance(event, Request)] == [2]
    assert len([event for event in sink.events if isinstance(event, Close)]) == 2


def test_a_decoders_bug_at_the_end_costs_no_more() -> None:
    """An exception when bytes were lost, or at the close, is told, and the close is too."""
    sink = Kept()
    tap = make(sink, limit=1000)
    seen = tap.observe("p", 1)
    seen._decoder = BrokenAtTheEnd()
    seen.data("c2s", 1, bytes(2000))
    run(tap)
    seen._decoder = BrokenAtTheEnd()
    seen.close(closed(), "client left")
    run(tap)
    seen._decoder = BrokenAtTheEnd()
    seen.mark(9, Mark(None, "latency"))
    run(tap)
    told = [event for event in sink.events if not isinstance(event, Dropped)]
    assert [type(event) for event in told] == [ProxyError, ProxyError, Close, ProxyError]


@pytest.mark.parametrize("decode", ["auto", "fastcgi"])
def test_faults_are_named(decode: str) -> None:
    """Those of the connection at each of its exchanges, those of a request at that one."""
    sink = Kept()
    tap = make(sink, decode=decode)
    seen = tap.observe("p", 1)
    seen.mark(1, Mark(None, "slow"))
    for request in (1, 2):
        seen.data("c2s", 1, wire.encode_request({b"SCRIPT_NAME": b"/a"}, request_id=request))
        if request == 2:
            seen.mark(2, Mark(2, "late"))
            seen.mark(2, Mark(7, "of nothing that is open"))
        seen.data("s2c", 3, wire.encode_end(request))
    seen.close(closed(), "client left")
    run(tap)
    assert [event.faults for event in sink.events if isinstance(event, Request)] == [("slow",), ("slow", "late")]


def test_waking() -> None:
    """Who has to do the work is woken when something comes that is no traffic of its own."""
    woken = []
    tap = make(Kept())
    tap.wake = lambda: woken.append(True)
    tap.put(Open(at=1, proxy="p", conn=1))
    assert woken == [True]
