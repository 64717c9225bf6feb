"""Datagrams (SOCK_DGRAM): a door through which nobody comes in, but each message is sent on.

Rules:

* Each datagram goes on as one, in the order in which they came, with its descriptors and (where we may) in the name
  of its sender. One that the server has no room for is held, and nothing is read behind it: senders then wait, or
  meet EAGAIN, as they do before a server that does not read.
* A sender that has a name can be replied to: it gets a socket of its own towards the server, under a name that the
  kernel chooses. What the server sends there goes on from our receiving socket, the only one of which a client that
  has connected takes anything (net/unix/af_unix.c, unix_may_send).
* Senders without a name share a socket without one.
* Who has sent is a connection in the log, from its first datagram until it is silent, or gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic_ns
from typing import cast

from udsproxy import endpoints
from udsproxy.endpoints import MAX_PATH, Listener, Pinned, Socket, UnixAbstract, UnixPath
from udsproxy.events import Client, Direction, ProxyError, Side, errno_message, errno_name
from udsproxy.kernel.diag_codec import DiagError
from udsproxy.kernel.namespaces import within
from udsproxy.kernel.server_diag import ServerDiag
from udsproxy.protocols.tap import Observation
from udsproxy.proxy.cargo import ROOM, Cargo, cargo_of, send_as
from udsproxy.proxy.connection import Connections, ConnectionState
from udsproxy.proxy.doors import STARVED, Gone, Upstream
from udsproxy.proxy.relay import Due, Relay

MOST_SENDERS = 1000
"""So many are known at a time; who has been silent for longest goes."""
SILENT_NS = 10_000_000_000
"""A sender without a name is forgotten after so long."""
_SWEEP_NS = 5_000_000_000
_RETRY_NS = 2_000_000
"""How soon it is tried again to send where poll() does not tell when: for any one client of ours, say."""
_FULL_NS = 100_000_000
"""The server's queue has to be full for so long before that is told."""
_AT_ONCE = 32
"""Datagrams that are sent on before others have their turn."""
_BUFFER = 256 * 1024
"""Longer ones are received too; for the time of that."""
_SEND_BUFFER = 4 * 1024 * 1024
"""Of our receiving socket: what clients have not read yet must not hinder replies to others."""

_SOL_SOCKET, _SO_SNDBUFFORCE = int(socket.SOL_SOCKET), 32
_DATAGRAMS = int(socket.SOCK_DGRAM)
_PEEK = int(socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_DONTWAIT)
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_DONTWAIT)
_CTRUNC = int(socket.MSG_CTRUNC)
_IN, _OUT, _ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR
_LATER = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
"""Errnos of sendmsg() with which it is to be tried again."""
_UCRED = struct.Struct("3i")
_NOBODY = bytes(_UCRED.size)

Address = str | bytes
"""A path, or an abstract name with its NUL."""


class _Datagram:
    """``address``: of who sent it, if that has one. ``credentials``: struct ucred."""

    __slots__ = ("address", "cargo", "credentials", "data")

    def __init__(self, data: bytes, cargo: Cargo | None, address: Address | None) -> None:
        self.data = data
        self.cargo = cargo
        self.address = address
        self.credentials = _NOBODY if cargo is None or cargo.credentials is None else cargo.credentials

    @property
    def uid(self) -> int:
        return int(_UCRED.unpack(self.credentials)[1])

    def discard(self) -> None:
        if self.cargo is not None:
            self.cargo.discard()


class _Sender:
    """Somebody who sends to us."""

    __slots__ = (
        "address",
        "client",
        "connected",
        "credentials",
        "held",
        "key",
        "nbytes",
        "number",
        "observation",
        "opened_at",
        "sock",
        "used_at",
        "users",
    )  # fmt: skip

    def __init__(self, key: Address, datagram: _Datagram, at: int) -> None:
        self.key = key
        self.address = datagram.address
        self.credentials = datagram.credentials
        self.opened_at = self.used_at = at
        self.number = 0
        """0: nothing of it has been sent on yet."""
        self.observation: Observation | None = None
        self.client: Client | None = None
        self.nbytes: dict[Direction, int] = {"c2s": 0, "s2c": 0}
        self.sock: Socket | None = None
        """Its own; without one, it has the one that is shared."""
        self.connected = True
        """That is: it takes nothing but what the server's own socket sends."""
        self.users: frozenset[int] | None = None
        """Where it is not: whose replies it takes (None: everybody's)."""
        self.held: _Datagram | None = None
        """A reply that the client has no room for."""


