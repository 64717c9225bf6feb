"""How a waiting client comes in: what is done first, and what it waits for.

A door is a call, `admit`, that the accept loop makes when somebody waits in our queue. It raises `Gone` where the
upstream does not exist for us, `Full` where it is to be tried again in a moment, `Unseen` where this door needs to
see more of it than it can, and OSError where we ran out of something (or EAGAIN, ECONNABORTED: nobody waits after
all).

Rules:

* The upstream is connected before the client is accepted: a client whose upstream's queue is full stays in our
  queue, and nothing pretends to it that it was served. (Where we connect as the client, we have to know it first.)
* TCP has no such answer to give and can wait: there the client is accepted first, and a task connects.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic_ns
from typing import NamedTuple, Protocol

from udsproxy import endpoints
from udsproxy.endpoints import Listener, Socket
from udsproxy.events import errno_message
from udsproxy.kernel.credentials import Actor, Credentials
from udsproxy.proxy.connection import Connections
from udsproxy.proxy.own_queue import Levels, OwnQueue

STARVED = {
    errno.EMFILE: "raise the limit on open files of this process (ulimit -n)",
    errno.ENFILE: "raise the system's limit on open files (fs.file-max)",
    errno.ENOMEM: "the kernel is out of memory",
    errno.ENOBUFS: "the kernel is out of buffers",
    errno.ENOSPC: "raise fs.epoll.max_user_watches",
}
"""Errnos that say that we ran out of something, and what helps."""

_KINDS = tuple(int(kind) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM))


class Gone(Exception):
    """connect() to the upstream failed with ``number``, and would for everybody."""

    def __init__(self, number: int) -> None:
        super().__init__(errno_message(number))
        self.number = number


class Denied(Exception):
    """connect() as this ``client``, who was accepted, failed with ``number``: it may not, others may."""

    def __init__(self, client: Socket, number: int) -> None:
        super().__init__(errno_message(number))
        self.client = client
        self.number = number


class Full(Exception):
    """The upstream's queue is full."""


class Unseen(Exception):
    """The upstream is there, but the kernel does not tell us of its queue; why."""


class Door(Protocol):
    """See the module."""

    @property
    def edge(self) -> bool:
        """It wants to be called once for each client that comes, not for as long as one waits."""
        ...

    backlog: int
    """So many clients and one more may wait."""

    def admit(self) -> None: ...

    def queued(self, before: int) -> Iterable[tuple[int, int]]:
        """Who came before that time (ns) and is still in our queue, as far as it is seen: the number of the
        connection to be, and since when (ns)."""
        ...

    @property
    def holds(self) -> bool:
        """A client was accepted who has no connection yet: `admit` is to be called though nobody comes."""
        ...

    def close(self) -> None:
        """Connections to the upstream that no client has got are closed. (Clients who have none are left to the
        next door.)"""
        ...


class Limits(NamedTuple):
    """A queue of ours that stands for the server's."""

    queue: int
    """So many wait."""
    backlog: int
    workers: int | None
    """So many are served at a time; None: nobody is, for now, whatever the server's workers do."""


