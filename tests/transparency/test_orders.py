"""Orders of sending, receiving, shutting down and closing that nobody has thought of: each is played on a direct
connection and on a proxied one side by side, and both ends of the one see what both ends of the other see.

Rules:

* A step is what one end does in a row. Before the next step both connections have come to the same: what poll()
  says, how much there is to be read.
* What a proxy cannot do is said where it is allowed for, and only there: `Side.has_unseen_end`,
  `Side.can_be_reset`, `Play._send`, `Play._has_room`.
* How many orders are tried is a constant; the environment variable UDSPROXY_ORDERS raises it for a longer run,
  which tries others each time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar, assert_never

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.tools import until
from tests.stage import Stage
from tests.transparency.ends import (
    KIB,
    MOST_DESCRIPTORS,
    OTHER_ID,
    ROOT,
    Credentials,
    Pipe,
    Route,
    await_unheld,
    is_at_mark,
    polled,
    send_as,
    send_files,
    set_passcred,
    waiting,
)
from udsproxy.kernel.sock_diag import SockDiag

ORDERS = int(os.environ.get("UDSPROXY_ORDERS", "100"))
"""Of each type of socket."""
OPTIONS = ("--credentials", "messages")
"""Without it the proxy passes credentials on from when it has seen that somebody asks."""

MOST_UNREAD = 128 * KIB
"""A socket takes more than that at once, so a send never waits."""
EVERYTHING = 256 * KIB
KEPT = 16 * KIB
"""A proxy that has taken so much at once keeps nothing of it."""
_SEEN = select.POLLIN | select.POLLPRI | select.POLLRDHUP | select.POLLHUP | select.POLLERR
T = TypeVar("T")
_PATTERN = bytes(number % 251 for number in range(MOST_UNREAD))


class Send(NamedTuple):
    nbytes: int
    files: int = 0
    """So many new pipes go with it."""
    as_other: bool = False
    """In somebody else's name."""


class Receive(NamedTuple):
    nbytes: int
    flags: int = 0
    room: int = MOST_DESCRIPTORS
    """For so many descriptors."""


class Shutdown(NamedTuple):
    how: int


class Close(NamedTuple):
    reads_all: bool
    """It is read first what there is."""


Action = Send | Receive | Shutdown | Close


class Step(NamedTuple):
    """What one end does in a row."""

    end: int
    """0: the client; 1: the server."""
    at_once: bool
    """A proxy meets all of it at once."""
    actions: list[Action]


class Received(NamedTuple):
    """What a recvmsg() gave."""

    data: bytes
    pipes: list[int]
    """By their numbers."""
    credentials: list[Credentials]
    flags: int


class Seen(NamedTuple):
    """What one end can see without taking anything."""

    flags: int
    """poll()'s."""
    nbytes: int
    """To be read."""
    memory: int | None
    """That the records to be read take: tells of empty ones too. None: who sent them is gone."""
    is_at_mark: bool


# --- playing them ---


@dataclass
class Side:
    """An end of both connections, and what has become of it."""

    direct: socket.socket
    proxied: socket.socket
    is_open: bool = True
    reads: bool = True
    """Has not called SHUT_RD."""
    sends: bool = True
    """Has not called SHUT_WR."""
    has_unseen_end: bool = False
    """Has called SHUT_RD, and the other end has not sent since. A proxy learns of that when it sends: until then
    the other end does not see that it has no reader (it has POLLHUP only after that, and EPIPE only later)."""
    can_be_reset: bool = True
    """close() makes a reset only where something is unread that the peer has sent: for a reset of this end a proxy
    needs the last that came from here. Nothing of it can be kept unread where it was long (it would keep its sender
    from sending), or had descriptors (they would stay open); an empty record alone makes no reset
    (net/unix/af_unix.c, unix_release_sock). And who has shut down both ways is as good as gone, and so are both who
    have said their last: a proxy does not wait for what the other end
    does then. Where this is False a reset may come, or the end without one."""
    may_be_reset: bool = False
    """Was reset where that is so: the error is taken from the direct end, and from the other if it comes."""

    @property
    def both(self) -> tuple[socket.socket, socket.socket]:
        return self.direct, self.proxied

    def seen(self, sock: socket.socket, diag: SockDiag) -> Seen:
        memory = None
        if sock.type == socket.SOCK_SEQPACKET:
            found = diag.memory_of_peer(os.fstat(sock.fileno()).st_ino)
            memory = None if found is None else found[0]
        return Seen(
            polled(sock) & (_SEEN | select.POLLOUT),
            waiting(sock),
            memory,
            sock.type == socket.SOCK_STREAM and is_at_mark(sock),
        )


class Routes(NamedTuple):
    direct: Route
    proxied: Route
    diag: SockDiag
    files: int
    """That the proxy has open where there is no connection, at most."""


