"""Faults that come and go on connections that send and end meanwhile: real sockets, and a relay that moves when it
is told to, so that every order of all that can be made up and made again.

Rules:

* No fault here takes a byte by what it is: it holds them for as long as no test goes on, until it is taken away; or
  does nothing for so long; or only cuts.
* Whatever comes in whatever order: what one end sent the other gets, all of it, in order, and then the end.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.e2e.tools import until
from udsproxy.faults.rules import Book
from udsproxy.faults.spelling import parse_all
from udsproxy.protocols.secrets import Masking
from udsproxy.protocols.tap import Tap
from udsproxy.proxy.connection import Connections
from udsproxy.proxy.relay import Relay

KIB = 1024
FAULTS = (
    "stall@both",
    "stall=1h@c2s",
    "latency=1h@c2s",
    "latency=1h±30m@s2c",
    "bandwidth=1B/s@both",
    "slicer=1000B,variation=999B@both",
    "slicer=10KiB,delay=1h@s2c",
    "slow-close=1h@both",
    "connect-delay=1h",
    "limit=10B,then=stall@both",
    "limit=1GiB,then=reset@both",
    "stall=1h,then=reset@s2c",
    "reset=1h",
    "close=1h",
    "half-close=1h@c2s",
)
"""By number. In one order each is there once at most."""
RULES = parse_all([f"{text} name={number}" for number, text in enumerate(FAULTS)])
ENDLESS = {FAULTS.index("stall@both"), FAULTS.index("limit=10B,then=stall@both")}
"""What they hold would never pass: where the client leaves, it is given up."""
READ = 1024 * KIB

ORDERS = int(os.environ.get("UDSPROXY_FAULT_ORDERS", "60"))

Who = Literal["client", "server"]


class Send(NamedTuple):
    who: Who
    nbytes: int


class Receive(NamedTuple):
    who: Who
    nbytes: int


class ShutDown(NamedTuple):
    who: Who


class Close(NamedTuple):
    who: Who


class Change(NamedTuple):
    """These faults are there from now on, and no others."""

    faults: frozenset[int]


class Move(NamedTuple):
    """The relay does what there is to do."""


Action = Send | Receive | ShutDown | Close | Change | Move


@dataclass
class End:
    """One end of the connection."""

    sock: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    got: bytearray = field(default_factory=bytearray)
    is_open: bool = True
    sends: bool = True
    ended: bool = False
    """The other end's end has come."""
    given_up: bool = False
    """It left while what it had sent was to wait for ever."""

    def send(self, nbytes: int) -> None:
        if self.is_open and self.sends:
            start = len(self.sent)
            data = bytes((start + at) * 7 // 5 % 251 for at in range(min(nbytes, 10 * KIB)))
            data = (data * (nbytes // len(data) + 1))[:nbytes]
            with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                self.sent += data[: self.sock.send(data)]

    def receive(self, nbytes: int, other: End) -> bool:
        """Returns whether anything came."""
        if not self.is_open or self.ended:
            return False
        try:
            data = self.sock.recv(nbytes)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            assert not other.is_open
            data = b""
        self.got += data
        assert other.sent.startswith(self.got)
        if not data:
            self.ended = True
            assert not other.sends, "an end that nobody sent"
            assert len(self.got) == len(other.sent) or other.given_up, "an end came before the last bytes"
        return True

    def shut_down(self) -> None:
        if self.is_open and self.sends:
            self.sends = False
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()
        self.is_open = self.sends = False


class Stage:
    """A relay, and connections through it one after the other."""

    def __init__(self) -> None:
        self.book = Book("p", 1)
        tap = Tap([], name="p", decode={}, masking=Masking())
        self.relay = Relay(tap)
        self.connections = Connections("p", self.relay, tap, self.book, unix_clients=True)

    def connect(self) -> dict[Who, End]:
        ends, pair = dict[Who, End](), []
        for who in ("client", "server"):
            theirs, ours = socket.socketpair()
            theirs.setblocking(False)
            pair.append(ours)
            ends[who] = End(theirs)
        self.connections.open(pair[0], pair[1], self.connections.number(), 0.0)
        return ends

    def change(self, numbers: frozenset[int]) -> None:
        before = self.book.in_force
        self.book.set(tuple(RULES[number] for number in sorted(numbers)))
        self.connections.change_faults(before)

    def move(self) -> None:
        while self.relay._turn() or self.relay._again or self.relay._over:
            pass


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.relay.close()


lengths = st.sampled_from([1, 9, 700, 3000, 20_000, 70_000, 300_000])


def lives(who: Who) -> st.SearchStrategy[list[Action]]:
    """What an end does in its life: to close without a shutdown before is the rarer."""
    receive = st.builds(Receive, st.just(who), st.sampled_from([9, 3000, READ]))
    acts = st.lists(st.builds(Send, st.just(who), lengths) | receive, max_size=4)
    says_end = st.sampled_from([[ShutDown(who)], [ShutDown(who)], []])
    leaves = st.sampled_from([[Close(who)], []])
    return st.tuples(acts, says_end, st.lists(receive, max_size=3), leaves).map(_joined)


def _joined(parts: tuple[Sequence[Action], ...]) -> list[Action]:
    return [action for part in parts for action in part]


@st.composite
def orders(draw: st.DrawFn) -> list[Action]:
    """Two lives, and what befalls them."""
    left = {"client": draw(lives("client")), "server": draw(lives("server"))}
    changes = st.builds(Change, st.frozensets(st.integers(0, len(FAULTS) - 1), max_size=2))
    order: list[Action] = []
    while any(left.values()):
        order += draw(st.lists(st.builds(Move) | changes, max_size=2))
        life = left[draw(st.sampled_from([who for who, life in left.items() if life]))]
        order.append(life.pop(0))
    return order


def play(stage: Stage, order: list[Action]) -> None:
    ends, faults = stage.connect(), frozenset[int]()
    client, server = ends["client"], ends["server"]
    other = {"client": server, "server": client}
    try:
        for action in order:
            match action:
                case Send(who, nbytes):
                    ends[who].send(nbytes)
                case Receive(who, nbytes):
                    ends[who].receive(nbytes, other[who])
                case ShutDown(who):
                    ends[who].shut_down()
                case Close(who):
                    ends[who].close()
                case Change(faults):
                    stage.change(faults)
                case Move():
                    stage.move()
            client.given_up = client.given_up or (not client.is_open and bool(faults & ENDLESS))
        stage.change(frozenset())
        for end in ends.values():
            end.shut_down()

        def is_over() -> bool:
            stage.move()
            while client.receive(READ, server) or server.receive(READ, client):
                stage.move()
            return all(end.ended or not end.is_open for end in ends.values())

        until(is_over, "the ends")
        for end in ends.values():
            end.close()

        def is_left() -> bool:
            stage.move()
            return not stage.connections.active

        until(is_left, "the end of the connection")
    finally:
        stage.change(frozenset())
        for end in ends.values():
            end.close()
        stage.move()


LATE_QUESTION, LATE_ANSWER = (
    Change(frozenset({FAULTS.index(text)})) for text in ("latency=1h@c2s", "latency=1h±30m@s2c")
)
NO_FAULTS = Change(frozenset())
QUESTION = [Send("client", 3000), ShutDown("client"), Move()]
ANSWER = [Send("server", 300_000), Move(), Send("server", 300_000), ShutDown("server"), Move()]
SERVER_LEAVES = [Receive("server", READ), Close("server"), Move()]
SHORT_ANSWER = [Send("server", 9), ShutDown("server"), Move()]
CLIENT_LEAVES = [Receive("client", READ), Close("client"), Move()]


@settings(deadline=None, max_examples=ORDERS, derandomize="UDSPROXY_FAULT_ORDERS" not in os.environ)
@given(order=orders())
# A server that has answered reads the question to its end, and leaves, while its answer is held; or more of it than
# the client's socket takes.
@example([*QUESTION, LATE_ANSWER, *ANSWER, *SERVER_LEAVES])
@example([*QUESTION, *ANSWER, *SERVER_LEAVES])
# It leaves with the question unread: a reset.
@example([*QUESTION, LATE_ANSWER, *ANSWER, Close("server"), Move()])
@example([Send("client", 9), Move(), LATE_ANSWER, Send("server", 9), Move(), Close("server"), Move()])
# The client in its place.
@example([LATE_QUESTION, *QUESTION, *SHORT_ANSWER, *CLIENT_LEAVES])
@example([LATE_QUESTION, *QUESTION, *SHORT_ANSWER, Close("client"), Move()])
# Nothing will come of the question while the fault is there; but the client has not left.
@example([Change(frozenset({0})), *QUESTION, ShutDown("server"), Move(), NO_FAULTS, Move(), *SERVER_LEAVES])
def test_any_order(stage: Stage, order: list[Action]) -> None:
    """Faults come and go while both ends send, receive, shut down and close: nothing is lost, the end is last."""
    play(stage, order)
