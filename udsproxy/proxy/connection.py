"""The connections of one proxy: their numbers, and what is told of their beginning and end.

Rules: opening one is a plain call. A connection is here from `Connections.open` until the relay has closed it.
"""

from __future__ import annotations

from time import monotonic_ns

import trio

from udsproxy.endpoints import Socket
from udsproxy.events import Close, Direction, Open, ProxyError
from udsproxy.kernel.credentials import Peers
from udsproxy.protocols.tap import Observation, Tap
from udsproxy.proxy.relay import Pair, Relay, flows

_WHY = {"client": "client left", "upstream": "upstream closed", "proxy": "proxy stopped"}


class Connection(Pair, eq=False, kw_only=True):
    """One connection: a pair of the relay, with what it is called here."""

    of: Connections
    number: int
    opened_at: int
    observation: Observation | None
    """None: nobody looks."""

    def closed(self) -> None:
        self.of.forget(self)
        observation = self.observation
        if observation is None:
            self.of.tap.count_connection(self.c2s.nbytes, self.s2c.nbytes)
            return
        at = monotonic_ns()
        event = Close(
            at=at,
            proxy=self.of.proxy,
            conn=self.number,
            by=self.by,
            errno=self.errno,
            c2s_bytes=self.c2s.nbytes,
            s2c_bytes=self.s2c.nbytes,
            total_s=(at - self.opened_at) / 1e9,
            requests=0,
        )
        # If neither left before the other had said its last, an answer that is not whole was the upstream's doing.
        why = f"reset by {self.by}" if self.errno == "ECONNRESET" else _WHY[self.left or "upstream"]
        observation.close(event, why)

    def descriptors_lost(self, why: str) -> None:
        self.of.tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self.of.proxy,
                conn=self.number,
                op="sendmsg",
                errno="EOPNOTSUPP",
                message=f"file descriptors were not passed on: {why}",
            )
        )


class Connections:
    """What is open through one proxy."""

    def __init__(self, proxy: str, relay: Relay, tap: Tap, *, unix_clients: bool) -> None:
        """``unix_clients``: they come by a Unix socket, and so can be told who they are."""
        self.proxy = proxy
        self._unix_clients = unix_clients
        self.tap = tap
        self._relay = relay
        self._peers = Peers()
        self._open: set[Connection] = set()
        self._emptied: trio.Event | None = None
        """Somebody waits until none is open."""
        self._count = 0

    def number(self) -> int:
        """The number of a new connection, also of one that will not come about."""
        self._count += 1
        return self._count

    def open(self, client: Socket, upstream: Socket, number: int, connect_s: float) -> None:
        """Relay these two; they belong to the relay from now on.

        Raises OSError (ENOMEM, ENOSPC) where the kernel has no room to watch them; both are closed then.
        """
        at = monotonic_ns()
        observation = None if self.tap.quiet else self.tap.observe(self.proxy, number)
        c2s, s2c = flows(client, upstream)
        connection = Connection(c2s, s2c, of=self, number=number, opened_at=at, observation=observation)
        self._open.add(connection)
        if observation is None:
            self._relay_it(connection)
            return
        # What comes first is forwarded before there is time to tell of the connection, and kept until then.
        early: list[tuple[Direction, int, bytes]] = []
        if observation.wants_data:
            connection.watch = lambda *chunk: early.append(chunk)
        self._relay_it(connection)
        who = self._peers.of(client, at) if self._unix_clients else None
        self.tap.put(Open(at=at, proxy=self.proxy, conn=number, client=who, connect_s=connect_s))
        if observation.wants_data:
            for chunk in early:
                observation.data(*chunk)
            connection.watch = observation.data

    def _relay_it(self, connection: Connection) -> None:
        try:
            self._relay.add(connection)
        except OSError:
            self._relay.end(connection)
            raise

    def forget(self, connection: Connection) -> None:
        """The relay has closed this one."""
        self._open.discard(connection)
        if self._emptied is not None and not self._open:
            self._emptied.set()

    async def drained(self) -> None:
        """Wait until none is open. (By then nobody new is accepted.)"""
        if self._open:
            self._emptied = trio.Event()
            await self._emptied.wait()