class Datagrams:
    """A door (`udsproxy.proxy.doors.Door`)."""

    edge = False

    def __init__(
        self,
        listener: Listener,
        upstream: Upstream,
        address: UnixPath | UnixAbstract,
        connections: Connections,
        relay: Relay,
        ready: Callable[[], None],
        heed: Callable[[bool], None],
        tell_queue: Callable[[int, int], None],
    ) -> None:
        """``ready``: makes the accept loop call `admit`. ``heed``: is told whether it is to be called when there is
        something to receive. ``tell_queue``: is given queue and backlog when the server's queue has been full for a
        while, and when it no longer is.

        Raises `Gone`, OSError (a descriptor is needed).
        """
        self.ended_by: Side = "proxy"
        """Who ends those who send, when this is closed."""
        self._sock = listener.sock
        self._upstream = upstream
        self._connections = connections
        self._relay = relay
        self._ready = ready
        self._heed = heed
        self._tell_queue = tell_queue
        self._senders: dict[Address, _Sender] = {}
        """By name, else by credentials. Who has sent last comes last."""
        self._by_fd: dict[int, _Sender] = {}
        self._held: _Datagram | None = None
        """It has been received, and could not be sent on yet."""
        self._wants_room: Socket | None = None
        """The socket that is to send it, where poll() tells when it can."""
        self._retries = False
        """It is to be tried again, poll() or not."""
        self._waiting: dict[_Sender, None] = {}
        """Whose reply is held."""
        self._again: Due | None = None
        self._full: Due | None = None
        self._told_full = False
        self._sweep: Due | None = None
        self._told_lost = False
        self._buffer = bytearray(_BUFFER)
        with open("/proc/sys/net/unix/max_dgram_qlen", encoding="ascii") as file:
            self.backlog = int(file.read())
        self._epoll = select.epoll()
        """Of our own: replies, and room for what is held."""
        self._server = _Server(address)
        self._upstream.make = self._server.make
        self._shared: Socket | None = None
        try:
            self._shared = self._connect()
            _grow(self._sock, _SEND_BUFFER)
            relay.watch(cast("Socket", self._epoll), self._look)  # (of which it needs fileno() only)
        except BaseException:
            self.close()
            raise
        connections.senders = self.states

    # --- a door ---

    def admit(self) -> None:
        """Send on what has come. Raises `Gone`, OSError."""
        for _ in range(_AT_ONCE):
            if self._held is None:
                try:
                    self._held = self._receive(self._sock)
                except BlockingIOError:
                    return
            if not self._forward(self._held):
                self._heed(False)
                return

    def queued(self, before: int) -> Iterable[tuple[int, int]]:
        return ()

    @property
    def holds(self) -> bool:
        return self._held is not None

    def close(self) -> None:
        for sender in list(self._senders.values()):
            self._end(sender, self.ended_by)
        for due in (self._again, self._full, self._sweep):
            if due is not None:
                self._relay.cancel(due)
        self._again = self._full = self._sweep = None
        if not self._epoll.closed:
            self._relay.unwatch(cast("Socket", self._epoll))
            self._epoll.close()
        if self._shared is not None:
            self._shared.close()
        if self._held is not None:
            self._held.discard()
            self._held = None
        self._server.close()
        self._connections.senders = None

    def look(self) -> int | None:
        """What senders would meet at the server (errno); None: it is there. To be called often."""
        return self._server.look()

    # --- to the server ---

    def _receive(self, sock: Socket) -> _Datagram:
        """The next. Raises BlockingIOError, OSError."""
        length = sock.recv_into(self._buffer, 1, _PEEK)
        buffer = self._buffer if length <= _BUFFER else bytearray(length)
        nbytes, ancillary, flags, address = sock.recvmsg_into([buffer], ROOM, _RECEIVE)
        if flags & _CTRUNC:
            self._tell_lost(
                None, "some descriptors could not be taken (open files are at their limit)", errno.EMFILE
            )
        return _Datagram(bytes(memoryview(buffer)[:nbytes]), cargo_of(ancillary), address or None)

    def _forward(self, datagram: _Datagram) -> bool:
        """Send on what is held. False: that is to be tried again; somebody will. Raises `Gone`, OSError."""
        sender = self._sender_of(datagram)
        sock, to = sender.sock or self._shared, None if sender.connected else self._server.address
        assert sock is not None
        at = monotonic_ns()
        try:
            self._send(sock, datagram, to, sender)
        except OSError as error:
            number = error.errno or errno.EIO
            if number in _LATER:
                self._await_room(sock if sender.connected and number == errno.EAGAIN else None)
                return False
            self._passed(datagram)
            if number not in (errno.EMSGSIZE, errno.EPERM):
                self.ended_by = "upstream"
                raise Gone(self._upstream.probe() or number) from None  # its file may be gone besides
            self._tell_lost(sender, f"a datagram of {len(datagram.data)} bytes was not sent on", number)
            return True
        self._passed(datagram)
        self._observe(sender, "c2s", at, datagram)
        return True

    def _passed(self, datagram: _Datagram) -> None:
        """Nothing is held any more."""
        datagram.discard()
        self._held = None
        if self._wants_room is not None or self._retries or self._full is not None or self._told_full:
            self._stop_waiting()
            self._heed(True)

    def _send(self, sock: Socket, datagram: _Datagram, to: Address | None, sender: _Sender) -> None:
        """Raises OSError."""
        try:
            self._send_as_it_is(sock, datagram, to)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                _grow(sock, len(datagram.data) + 1024)
            elif error.errno == errno.ETOOMANYREFS and datagram.cargo is not None:
                datagram.discard()
                self._tell_lost(sender, "descriptors were not passed on", errno.ETOOMANYREFS)
            else:
                raise
            self._send_as_it_is(sock, datagram, to)

    def _send_as_it_is(self, sock: Socket, datagram: _Datagram, to: Address | None) -> None:
        ancillary = [] if datagram.cargo is None else datagram.cargo.ancillary(credentials=False)
        # (From outside our pid namespace: only the pid is 0.)
        if self._connections.speaks and datagram.credentials != _NOBODY:
            send_as(sock, datagram.credentials, datagram.data, _SEND, ancillary, to)
        else:
            sock.sendmsg((datagram.data,), ancillary, _SEND, to)

    def _await_room(self, sock: Socket | None) -> None:
        """Have what is held tried again: as soon as ``sock`` can send (unix_dgram_poll), or without one soon."""
        if self._full is None and not self._told_full:
            self._full = self._relay.call_at(monotonic_ns() + _FULL_NS, self._tell_full)
        if self._wants_room is not None:
            self._heed_room(wanted=False)
        self._wants_room = sock
        self._retries = sock is None
        if sock is not None:
            self._heed_room(wanted=True)
        else:
            self._try_again_soon()

    def _heed_room(self, *, wanted: bool) -> None:
        assert self._wants_room is not None
        fd = self._wants_room.fileno()
        if self._wants_room is not self._shared:
            mask = 0 if self._by_fd[fd].held is not None else _IN
            self._epoll.modify(fd, mask | _OUT if wanted else mask)
        elif wanted:
            self._epoll.register(fd, _OUT)
        else:
            self._epoll.unregister(fd)

    def _stop_waiting(self) -> None:
        if self._wants_room is not None:
            self._heed_room(wanted=False)
            self._wants_room = None
        self._retries = False
        if self._full is not None:
            self._relay.cancel(self._full)
            self._full = None
        if self._told_full:
            self._told_full = False
            self._tell_queue(0, self.backlog)

    def _tell_full(self, _: int) -> None:
        self._full = None
        self._told_full = True
        self._tell_queue(self.backlog + 1, self.backlog)

    # --- who sends ---

    def _sender_of(self, datagram: _Datagram) -> _Sender:
        """Raises `Gone`, OSError."""
        now = monotonic_ns()
        key = datagram.address or datagram.credentials
        found = self._senders.pop(key, None)
        if found is None:
            found = self._new_sender(key, datagram, now)
        elif found.credentials != datagram.credentials and not os.path.exists(f"/proc/{_pid_of(found)}"):
            # Another process has taken the name of one that has ended: to the server it is the same.
            other = _Sender(key, datagram, now)
            other.sock, other.connected, other.users = found.sock, found.connected, found.users
            other.held, found.held = found.held, None
            if self._waiting.pop(found, 0) is None:
                self._waiting[other] = None
            found.sock = None
            self._tell_end(found, "client")
            if other.sock is not None:
                self._by_fd[other.sock.fileno()] = other
            found = other
        found.used_at = now
        self._senders[key] = found
        return found

    def _new_sender(self, key: Address, datagram: _Datagram, now: int) -> _Sender:
        """Raises `Gone`, OSError."""
        if len(self._senders) >= MOST_SENDERS:
            self._end(next(iter(self._senders.values())), "proxy")
        sender = _Sender(key, datagram, now)
        if sender.address is not None:
            # What takes replies from anybody is to go on doing so, but for those who had no right to its file: a
            # name that the kernel chooses is open to all.
            if _takes_from_all(sender.address):
                if isinstance(sender.address, bytes):
                    sender.connected = False
                elif self._server.users is not None:
                    sender.connected = False
                    sender.users = self._server.users | {datagram.uid}
            sender.sock = self._socket_for(sender)
            self._by_fd[sender.sock.fileno()] = sender
        if self._sweep is None:
            self._sweep = self._relay.call_at(now + _SWEEP_NS, self._sweep_out)
        return sender

    def _socket_for(self, sender: _Sender) -> Socket:
        """Where descriptors run out, who has been silent for longest gives his back. Raises `Gone`, OSError."""
        while True:
            try:
                return self._bound_socket(sender)
            except OSError as error:
                oldest = next((each for each in self._senders.values() if each.sock is not None), None)
                if error.errno not in (errno.EMFILE, errno.ENFILE) or oldest is None:
                    raise
                self._end(oldest, "proxy")

    def _bound_socket(self, sender: _Sender) -> Socket:
        try:
            sock = self._connect() if sender.connected else self._upstream.make(_DATAGRAMS)
        except Gone as gone:
            if gone.number != errno.EPERM:
                raise
            # The server has connected to somebody, and takes nothing from others.
            sender.connected, sender.users = False, frozenset()
            sock = self._upstream.make(_DATAGRAMS)
        try:
            sock.bind(b"")
            sock.setsockopt(_SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._epoll.register(sock.fileno(), _IN)
        except OSError:
            sock.close()
            raise
        return sock

    def _connect(self) -> Socket:
        """Raises `Gone`, OSError."""
        connected = self._upstream.connect()
        if connected is None:
            raise OSError(errno.EAGAIN, errno_message(errno.EAGAIN))
        return connected[0]

    def _end(self, sender: _Sender, by: Side) -> None:
        """From now on the server cannot reply to it."""
        self._senders.pop(sender.key, None)
        self._waiting.pop(sender, None)
        if sender.held is not None:
            sender.held.discard()
            sender.held = None
        if sender.sock is not None:
            if sender.sock is self._wants_room:
                self._wants_room = None
                self._retries = True
                self._try_again_soon()
            del self._by_fd[sender.sock.fileno()]
            sender.sock.close()
            sender.sock = None
        self._tell_end(sender, by)

    def _sweep_out(self, at: int) -> None:
        """Forget who is silent, or gone."""
        now, self._sweep = max(at, monotonic_ns()), None
        for sender in list(self._senders.values()):
            silent = now - sender.used_at
            if (
                (silent >= SILENT_NS)
                if sender.address is None
                else (silent > _SWEEP_NS and _is_gone(sender.address))
            ):
                self._end(sender, "client")
        if self._senders:
            self._sweep = self._relay.call_at(now + _SWEEP_NS, self._sweep_out)

    # --- and back ---

    def _look(self) -> None:
        """There are replies, or there is room."""
        has_room = False
        for fd, mask in self._epoll.poll(0, _AT_ONCE):
            if mask & _OUT and self._wants_room is not None and fd == self._wants_room.fileno():
                self._heed_room(wanted=False)
                self._wants_room = None
                has_room = True
            sender = self._by_fd.get(fd)
            if sender is None or sender.sock is None:
                continue
            if mask & _ERR:
                sender.sock.getsockopt(_SOL_SOCKET, socket.SO_ERROR)  # who was connected to it has left: no matter
            if mask & _IN:
                self._pass_replies_on(sender, sender.sock)
        if has_room:
            self._retries = True
            self._ready()

    def _pass_replies_on(self, sender: _Sender, sock: Socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                reply = self._receive(sock)
            except OSError:
                return
            if sender.users is not None and reply.uid not in sender.users:
                reply.discard()
                continue
            sender.held = reply
            if not self._pass_reply_on(sender):
                return

    def _pass_reply_on(self, sender: _Sender) -> bool:
        """Send on the reply that is held. False: nothing more is to be read for now."""
        reply = sender.held
        assert reply is not None
        assert sender.sock is not None
        at = monotonic_ns()
        try:
            self._send(self._sock, reply, sender.address, sender)
        except OSError as error:
            number = error.errno or errno.EIO
            if number in _LATER:
                self._epoll.modify(sender.sock.fileno(), _OUT if sender.sock is self._wants_room else 0)
                self._waiting[sender] = None
                self._try_again_soon()
                return False
            if number != errno.EMSGSIZE:
                self._end(sender, "client")
                return False
            self._tell_lost(sender, f"a reply of {len(reply.data)} bytes was not sent on", number)
        else:
            self._observe(sender, "s2c", at, reply)
        reply.discard()
        sender.held = None
        return True

    def _try_again_soon(self) -> None:
        if self._again is None:
            self._again = self._relay.call_at(monotonic_ns() + _RETRY_NS, self._try_again)

    def _try_again(self, _: int) -> None:
        self._again = None
        waiting, self._waiting = self._waiting, {}
        for sender in waiting:
            if self._pass_reply_on(sender) and sender.sock is not None:
                mask = _IN | _OUT if sender.sock is self._wants_room else _IN
                self._epoll.modify(sender.sock.fileno(), mask)
        if self._retries:
            self._ready()

    # --- telling ---

    def states(self, now: int) -> list[ConnectionState]:
        """Who sends."""
        return [
            ConnectionState(
                proxy=self._connections.proxy,
                conn=sender.number,
                client=sender.client,
                open_s=(now - sender.opened_at) / 1e9,
                c2s_bytes=sender.nbytes["c2s"],
                s2c_bytes=sender.nbytes["s2c"],
            )
            for sender in self._senders.values()
            if sender.number
        ]

    def _observe(self, sender: _Sender, direction: Direction, at: int, datagram: _Datagram) -> None:
        """Tell of what was sent on."""
        if not sender.number:
            self._tell_open(sender, at)
        sender.nbytes[direction] += len(datagram.data)
        observation = sender.observation
        if observation is not None and observation.wants_data:
            observation.data(direction, at, datagram.data)
            self._relay.wake()

    def _tell_open(self, sender: _Sender, at: int) -> None:
        credentials = None if sender.credentials == _NOBODY else sender.credentials
        sender.number, sender.client, sender.observation = self._connections.open_sender(credentials, at)

    def _tell_end(self, sender: _Sender, by: Side) -> None:
        if sender.number:
            self._connections.close_sender(
                sender.number, sender.observation, sender.opened_at, by, sender.nbytes["c2s"], sender.nbytes["s2c"]
            )

    def _tell_lost(self, sender: _Sender | None, message: str, number: int) -> None:
        """Once: who sends much of this would fill the log."""
        if self._told_lost:
            return
        self._told_lost = True
        hint = "raise net.core.wmem_max" if number == errno.EMSGSIZE else STARVED.get(number)
        self._connections.tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self._connections.proxy,
                conn=sender.number or None if sender is not None else None,
                op="recvmsg" if number == errno.EMFILE else "sendmsg",
                errno=errno_name(number),
                message=f"{message}: {errno_message(number)}",
                hint=hint,
            )
        )


