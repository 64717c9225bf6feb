"""The accept loop of one proxy.

Rules:

* Accepting is a call that the relay makes when somebody waits in our queue; *how* a client comes in is a door's
  (`udsproxy.proxy.doors`, `udsproxy.proxy.mirror`).
* Where it cannot go on (upstream full, no descriptors left) it *parks*: the task takes the socket out of the epoll,
  waits, and puts it back.
* Where the upstream is gone, so are we: our listener is withdrawn, so that connect() gives every client the errno
  that the upstream's gives, and restored when the upstream is back.
"""

from __future__ import annotations

import errno
import math
import random
import select
import socket
from time import monotonic_ns

import trio

from udsproxy import endpoints
from udsproxy.config import ProxyConfig
from udsproxy.endpoints import Listener, ListenError, Socket, Tcp
from udsproxy.events import Fault, Listening, ProxyError, Queue, UpstreamError, errno_message, errno_name, printable
from udsproxy.faults.rules import Book, GateState, Rule
from udsproxy.kernel.procfs import servers_of
from udsproxy.protocols.tap import Tap
from udsproxy.proxy.connection import Connections
from udsproxy.proxy.doors import STARVED, ConnectFirst, Door, Full, Gone, Pool, Unseen, Upstream
from udsproxy.proxy.mirror import Mirrored, backlog_of
from udsproxy.proxy.relay import Relay

RETRY_FULL_S = 0.002
"""How soon a full upstream is tried again. EAGAIN on AF_UNIX is never pollable."""
RETRY_STARVED_S = 0.1
"""How long accepting rests where we ran out of something. accept() at the limit leaves the listener readable."""
RETRY_GONE_S = 0.05
"""How soon it is tried whether the upstream is back."""
_MOST_WAITING = 1000
"""So many of who waits are taken before the queue is plugged, at most."""
EAGAIN_TURN_S = 0.1
"""How long plugged and unplugged take together, about, where EAGAIN is for a share of the time."""


