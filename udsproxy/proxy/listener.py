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
import os
import random
import socket
from collections import deque
from functools import partial
from time import monotonic_ns

import trio

from udsproxy import endpoints
from udsproxy.config import ProxyConfig
from udsproxy.endpoints import Listener, ListenError, Socket, Tcp, UnixPath
from udsproxy.events import Listening, ProxyError, Queue, UpstreamError, errno_message, errno_name, printable
from udsproxy.faults.rules import Book, GateState, Rule
from udsproxy.inspection.roles import count_servers
from udsproxy.kernel.credentials import Actor, Credentials
from udsproxy.protocols.tap import Tap
from udsproxy.proxy import socket_types
from udsproxy.proxy.asking import Asking
from udsproxy.proxy.connection import Connections
from udsproxy.proxy.datagrams import Datagrams
from udsproxy.proxy.doors import (
    STARVED,
    AcceptFirst,
    ConnectFirst,
    Denied,
    Door,
    Full,
    Gone,
    Limits,
    Pool,
    Unseen,
    Upstream,
)
from udsproxy.proxy.mirror import Mirrored, backlog_of, listener_inode, look_at
from udsproxy.proxy.nginx_log import NginxLog
from udsproxy.proxy.observer import Observer
from udsproxy.proxy.own_queue import Levels, OwnQueue
from udsproxy.proxy.plugging import Plugging, somebody_waits
from udsproxy.proxy.relay import Relay
from udsproxy.proxy.vigil import Vigil
from udsproxy.proxy.watch import Watch
from udsproxy.takeover.guardian import GuardianError
from udsproxy.takeover.listener import TakenOver
from udsproxy.units import ConfigError

RETRY_FULL_S = 0.002
"""How soon a full upstream is tried again. EAGAIN on AF_UNIX is never pollable."""
RETRY_STARVED_S = 0.1
"""How long accepting rests where we ran out of something. accept() at the limit leaves the listener readable."""
SHORTAGE_S = 10.0
"""A shortage is over when it was not met for so long. (At the limit on descriptors, with clients who leave and
others who come in their place, it is met many times a second.)"""
RETRY_GONE_S = 0.05
"""How soon it is tried whether the upstream is back, where nothing tells (`udsproxy.proxy.vigil`)."""
SETTLED_NS = 5_000_000
"""A server that has made its file listens within so long, or clients are refused as there."""
LOOK_S = 0.01
"""How often it is looked whether the server whose place we took still listens. (It takes about 10 µs.)"""
EMPTY_S = 0.03
"""At the end, our queue has to be empty for so long: a client may have found our file before that was removed."""
EMPTIED_S = 1.0
"""How long who had come before the path was taken from us is let in."""
_KNOWN_NS = 10_000_000_000
"""How long what is known of the upstream's listener is good."""
RETRY_TAKEN_S = 1.0
"""How soon it is tried whether we can listen again."""


