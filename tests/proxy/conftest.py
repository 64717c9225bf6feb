"""Relayed connections between two ends that a test holds: real sockets, one process."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.proxy.site import Site
from udsproxy.events import Direction
from udsproxy.proxy.flow import Pair
from udsproxy.proxy.relay import Relay

READ = 1 << 20


class IdleTap:
    """A tap with nothing to do, or with ``units`` of work."""

    def __init__(self) -> None:
        self.units = 0
        self.done = 0

    def urgency(self) -> int:
        return 2 if self.units > 1000 else int(self.units > 0)

    def work(self, units: int) -> bool:
        done = min(units, self.units)
        self.units -= done
        self.done += done
        return self.units > 0


class EndsPair(Pair):
    """The pair between a test's two ends; what it is told it tells these."""

    def __init__(self, ends: Ends, client: socket.socket, upstream: socket.socket) -> None:
        super().__init__(client, upstream, ends.data)
        self.ends = ends

    def closed(self) -> None:
        self.ends.over.set()

    def descriptors_lost(self, why: str) -> None:
        self.ends.lost_descriptors.append(why)


class Ends:
    """A relayed connection: the test is its ``client`` and its ``upstream``."""

    def __init__(self, relay: Relay, family: socket.AddressFamily = socket.AF_UNIX) -> None:
        client, ours = socket.socketpair()
        upstream, theirs = socket.socketpair() if family == socket.AF_UNIX else tcp_pair()
        self.client = trio.socket.from_stdlib_socket(client)
        self.upstream = trio.socket.from_stdlib_socket(upstream)
        self.relay = relay
        self.observed: dict[Direction, bytes] = {"c2s": b"", "s2c": b""}
        self.over = trio.Event()
        self.lost_descriptors: list[str] = []
        self.pair = EndsPair(self, ours, theirs)
        relay.add(self.pair)

    def data(self, direction: Direction, at: int, data: bytes) -> None:
        assert at > 0
        self.observed[direction] += data

    def close(self) -> None:
        self.client.close()
        self.upstream.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    two.setblocking(False)
    return one, two


async def read_all(sock: trio.socket.SocketType) -> bytes:
    """Everything until the end; a reset ends it too."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := await sock.recv(READ):
            data += piece
    return data


async def read_exactly(sock: trio.socket.SocketType, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        piece = await sock.recv(nbytes - len(data))
        assert piece, f"ended after {len(data)} of {nbytes} bytes"
        data += piece
    return data


async def send_all(sock: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]


async def fill(sock: trio.socket.SocketType, piece: bytes = bytes(4096)) -> int:
    """Send until nothing more is taken; how much was. (The clock jumps: no time passes.)"""
    sent = 0
    with trio.move_on_after(1) as scope:
        while not scope.cancelled_caught:
            sent += await sock.send(piece)
    return sent


@pytest.fixture
def tap() -> IdleTap:
    return IdleTap()


@pytest.fixture
async def relay(tap: IdleTap, autojump_clock: trio.testing.MockClock) -> AsyncIterator[Relay]:
    """A relay that runs, and is closed at the end."""
    made = Relay(tap)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()
    made.close()


@pytest.fixture
async def ends(relay: Relay) -> AsyncIterator[Ends]:
    """One relayed connection."""
    made = Ends(relay)
    yield made
    made.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="udst-", dir="/tmp") as directory:
        yield Site(Path(directory))
