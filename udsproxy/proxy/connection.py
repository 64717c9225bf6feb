"""The connections of one proxy: their numbers, and what is told of their beginning and end.

Rules: opening one is a plain call. A connection is here from `Connections.open` until the relay has closed it.
"""

from __future__ import annotations

import socket
from time import monotonic_ns

import trio

from udsproxy.events import Close, Direction, Open, ProxyError
from udsproxy.kernel.credentials import Peers
from udsproxy.protocols.tap import Observation, Tap
from udsproxy.proxy.relay import Pair, Relay

_WHY = {"client": "client left", "upstream": "upstream closed", "proxy": "proxy stopped"}


class Connection:
    """One connection: the owner of a pair in the relay."""

    __slots__ = ("_connections", "_number", "_observation", "_opened_at")

    def __init__(self, connections: Connections, number: int, observation: Observation, opened_at: int) -> None:
        self._connections = connections
        self._number = number
        self._observation = observation
        self._opened_at = opened_at

    def ended(self, pair: Pair) -> None:
        at = monotonic_ns()
        event = Close(
            at=at,
            proxy=self._connections.proxy,
            conn=self._number,
            by=pair.by,
            errno=pair.errno,
            c2s_bytes=pair.c2s.nbytes,
            s2c_bytes=pair.s2c.nbytes,
            total_s=(at - self._opened_at) / 1e9,
            requests=0,
        )
        # If neither left before the other had said its last, an answer that is not whole was the upstream's doing.
        why = f"reset by {pair.by}" if pair.errno == "ECONNRESET" else _WHY[pair.left or "upstream"]
        self._observation.close(event, why)
        self._connections.forget(pair)

    def descriptors_lost(self, why: str) -> None:
        self._connections.tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self._connections.proxy,
                conn=self._number,
                op="sendmsg",
                errno="EOPNOTSUPP",
                message=f"file descriptors were not passed on: {why}",
            )
        )


class _Early:
    """Keeps what was forwarded before there was time to tell of the connection."""

    def __init__(self) -> None:
        self.chunks: list[tuple[Direction, int, bytes]] = []

    def data(self, direction: Direction, at: int, data: bytes) -> None:
        self.chunks.append((direction, at, data))


class Connections:
    """What is open through one proxy."""

    def __init__(self, proxy: str, relay: Relay, tap: Tap, *, unix_clients: bool) -> None:
        """``unix_clients``: they come by a Unix socket, and so can be told who they are."""
        self.proxy = proxy
        self._unix_clients = unix_clients
        self.tap = tap
        self._relay = relay
        self._peers = Peers()
        self._pairs: set[Pair] = set()
        self._emptied: trio.Event | None = None
        """Somebody waits until none is open."""
        self._count = 0

    def number(self) -> int:
        """The number of a new connection, also of one that will not come about."""
        self._count += 1
        return self._count

    def open(self, client: socket.socket, upstream: socket.socket, *, number: int, connect_s: float) -> None:
        """Relay these two; they belong to the relay from now on.

        Raises OSError (ENOMEM, ENOSPC) where the kernel has no room to watch them; both are closed then.
        """
        at = monotonic_ns()
        observation = self.tap.observe(self.proxy, number)
        connection = Connection(self, number, observation, at)
        early = _Early() if observation.wants_data else None
        pair = Pair(client, upstream, connection, early)
        self._pairs.add(pair)
        try:
            self._relay.add(pair)
        except OSError:
            self._relay.end(pair)
            raise
        if not self.tap.quiet:
            who = self._peers.of(client, at) if self._unix_clients else None
            self.tap.put(Open(at=at, proxy=self.proxy, conn=number, client=who, connect_s=connect_s))
        if early is not None:
            pair.watch = observation
            for chunk in early.chunks:
                observation.data(*chunk)

    def forget(self, pair: Pair) -> None:
        """The relay has closed this one."""
        self._pairs.discard(pair)
        if self._emptied is not None and not self._pairs:
            self._emptied.set()

    async def drained(self) -> None:
        """Wait until none is open. (By then nobody new is accepted.)"""
        if self._pairs:
            self._emptied = trio.Event()
            await self._emptied.wait()