@dataclass
class Play:
    """One order, on one connection of each route."""

    routes: Routes
    sides: tuple[Side, Side]
    pipes: list[Pipe] = field(default_factory=list)
    sends: int = 0
    """So many times something was sent."""

    def step(self, step: Step) -> None:
        side = self.sides[step.end]
        other = self.sides[1 - step.end]
        sent = 0
        with self.routes.proxied.stalled() if step.at_once else contextlib.nullcontext():
            for action in step.actions:
                if not side.is_open:
                    break
                if isinstance(action, Send):
                    sent += action.nbytes
                    if step.at_once and other.has_unseen_end:
                        continue  # it would wait for its EPIPE
                self._act(side, other, action)
        # What is sent in a row may be taken in one.
        if sent >= KEPT:
            side.can_be_reset = False
        self.settle(repr(step))

    def _act(self, side: Side, other: Side, action: Action) -> None:
        match action:
            case Send():
                self._send(side, other, action)
            case Receive():
                self._receive(side, action)
            case Shutdown():
                self._same(side, lambda sock, _: sock.shutdown(action.how), action)
                if action.how != socket.SHUT_WR and side.reads:
                    side.reads = False
                    side.has_unseen_end = True
                if action.how != socket.SHUT_RD:
                    side.sends = False
                if not (side.reads or side.sends):
                    side.can_be_reset = False
                if not (side.sends or other.sends):
                    side.can_be_reset = other.can_be_reset = False
            case Close():
                if action.reads_all:
                    self.read_all(side)
                for sock in side.both:
                    sock.close()
                side.is_open = False
            case _:
                assert_never(action)
        if not (side.reads or side.sends) or not side.is_open:
            side.has_unseen_end = False  # that is seen

    def _send(self, side: Side, other: Side, action: Send) -> None:
        nbytes = action.nbytes or side.direct.type != socket.SOCK_SEQPACKET
        if not self._has_room(other, nbytes):
            return
        data = _PATTERN[self.sends :][:nbytes]
        pipes = [self._new_pipe() for _ in range(action.files)]

        def send(sock: socket.socket) -> int:
            if pipes:
                send_files(sock, data, *(pipe.writer for pipe in pipes))
            elif action.as_other and ROOT:
                send_as(sock, data, Credentials(os.getpid(), OTHER_ID, OTHER_ID))
            else:
                return sock.send(data)
            return 0

        expected = outcome(lambda: send(side.direct))
        if expected == "EPIPE" and other.has_unseen_end and side.sends:
            # A proxy takes what nobody will read, until it has met the EPIPE itself.
            until_soon(lambda: outcome(lambda: send(side.proxied)) == expected, "EPIPE")
            other.has_unseen_end = False
            side.can_be_reset = False  # what it took is the last that came
            return
        found = self._proxied(side, lambda: send(side.proxied))
        assert found == expected, f"{action}: {found}, not {expected}"
        if expected in (0, nbytes):
            self.sends += 1
            side.can_be_reset = not pipes and 0 < nbytes < KEPT

    def _has_room(self, receiver: Side, nbytes: int) -> bool:
        """(A proxy can hold more than a socket can. How much is there already is not compared.)"""
        return not receiver.is_open or waiting(receiver.direct) + nbytes <= MOST_UNREAD

    def _receive(self, side: Side, action: Receive) -> object:
        def receive(sock: socket.socket, route: Route) -> Received:
            message = route.receive(sock, action.nbytes, action.flags | socket.MSG_DONTWAIT, room=action.room)
            with contextlib.ExitStack() as files:
                pipes = [self._number(files.enter_context(file).fileno()) for file in message.files]
            flags = message.flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
            return Received(message.data, pipes, message.credentials, flags)

        return self._same(side, receive, action)

    def _same(self, side: Side, call: Callable[[socket.socket, Route], object], action: Action) -> object:
        expected = outcome(lambda: call(side.direct, self.routes.direct))
        found = self._proxied(side, lambda: call(side.proxied, self.routes.proxied))
        assert found == expected, f"{action}: {found!r:.300}, not {expected!r:.300}"
        return expected

    @staticmethod
    def _proxied(side: Side, call: Callable[[], object]) -> object:
        found = outcome(call)
        return outcome(call) if found == "ECONNRESET" and side.may_be_reset else found

    def read_all(self, side: Side) -> None:
        """Until there is nothing, or the end (which looks as an empty record does)."""
        empty, received = 0, object()
        while received != "EAGAIN" and empty <= self.sends:
            received = self._receive(side, Receive(EVERYTHING))
            empty += isinstance(received, Received) and not received.data

    def settle(self, after: str) -> None:
        """Until both connections have come to the same."""
        for name, side in zip(("client", "server"), self.sides, strict=True):
            if side.is_open:
                try:
                    until_soon(partial(self._is_same, side), "the same")
                except AssertionError:
                    raise AssertionError(f"{name} after {after}: {self._difference(side)}") from None

    def _is_same(self, side: Side) -> bool:
        return not self._difference(side)

    def _difference(self, side: Side) -> str:
        """What the proxied end sees otherwise."""
        direct, proxied = (side.seen(sock, self.routes.diag) for sock in side.both)
        other = self.sides[1 - self.sides.index(side)]
        if proxied.memory is None:
            direct = direct._replace(memory=None)
        flags = direct.flags
        if not flags & select.POLLOUT:  # it has room of its own
            proxied = proxied._replace(flags=proxied.flags & ~select.POLLOUT)
        elif flags & select.POLLHUP or not side.sends:  # nothing can be sent
            proxied = proxied._replace(flags=proxied.flags | select.POLLOUT)
        if other.has_unseen_end:
            flags &= ~select.POLLHUP
            proxied = proxied._replace(flags=proxied.flags & ~select.POLLHUP)
        if flags & select.POLLERR and not side.can_be_reset:
            side.direct.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            side.may_be_reset = True
            flags &= ~select.POLLERR
        if side.may_be_reset and proxied.flags & select.POLLERR:
            side.proxied.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            proxied = proxied._replace(flags=proxied.flags & ~select.POLLERR)
        direct = direct._replace(flags=flags)
        return "" if direct == proxied else f"{proxied}, not {direct}"

    def end(self) -> None:
        """Close what is open, and see that nothing is left."""
        for side in self.sides:
            if side.is_open:
                self.read_all(side)
        for side in self.sides:
            for sock in side.both:
                sock.close()
            side.is_open = False
            self.settle("the end")
        for pipe in self.pipes:
            await_unheld(pipe)

    def _new_pipe(self) -> Pipe:
        self.pipes.append(self.routes.direct.pipe())
        return self.pipes[-1]

    def _number(self, descriptor: int) -> int:
        found = os.fstat(descriptor)
        return [os.path.samestat(found, os.fstat(pipe.writer.fileno())) for pipe in self.pipes].index(True)