class Upstream:
    """connect() to a Unix socket, which never waits; as the client for whom it is, where ``actor`` is given."""

    def __init__(
        self,
        address: endpoints.UnixPath | endpoints.UnixAbstract,
        kind: int = socket.SOCK_STREAM,
        actor: Actor | None = None,
    ) -> None:
        self._dial = endpoints.dialer(address)
        self.kind = kind
        """The type of the sockets that it connects."""
        # (An abstract name can be had once for each type: unix_find_abstract.)
        is_abstract = isinstance(address, endpoints.UnixAbstract)
        self._another = errno.ECONNREFUSED if is_abstract else errno.EPROTOTYPE
        """What connect() says of a socket of another type."""
        self._actor = actor
        self.as_client = actor is not None
        """A client is to be accepted before the connection for it is made (`connect_for`)."""
        self.asks_who_sends = False
        """A connection asks (SO_PASSCRED) as soon as there is one: before it, connect() would give it a name."""
        self.last: Credentials | None = None
        """Of the client who came last."""
        self.connected: Callable[[Socket], None] | None = None
        """Is given the first connection."""
        self._spare: Socket | None = None
        self.make: Callable[[int], Socket] = endpoints.plain_socket
        """Makes sockets of that type."""
        """Tried, and to be tried again: EAGAIN leaves nothing behind."""

    def connect_for(self, client: Socket) -> tuple[Socket, float] | None:
        """`connect` as this client. Raises `Denied` besides."""
        assert self._actor is not None
        self.last = self._actor.of_peer(client)
        try:
            return self.connect(self.last)
        except PermissionError as error:
            raise Denied(client, error.errno or errno.EACCES) from None

    def is_for(self, client: Socket, as_: Credentials | None) -> bool:
        """Would a connection that was made ``as_`` somebody (None: ourselves) do for this client?"""
        assert self._actor is not None
        self.last = self._actor.of_peer(client)
        return self.last == (as_ or self._actor.own)

    def connect(self, as_: Credentials | None = None) -> tuple[Socket, float] | None:
        """A connection, and how long connect() took (s); None: the upstream's queue is full.

        Raises `Gone`; OSError (what we ran out of); with ``as_`` PermissionError.
        """
        sock = self._spare or self.make(self.kind)
        began = monotonic_ns()
        if as_ is None or self._actor is None or as_ == self._actor.own:
            as_ = None
            failed = self._connect(sock)
        else:
            failed = self._actor.act(as_, partial(self._connect, sock))
        if not failed:
            self._spare = None
            took_s = (monotonic_ns() - began) / 1e9
            if self.connected is not None:
                tell, self.connected = self.connected, None
                tell(sock)
            return sock, took_s
        self._spare = sock
        if as_ is not None and failed in (errno.EACCES, errno.EPERM):
            raise PermissionError(failed, errno_message(failed))
        if failed == errno.EAGAIN:
            return None
        self.close()
        if failed in STARVED:
            raise OSError(failed, errno_message(failed))
        raise Gone(failed)

    def _connect(self, sock: Socket) -> int:
        failed = self._dial(sock)
        if self.asks_who_sends and not failed and self.kind != socket.SOCK_DGRAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return failed

    def probe(self) -> int:
        """What connect() says: 0 or the errno. (A connection is closed at once.)"""
        return self._probe_as(self.kind)

    def seek(self) -> int:
        """`probe`; where the server's socket is of another type than it was, `kind` is that from now on."""
        first = self.probe()
        if first == self._another:
            for kind in _KINDS:
                if kind != self.kind and (failed := self._probe_as(kind)) != self._another:
                    self.close()
                    self.kind = kind
                    return failed
        return first

    def _probe_as(self, kind: int) -> int:
        with endpoints.unix_socket(kind) as sock:
            return self._dial(sock)

    def close(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None


class Pool:
    """`ConnectFirst`, with at most ``workers`` connections at a time, and a queue of ``backlog`` + 1 behind them.

    A worker that is free takes a client at once, so there is room for backlog + 1 and for each of those that are.
    While none is, each client that comes is noticed: the queue is told of as a server's own would be. Without
    workers everybody waits.
    """

    def __init__(
        self,
        listener: Listener,
        upstream: Upstream,
        connections: Connections,
        own: OwnQueue,
        held: deque[Socket],
        backlog: int,
        workers: int,
        resume: Callable[[], None],
        levels: Levels,
    ) -> None:
        """``resume``: makes the accept loop call `admit` if somebody waits."""
        self.backlog = backlog
        self._workers = workers
        self._listener = listener
        self._connections = connections
        self._own = own
        self._resume = resume
        self._levels = levels
        self._door = ConnectFirst(listener, upstream, connections, own, held)
        connections.freed = self._freed
        self._set_limit()

    @property
    def edge(self) -> bool:
        return not self._free

    @property
    def _free(self) -> int:
        return max(0, self._workers - self._connections.active)

    def admit(self) -> None:
        self._tell(self._own.look())
        if not self._free:
            return
        # First the limit, then the place that becomes free (as in the mirror).
        self._set_limit(1)
        try:
            self._door.admit()
        except BaseException:
            self._set_limit()
            raise
        self._tell(len(self._own))

    def queued(self, before: int) -> Iterable[tuple[int, int]]:
        return self._door.queued(before)

    @property
    def holds(self) -> bool:
        return self._door.holds

    def close(self) -> None:
        self._connections.freed = None
        self._tell(0)  # (this limit is no more)
        self._door.close()

    def limits(self) -> Limits:
        return Limits(self._levels.queue, self.backlog, self._workers or None)

    def _tell(self, waiting: int) -> None:
        queue = min(max(0, waiting - self._free), self.backlog + 1)
        self._levels.tell(queue, self.backlog, lambda: self._connections.active + waiting - queue)

    def _set_limit(self, taken: int = 0) -> None:
        self._listener.limit(self.backlog + max(0, self._free - taken))

    def _freed(self) -> None:
        self._set_limit()
        self._resume()


class ConnectFirst:
    """Our own queue has a limit of its own; it drains into the upstream's."""

    edge = False

    def __init__(
        self,
        listener: Listener,
        upstream: Upstream,
        connections: Connections,
        own: OwnQueue,
        held: deque[Socket],
    ) -> None:
        """``held``: clients who were accepted, and for whom no connection could be made yet."""
        self.backlog = listener.backlog
        self._accept = listener.accept
        self._upstream = upstream
        self._connections = connections
        self._own = own
        self._connected: tuple[Socket, float] | None = None
        """A connection whose client could not be accepted yet."""
        self._held = held

    def admit(self) -> None:
        try:
            if self._upstream.as_client:
                self._admit_as_client()
            else:
                self._admit()
        except Full:
            self._own.look()
            raise

    def _admit(self) -> None:
        connected = self._connected
        if connected is None:
            connected = self._connected = self._upstream.connect()
            if connected is None:
                raise Full
        client = self._accept()
        self._connected = None
        self._let_in(client, connected)

    def _admit_as_client(self) -> None:
        held = self._held
        if not held:
            held.append(self._accept())
        try:
            connected = self._upstream.connect_for(held[0])
        except Denied:
            held.popleft()
            self._own.pop()
            raise
        if connected is None:
            raise Full
        self._let_in(held.popleft(), connected)

    def _let_in(self, client: Socket, connected: tuple[Socket, float]) -> None:
        number, wait = self._own.take(client)
        self._connections.open(client, connected[0], number, connected[1], wait)

    def queued(self, before: int) -> Iterable[tuple[int, int]]:
        return self._own.queued(before)

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def close(self) -> None:
        if self._connected is not None:
            self._connected[0].close()
            self._connected = None
        self._upstream.close()


class AcceptFirst:
    """A TCP upstream: the client is accepted, and a task connects."""

    edge = False

    def __init__(self, listener: Listener, start_connecting: Callable[[Socket], None]) -> None:
        self.backlog = listener.backlog
        self._accept = listener.accept
        self._start_connecting = start_connecting

    def admit(self) -> None:
        self._start_connecting(self._accept())

    def queued(self, before: int) -> Iterable[tuple[int, int]]:
        return ()

    @property
    def holds(self) -> bool:
        return False

    def close(self) -> None:
        """It holds nothing."""