class AcceptLoop:
    """Accepts for one proxy, until cancelled."""

    def __init__(self, config: ProxyConfig, listener: Listener, relay: Relay, tap: Tap, book: Book) -> None:
        """``book``: the faults; after each change of it `apply_faults` is to be called."""
        self.book = book
        self._gate = GateState()
        """What of it is in force."""
        self._plugging: trio.CancelScope | None = None
        self._plugged = False
        self._limit = 0
        """That of our queue, while it is plugged."""
        self.connections = Connections(config.name, relay, tap, book, unix_clients=listener.is_unix)
        self.connections.rest = self._rest
        self.listener = listener
        self._config = config
        self._relay = relay
        self._tap = tap
        self._upstream: Upstream | None = None
        if not isinstance(config.upstream, Tcp):
            self._upstream = Upstream(config.upstream)
        self._door: Door | None = None
        self._edge = False
        self._connecting = 0
        """Clients that wait for a TCP upstream."""
        self._upstream_full = False
        self._starved = False
        self._parked = trio.Event()
        self._park_s = 0.0
        self._gone: Gone | None = None
        self._draining = False
        """Nobody new is to come."""
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        self._door = self._make_door()
        self._tell_listening()
        try:
            async with trio.open_nursery() as self._nursery:
                self._watch()
                self._nursery.start_soon(self._count_servers)
                self.apply_faults()
                while True:
                    await self._parked.wait()
                    self._parked = trio.Event()
                    if self._gone is not None:
                        await self._until_restored(self._gone.number)
                    else:
                        await trio.sleep(self._park_s)
                        self._resume()
        finally:
            if not self.listener.withdrawn:
                self._relay.unwatch(self.listener.sock)
            self._door.close()
            self.connections.abandon()

    async def drain(self) -> None:
        """Take what is still in our queue. Ends when it is empty; where there is no file to remove first, so that
        nobody new can come, that may never be."""
        self._draining = True
        while self._connecting or (not self.listener.withdrawn and self._somebody_waits()):
            await trio.sleep(RETRY_FULL_S)

    # --- calls from the relay ---

    def _ready(self) -> None:
        """Somebody waits in our queue."""
        door = self._door
        assert door is not None
        try:
            door.admit()
            self._upstream_full = self._starved = False
        except Full:
            self._wait_for_room()
            return
        except Gone as gone:
            self._withdraw(gone)
            return
        except Unseen as unseen:
            self._unmirror(unseen)
            return
        except OSError as error:
            # EAGAIN, ECONNABORTED: it has left. (On TCP a client may, before it is accepted.)
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self._starve(error)
                return
        if door.edge != self._edge:
            self._edge = door.edge
            self._relay.resume(self.listener.sock, edge=door.edge)

    def _look(self) -> None:
        """A door wants to be called, though nobody came."""
        if self._gone is None and not self._parked.is_set() and not self._holding:
            self._ready()

    def _rest(self, seconds: float) -> None:
        if not self.listener.withdrawn:
            self._park(seconds)

    def _heed(self, wanted: bool) -> None:
        """A door wants to be called when somebody waits, or not."""
        if wanted:
            if not self._parked.is_set():
                self._resume()
        elif not self.listener.withdrawn:
            self._relay.pause(self.listener.sock)

    def _resume(self) -> None:
        if not (self.listener.withdrawn or self._holding):
            self._relay.resume(self.listener.sock, edge=self._edge)

    @property
    def _holding(self) -> bool:
        """Nobody is to be accepted: a fault."""
        return self._gate.hold or self._gate.shut is not None or self._plugged

    # --- gate faults ---

    def apply_faults(self) -> None:
        """Put the gate faults that are in the book now in force, and take away those that no longer are."""
        gate, before = self.book.gate(), self._gate
        if gate == before or self._nursery is None:
            return
        if self._plugging is not None:
            self._plugging.cancel()
            self._plugging = None
            self._unplug()
        self._gate = gate
        try:
            if before.shut is not None and self._gone is None:
                self.listener.restore()
            elif self._gone is None:
                self._relay.unwatch(self.listener.sock)
            assert self._door is not None
            self._door.close()
            if self._gone is not None:
                return
            if gate.shut is not None:
                self.listener.withdraw(gate.shut)
                return
            self._door = self._make_door()
            self._watch()
        except (ListenError, OSError) as error:
            self._tell_error("listen", getattr(error, "errno", 0) or errno.EADDRINUSE, str(error))
            return
        if gate.hold:
            self._relay.pause(self.listener.sock)
        elif gate.eagain is not None and self.listener.is_unix:
            self._plugging = trio.CancelScope()
            self._nursery.start_soon(self._plug_for, gate.eagain, self._plugging)

    async def _plug_for(self, share: float, scope: trio.CancelScope) -> None:
        """Plug our queue for this share of the time, in turns of random lengths."""
        turns = random.Random(f"{self.book.seed}/eagain")  # noqa: S311 - reproducible is what it must be
        with scope:
            while True:
                turn_s = EAGAIN_TURN_S * turns.uniform(0.5, 1.5)
                await trio.sleep(turn_s * (1 - share))
                self._plug()
                await trio.sleep(turn_s * share if share < 1 else math.inf)
                self._unplug()

    def _plug(self) -> None:
        """Take who waits, and then let nobody in."""
        for _ in range(_MOST_WAITING):
            if self.listener.withdrawn or self._parked.is_set() or not self._somebody_waits():
                break
            self._ready()
        if not self.listener.withdrawn:
            self._limit = self.listener.backlog
            self._relay.pause(self.listener.sock)
            self.listener.plug()
            self._plugged = True

    def _somebody_waits(self) -> bool:
        poll = select.poll()
        poll.register(self.listener.sock, select.POLLIN)
        return bool(poll.poll(0))

    def _unplug(self) -> None:
        if self._plugged:
            self._plugged = False
            self.listener.unplug()
            self.listener.limit(self._limit)
            self._resume()

    # --- doors ---

    def _make_door(self) -> Door:
        config, listener, upstream = self._config, self.listener, self._upstream
        if upstream is None:
            return _AcceptFirst(self)
        assert not isinstance(config.upstream, Tcp)
        gate = self._gate
        if gate.workers is not None:
            backlog = gate.backlog
            if backlog is None:
                backlog = config.backlog if config.backlog is not None else backlog_of(config.upstream)
            backlog = listener.most if backlog is None else backlog
            return Pool(listener, upstream, self.connections, backlog, gate.workers, self._heed)
        fixed = gate.backlog if gate.backlog is not None else config.backlog
        if fixed is None and gate.eagain is not None:
            fixed = listener.most  # it is full when we say so
        if fixed is not None:
            listener.limit(fixed)
        elif listener.is_unix:
            try:
                return Mirrored(
                    listener, upstream, config.upstream, self.connections, self._relay, self._look, self._tell_queue
                )
            except Unseen as unseen:
                self._tell_unseen(unseen)
            except OSError as error:
                self._tell_starved(error, "sock_diag")
            listener.limit(listener.most)
        return ConnectFirst(listener, upstream, self.connections)

    async def _count_servers(self) -> None:
        door = self._door
        if isinstance(door, Mirrored) and door.there:
            door.expect(await trio.to_thread.run_sync(servers_of, door.there, abandon_on_cancel=True))

    def _unmirror(self, unseen: Unseen) -> None:
        """The upstream's queue cannot be seen (any more): our own has a limit of its own from here on."""
        self._tell_unseen(unseen)
        assert self._door is not None
        assert self._upstream is not None
        self._door.close()
        self.listener.limit(self.listener.most)
        self._door = ConnectFirst(self.listener, self._upstream, self.connections)
        self._edge = False
        self._relay.resume(self.listener.sock)

    def start_connecting(self, client: Socket) -> None:
        """Connect by TCP for a client that was accepted."""
        assert self._nursery is not None
        self._nursery.start_soon(self._connect_tcp, client, self.connections.number())

    async def _connect_tcp(self, client: Socket, number: int) -> None:
        upstream, timeout_s = self._config.upstream, self._config.connect_timeout_s
        assert isinstance(upstream, Tcp)
        began = monotonic_ns()
        self._connecting += 1
        try:
            with trio.move_on_after(timeout_s) as scope:
                server = await endpoints.connect_tcp(upstream)
            if scope.cancelled_caught:
                self._tell_upstream_error("connect", errno.ETIMEDOUT, number)
                return
            self._starved = False
            self.connections.open(client, server, number, (monotonic_ns() - began) / 1e9)
            client = None  # type: ignore[assignment]  # the relay's now
        except socket.gaierror as error:
            self._tell_upstream_error("getaddrinfo", error.errno or 0, number, str(error.strerror))
        except OSError as error:
            if error.errno in STARVED:
                self._tell_starved(error, "connect")
            else:
                self._tell_upstream_error("connect", error.errno or 0, number)
        finally:
            self._connecting -= 1
            if client is not None:
                client.close()

    # --- parking ---

    def _watch(self) -> None:
        assert self._door is not None
        self._edge = self._door.edge
        self._relay.watch(self.listener.sock, self._ready)
        if self._edge:
            self._relay.resume(self.listener.sock, edge=True)

    def _park(self, seconds: float) -> None:
        self._relay.pause(self.listener.sock)
        self._park_s = seconds
        self._parked.set()

    def _wait_for_room(self) -> None:
        if not self._upstream_full:
            self._upstream_full = True
            self._tell_upstream_error("connect", errno.EAGAIN, None)
        self._park(RETRY_FULL_S)

    def _starve(self, error: OSError) -> None:
        self._tell_starved(error, "accept")
        self._park(RETRY_STARVED_S)

    # --- the upstream is gone ---

    def _withdraw(self, gone: Gone) -> None:
        """Who waits in our queue gets what the kernel gives to those in a queue whose server ends: ECONNRESET."""
        assert self._door is not None
        self._tell_upstream_error("connect", gone.number, None)
        self._door.close()
        self._relay.unwatch(self.listener.sock)
        self._gone = gone
        try:
            self.listener.withdraw(gone.number)
        except (ListenError, OSError) as error:
            self._tell_error("listen", gone.number, str(error))
        self._parked.set()

    async def _until_restored(self, number: int) -> None:
        assert self._upstream is not None
        failure = None
        while self._gone is not None:
            await trio.sleep(RETRY_GONE_S)
            if self._draining:
                return
            try:
                failed = self._upstream.probe()
                if failed in (0, errno.EAGAIN):
                    self._gone = None
                    if self._gate.shut is not None:
                        self.listener.withdraw(self._gate.shut)
                        return
                    self.listener.restore()
                    self._door = self._make_door()
                    self._watch()
                    if self._holding:
                        self._relay.pause(self.listener.sock)
                    assert self._nursery is not None
                    self._nursery.start_soon(self._count_servers)
                elif failed != number and failed not in STARVED:
                    self.listener.withdraw(failed)
                    number = failed
                    self._tell_upstream_error("connect", failed, None)
            except ListenError as error:
                # Somebody else has taken the path, say. Told once for each reason.
                if str(error) != failure:
                    failure = str(error)
                    self._tell_error("listen", errno.EADDRINUSE, failure)
            except OSError as error:
                self._tell_starved(error, "connect")
        self._tell_listening()

    # --- telling ---

    def _tell_listening(self) -> None:
        self._tap.put(
            Listening(
                at=monotonic_ns(),
                proxy=self._config.name,
                listen=printable(str(self.listener.endpoint)),
                upstream=printable(str(self._config.upstream)),
                backlog=self.listener.backlog if self._door is None else max(0, self._door.backlog),
                mode=self.listener.mode,
                owner=self.listener.owner,
            )
        )

    def _tell_upstream_error(self, op: str, number: int, conn: int | None, message: str | None = None) -> None:
        self._tap.put(
            UpstreamError(
                at=monotonic_ns(),
                proxy=self._config.name,
                conn=conn,
                op=op,
                errno="EAI" if message else errno_name(number),
                message=message or errno_message(number),
            )
        )

    def tell_fault(self, rule: Rule, detail: str) -> None:
        kind = str(rule.fault.__struct_config__.tag)
        self._tap.put(Fault(at=monotonic_ns(), proxy=self._config.name, rule=rule.name, kind=kind, detail=detail))

    def _tell_queue(self, queue: int, backlog: int) -> None:
        active = self.connections.active
        self._tap.put(
            Queue(at=monotonic_ns(), proxy=self._config.name, queue=queue, backlog=backlog, active=active)
        )

    def _tell_unseen(self, unseen: Unseen) -> None:
        hint = "clients will wait where the upstream would refuse them; --backlog N sets a limit"
        self._tell_error("sock_diag", errno.EOPNOTSUPP, f"the upstream's queue is not mirrored: {unseen}", hint)

    def _tell_starved(self, error: OSError, op: str) -> None:
        """Once, until something has worked again."""
        if not self._starved:
            self._starved = True
            number = error.errno or 0
            self._tell_error(op, number, errno_message(number), STARVED.get(number))

    def _tell_error(self, op: str, number: int, message: str, hint: str | None = None) -> None:
        self._tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self._config.name,
                op=op,
                errno=errno_name(number),
                message=message,
                hint=hint,
            )
        )


class _AcceptFirst:
    """A TCP upstream: the client is accepted, and a task connects."""

    edge = False

    def __init__(self, loop: AcceptLoop) -> None:
        self._loop = loop
        self.backlog = loop.listener.backlog

    def admit(self) -> None:
        self._loop.start_connecting(self._loop.listener.accept())

    def close(self) -> None:
        """It holds nothing."""