class _Server:
    """The socket that we send to: its address, and whether it lives."""

    def __init__(self, address: UnixPath | UnixAbstract) -> None:
        """Raises `Gone`, OSError (a descriptor is needed)."""
        self._pinned: int | None = None
        self._path: str | None = None
        """Where its file is to stay."""
        self._file: tuple[int, int] | None = None
        self._inode = 0
        self._diag: ServerDiag | None = None
        self.users: frozenset[int] | None = None
        """Who may well send in its name; None: that cannot be told."""
        self.address: Address
        asked: str | bytes
        if isinstance(address, UnixAbstract):
            asked = os.fsencode(address.name)
            self.address = b"\0" + asked
        else:
            self.address = asked = address.path
            try:
                found = os.stat(address.path)
                if len(os.fsencode(address.path)) > MAX_PATH:
                    self._pinned = os.open(address.path, os.O_PATH | os.O_CLOEXEC)
                    self.address = f"/proc/self/fd/{self._pinned}"
            except OSError as error:
                if error.errno in STARVED:
                    raise
                raise Gone(error.errno or errno.ENOENT) from None
            self.users = frozenset((0, os.geteuid(), found.st_uid))
            if not isinstance(address, Pinned):
                self._path, self._file = address.path, (found.st_dev, found.st_ino)
        with contextlib.suppress(OSError):
            self._diag = ServerDiag()
            server = self._diag.server(asked)
            self._inode = 0 if server is None else server.inode

    def make(self, kind: int) -> Socket:
        """A socket in the server's network namespace: there the abstract name that it has can be replied to."""
        space = None if self._diag is None else self._diag.namespace
        if space is not None:
            with contextlib.suppress(OSError):
                return within(space, partial(endpoints.plain_socket, kind))
        return endpoints.plain_socket(kind)

    def look(self) -> int | None:
        """See `Datagrams.look`."""
        if self._path is not None:
            try:
                found = os.stat(self._path)
            except OSError as error:
                return error.errno or errno.ENOENT
            if (found.st_dev, found.st_ino) != self._file:
                return errno.ECONNREFUSED
        if self._diag is not None and self._inode:
            with contextlib.suppress(DiagError):
                return None if self._diag.serves(self._inode) else errno.ECONNREFUSED
        return None

    def close(self) -> None:
        if self._pinned is not None:
            os.close(self._pinned)
            self._pinned = None
        if self._diag is not None:
            self._diag.close()
            self._diag = None


def _takes_from_all(address: Address) -> bool:
    """Would the client at this address take a datagram from anybody? (Not if it has connected.)"""
    return _probe(address) == 0


def _is_gone(address: Address) -> bool:
    return _probe(address) in (errno.ECONNREFUSED, errno.ENOENT)


def _probe(address: Address) -> int:
    """What connect() says of a client's address, which does not notice: 0 or the errno."""
    try:
        with endpoints.unix_socket(_DATAGRAMS) as probe:
            return probe.connect_ex(address)
    except OSError as error:
        return error.errno or errno.EIO


def _pid_of(sender: _Sender) -> int:
    return int(_UCRED.unpack(sender.credentials)[0])


def _grow(sock: Socket, nbytes: int) -> None:
    """Let it send this much at once, as far as that is allowed."""
    if sock.getsockopt(_SOL_SOCKET, socket.SO_SNDBUF) >= nbytes:
        return
    try:
        sock.setsockopt(_SOL_SOCKET, _SO_SNDBUFFORCE, nbytes)
    except OSError:
        sock.setsockopt(_SOL_SOCKET, socket.SO_SNDBUF, nbytes)
