"""The connections of one proxy: their numbers, and what is told of their beginning and end.

Rules: opening one is a plain call. A connection is here from `Connections.open` until the relay has closed it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from time import monotonic_ns

import trio

from udsproxy.endpoints import Socket
from udsproxy.events import Accepted, Close, Direction, Open, ProxyError
from udsproxy.faults.rules import Book, Rule
from udsproxy.kernel.credentials import Peers
from udsproxy.protocols.tap import Observation, Tap
from udsproxy.proxy.mishaps import Mishap
from udsproxy.proxy.relay import Pair, Relay

_WHY = {"client": "client left", "upstream": "upstream closed", "proxy": "proxy stopped", "fault": "fault"}


class Connection(Pair):
    """One connection: a pair of the relay, with what it is called here."""

    __slots__ = ("_number", "_observation", "_of", "opened_at")

    def __init__(
        self, of: Connections, number: int, client: Socket, upstream: Socket, observation: Observation | None
    ) -> None:
        """``observation`` None: nobody looks."""
        super().__init__(client, upstream)
        self._of = of
        self._number = number
        self._observation = observation
        self.opened_at = 0 if observation is None else monotonic_ns()

    @property
    def left_queue(self) -> bool:
        """It was answered, or has ended: it does not wait in the upstream's accept queue."""
        return self.ended or self.s2c.nbytes > 0

    def closed(self) -> None:
        self._of.forget()
        observation = self._observation
        if observation is None:
            self._of.tap.count_connection(self.c2s.nbytes, self.s2c.nbytes)
            return
        at = monotonic_ns()
        event = Close(
            at=at,
            proxy=self._of.proxy,
            conn=self._number,
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
        self._of.tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self._of.proxy,
                conn=self._number,
                op="sendmsg",
                errno="EOPNOTSUPP",
                message=f"file descriptors were not passed on: {why}",
            )
        )


class Connections:
    """What is open through one proxy."""

    def __init__(self, proxy: str, relay: Relay, tap: Tap, book: Book, *, unix_clients: bool) -> None:
        """``book``: the faults. ``unix_clients``: they come by a Unix socket, and so can be told who they are."""
        self.book = book
        self.rest: Callable[[float], None] = lambda _: None
        """Accept nobody for so long (s)."""
        self._mishaps: dict[int, Mishap] = {}
        """By the connection's number."""
        self.proxy = proxy
        self._unix_clients = unix_clients
        self.tap = tap
        self._relay = relay
        self._peers = Peers()
        self.active = 0
        """How many are open."""
        self._emptied: trio.Event | None = None
        """Somebody waits until none is open."""
        self.freed: Callable[[], None] | None = None
        """Is called when a connection has ended."""
        self._count = 0

    def number(self) -> int:
        """The number of a new connection, also of one that will not come about."""
        self._count += 1
        return self._count

    def open(
        self,
        client: Socket,
        upstream: Socket,
        number: int,
        connect_s: float,
        accept_wait_s: float | None = None,
    ) -> Connection | None:
        """Relay these two; they belong to the relay from now on. ``accept_wait_s``: how long the second was in the
        upstream's accept queue, where it is known to have left that. None: a fault has other plans with them.

        Raises OSError (ENOMEM, ENOSPC) where the kernel has no room to watch them; both are closed then.
        """
        if self.book.for_connections:
            who = self._peers.of(client, monotonic_ns()) if self._unix_clients else None
            rules = self.book.apply(number, who)
            if rules:
                begin = partial(self._begin, client, upstream, number, connect_s, accept_wait_s)
                self._have_mishap(rules, client, upstream, number, begin)
                return None
        return self._begin(client, upstream, number, connect_s, accept_wait_s)

    def _have_mishap(
        self, rules: list[Rule], client: Socket, upstream: Socket, number: int, begin: Callable[[], object]
    ) -> None:
        def leave() -> None:
            del self._mishaps[number]
            self.forget()

        def go_on() -> None:
            leave()
            with contextlib.suppress(OSError):  # ENOMEM, ENOSPC: the relay has ended it, and that is told
                begin()

        self.active += 1
        mishap = self._mishaps[number] = Mishap(
            self.proxy, number, client, upstream, self._relay, self.tap, go_on, leave, self.rest
        )
        mishap.apply(rules)

    def abandon(self) -> None:
        """What faults still hold is closed."""
        for mishap in list(self._mishaps.values()):
            mishap.abandon()

    def _begin(
        self, client: Socket, upstream: Socket, number: int, connect_s: float, accept_wait_s: float | None
    ) -> Connection:
        tap, relay = self.tap, self._relay
        observation = None if tap.quiet else tap.observe(self.proxy, number, accept_wait_s)
        connection = Connection(self, number, client, upstream, observation)
        self.active += 1
        if observation is None:
            relay.add(connection)
            return connection
        # What comes first is forwarded before there is time to tell of the connection, and kept until then.
        early: list[tuple[Direction, int, bytes]] = []
        if observation.wants_data:
            connection.watch = lambda *chunk: early.append(chunk)
        try:
            relay.add(connection)
        finally:
            at = connection.opened_at
            who = self._peers.of(client, at) if self._unix_clients else None
            tap.put(Open(at=at, proxy=self.proxy, conn=number, client=who, connect_s=connect_s))
            if accept_wait_s is not None:
                tap.put(Accepted(at=at, proxy=self.proxy, conn=number, accept_wait_s=accept_wait_s))
            if observation.wants_data:
                for chunk in early:
                    observation.data(*chunk)
                connection.watch = observation.data
        return connection

    def forget(self) -> None:
        """The relay has closed one."""
        self.active -= 1
        if self._emptied is not None and not self.active:
            self._emptied.set()
        if self.freed is not None:
            self.freed()

    async def drained(self) -> None:
        """Wait until none is open. (By then nobody new is accepted.)"""
        if self.active:
            self._emptied = trio.Event()
            await self._emptied.wait()
