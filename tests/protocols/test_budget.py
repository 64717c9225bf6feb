"""What is kept of all connections is bounded for the process, and what was not kept is said."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator

import pytest

from udsproxy.events import Close, DecodeError, Event, Message, Request
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.budget import FAIR_BYTES, Budget, Ledger
from udsproxy.protocols.secrets import Masking
from udsproxy.protocols.tap import Observation, Tap

LIMIT = 1024 * 1024
WANTED = (b"REQUEST_METHOD", b"REQUEST_URI", b"SCRIPT_NAME", b"SCRIPT_FILENAME", b"QUERY_STRING")
MASKING = Masking()


def params(number: int, *contents: bytes) -> bytes:
    """A request whose parameters do not end."""
    records = [wire.encode_record(wire.PARAMS, number, content) for content in contents]
    return wire.encode_begin(number) + b"".join(records)


def values(number: int) -> bytes:
    """The five values that are kept, each as long as can be."""
    pairs = [(name, b"/" + b"ab/" * 5400) for name in WANTED]
    return params(number, wire.encode_pairs(pairs[:3]), wire.encode_pairs(pairs[3:]))


def endless(number: int) -> bytes:
    """Many parameters, and a pair that is not whole."""
    many = wire.encode_pairs((b"REQUEST_URI", b"/%d" % i) for i in range(200))
    return params(number, many, b"\x0b\xff\xff\xff\xffREQUEST_URI" + b"/" * 20_000)


def heads(number: int) -> bytes:
    """A request; its answers are below."""
    return wire.encode_request({b"SCRIPT_NAME": b"/a"}, request_id=number)


ANSWERS = b"".join(
    wire.encode_record(wire.STDOUT, i, b"X: " + b"y" * 16_000) + wire.encode_record(wire.STDERR, i, b"e" * 8192)
    for i in range(1, 33)
)
MANAGEMENT = wire.encode_record(wire.GET_VALUES, 0, b"\x01\xff\xff\xff\xff" + b"x" * 60_000)[:-8]


class Nowhere:
    """A sink that keeps nothing but what is asked for."""

    name = "nowhere"
    total_dropped = 0

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> Iterator[None] | None:
        if isinstance(event, Request | DecodeError | Close) or (
            isinstance(event, Message) and event.kind == "PARAMS"
        ):
            self.events.append(event)
        return None

    def flush(self) -> None:
        pass


def work(tap: Tap) -> None:
    while tap.work(1000):
        pass


def observe(tap: Tap, conn: int, client: bytes, server: bytes = b"") -> Observation:
    seen = tap.observe("p", conn)
    seen.data("c2s", 1, client)
    if server:
        seen.data("s2c", 2, server)
    work(tap)
    return seen


def kept_bytes(roots: list[Observation], but_for: list[object]) -> int:
    """All that can be reached from there, by the interpreter's own sizes; classes, functions, modules and what all
    share aside."""
    seen = {id(each) for each in but_for}
    total, left = 0, list(roots)
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type | Callable) or type(each).__name__ == "module":
            continue
        seen.add(id(each))
        total += sys.getsizeof(each)
        left += gc.get_referents(each)
    return total


@pytest.mark.parametrize("verbosity", [0, 1, 2])
@pytest.mark.parametrize("what", [values, endless, heads])
def test_hostile_clients_are_bounded(what: Callable[[int], bytes], verbosity: int) -> None:
    """Whatever many connections hold open, what is kept of them is within the budget, and counted there; when they
    end everything was given back."""
    tap = Tap([sink := Nowhere()], name="p", decode={"p": "fastcgi"}, verbosity=verbosity, masking=MASKING)
    tap.budget.limit = LIMIT
    client = b"".join(what(number) for number in range(1, 33))
    seen = [observe(tap, conn, client + MANAGEMENT, ANSWERS if what is heads else b"") for conn in range(1, 8)]
    assert LIMIT // 2 < tap.budget.held <= LIMIT
    shared = [tap, MASKING, tap.budget, sink]
    kept = kept_bytes(seen, shared) - kept_bytes([observe(tap, conn, b"") for conn in range(8, 15)], shared)
    assert kept <= tap.budget.held
    for each in seen:
        each.close(
            Close(at=3, proxy="p", conn=1, by="client", c2s_bytes=1, s2c_bytes=1, total_s=1.0, requests=0), "x"
        )
    work(tap)
    told = [event.unseen for event in sink.events if isinstance(event, Request)]
    assert any(told) or any("memory" in event.reason for event in sink.events if isinstance(event, DecodeError))
    del seen
    assert tap.budget.held == 0


def test_who_keeps_little_is_not_left_blind() -> None:
    """Beside hostile connections an ordinary one is seen whole."""
    tap = Tap([sink := Nowhere()], name="p", decode={"p": "fastcgi"}, verbosity=0, masking=MASKING)
    tap.budget.limit = LIMIT
    client = b"".join(values(number) for number in range(1, 33))
    hostile = [observe(tap, conn, client) for conn in range(1, 6)]
    assert tap.budget.held > LIMIT // 2
    question = wire.encode_request({b"REQUEST_METHOD": b"GET", b"REQUEST_URI": b"/a?b=1"})
    observe(tap, 9, question, wire.encode_stream(wire.STDOUT, 1, b"Status: 201\r\n\r\n") + wire.encode_end(1))
    [exchange] = [event for event in sink.events if isinstance(event, Request)]
    assert (exchange.uri, exchange.status, exchange.unseen) == ("/a?b=1", 201, None)
    assert len(hostile) == 5


def test_all_numbers_of_requests() -> None:
    """65,535 requests that are begun on one connection are no more than what may be open at once."""
    tap = Tap([sink := Nowhere()], name="p", decode={"p": "fastcgi"}, verbosity=0, masking=MASKING)
    observe(tap, 1, b"".join(wire.encode_begin(number) for number in range(1, 65536)))
    assert [event.reason for event in sink.events if isinstance(event, DecodeError)] == [
        "more than 32 requests open at once"
    ]
    assert tap.budget.held < 256 * 1024


def test_ledgers() -> None:
    """No more than there is; past its half no more than a fair share for one; and all comes back."""
    budget = Budget(10 * FAIR_BYTES)
    great, small = Ledger(budget), Ledger(budget)
    assert great.take(5 * FAIR_BYTES)
    assert not great.take(1)
    assert small.take(FAIR_BYTES)
    assert not small.take(1)
    small.give(1)
    assert budget.held == 6 * FAIR_BYTES - 1
    great.close()
    assert small.take(4 * FAIR_BYTES)
    del small
    assert budget.held == 0
