"""The mirror: our accept queue is full for a client exactly when the upstream's would be.

Let B be the upstream's backlog: it takes B + 1 clients that nobody has accepted, and gives the next one EAGAIN.

* *Far from the limit* clients come in at once. While at most `few` of them have not been answered, and so may still
  wait in the upstream's queue, that needs no look at it: our own queue is given what is certainly left.
* *Near the limit* a client stays in our queue for as long as its connection waits in the upstream's: this is made
  *ahead*, and the client accepted when a server has accepted it (sock_diag tells). Both queues are first come,
  first served. So who waits is in our queue, each once, with the upstream's own limit, and the kernel decides on
  everyone who comes in the one place where it does so without a race. Only what others (`few` from before; clients
  that connect to the upstream themselves) take of the upstream's queue is taken off the limit.
* *Servers at rest* take a client in a few µs, and we see it some 100 µs later. So as many more clients as servers
  are known to rest are let into our queue: as many as hold the upstream's socket (where /proc says so) or were once
  seen at work at the same time, less those who are now. Where somebody waits for longer all the same, there are
  fewer.

Rules: nothing waits; a look costs about 10 µs, and is had while somebody waits, no more often than it helps.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic_ns

from udsproxy.endpoints import Listener, Socket, UnixAbstract, UnixPath, connect, unix_socket
from udsproxy.events import errno_message
from udsproxy.kernel.credentials import Credentials
from udsproxy.kernel.diag_codec import DiagError, UnixSocket
from udsproxy.kernel.server_diag import NotShown, ServerDiag
from udsproxy.kernel.sock_diag import Unsure
from udsproxy.protocols.decoder import AcceptWait
from udsproxy.proxy.connection import Connections
from udsproxy.proxy.doors import STARVED, Denied, Gone, Unseen, Upstream
from udsproxy.proxy.own_queue import Levels, OwnQueue, has_sent
from udsproxy.proxy.relay import Relay

_SHARE = 8
"""The part of the backlog that may be unanswered without a look."""
_STALE_NS = 1_000_000_000
"""How old what we know of the upstream's backlog may get, while clients come."""
_FIRST_LOOK_NS = 30_000
"""A server that was asleep accepts about so long after connect()."""
_LAST_LOOK_NS = 5_000_000
"""How long at most until the next look, while somebody waits."""
_MOST_RESTING = 64
"""How many clients may come between two looks, about."""
_WAKE_NS = 5_000_000
"""A server at rest has accepted after so long."""
_MAX_SEEN = 64
"""So many connections are looked at to see whether a server has them."""
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


def backlog_of(address: UnixPath | UnixAbstract) -> int | None:
    """The backlog of who listens there; None where the kernel does not show it."""
    found = _listener_at(address)
    return None if found is None else found.backlog


def listener_inode(address: UnixPath | UnixAbstract) -> int:
    """The inode of the socket that listens there; 0 where the kernel does not show it."""
    found = _listener_at(address)
    return 0 if found is None else found.inode


def _listener_at(address: UnixPath | UnixAbstract) -> UnixSocket | None:
    try:
        with ServerDiag() as diag:
            return diag.listener(_as_asked(address))
    except OSError:
        return None


def look_at(address: UnixPath | UnixAbstract, kind: int) -> int | None:
    """What connect() would say to clients there (errno; 0: somebody listens), without the server noticing that this
    is asked; None: only connecting would tell."""
    try:
        if isinstance(address, UnixPath):
            # A socket of another type finds the file, may connect to it or not, and does not (unix_find_bsd).
            with unix_socket(socket.SOCK_STREAM if kind == socket.SOCK_DGRAM else socket.SOCK_DGRAM) as other:
                failed = connect(other, address)
            if failed not in (0, errno.EPROTOTYPE):
                return failed
        with ServerDiag() as diag:
            found = diag.listener(_as_asked(address))
            if found is not None:
                return 0 if found.type == kind else None
            if isinstance(address, UnixPath) and kind != socket.SOCK_DGRAM and diag.is_bound_only(address.path):
                return errno.ECONNREFUSED
    except OSError:
        pass
    return None


def _as_asked(address: UnixPath | UnixAbstract) -> str | bytes:
    """An address as `ServerDiag.listener` takes it."""
    return address.path if isinstance(address, UnixPath) else os.fsencode(address.name)


class _Ahead:
    """A connection that was made for a client who is still in our queue."""

    __slots__ = ("as_", "connect_s", "connected_at", "inode", "number", "sock")

    def __init__(self, sock: Socket, connect_s: float, as_: Credentials | None) -> None:
        """``as_``: who is expected to be that client."""
        self.sock = sock
        self.as_ = as_
        self.connect_s = connect_s
        self.connected_at = monotonic_ns()
        self.inode = os.fstat(sock.fileno()).st_ino
        self.number: int | None = None
        """The connection's, where it had to be told of before it was accepted."""