def outcome(call: Callable[[], T]) -> T | str:
    """What it returned, or the name of its errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or errno.EIO]


def until_soon(condition: Callable[[], object], what: str) -> None:
    """`until`, for what mostly comes at once."""
    limit = time.monotonic() + 0.1
    while not condition():
        if time.monotonic() > limit:
            until(condition, what)
            return
        os.sched_yield()


# --- making them up ---

ends = st.sampled_from([0, 1])
lengths = st.one_of(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1000, KEPT + 1, 70 * KIB]))
shutdowns = st.sampled_from([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])


receives = st.builds(
    Receive,
    st.one_of(st.integers(1, 9), st.sampled_from([KEPT, EVERYTHING])),
    st.sampled_from([0, 0, 0, socket.MSG_PEEK]),
    st.sampled_from([MOST_DESCRIPTORS, MOST_DESCRIPTORS, MOST_DESCRIPTORS, 1, 0]),
)


def orders() -> st.SearchStrategy[list[Step]]:
    actions: list[st.SearchStrategy[Action]] = [
        lengths.map(Send),
        lengths.map(Send),
        st.tuples(lengths, st.integers(1, 3)).map(lambda drawn: Send(*drawn)),
        lengths.map(lambda nbytes: Send(nbytes, as_other=True)),
        receives,
        receives,
        st.builds(Shutdown, shutdowns),
        st.builds(Close, st.booleans()),
    ]
    action = st.one_of(actions)
    one = st.builds(Step, ends, st.just(False), st.lists(action, min_size=1, max_size=1))
    several = st.builds(Step, ends, st.sampled_from([False, True]), st.lists(action, min_size=2, max_size=4))
    return st.lists(st.one_of(one, one, several), min_size=1, max_size=12)


# --- the tests ---


@pytest.fixture(scope="module", params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
def kind(request: pytest.FixtureRequest) -> socket.SocketKind:
    return socket.SocketKind(request.param)


@pytest.fixture(scope="module")
def routes(kind: socket.SocketKind) -> Iterator[Routes]:
    """Both, with a server that listens."""
    with Stage() as one, Stage() as another, SockDiag() as diag:
        direct, proxied = Route(one, kind, proxied=False), Route(another, kind, proxied=True, options=OPTIONS)
        try:
            for route in (direct, proxied):
                route.start()
            client, server = proxied.pair()
            client.send(b"?")
            assert server.recv(1) == b"?"
            files = proxied.open_files() - 2
            proxied.clear()
            yield Routes(direct, proxied, diag, files)
        finally:
            for route in (direct, proxied):
                route.close()


def play(routes: Routes, order: list[Step], passcred: tuple[bool, bool]) -> None:
    direct, proxied = routes.direct.pair(), routes.proxied.pair()
    sides = (Side(direct[0], proxied[0]), Side(direct[1], proxied[1]))
    for side, wants in zip(sides, passcred, strict=True):
        if wants:
            for sock in side.both:
                set_passcred(sock)
    playing = Play(routes, sides)
    try:
        for step in order:
            playing.step(step)
        playing.end()
        until_soon(lambda: routes.proxied.open_files() <= routes.files, "a proxy with no connection open")
    finally:
        for route in routes[:2]:
            route.clear()


passcreds = st.tuples(st.booleans(), st.booleans())


@settings(deadline=None, max_examples=ORDERS, derandomize="UDSPROXY_ORDERS" not in os.environ)
@given(order=orders(), passcred=passcreds)
def test_orders(routes: Routes, order: list[Step], passcred: tuple[bool, bool]) -> None:
    """Any order of sending, receiving, shutting down and closing ends as without a proxy."""
    play(routes, order, passcred)
