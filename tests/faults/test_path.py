"""Rules come and go while bytes, descriptors and ends pass: by no time, and in no order, is any of it lost.

Rule: no rule here takes or adds a byte by what it is, while the test goes on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from udsproxy.events import Direction
from udsproxy.faults.path import Path
from udsproxy.faults.rules import Book
from udsproxy.faults.spelling import parse_all
from udsproxy.faults.stages import Ending
from udsproxy.protocols import fastcgi as wire

ORDERS = int(os.environ.get("UDSPROXY_FAULT_ORDERS", "200"))
S = 1_000_000_000
DIRECTIONS: tuple[Direction, ...] = ("c2s", "s2c")

FOR_CONNECTIONS = (
    "connect-delay=3s",
    "latency=2s±2s@both",
    "latency=1h@c2s",
    "latency=10ms±5ms,distribution=pareto@s2c",
    "bandwidth=50B/s@both",
    "bandwidth=1B/s@s2c",
    "slicer=3B,variation=2B@both",
    "slicer=10B,delay=1s@both",
    "slow-close=5s@both",
    "stall@both",
    "stall=3s@both",
    "limit=5B,then=stall@both",
    # Not before all is over:
    "limit=1GiB@both",
    "limit=1GiB,then=reset@both",
    "limit=1GiB,then=half-close@both",
    "stall=1h,then=close@both",
    "stall=1h,then=reset@s2c",
    "half-close=1h@both",
    "close=1h",
    "reset=1h",
)
FOR_REQUESTS = (
    "latency=2s@both if script=*",
    "bandwidth=50B/s@both if script=*",
    "slicer=3B@both if script=*",
    "stall@both if script=*",
    "slow-close=5s@both if script=*",
    # Of nobody:
    *(f"{fault} if script=/never" for fault in ("fcgi-status=503", "fcgi-overloaded", "fcgi-stderr=oops")),
    *(f"{fault} if script=/never" for fault in ("fcgi-truncate", "fcgi-version", "fcgi-header-too-big=1KiB")),
)
RULES = parse_all([f"{text} name={number}" for number, text in enumerate(FOR_CONNECTIONS)])
REQUEST_RULES = parse_all([f"{text} name=r{number}" for number, text in enumerate(FOR_REQUESTS)])


class Feed(NamedTuple):
    direction: Direction
    data: bytes


class Descriptors(NamedTuple):
    direction: Direction


class End(NamedTuple):
    direction: Direction


class Change(NamedTuple):
    """These are there from now on, and of those for requests no others than are there already."""

    numbers: frozenset[int]
    for_requests: frozenset[int]


class Wait(NamedTuple):
    ns: int


class Block(NamedTuple):
    """Its receiver takes nothing, until it is said again."""

    direction: Direction


Action = Feed | Descriptors | End | Change | Wait | Block


class Cargo:
    """Descriptors, which nobody may close here."""

    def discard(self) -> None:
        raise AssertionError("descriptors were lost")


@dataclass
class Way:
    """One direction: what came, and what went."""

    fed: bytearray = field(default_factory=bytearray)
    out: bytearray = field(default_factory=bytearray)
    descriptors_at: list[int] = field(default_factory=list)
    """How many bytes came before them."""
    descriptors_out: list[int] = field(default_factory=list)
    is_over: bool = False
    """The end was fed."""
    ended: bool = False
    is_blocked: bool = False


class Play:
    """One order."""

    def __init__(self, rules: frozenset[int], for_requests: frozenset[int]) -> None:
        self._rules, self._for_requests = rules, for_requests
        self._now = 0
        there = tuple(RULES[number] for number in rules)
        asking = tuple(REQUEST_RULES[number] for number in for_requests)
        self.path = Path(Book("p", 1, there + asking), 1, 0, list(there), asking, lambda rule, request: None)
        self.ways: dict[Direction, Way] = {"c2s": Way(), "s2c": Way()}

    def act(self, action: Action) -> None:
        path = self.path
        match action:
            case Change(numbers, for_requests):
                gone = {RULES[number].name for number in self._rules - numbers}
                gone |= {REQUEST_RULES[number].name for number in self._for_requests - for_requests}
                path.remove(self._now, frozenset(gone))
                for number in numbers - self._rules:
                    path.add(self._now, RULES[number])
                self._rules, self._for_requests = numbers, self._for_requests & for_requests
            case Wait(ns):
                self._wait(self._now + ns)
            case Block(direction):
                self.ways[direction].is_blocked = not self.ways[direction].is_blocked
            case Feed() | Descriptors() | End() if not self.ways[action.direction].is_over:
                way = self.ways[action.direction]
                if isinstance(action, Feed):
                    way.fed += action.data
                    path.feed(action.direction, self._now, action.data)
                elif isinstance(action, Descriptors):
                    way.descriptors_at.append(len(way.fed))
                    path.cargo(action.direction, self._now, Cargo())
                else:
                    way.is_over = True
                    path.end(action.direction, self._now)
            case _:
                pass
        self._take()
        if not (self._rules or self._for_requests):
            self.assert_nothing_waits()

    def _wait(self, until: int) -> None:
        lines = self.path.lines
        while True:
            dues = [lines[way].due() for way in DIRECTIONS if not self.ways[way].is_blocked]
            due = min((each for each in dues if each is not None), default=until)
            if due >= until:
                break
            self._now = max(self._now, due)
            self._take()
        self._now = until

    def _take(self) -> None:
        for direction, way in self.ways.items():
            line = self.path.lines[direction]
            while not way.is_blocked and (item := line.take(self._now)) is not None:
                assert not way.ended, "something came behind the end"
                if isinstance(item, bytes):
                    way.out += item
                elif isinstance(item, Ending):
                    assert item is Ending.EOF
                    assert way.is_over, "an end that nobody fed"
                    way.ended = True
                else:
                    way.descriptors_out.append(len(way.out))
            assert way.fed.startswith(way.out)
            assert not way.ended or len(way.out) == len(way.fed), "an end came before the last bytes"

    def assert_nothing_waits(self) -> None:
        for direction, way in self.ways.items():
            if not way.is_blocked:
                assert (way.out, way.ended) == (way.fed, way.is_over)
                assert len(way.descriptors_out) == len(way.descriptors_at)
                assert not self.path.lines[direction].waits
                assert self.path.lines[direction].held == 0

    def end(self) -> None:
        """With all rules gone, and all receivers taking, everything has come."""
        self.act(Change(frozenset(), frozenset()))
        for direction, way in self.ways.items():
            way.is_blocked = False
            self.act(End(direction))
            assert way.ended
        self.assert_nothing_waits()
        assert self.path.is_over


# --- making them up ---


def _requests(scripts: list[bytes]) -> bytes:
    return b"".join(
        wire.encode_request({b"SCRIPT_NAME": script}, script * 20, request_id=number, flags=wire.KEEP_CONN)
        for number, script in enumerate(scripts, 1)
    )


def _answers(pages: list[bytes]) -> bytes:
    return b"".join(
        wire.encode_record(wire.STDOUT, number, page) + wire.encode_end(number)
        for number, page in enumerate(pages, 1)
    )


@st.composite
def pieces(draw: st.DrawFn, direction: Direction, whole: bytes) -> list[Action]:
    """All of it, or a part, in pieces; descriptors between them, and the end, or none."""
    actions: list[Action] = []
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    for start, end in zip([0, *cuts], cuts, strict=False):
        if start < end:
            actions.append(Feed(direction, whole[start:end]))
        if draw(st.integers(0, 9)) == 0:
            actions.append(Descriptors(direction))
    return [*actions, End(direction)] if draw(st.booleans()) else actions


contents = st.lists(st.binary(min_size=1, max_size=60), max_size=3)
anything = st.binary(max_size=300)
sets = st.frozensets(st.integers(0, len(RULES) - 1), max_size=3)
request_sets = st.frozensets(st.integers(0, len(REQUEST_RULES) - 1), max_size=3)
waits = st.one_of(st.just(0), st.integers(0, S), st.integers(0, 10 * S)).map(Wait)
befalls = st.one_of(
    st.builds(Change, sets, request_sets),
    st.builds(Change, sets, request_sets),
    waits,
    st.builds(Block, st.sampled_from(DIRECTIONS)),
)


@st.composite
def orders(draw: st.DrawFn) -> tuple[frozenset[int], frozenset[int], list[Action]]:
    """The rules at first, and what comes."""
    left = [
        draw(st.one_of(contents.map(_requests), anything).flatmap(lambda whole: pieces("c2s", whole))),
        draw(st.one_of(contents.map(_answers), anything).flatmap(lambda whole: pieces("s2c", whole))),
    ]
    order: list[Action] = []
    while any(left):
        order += draw(st.lists(befalls, max_size=2))
        order.append(draw(st.sampled_from([each for each in left if each])).pop(0))
    return draw(sets), draw(request_sets), [*order, *draw(st.lists(befalls, max_size=2))]


NONE = frozenset[int]()


@settings(max_examples=ORDERS, derandomize="UDSPROXY_FAULT_ORDERS" not in os.environ)
@given(order=orders())
@example((NONE, frozenset({0}), [Feed("c2s", b"\1\1\0\1"), Change(NONE, NONE)]))
@example((NONE, frozenset({5}), [Feed("c2s", _requests([b"/a"])[:40]), Change(NONE, NONE)]))
@example((NONE, frozenset({5}), [Feed("s2c", b"\1\6\0"), Change(NONE, NONE), Feed("s2c", b"\1")]))
def test_any_order(order: tuple[frozenset[int], frozenset[int], list[Action]]) -> None:
    """Bytes, descriptors and ends come, times pass, rules are added and taken away: what comes out is what went in,
    in order, the end last, and with no rule left nothing waits."""
    rules, for_requests, actions = order
    play = Play(rules, for_requests)
    for action in actions:
        play.act(action)
    play.end()


def test_what_we_answer_is_answered() -> None:
    """A request that met its fault before that was taken away is still the client's alone; the next is the
    server's."""
    (rule,) = parse_all(["fcgi-status=503 name=s"])
    path = Path(Book("p", 1, (rule,)), 1, 0, [], (rule,), lambda rule, request: None)
    asked = _requests([b"/a"])
    path.feed("c2s", 0, asked[:-8])
    path.remove(0, frozenset({"s"}))
    assert path.lines["c2s"].take(0) is None
    path.feed("c2s", 0, asked[-8:] + asked)
    assert b"".join(_taken(path, "c2s")) == asked
    assert b"503" in b"".join(_taken(path, "s2c"))
    assert path.is_over


def _taken(path: Path, direction: Direction) -> list[bytes]:
    taken = []
    while (item := path.lines[direction].take(0)) is not None:
        assert isinstance(item, bytes)
        taken.append(item)
    return taken