class Mirrored:
    """A door (`udsproxy.proxy.doors.Door`)."""

    def __init__(
        self,
        listener: Listener,
        upstream: Upstream,
        address: UnixPath | UnixAbstract,
        connections: Connections,
        early: OwnQueue,
        held: deque[Socket],
        relay: Relay,
        ready: Callable[[], None],
        is_resting: Callable[[], bool],
        levels: Levels,
        tell_settled: Callable[[str], None],
    ) -> None:
        """``early``: who came before this door was there, if anybody. ``held``: clients who were accepted, and for
        whom no connection could be made yet. ``ready``: makes the accept loop call `admit`. ``is_resting``: nobody
        is to be accepted now (a fault that a connection has met may have said so). ``tell_settled``: is told what
        it took to find the upstream's socket, where that was more than a look.

        Raises `Unseen`; OSError (a descriptor is needed).
        """
        self._listener = listener
        self._upstream = upstream
        self._address = _as_asked(address)
        self._connections = connections
        self._relay = relay
        self._ready = ready
        self._is_resting = is_resting
        self._levels = levels
        self._tell_settled = tell_settled
        self.edge = False
        """We are near the limit."""
        self._ahead: deque[_Ahead] = deque()
        self._waits = connections.waits
        """Who came in at once, and may still wait in the upstream's queue."""
        self._waits.counted = True
        self._early = early
        self._held = held
        self._look_at = 0
        """When the next look is due; of calls that were asked for, only this one counts."""
        self._pause = _FIRST_LOOK_NS
        self.there = 0
        """The inode of the upstream's listener."""
        self.backlog = -1
        """The upstream's."""
        self._few = 0
        self._others = 0
        """How many in the upstream's queue are not for clients in ours, when last looked at."""
        self._before = 0
        """How many of these have a connection here: they came in before we were near, or as themselves."""
        self._servers = 0
        """How many were seen at work at once."""
        self._taken_at = 0
        """When a server last took a connection, or nobody waited."""
        self._looked_at = 0
        self._stepped_at = 0
        """When it was last seen that who is ahead had not been accepted."""
        self._own = os.fstat(listener.sock.fileno()).st_ino
        try:
            self._diag = ServerDiag()
        except OSError as error:
            if error.errno in STARVED:
                raise
            raise Unseen(errno_message(error.errno or 0)) from None
        try:
            with contextlib.suppress(Gone):  # who comes first finds out
                self._find()
        except BaseException:
            self._diag.close()
            raise

    def close(self) -> None:
        self._look_at = 0
        self._waits.wait_ahead(None)
        self._waits.counted = False
        self._levels.end(self.backlog)
        self._connections.freed = None
        for each in self._ahead:
            each.sock.close()
        self._ahead.clear()
        self._upstream.close()
        self._diag.close()

    @property
    def holds(self) -> bool:
        return bool(self._held)

    # --- coming in ---

    def expect(self, servers: int) -> None:
        """So many processes serve the upstream's socket, and may be at rest."""
        self._servers = max(self._servers, servers)
        if self.edge:
            self._set_limit()

    def admit(self) -> None:
        now, waits = monotonic_ns(), self._waits
        waits.prune()
        if not self.edge and now - self._looked_at > _STALE_NS:
            self._look()
        if not self.edge and (len(waits) < self._few or not self._crowded()):
            self._let_in()
        else:
            self._come_near()
            self._step(now)

    def _let_in(self) -> None:
        if self._upstream.as_client:
            if not self._held:
                self._held.append(self._listener.accept())
            if not self._connect_held():
                self._come_near()
                self._later(monotonic_ns())
            return
        connected = self._upstream.connect()
        if connected is None:
            self._come_near()  # others have filled it
            self._later(monotonic_ns())
            return
        sock, connect_s = connected
        try:
            client = self._listener.accept()
        except OSError:
            # We ran out of descriptors; it is this client's, and there is a place for that.
            self._come_near()
            self._add_ahead(sock, connect_s, None)
            raise
        number, wait = self._early.take(client)
        self._connections.open(client, sock, number, connect_s, wait)

    def _connect_held(self) -> bool:
        """Connect, each as itself, for clients who were accepted. Returns whether there was room for all."""
        while self._held:
            client = self._held.popleft()
            try:
                connected = self._upstream.connect_for(client)
            except Denied:
                self._early.pop()
                raise
            except (Gone, OSError):
                self._held.appendleft(client)
                raise
            if connected is None:
                self._held.appendleft(client)
                return False
            sock, connect_s = connected
            number, wait = self._early.take(client)
            self._connections.open(client, sock, number, connect_s, wait)
            # As far as we know it waits in the upstream's queue: no server is at work for it.
            self._others += 1
            self._before += 1
        return True

    def _crowded(self) -> bool:
        """May as many as `few` still wait in the upstream's queue?"""
        waits = self._waits
        waits.prune_all()
        if len(waits) < self._few:
            return False
        waits.keep(self._look())
        return len(waits) >= self._few

    # --- the upstream's queue ---

    def _find(self) -> None:
        """Raises `Gone`, `Unseen`, OSError."""
        found = self._listener_there()
        if found is None:
            failed = self._upstream.probe()
            if failed not in (0, errno.EAGAIN):
                raise Gone(failed)
            found = self._listener_there()  # it may have come just now
        if found is None:
            raise Unseen("the kernel shows no such listener")
        self.there = found.inode
        self._know(found.backlog)
        if self._diag.namespace is not None:
            self._relay.call_at(monotonic_ns() + _STALE_NS, self._look_after)

    def _look_after(self, at: int) -> None:
        """A container that has ended shall not be kept by us, though no client comes (`ServerDiag.serves`)."""
        if self._diag.namespace is not None:
            with contextlib.suppress(DiagError):
                self._diag.serves(self.there)
            self._relay.call_at(at + _STALE_NS, self._look_after)

    def _listener_there(self) -> UnixSocket | None:
        try:
            return self._diag.listener(self._address)
        except FileNotFoundError:
            raise Gone(errno.ENOENT) from None
        except PermissionError:
            raise Gone(errno.EACCES) from None
        except Unsure as unsure:
            return self._settle(unsure)
        except NotShown as error:
            raise Unseen(error.strerror) from None
        except DiagError as error:
            raise Unseen(errno_message(error.errno or 0)) from None

    def _settle(self, unsure: Unsure) -> UnixSocket:
        """Where the numbers of a file may be another's too, only a connection tells whose it is."""
        connected = self._upstream.connect()
        if connected is None:
            raise Unseen(f"{unsure.strerror}; and its queue is full")
        with contextlib.closing(connected[0]) as sock:
            found = self._diag.settle(unsure, sock)
        if found is None:
            raise Unseen(unsure.strerror)
        self._tell_settled(f"one empty connection was made to the upstream: {unsure.strerror}")
        return found

    def _look(self) -> int:
        """How many wait in the upstream's queue. Raises `Gone`, `Unseen`, OSError."""
        found = self._diag.queue_of(self.there) if self.there else None
        if found is None:
            self._find()  # a server that was started anew has a new socket
            found = self._diag.queue_of(self.there)
            if found is None:
                raise Gone(errno.ECONNREFUSED)
        queue, backlog = found
        self._know(backlog)
        return queue

    def _know(self, backlog: int) -> None:
        self._looked_at = monotonic_ns()
        if backlog != self.backlog:
            self.backlog = backlog
            self._few = (backlog + 1) // _SHARE
            if not self._few:
                self._come_near()
            elif not self.edge:
                self._listener.limit(backlog - self._few)

    # --- far and near ---

    def _come_near(self) -> None:
        if not self.edge:
            self.edge = True
            self._pause = _FIRST_LOOK_NS
            self._connections.freed = self._freed
            self._others = self._before = len(self._waits)
            self._set_limit()

    def _go_far(self) -> None:
        self.edge = False
        self._connections.freed = None
        self._listener.limit(self.backlog - self._few)

    def _step(self, now: int) -> None:
        """Accept whose connection was accepted, make connections for who came, set the limit."""
        ahead, connections = self._ahead, self._connections
        self._connect_held()
        taken = 0
        for each in ahead:
            if not self._is_accepted(each):
                break
            taken += 1
        if taken:
            # Clients leave our queue now, and it was longest before.
            self._tell(self._waiting() + self.backlog - self._listener.backlog)
        self._count_servers(now, taken, len(ahead) - taken)
        # First the limit, then the places that become free: the other way round somebody could get one of these who
        # would have been refused.
        self._set_limit(taken)
        for _ in range(taken):
            if self._is_resting():
                break
            client = self._listener.accept()
            first = ahead.popleft()
            if self._upstream.as_client and not self._upstream.is_for(client, first.as_):
                first.sock.close()  # it was made as somebody else
                self._held.append(client)
                self._connect_held()
                continue
            wait = AcceptWait(first.connected_at)
            wait.end(self._stepped_at, now)
            wait.hold(now, had_sent=has_sent(client))
            number = connections.number() if first.number is None else first.number
            connections.open(client, first.sock, number, first.connect_s, wait)
        self._stepped_at = now
        waiting = self._waiting()
        came = False
        while len(ahead) < waiting:
            as_ = self._upstream.last
            connected = self._upstream.connect(as_)
            if connected is None:
                break
            self._add_ahead(*connected, as_)
            came = True
        queue, before = self._look(), self._before
        self._others = max(0, queue - len(ahead))
        self._before = min(before, self._others)
        self._set_limit()
        self._tell(queue + max(0, waiting - len(ahead)) - self._resting_now(queue, before))
        self._waits.wait_ahead(ahead[0].connected_at if ahead else None)
        if came or taken:
            self._pause = _FIRST_LOOK_NS
        if not (waiting or self._held) and self._others < self._few:
            self._go_far()
        elif waiting or self._others or self._held:
            self._later(now)

    def _add_ahead(self, sock: Socket, connect_s: float, as_: Credentials | None) -> None:
        made = _Ahead(sock, connect_s, as_)
        if (first := self._early.pop()) is not None:
            made.connected_at, made.number = first.since, first.number
        self._ahead.append(made)

    def _count_servers(self, now: int, taken: int, left: int) -> None:
        at_work = self._at_work(taken)
        if at_work > self._servers:
            self._servers = max(self._servers, self._seen_at_work(taken, at_work))
        if taken or not left:
            self._taken_at = now
        elif now - self._taken_at > _WAKE_NS:
            self._servers = at_work

    def _seen_at_work(self, taken: int, at_most: int) -> int:
        """How many connections servers have, where these are few enough to look at each; else ``at_most``."""
        connections = self._connections.open_ones()
        if len(connections) > _MAX_SEEN:
            return at_most
        inodes = [os.fstat(each.upstream.fileno()).st_ino for each in connections if not each.ended]
        return min(at_most, taken + sum(bool(self._diag.own.peer_of(inode)) for inode in inodes))

    def _at_work(self, taken: int) -> int:
        return self._connections.active - self._before + taken

    def _resting(self, taken: int = 0) -> int:
        return max(0, min(self._servers - self._at_work(taken), _MOST_RESTING))

    def _resting_now(self, queue: int, before: int) -> int:
        """`_resting`, those taken into account that have accepted since that was looked at: for what is told. (Not
        for the limit: what is accepted between the two looks would make that too low.)"""
        taken = 0
        for each in self._ahead:
            if not self._diag.own.peer_of(each.inode):
                break
            taken += 1
        before = min(before, max(0, queue - len(self._ahead) + taken))
        at_work = self._connections.active - before + taken
        return max(0, min(self._servers - at_work, _MOST_RESTING))

    def _set_limit(self, taken: int = 0) -> None:
        self._listener.limit(max(0, self.backlog + self._resting(taken) - self._others))

    def _is_accepted(self, first: _Ahead) -> bool:
        if self._diag.own.peer_of(first.inode):
            return True
        try:
            first.sock.recv(1, _PEEK)
        except BlockingIOError:
            return False
        except OSError:
            self._look()  # that the upstream has ended altogether is another thing, and said so by that
            return True  # accepted, and reset by now
        return True  # accepted, and answered or closed by now

    def _later(self, now: int) -> None:
        self._look_when(now + self._pause)
        self._pause = min(self._pause + self._pause // 2, _LAST_LOOK_NS)

    def _look_when(self, at: int) -> None:
        self._look_at = at
        self._relay.call_at(at, self._look_again)

    def _look_again(self, at: int) -> None:
        if at == self._look_at:
            self._look_at = 0
            self._ready()

    def _freed(self) -> None:
        """A connection has ended: a server rests, or takes the next now."""
        if self._look_at:
            self._pause = _FIRST_LOOK_NS
            self._look_when(monotonic_ns())
        else:
            self._set_limit()

    def _waiting(self) -> int:
        """How many are in our own queue."""
        found = self._diag.own.queue_of(self._own)
        return 0 if found is None else found[0]

    def _tell(self, queue: int) -> None:
        """``queue``: who waits in the upstream's queue, or would without us. (Servers at rest have a client each in
        a moment: those do not count. That there are fewer of them is found out late.)"""
        queue = min(max(0, queue), self.backlog + 1)
        self._levels.tell(queue, self.backlog, lambda: max(0, self._connections.active + self._waiting() - queue))

    def queued(self, before: int) -> Iterator[tuple[int, int]]:
        """Who came before that time (ns) and is still in our queue: the number of the connection to be, and since
        when (ns)."""
        for each in self._ahead:
            if each.connected_at > before:
                return
            if each.number is None:
                each.number = self._connections.number()
            yield each.number, each.connected_at
        yield from self._early.queued(before)
