"""The connections of one proxy: their numbers, and what is told of their beginning and end.

Rules: opening one is a plain call. A connection is here from `Connections.open` until the relay has closed it.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from time import monotonic_ns
from typing import Any

import msgspec
import trio

from udsproxy.endpoints import Socket
from udsproxy.events import Client, Close, Open, ProxyError, Side, Snapshot, Worker
from udsproxy.faults.kinds import AcceptDelay, Stream
from udsproxy.faults.path import Path
from udsproxy.faults.rules import Book, Rule
from udsproxy.faults.spelling import format_fault
from udsproxy.kernel.credentials import Credentials, Peers
from udsproxy.protocols.decoder import AcceptWait, Pending
from udsproxy.protocols.tap import Mark, Observation, Tap
from udsproxy.proxy.asking import FIRST_LOOK_NS, LOOK_NS, MOST_LOOKS
from udsproxy.proxy.detour import Detour
from udsproxy.proxy.flow import Pair
from udsproxy.proxy.records import Records
from udsproxy.proxy.relay import Due, Relay
from udsproxy.proxy.waits import Waits

_WHY = {
    "client": "client left",
    "upstream": "upstream closed",
    "proxy": "proxy stopped",
    "fault": "ended by a fault",
}


class Connection(Pair):
    """One connection: a pair of the relay, with what it is called here."""

    __slots__ = ("_observation", "_of", "faults", "number", "opened_at", "path", "tell", "wait")

    def __init__(
        self,
        of: Connections,
        number: int,
        client: Socket,
        upstream: Socket,
        observation: Observation | None,
        wait: AcceptWait | None,
    ) -> None:
        """``observation`` None: nobody looks. ``wait``: in the upstream's accept queue."""
        super().__init__(client, upstream)
        self._of = of
        self.number = number
        self._observation = observation
        self.wait = wait
        self.opened_at = 0 if observation is None else monotonic_ns()
        self.path: Path | None = None
        """Of its bytes through faults."""
        self.faults: tuple[str, ...] = ()
        """The names of the rules that have applied to it."""
        self.tell: Callable[..., object] = _now
        """Has something told in its turn: a call, and what it is called with."""

    @property
    def left_queue(self) -> bool:
        """It was answered, or has ended: it does not wait in the upstream's accept queue."""
        return self.ended or self.s2c.nbytes > 0

    @property
    def answered(self) -> bool:
        """The upstream has sent something."""
        return self.s2c.nbytes > 0

    @property
    def upstream(self) -> Socket:
        """Our connection to the upstream."""
        return self.s2c.src

    def begun(self, before: int) -> Sequence[tuple[int, int]]:
        """Its exchanges that have begun before that time (ns) and not ended, as far as that is decoded: when, and
        which."""
        return () if self._observation is None else self._observation.begun(before)

    def pending(self, request: int) -> Pending | None:
        """What is known of one of these."""
        return None if self._observation is None else self._observation.pending(request)

    def snapshot(self, request: int, snapshot: Snapshot) -> None:
        """What holds one of these."""
        if self._observation is not None:
            self._observation.snapshot(request, snapshot)

    def accept_wait_s(self, since: int) -> float | None:
        """How long (s) after that time (ns) it was still in the upstream's accept queue, until it was accepted.
        None: it was not, or that is not known."""
        known = None if self._observation is None else self._observation.waited()
        if known is None or self.wait is None:
            return None
        wait_s = known[0] - (since - self.wait.connected_at) / 1e9
        return wait_s if wait_s > 0 else None

    def tell_accepted(self, worker: Worker | None) -> None:
        """A worker has it: this one, where we may see that."""
        if self._observation is not None:
            self._observation.accepted(worker)

    def divert(self, relay: Relay, path: Path) -> None:
        """From now on its bytes go through faults."""
        if path is not self.path:
            self.path = path
            for flow in (self.c2s, self.s2c):
                relay.divert(flow, Detour(relay, flow, path))

    def release(self, now: int) -> None:
        """Faults have changed: send what is due."""
        for flow in (self.c2s, self.s2c):
            if flow.detour is not None and not flow.done:
                flow.detour.release(now)
        if self.path is not None and self.path.is_over and not self.ended:
            self.path = None
            for flow in (self.c2s, self.s2c):
                self._of.relay.undivert(flow)

    def met(self, rule: Rule, request: int | None) -> None:
        """A rule applies, to a request or to all of it."""
        at = monotonic_ns()
        if rule.name not in self.faults:
            self.faults += (rule.name,)
        detail = format_fault(rule.fault) + ("" if request is None else f", request {request}")
        self.tell(self._of.tap.put, rule.event(at, self._of.proxy, detail, self.number))
        if self._observation is not None:
            self.tell(self._observation.mark, at, Mark(request, rule.name))

    def closed(self) -> None:
        self._of.forget(self)
        observation = self._observation
        if observation is None:
            self._of.tap.count_connection(self.c2s.nbytes, self.s2c.nbytes)
            return
        event = self._of.close_event(
            self.number,
            self.opened_at,
            self.by,
            self.c2s.nbytes,
            self.s2c.nbytes,
            self.errno,
            self.faults or None,
        )
        # If neither left before the other had said its last, an answer that is not whole was the upstream's doing.
        why = _WHY[self.left or "upstream"]
        if self.errno == "ECONNRESET":
            why = f"reset by {'a fault' if self.by == 'fault' else self.by}"
        observation.close(event, why)

    def descriptors_lost(self, why: str) -> None:
        self._of.tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self._of.proxy,
                conn=self.number,
                op="sendmsg",
                errno="EOPNOTSUPP",
                message=f"file descriptors were not passed on: {why}",
            )
        )