class AcceptLoop:
    """Accepts for one proxy, until cancelled."""

    def __init__(self, config: ProxyConfig, listener: Listener, relay: Relay, tap: Tap, book: Book) -> None:
        """``book``: the faults; after each change of it `apply_faults` is to be called."""
        self.book = book
        self._gate = GateState()
        """What of it is in force."""
        self._plugging: Plugging | None = None
        self.connections = Connections(config.name, relay, tap, book, unix_clients=listener.is_unix)
        self.connections.rest = self._rest
        self.listener = listener
        self._config = config
        self._relay = relay
        self._tap = tap
        self._upstream: Upstream | None = None
        self._actor = Actor()
        if not isinstance(config.upstream, Tcp):
            wanted = listener.is_unix and config.credentials != "own"
            self._upstream = Upstream(
                config.upstream, listener.kind, self._actor if wanted and self._actor.able else None
            )
            self.connections.speaks = self.connections.asks_who_sends = wanted and self._actor.speaks
            self._upstream.asks_who_sends = self.connections.speaks
            if config.credentials == "client" and self.connections.speaks:
                self._asking = Asking(config.upstream)
                self.connections.look_who_asks = self._look_who_asks
            if wanted and not self._actor.able:
                self.connections.own = self._actor.own
            self._actor.falls_short = self._tell_falls_short
        self._door: Door | None = None
        self._held: deque[Socket] = deque()
        """Clients who were accepted, and for whom no connection could be made yet: one door leaves them to the
        next."""
        diag = relay.unread.diag if relay.unread.sees else None
        self._own = OwnQueue(listener, self.connections, self._held, diag)
        self._edge = False
        self._connecting = 0
        """Clients that wait for a TCP upstream."""
        self._upstream_full = False
        self._short_of = 0
        """What we ran out of, as it was told (errno)."""
        self._short_until = 0.0
        """Until then it is not told again."""
        self._parked = trio.Event()
        """Set while nobody is to be accepted: until a time, or until the upstream is back."""
        self._parked_until = 0.0
        self._gone: Gone | None = None
        self._not_listening: str | None = None
        """Why not, as it was told."""
        self._draining = False
        """Nobody new is to come."""
        self._nursery: trio.Nursery | None = None
        self._taken = listener if isinstance(listener, TakenOver) else None
        """We stand in a server's place."""
        self._told_denied = False
        self._watch: Watch | None = None
        self._found = 0
        """The upstream's listener, where the door does not know it."""
        self._found_at = -_KNOWN_NS
        self._vigil: Vigil | None = None
        """At the place of the server's file."""
        self._back = trio.Event()
        """Set when the upstream is back."""
        self._retry_at = 0.0
        """Not before then, because it has failed."""

    async def run(self) -> None:
        self._gate = self.book.gate()
        try:
            async with trio.open_nursery() as self._nursery:
                try:
                    await self._run()
                finally:
                    self._nursery = None  # it takes nobody from here on, and waits for those that are in it
        finally:
            self._close_door()
            self._dismiss_held()
            if self._vigil is not None:
                self._vigil.close()

    async def _run(self) -> None:
        assert self._nursery is not None
        self._begin_vigil()
        self._reopen()
        self._tell_listening()
        if self._taken is not None:
            self._nursery.start_soon(self._watch_path, self._taken)
        self._keep_vigil()
        self._look_at_place()  # it may have changed its file since ours was made
        while True:
            await self._parked.wait()
            while self._gone is not None or trio.current_time() < self._parked_until:
                if self._gone is not None:
                    await self._until_restored()
                else:
                    await trio.sleep_until(self._parked_until)
            self._parked = trio.Event()
            self._resume()
            if self._door is not None and self._door.holds:
                self._look()

    def watched_by(self, observer: Observer, log: NginxLog | None) -> Watch | None:
        """What watches this proxy, where somebody looks and there is something to see. ``log``: nginx's."""
        config = self._config
        is_queued = not isinstance(config.upstream, Tcp) and self.listener.kind != socket.SOCK_DGRAM
        if self._tap.quiet or not (config.is_watched and is_queued):
            return None
        self._watch = Watch(config, self.connections, self._tap, observer, self, log)
        return self._watch

    @property
    def is_gone(self) -> bool:
        """Clients are refused because the upstream is not there."""
        return self._gone is not None

    @property
    def own_inode(self) -> int:
        """Of the socket that clients connect to; 0: there is none now."""
        number = self.listener.sock.fileno()
        return 0 if self.listener.withdrawn or number < 0 else os.fstat(number).st_ino

    def queued(self, before: int) -> list[tuple[int, int]]:
        """Who came before that time (ns) and is still in our queue, as far as we see: the number of the connection
        to be, and since when (ns)."""
        return [] if self._door is None else list(self._door.queued(before))

    def limits(self) -> Limits | None:
        """Of the queue and the workers, where these are ours (a fault's) and not the upstream's."""
        return self._door.limits() if isinstance(self._door, Pool) else None

    def upstream_inode(self) -> int:
        """Of the socket that listens there; 0: it is not known."""
        if isinstance(self._door, Mirrored) and self._door.there:
            return self._door.there
        if monotonic_ns() - self._found_at > _KNOWN_NS and not isinstance(self._config.upstream, Tcp):
            self._found, self._found_at = listener_inode(self._config.upstream), monotonic_ns()
        return self._found

    @property
    def mirrors(self) -> bool:
        """Our queue follows the upstream's."""
        return isinstance(self._door, Mirrored)

    async def rest(self) -> None:
        """Give the path that was taken over back for a while, and let in whoever is in our queue by then; `resume`
        ends that. Raises OSError."""
        if self._taken is not None:
            self._taken.rest()
            with trio.move_on_after(EMPTIED_S):
                while not self._taken.withdrawn and somebody_waits(self._taken):
                    await trio.sleep(RETRY_FULL_S)

    def resume(self) -> None:
        """After `rest`: the path is taken again at the next look."""
        if self._taken is not None:
            self._taken.resume()

    async def drain(self) -> None:
        """Take what is still in our queue. Ends when it is empty; where there is no file to remove first, so that
        nobody new can come, that may never be."""
        self._draining = True
        self._stop_plugging()
        empty_since = trio.current_time()
        while trio.current_time() - empty_since < EMPTY_S:
            await trio.sleep(RETRY_FULL_S)
            waits = not self.listener.withdrawn and somebody_waits(self.listener)
            if waits or self._connecting or (self._door is not None and self._door.holds):
                empty_since = trio.current_time()

    # --- calls from the relay ---

    def _ready(self) -> None:
        """Somebody waits in our queue."""
        door = self._door
        if door is None:
            return
        if self._parked.is_set():
            if not door.edge:  # (near the limit the mirror itself knows who waits)
                self._own.look()
            return
        try:
            door.admit()
            self._upstream_full = False
        except Full:
            self._wait_for_room()
            return
        except Gone as gone:
            self._withdraw(gone, met=True)
            return
        except Unseen as unseen:
            self._unmirror(unseen)
            return
        except Denied as denied:
            denied.client.close()
            self._tell_denied(denied)
        except OSError as error:
            # EAGAIN, ECONNABORTED: it has left. (On TCP a client may, before it is accepted.)
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self._starve(error)
                return
        if door.edge != self._edge:
            self._edge = door.edge
            self._resume()

    def _look(self) -> None:
        """A door wants to be called, though nobody came."""
        if self._may_accept:
            self._ready()

    def _heed(self, wanted: bool) -> None:
        """A door wants to be called when somebody waits, or not."""
        if wanted:
            self._resume()
            self._look_at_held()
        elif self._door is not None:
            self._relay.pause(self.listener.sock)

    def _resume(self) -> None:
        if self._may_accept:
            self._relay.resume(self.listener.sock, edge=self._edge)

    def _look_at_held(self) -> None:
        """Who was accepted already makes no socket readable."""
        if self._held:
            self._relay.call_at(monotonic_ns(), lambda _: self._look())

    @property
    def _may_accept(self) -> bool:
        # (A pool holds by itself: it sees who comes.)
        holds = self._gate.hold and not isinstance(self._door, Pool)
        return not (self._door is None or self._parked.is_set() or holds or self.listener.plugged)

    def _is_resting(self) -> bool:
        return self._parked.is_set()

    # --- opening and closing ---

    def _open_door(self) -> None:
        """Begin to accept, as the faults in force have it. Raises `Gone`, OSError."""
        assert self._nursery is not None
        self._door = door = self._make_door()
        if self._upstream is not None and self._upstream.as_client and not isinstance(door, Datagrams):
            self._upstream.connected = self._learn_who_listens
        self._edge = door.edge
        self._relay.watch(self.listener.sock, self._ready)
        if isinstance(door, Mirrored):
            self._nursery.start_soon(self._count_servers, door)
        if self.listener.kind != socket.SOCK_STREAM:
            self._tell_unfit()
        if isinstance(door, Datagrams):
            if self._taken is None:
                self._nursery.start_soon(self._watch_server, door)
        elif self._gate.eagain is not None and not self._draining:
            starved = partial(self._tell_starved, op="socket")
            self._plugging = Plugging(self.listener, self._take_waiting, self._heed_plug, starved)
            chance = random.Random(f"{self.book.seed}/eagain")  # noqa: S311 - reproducible is what it must be
            self._nursery.start_soon(self._plugging.run, self._gate.eagain, chance)
        if not self._may_accept:
            self._relay.pause(self.listener.sock)
        elif door.edge:
            self._resume()
        self._look_at_held()

    def _close_door(self) -> None:
        """Accept no more; what was made for clients who are not accepted yet is closed."""
        door = self._leave_door()
        if door is not None:
            door.close()

    def _dismiss_held(self) -> None:
        """Who was accepted will not be served."""
        while self._held:
            self._held.popleft().close()
        self._own.clear()

    def _leave_door(self) -> Door | None:
        """Accept no more. The door is to be closed; until then it keeps what it holds."""
        self._stop_plugging()
        door, self._door = self._door, None
        if door is not None:
            self._relay.unwatch(self.listener.sock)
        return door

    def _reopen(self) -> None:
        """Begin to accept, or begin not to be there: as the faults in force have it. What fails is tried again."""
        try:
            if self._gate.shut is not None:
                self.listener.withdraw(self._gate.shut)
                self._dismiss_held()
                return
            self._restore()
            self._open_door()
        except Gone as gone:
            self._withdraw(gone)
        except (ListenError, OSError) as error:
            self._close_door()
            self._dismiss_held()
            self._tell_not_listening(error)
            self._gone = Gone(errno.ECONNREFUSED)
            self._parked.set()

    # --- gate faults ---

    def apply_faults(self) -> None:
        """Put the gate faults that are in the book now in force, and take away those that no longer are."""
        gate = self.book.gate()
        if gate == self._gate or self._nursery is None:
            return
        if isinstance(self._door, Datagrams) and gate.shut == self._gate.shut:
            # It stays: who has sent keeps the name that the server knows.
            self._gate = gate
            self._heed(not gate.hold)
            if self._door.holds:
                self._look()
            return
        self._close_door()
        self._gate = gate
        # What is gone is restored with the faults of then; what ends is not made anew.
        if self._gone is None and not (self._draining and self.listener.withdrawn):
            self._reopen()

    def _take_waiting(self) -> bool:
        """Let somebody in, if that may be. Returns whether another one may follow."""
        if not self._may_accept:
            return False
        self._ready()
        return self._door is not None and not self._door.edge

    def _heed_plug(self) -> None:
        """The plug is in, or out."""
        if not self.listener.plugged:
            self._resume()
            self._look_at_held()
        elif self._door is not None:
            self._relay.pause(self.listener.sock)

    def _stop_plugging(self) -> None:
        if self._plugging is not None:
            plugging, self._plugging = self._plugging, None
            plugging.stop()

    # --- doors ---

    def _make_door(self) -> Door:
        config, listener, upstream = self._config, self.listener, self._upstream
        if upstream is None:
            return AcceptFirst(listener, self._start_connecting)
        assert not isinstance(config.upstream, Tcp)
        if listener.kind == socket.SOCK_DGRAM:
            upstream.connected = None  # the kernel does not say who receives datagrams
            return Datagrams(
                listener,
                upstream,
                config.upstream,
                self.connections,
                self._relay,
                self._look,
                self._heed,
                lambda queue, backlog: self._tell_queue(queue, backlog, self.connections.active),
            )
        gate = self._gate
        if gate.workers is not None or gate.hold:
            backlog = gate.backlog
            if backlog is None:
                backlog = config.backlog if config.backlog is not None else backlog_of(config.upstream)
            if backlog is None:
                if not gate.hold and (failed := upstream.probe()) not in (0, errno.EAGAIN):
                    raise Gone(failed)
                backlog = listener.most
            resume = partial(self._heed, True)
            return Pool(
                listener,
                upstream,
                self.connections,
                self._own,
                self._held,
                backlog,
                0 if gate.hold else gate.workers or 0,
                resume,
                self._levels(),
            )
        fixed = gate.backlog if gate.backlog is not None else config.backlog
        if fixed is None and gate.eagain is not None:
            fixed = listener.most  # it is full when we say so
        if fixed is not None:
            listener.limit(fixed)
        elif listener.is_unix:
            try:
                return Mirrored(
                    listener,
                    upstream,
                    config.upstream,
                    self.connections,
                    self._own,
                    self._held,
                    self._relay,
                    self._look,
                    self._is_resting,
                    self._levels(),
                    partial(self._tell_error, "connect", errno.EXDEV),
                )
            except Unseen as unseen:
                self._tell_unseen(unseen)
            except OSError as error:
                self._tell_starved(error, "sock_diag")
            return self._plain_door(upstream)
        return ConnectFirst(listener, upstream, self.connections, self._own, self._held)

    def _plain_door(self, upstream: Upstream) -> Door:
        """Our own queue is as long as the system allows."""
        self.listener.limit(self.listener.most)
        return ConnectFirst(self.listener, upstream, self.connections, self._own, self._held)

    def _levels(self) -> Levels:
        return Levels(self._tell_queue, self._tell_level)

    async def _count_servers(self, door: Mirrored) -> None:
        servers = await trio.to_thread.run_sync(count_servers, door.there, abandon_on_cancel=True)
        if door is self._door:
            door.expect(servers)

    def _unmirror(self, unseen: Unseen) -> None:
        """The upstream's queue cannot be seen (any more): our own has a limit of its own from here on."""
        self._tell_unseen(unseen)
        assert self._door is not None
        assert self._upstream is not None
        self._door.close()
        self._door = self._plain_door(self._upstream)
        self._edge = False
        self._resume()
        self._look_at_held()

    def _start_connecting(self, client: Socket) -> None:
        """Connect by TCP for a client that was accepted."""
        if self._nursery is None:  # we end: it is as if the client had come a moment later
            client.close()
            return
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

    def _park(self, seconds: float) -> None:
        """Accept nobody for so long."""
        self._parked_until = max(self._parked_until, trio.current_time() + seconds)
        self._parked.set()
        if self._door is not None:
            self._relay.pause(self.listener.sock)

    def _rest(self, seconds: float) -> None:
        """The same for a fault: it is noticed who comes meanwhile."""
        self._park(seconds)
        if self._door is not None:
            self._relay.resume(self.listener.sock, edge=True)

    def _wait_for_room(self) -> None:
        if not self._upstream_full:
            self._upstream_full = True
            self._tell_upstream_error("connect", errno.EAGAIN, None)
        self._park(RETRY_FULL_S)

    def _starve(self, error: OSError) -> None:
        self._tell_starved(error, "accept")
        self._park(RETRY_STARVED_S)

    # --- the upstream is gone ---

    def _withdraw(self, gone: Gone, *, met: bool = False) -> None:
        """``met``: a client was to be connected; otherwise it is we who have looked.

        Who waits in our queue gets what the kernel gives to those in a queue whose server ends: ECONNRESET.

        So does who was accepted already and has sent something (net/unix/af_unix.c, unix_release_sock: it was not
        read); else the end. But that comes last: whom it tells to try again is to meet what the upstream's clients
        meet.
        """
        door = self._leave_door()
        if isinstance(door, Datagrams):
            door.ended_by = "upstream"
        if met or self._held:
            self._meet("connect", gone.number)
        self._tell_upstream_error("connect", gone.number, None)
        self._gone = gone
        self._parked.set()
        try:
            self.listener.step_aside(gone.number)
        except (ListenError, OSError) as error:
            self._tell_error("listen", gone.number, str(error))
        finally:
            if door is not None:
                door.close()
            self._dismiss_held()

    async def _watch_path(self, taken: TakenOver) -> None:
        """Notice that the server has ended, or the path was taken from us, before a client does: nobody may be
        answered then (a server that is started anew tries that)."""
        while True:
            with trio.move_on_after(LOOK_S):
                await taken.watch.changed()
            if self._gone is not None or self._draining:
                await trio.sleep(LOOK_S)
                continue
            try:
                if taken.take_again():
                    self._tell_listening()
                number = taken.look()
            except GuardianError as error:
                self._tell_not_listening(ListenError(str(error)))
                continue
            except OSError:
                continue
            if number is None:
                continue
            if taken.has_lost_path:
                # Nobody new can come; who is in our queue is in the server's, as far as that is alive.
                with trio.move_on_after(EMPTIED_S):
                    while taken.serves() and not taken.withdrawn and somebody_waits(taken):
                        await trio.sleep(RETRY_FULL_S)
            if not (taken.withdrawn or self._draining):
                self._withdraw(Gone(number))

    async def _watch_server(self, door: Datagrams) -> None:
        """Notice that who receives datagrams has ended before senders do: what they send meanwhile is lost."""
        while door is self._door:
            await trio.sleep(LOOK_S)
            if door is self._door and (number := door.look()) is not None:
                self._withdraw(Gone(number))

    def _probe(self) -> int:
        """What clients would meet at the upstream."""
        if self._taken is not None:
            return self._taken.there()
        upstream, address = self._upstream, self._config.upstream
        if upstream is None:
            return 0
        # To connect is the last resort: a server that has just come back would get a client who says nothing.
        if not isinstance(address, Tcp) and (failed := look_at(address, upstream.kind)) is not None:
            return failed
        # (A TCP client cannot be given messages.)
        return upstream.seek() if self.listener.is_unix else upstream.probe()

    def _restore(self) -> None:
        """Listen, on a socket of the type that the upstream's has. Raises `ListenError`, OSError."""
        listener, upstream = self.listener, self._upstream
        if upstream is not None and self._taken is None and listener.kind != upstream.kind:
            if not listener.withdrawn:
                listener.withdraw(errno.ECONNREFUSED)
            listener.kind = upstream.kind
        if listener.withdrawn:
            listener.restore()
        if upstream is not None:
            upstream.kind = listener.kind  # (who takes a path over has seen of what type that is)

    async def _until_restored(self) -> None:
        """Until the upstream is back and we accept again; what fails in that is told once, and tried again."""
        looked = None
        while (gone := self._gone) is not None:
            self._back = trio.Event()
            self._keep_vigil()
            if gone is not looked and self._vigil is not None:
                looked = gone
                self._vigil.stir()  # its file may have come before
                continue
            with trio.move_on_after(max(RETRY_GONE_S, self._retry_at - trio.current_time())):
                await self._back.wait()
            if self._draining or self._gone is not gone:
                continue
            try:
                failed = self._probe()
            except OSError as error:
                self._cannot_restore(error)
                continue
            if failed in (0, errno.EAGAIN):
                self._try_to_restore()
            elif failed != gone.number and failed not in STARVED and self._is_settled():
                self._become(Gone(failed))

    def _begin_vigil(self) -> None:
        address = self.listener.endpoint if self._taken is not None else self._config.upstream
        if isinstance(address, UnixPath):
            self._vigil = Vigil(address.path, self._relay, self._look_at_place)

    def _keep_vigil(self) -> None:
        if self._vigil is not None:
            self._vigil.keep(is_gone=self._gone is not None)

    def _is_settled(self) -> bool:
        return self._vigil is None or self._vigil.age_ns > SETTLED_NS

    def _look_at_place(self) -> None:
        """Something has changed there, a moment ago."""
        if self._draining:
            return
        try:
            if self._gone is None:
                if self._taken is None:
                    self.listener.copy_again()
            elif trio.current_time() >= self._retry_at and self._sees_server():
                self._try_to_restore()
        except (ListenError, OSError):
            pass  # who looks now and then will tell

    def _sees_server(self) -> bool:
        """Is it there, for sure? The server does not notice."""
        if self._taken is not None:
            return self._taken.there() == 0
        upstream, address = self._upstream, self._config.upstream
        if upstream is None or isinstance(address, Tcp):
            return False
        if upstream.kind == socket.SOCK_DGRAM:
            return upstream.probe() == 0
        return look_at(address, upstream.kind) == 0

    def _try_to_restore(self) -> None:
        """The upstream is there."""
        try:
            if self._gate.shut is not None:
                self.listener.withdraw(self._gate.shut)
            else:
                self._restore()
                self._open_door()
        except Gone:
            self._close_door()
        except (ListenError, OSError) as error:
            # Somebody else has taken the path, say; and to try is to connect to them.
            self._close_door()
            self._cannot_restore(error)
        else:
            self._gone = self._not_listening = None
            self._keep_vigil()
            self._look_at_place()  # it may have changed its file since ours was made
            self._tell_listening()
            self._back.set()
            if trio.current_time() >= self._parked_until:
                self._parked = trio.Event()
                self._resume()

    def _become(self, gone: Gone) -> None:
        """The upstream is gone in another way than before."""
        self._gone = gone
        self._tell_upstream_error("connect", gone.number, None)
        try:
            self.listener.step_aside(gone.number)
        except (ListenError, OSError) as error:
            self._cannot_restore(error)

    def _cannot_restore(self, error: ListenError | OSError) -> None:
        self._retry_at = trio.current_time() + RETRY_TAKEN_S
        self._tell_not_listening(error)

    # --- telling ---

    def _tell_listening(self) -> None:
        self._tap.put(
            Listening(
                at=monotonic_ns(),
                proxy=self._config.name,
                listen=printable(str(self.listener.endpoint)),
                upstream=printable(str(self._config.upstream)),
                type=socket_types.NAMES.get(self.listener.kind),
                backlog=self.listener.backlog if self._door is None else max(0, self._door.backlog),
                mode=self.listener.mode,
                owner=self.listener.owner,
            )
        )

    def _meet(self, op: str, number: int) -> None:
        """A client meets this error."""
        if self._watch is not None:
            self._watch.error(f"{op}() {errno_name(number)}")

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
        self._tap.put(rule.event(monotonic_ns(), self._config.name, detail))

    def _tell_queue(self, queue: int, backlog: int, accepted: int) -> None:
        self._tap.put(
            Queue(at=monotonic_ns(), proxy=self._config.name, queue=queue, backlog=backlog, active=accepted)
        )

    def _tell_level(self, queue: int, backlog: int) -> None:
        if self._watch is not None:
            self._watch.level(queue, backlog)

    def _look_who_asks(self, clients: list[int]) -> None:
        if self._nursery is not None and self.listener.kind == socket.SOCK_STREAM and not self.listener.withdrawn:
            self._nursery.start_soon(self._see_who_asks, clients, self.listener.sock.getsockname())

    async def _see_who_asks(self, clients: list[int], name: str | bytes) -> None:
        wanted = await trio.to_thread.run_sync(self._asking.look, clients, name, abandon_on_cancel=True)
        self.connections.ask_who_sends(wanted=wanted)
        if self._upstream is not None:
            self._upstream.asks_who_sends = wanted

    def _learn_who_listens(self, upstream: Socket) -> None:
        """Our clients are to see the server's user, as it is at the other end of this connection."""
        credentials = Credentials.of_peer(upstream)
        if credentials != (self.listener.listens_as or self._actor.own):
            self.listener.listen_as(self._actor, credentials)

    def _tell_denied(self, denied: Denied) -> None:
        """Once: a client may come to us that may not connect to the server."""
        if not self._told_denied:
            self._told_denied = True
            hint = "we connect as the client; --credentials own connects as ourselves"
            self._tell_error("connect", denied.number, errno_message(denied.number), hint)

    def _tell_falls_short(self, client: Credentials, as_: Credentials) -> None:
        """Once: who connects, or listens, is nobody that we can be."""
        message = f"we cannot be uid {client.uid}, gid {client.gid} with its groups"
        hint = f"the other end sees uid {as_.uid}, gid {as_.gid}; in a user namespace, map those ids (/etc/subuid)"
        self._tell_error("setresuid", errno.EINVAL, message, hint)

    def _tell_unfit(self) -> None:
        """What was asked for before the type of the upstream's socket was known."""
        try:
            socket_types.require_fit(self._config, self.book.in_force, self.listener.kind)
        except ConfigError as error:
            self._tell_error("listen", errno.EOPNOTSUPP, str(error), "it has no effect")

    def _tell_unseen(self, unseen: Unseen) -> None:
        hint = "clients will wait where the upstream would refuse them; --backlog N sets a limit"
        self._tell_error("sock_diag", errno.EOPNOTSUPP, f"the upstream's queue is not mirrored: {unseen}", hint)

    def _tell_not_listening(self, error: ListenError | OSError) -> None:
        """Once for each reason, until we listen again."""
        if str(error) != self._not_listening:
            self._not_listening = str(error)
            self._tell_error("listen", getattr(error, "errno", None) or errno.EADDRINUSE, str(error))

    def _tell_starved(self, error: OSError, op: str) -> None:
        """Once for each shortage."""
        number, now = error.errno or 0, trio.current_time()
        if number != self._short_of or now >= self._short_until:
            self._short_of = number
            self._tell_error(op, number, errno_message(number), STARVED.get(number))
        self._short_until = now + SHORTAGE_S

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