def _now(tell: Callable[..., None], *what: object) -> None:
    tell(*what)


class ConnectionState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A connection that is open."""

    proxy: str
    conn: int
    client: Client | None = None
    open_s: float | None = None
    c2s_bytes: int
    s2c_bytes: int
    faults: tuple[str, ...] | None = None


class Connections:
    """What is open through one proxy."""

    def __init__(self, proxy: str, relay: Relay, tap: Tap, book: Book, *, unix_clients: bool) -> None:
        """``book``: the faults. ``unix_clients``: they come by a Unix socket, and so can be told who they are."""
        self.book = book
        self.rest: Callable[[float], None] = lambda _: None
        """Accept nobody for so long (s)."""
        self.speaks = False
        """Messages may be sent in the name of who sent them."""
        self.asks_who_sends = False
        """And are."""
        self.look_who_asks: Callable[[list[int]], None] | None = None
        """Is called once in a while with the pids of some clients: is that still to be?"""
        self._looks_at = 0
        """When next."""
        self._looks = 0
        self._look_due: Due | None = None
        self.own: Credentials | None = None
        """We, where all clients are we to the server, and that has not been warned of."""
        self.proxy = proxy
        self._unix_clients = unix_clients
        self.tap = tap
        self.relay = relay
        self._peers = Peers()
        self.active = 0
        """How many are open."""
        self._emptied: trio.Event | None = None
        """Somebody waits until none is open."""
        self.freed: Callable[[], None] | None = None
        """Is called when a connection has ended."""
        self.senders: Callable[[int], list[ConnectionState]] | None = None
        """Where what comes is datagrams: who sends them."""
        self.count = 0
        """How many there have been."""
        self._open: dict[int, Connection] = {}
        self.waits = Waits(relay.call_at, relay.unread.diag if relay.unread.sees else None)
        self.on_end: Callable[[Connection], None] | None = None
        """Is told of each that has ended, before its end is told."""

    def number(self) -> int:
        """The number of a new connection, also of one that will not come about."""
        self.count += 1
        return self.count

    def open(
        self,
        client: Socket,
        upstream: Socket,
        number: int,
        connect_s: float,
        wait: AcceptWait | None = None,
    ) -> Connection:
        """Relay these two; they belong to the relay from now on. ``wait``: how long the client has waited so far;
        ended where the upstream is known to have accepted the second.

        Raises OSError (ENOMEM, ENOSPC) where the kernel has no room to watch them; both are closed then.
        """
        tap, relay = self.tap, self.relay
        waits = self.waits
        is_new = (wait is None or not wait.ended) and upstream.family == socket.AF_UNIX
        if wait is None and is_new and not tap.quiet:
            wait = AcceptWait(monotonic_ns())
        observation = None if tap.quiet else tap.observe(self.proxy, number, wait, waits.has_answer)
        connection = Connection(self, number, client, upstream, observation, wait)
        if is_new:
            waits.add(connection)
        self.active += 1
        if self._look_due is None and self.look_who_asks is not None and (at := monotonic_ns()) > self._looks_at:
            self._peers.of(client, at)
            self._look(at)
        if self.asks_who_sends or (self.speaks and client.type == socket.SOCK_SEQPACKET):
            connection.c2s.ask_who_sends()
            connection.s2c.ask_who_sends()
        elif self.speaks:
            connection.s2c.ask_no_more()  # it may have been made while we asked
        if client.type == socket.SOCK_SEQPACKET:
            for flow in (connection.c2s, connection.s2c):
                flow.detour = Records(relay, flow)
        self._open[number] = connection
        # What comes first is forwarded before there is time to tell of the connection, and told of after it.
        early: list[tuple[Any, ...]] = []
        if observation is not None and observation.wants_data:
            connection.watch = lambda *chunk: early.append((observation.data, *chunk))
        if self.book.for_connections:
            connection.tell = lambda *told: early.append(told)
            self._apply_faults(connection, client)
        elif observation is None:
            relay.add(connection)
            return connection
        try:
            relay.add(connection)
        finally:
            if observation is not None:
                at = connection.opened_at
                self._tell_open(number, at, self._peers.of(client, at) if self._unix_clients else None, connect_s)
                if not is_new and waits.accepted is not None:
                    waits.accepted(connection)
                if observation.wants_data:
                    connection.watch = observation.data
            for tell, *what in early:
                tell(*what)
            connection.tell = _now
        return connection

    def open_sender(self, credentials: bytes | None, at: int) -> tuple[int, Client | None, Observation | None]:
        """Somebody who sends datagrams (struct ucred) is one more connection, until `close_sender`: its number, who
        it is, its observation (None: nobody looks)."""
        number = self.number()
        self.active += 1
        if self.tap.quiet:
            return number, None, None
        who = None if credentials is None else self._peers.who(credentials, at)
        observation = self.tap.observe(self.proxy, number, is_stream=False)
        self._tell_open(number, at, who, None)
        return number, who, observation

    def close_sender(
        self, number: int, observation: Observation | None, opened_at: int, by: Side, c2s_bytes: int, s2c_bytes: int
    ) -> None:
        """It is forgotten."""
        self.forget()
        if observation is None:
            self.tap.count_connection(c2s_bytes, s2c_bytes)
        else:
            observation.close(self.close_event(number, opened_at, by, c2s_bytes, s2c_bytes), _WHY[by])
            self.tap.wake()

    def close_event(
        self,
        number: int,
        opened_at: int,
        by: Side,
        c2s_bytes: int,
        s2c_bytes: int,
        errno: str | None = None,
        faults: tuple[str, ...] | None = None,
    ) -> Close:
        """The end of a connection, now."""
        at = monotonic_ns()
        return Close(
            at=at,
            proxy=self.proxy,
            conn=number,
            by=by,
            errno=errno,
            c2s_bytes=c2s_bytes,
            s2c_bytes=s2c_bytes,
            total_s=(at - opened_at) / 1e9,
            faults=faults,
            requests=0,
        )

    def _tell_open(self, number: int, at: int, who: Client | None, connect_s: float | None) -> None:
        if self.own is not None and who is not None:
            self._compare(who, self.own)
        self.tap.put(Open(at=at, proxy=self.proxy, conn=number, client=who, connect_s=connect_s))

    def _compare(self, who: Client, own: Credentials) -> None:
        """Warn, once, where the server will take a client for somebody else."""
        if (who.uid, who.gid) != (own.uid, own.gid):
            self.own = None
            self.tap.put(
                ProxyError(
                    at=monotonic_ns(),
                    proxy=self.proxy,
                    op="connect",
                    errno="EPERM",
                    message=f"the server sees uid {own.uid}, gid {own.gid}; a client has {who.uid}, {who.gid}",
                    hint="servers that ask who connects (PostgreSQL's peer, D-Bus, docker) may refuse; run as root",
                )
            )

    # --- faults ---

    def _apply_faults(self, connection: Connection, client: Socket) -> None:
        """The rules that apply to a connection that begins."""
        now, number = monotonic_ns(), connection.number
        who = self._peers.of(client, now) if self._unix_clients else None
        rules, for_requests = self.book.for_connection(number, who)
        streams = []
        for rule in rules:
            if isinstance(rule.fault, AcceptDelay):
                connection.met(rule, None)
                self.rest(rule.fault.delay_s)
            else:
                streams.append(rule)
        if (streams or for_requests) and client.type == socket.SOCK_STREAM:
            connection.divert(self.relay, Path(self.book, number, now, streams, for_requests, connection.met))

    def states(self, now: int) -> list[ConnectionState]:
        """What is open."""
        senders = [] if self.senders is None else self.senders(now)
        return senders + [
            ConnectionState(
                proxy=self.proxy,
                conn=connection.number,
                client=self._peers.of(connection.c2s.src, now) if self._unix_clients else None,
                open_s=(now - connection.opened_at) / 1e9 if connection.opened_at else None,
                c2s_bytes=connection.c2s.nbytes,
                s2c_bytes=connection.s2c.nbytes,
                faults=connection.faults or None,
            )
            for connection in self.open_ones()
        ]

    def open_ones(self) -> list[Connection]:
        """In the order of their numbers."""
        return list(self._open.values())

    def clients(self) -> list[int]:
        """The processes of some who came lately."""
        return self._peers.pids()

    def change_faults(self, before: tuple[Rule, ...]) -> None:
        """The rules in force are others now than these: those that are gone let go of what they hold, and those
        that are new apply to connections that are open too (but not to requests on these: where one begins in what
        passes there is not known)."""
        now = monotonic_ns()
        in_force = self.book.for_connections
        names = frozenset(rule.name for rule in before if rule not in in_force)
        new = [rule for rule in in_force if rule not in before and isinstance(rule.fault, Stream)]
        if not (names or new):
            return
        for connection in self.open_ones():
            if connection.path is not None:
                connection.path.remove(now, names)
            who = self._peers.of(connection.c2s.src, now) if new and self._unix_clients else None
            for rule in new:
                if self.book.applies_to_open(rule, connection.number, who):
                    path = connection.path or Path(self.book, connection.number, now, [], (), connection.met)
                    path.add(now, rule)
                    connection.divert(self.relay, path)
            connection.release(now)

    def _look(self, at: int) -> None:
        """Now, and once more soon, or (with the next connection) later."""
        self._look_due = None
        if self.look_who_asks is not None:
            self.look_who_asks(self._peers.pids())
            self._looks += 1
            self._looks_at = at + LOOK_NS
            if self.asks_who_sends and self._looks < MOST_LOOKS:
                self._look_due = self.relay.call_at(at + min(FIRST_LOOK_NS << self._looks, LOOK_NS), self._look)

    def ask_who_sends(self, *, wanted: bool) -> None:
        """Send what passes in the name of who sent it, or not, from now on."""
        if wanted != self.asks_who_sends:
            self.asks_who_sends = wanted
            for connection in self.open_ones():
                for flow in (connection.c2s, connection.s2c):
                    if flow.src.type == socket.SOCK_STREAM:
                        with contextlib.suppress(OSError):
                            (flow.ask_who_sends if wanted else flow.ask_no_more)()

    def forget(self, connection: Connection | None = None) -> None:
        """The relay has closed one."""
        if connection is not None:
            self._open.pop(connection.number, None)
            if self.on_end is not None:
                self.on_end(connection)
        self.active -= 1
        self.waits.freed()
        if self._emptied is not None and not self.active:
            self._emptied.set()
        if self.freed is not None:
            self.freed()

    async def drained(self) -> None:
        """Wait until none is open. (By then nobody new is accepted.)"""
        if self.active:
            self._emptied = trio.Event()
            await self._emptied.wait()
