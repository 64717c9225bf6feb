"""The relay moves the bytes of every connection of the process: one trio task, one epoll.

Its unit is the *flow*: one direction of one connection, with its outbox, its backpressure, its half-close and
the descriptors that travel with its bytes. Two flows, each other's twin, make a *pair*.

Rules:

* Forward first; the tap is given a copy after that, and works when traffic leaves it time.
* A flow holds at most one buffer of bytes (`BUFFER`): while its outbox is not empty it does not read.
* An end travels in order behind the bytes before it. What ended one side ends the other: half-close as
  half-close; a full close as a close, once what was read has been delivered; EPIPE as EPIPE.
* epoll is edge-triggered: an event is the only notice, so a flow reads until it has drained its source, or is
  blocked (then the flush reads on), or has had its share (then it stands in ``_again``).
* Descriptors travel with the bytes of the read that they came with. What the kernel joins in one read (bytes
  sent before them among it) goes on as one message; urgent bytes (MSG_OOB) are not passed on.
* Sockets are closed after the batch of events in which they ended, so that a descriptor's number cannot be
  taken again while an event of its former owner is still to come.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import Protocol

import trio

from udsproxy.events import Direction, Side, errno_name

BUFFER = 256 * 1024
"""Bytes read at once, and so held at most per direction. AF_UNIX's send buffer is 208 KiB by default."""

_READS = 4
"""Reads that a flow may do before the others have their turn."""
_EVENTS = 32
"""Events taken at once; with `_READS`, bounds what the tap can be handed between two slices of its work."""
_TURN_NS = 2_000_000
"""How long the relay goes on before trio's other tasks have their turn."""
_LINGER_S = 0.001
"""How long the relay waits in its own epoll for more traffic before it goes back to wait by way of trio, which
costs more than moving a chunk does. It is epoll_wait()'s shortest time, and what trio's other tasks may lose."""
_UNITS = 8
"""Units of the tap's work in one slice: 100 to 200 µs."""

_WATCH = select.EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
_GONE = select.EPOLLHUP | select.EPOLLERR
_READ_ON = select.EPOLLPRI | select.EPOLLERR
"""With these, a short read does not mean that the source is drained: out-of-band data cuts reads short, and an
error is still to be had."""
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_CTRUNC = int(socket.MSG_CTRUNC)
_SEND = int(socket.MSG_DONTWAIT)
"""Said with each call: so a client's socket needs no call that makes it non-blocking first."""
_SHUT_RD, _SHUT_WR = int(socket.SHUT_RD), int(socket.SHUT_WR)

_ANCILLARY = socket.CMSG_SPACE(253 * array.array("i").itemsize)
"""Room for as many descriptors as one message can carry (SCM_MAX_FD, include/net/scm.h)."""


class Watch(Protocol):
    """Who is given a copy of what was forwarded."""

    def data(self, direction: Direction, at: int, data: bytes) -> None: ...


class Owner(Protocol):
    """Who is told of a pair's fate."""

    def ended(self, pair: Pair) -> None:
        """Both sockets are closed; ``pair`` says how it ended."""
        ...

    def descriptors_lost(self, why: str) -> None:
        """Descriptors (SCM_RIGHTS) were not passed on, and are closed."""
        ...


class Observer(Protocol):
    """The tap, as the relay sees it."""

    @property
    def pressing(self) -> bool:
        """So much waits that it cannot wait for an idle moment."""
        ...

    @property
    def pending(self) -> bool: ...

    def work(self, units: int) -> bool: ...


class Flow:
    """One direction of one connection: from ``src`` to ``dst``."""

    __slots__ = (
        "armed", "direction", "done", "dst", "gone", "nbytes", "outbox", "pair", "receive", "send", "side", "src",
        "twin",
    )  # fmt: skip

    twin: Flow

    def __init__(self, pair: Pair, direction: Direction, src: socket.socket, dst: socket.socket) -> None:
        self.pair = pair
        self.direction = direction
        self.side: Side = "client" if direction == "c2s" else "upstream"
        self.src = src
        self.dst = dst
        self.receive = src.recvmsg_into
        self.send = dst.send
        self.outbox: deque[tuple[memoryview, list[int]]] = deque()
        self.nbytes = 0
        self.armed = False
        """EPOLLOUT of ``dst`` is asked for."""
        self.gone = False
        """``src``'s peer has closed altogether: it reads nothing more either."""
        self.done = False
        """Nothing more will pass."""


class Pair:
    """A relayed connection: two sockets, and the flows between them."""

    __slots__ = ("c2s", "ended", "errno", "first_eof", "left", "owner", "s2c", "watch")

    def __init__(
        self, client: socket.socket, upstream: socket.socket, owner: Owner, watch: Watch | None = None
    ) -> None:
        self.c2s = Flow(self, "c2s", client, upstream)
        self.s2c = Flow(self, "s2c", upstream, client)
        self.c2s.twin, self.s2c.twin = self.s2c, self.c2s
        self.watch = watch
        self.owner = owner
        self.errno: str | None = None
        self.first_eof: Side | None = None
        """Which side was first to have no more to say."""
        self.left: Side | None = None
        """Who left while the other still had something to say, or to be told."""
        self.ended = False

    @property
    def by(self) -> Side:
        """Who ended it: who left; else who was the first to say its last."""
        return self.left or self.first_eof or "proxy"


class Relay:
    """See the module."""

    def __init__(self, tap: Observer) -> None:
        self._tap = tap
        self._epoll = select.epoll()
        self._flows: dict[int, Flow] = {}
        self._calls: dict[int, Callable[[], None]] = {}
        self._again: dict[Flow, None] = {}
        """Flows that had their share and have more to read: epoll will not tell of that again."""
        self._over: list[Pair] = []
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._into = [self._buffer]
        self._waiting = False
        self._in_round = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._calls[self._wake_fd] = self._woken

    # --- what others ask of it; all plain calls ---

    def add(self, pair: Pair) -> None:
        """Relay this pair from now on. The relay owns its sockets. Raises OSError (ENOMEM, ENOSPC).

        A client has mostly spoken before it is accepted, and a server reads as soon as it has accepted: what is
        there is forwarded before anything else, so that the server need not go to sleep again for want of it.
        """
        self._pump(pair.c2s, 0)
        for flow in (pair.c2s, pair.s2c):
            fd = flow.src.fileno()
            self._epoll.register(fd, _WATCH | select.EPOLLOUT if flow.twin.armed else _WATCH)
            self._flows[fd] = flow

    def end(self, pair: Pair) -> None:
        """End a pair from our side, now, whatever it still holds."""
        if not pair.ended:
            pair.left = pair.left or "proxy"
            self._end(pair)
            if not self._in_round:
                self._close_ended()

    def watch(self, sock: socket.socket, call: Callable[[], None]) -> None:
        """Call ``call`` whenever ``sock`` is readable, for as long as it is (level-triggered)."""
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._calls[sock.fileno()] = call

    def pause(self, sock: socket.socket) -> None:
        """Do not call for now. (The descriptor stays in the epoll: putting it back could fail, this cannot.)"""
        self._epoll.modify(sock.fileno(), 0)

    def resume(self, sock: socket.socket) -> None:
        """Call again."""
        self._epoll.modify(sock.fileno(), select.EPOLLIN)

    def unwatch(self, sock: socket.socket) -> None:
        if self._calls.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def wake(self) -> None:
        """The tap has work; if the relay sleeps it shall get up for it."""
        if self._waiting:
            self._waiting = False
            os.eventfd_write(self._wake_fd, 1)

    async def run(self) -> None:
        """Relay until cancelled."""
        while True:
            self._waiting = not (self._tap.pending or self._again)
            if self._waiting:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            else:
                await trio.lowlevel.checkpoint()
            self._waiting = False
            self._turn()

    def close(self) -> None:
        """End every connection that is left. Nothing can be asked of the relay after that."""
        for pair in {flow.pair for flow in self._flows.values()}:
            self.end(pair)
        self._epoll.close()
        os.close(self._wake_fd)

    # --- the loop ---

    def _turn(self) -> None:
        """Move bytes, and observe when there are none to move, until nothing is left or others are due."""
        poll, tap = self._epoll.poll, self._tap
        began = now = monotonic_ns()
        while now - began < _TURN_NS:
            idle = not (self._again or tap.pending)
            events = poll(_LINGER_S if idle else 0, _EVENTS)
            if events or self._again:
                self._round(events)
                if tap.pressing:
                    # No idle moment: observation may take as long as the traffic it observes took.
                    after = monotonic_ns()
                    until = after + after - now
                    while tap.work(_UNITS) and monotonic_ns() < until:
                        pass
            elif idle:
                return
            else:
                tap.work(_UNITS)
            now = monotonic_ns()

    def _round(self, events: list[tuple[int, int]]) -> None:
        self._in_round = True
        if self._again:
            again, self._again = self._again, {}
            for flow in again:
                if not (flow.done or flow.outbox):
                    self._pump(flow, _READ_ON)
        flows = self._flows
        for fd, mask in events:
            flow_or_none = flows.get(fd)
            if flow_or_none is None:
                call = self._calls.get(fd)
                if call is not None:
                    call()
                continue
            self._event(flow_or_none, mask)
        self._in_round = False
        if self._over:
            self._close_ended()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def _event(self, flow: Flow, mask: int) -> None:
        """Something happened on ``flow.src``, which is also where its twin writes."""
        if flow.pair.ended:
            return
        twin = flow.twin
        if mask & _GONE and not flow.gone:
            flow.gone = True
            if not twin.done:
                flow.pair.left = flow.pair.left or flow.side
                self._abandon(twin)
            if flow.done:
                self._end(flow.pair)
                return
        if mask & select.EPOLLOUT and twin.outbox:
            self._flush(twin)
        if mask & ~select.EPOLLOUT and not (flow.done or flow.outbox):
            self._pump(flow, mask)
        if flow.gone and not flow.pair.ended:
            # It is gone, but the other side has yet to take its last bytes; what that one sends has no reader.
            _shutdown(flow.dst, _SHUT_RD)

    def _pump(self, flow: Flow, mask: int) -> None:
        """Read and forward. ``mask`` is what epoll said of the source, before anything was read."""
        pair = flow.pair
        for _ in range(_READS):
            try:
                nbytes, ancillary, flags, _ = flow.receive(self._into, _ANCILLARY, _RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(flow, error)
                return
            if nbytes == 0:
                self._ended(flow)
                return
            data = self._view[:nbytes]
            descriptors = _descriptors(ancillary) if ancillary else []
            if flags & _CTRUNC:
                pair.owner.descriptors_lost("some could not be taken (open files are at their limit)")
            flow.nbytes += nbytes
            # Before the send: that wakes the reader, who may well have answered before we run again.
            at = monotonic_ns() if pair.watch is not None else 0
            try:
                sent = self._send(flow, data, descriptors) if descriptors else flow.send(data, _SEND)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                _close_all(descriptors)
                self._refused(flow, error)
                return
            finally:
                if pair.watch is not None:
                    pair.watch.data(flow.direction, at, bytes(data))
            if sent < nbytes:
                flow.outbox.append((memoryview(bytes(data[sent:])), descriptors if sent == 0 else []))
                self._arm(flow)
                return
            if nbytes < BUFFER and not mask & _READ_ON and not descriptors:
                # The source is drained, and where its end had come before we read, this was all.
                if mask & select.EPOLLRDHUP:
                    self._ended(flow)
                return
        self._again[flow] = None

    def _flush(self, flow: Flow) -> None:
        """``dst`` takes bytes again."""
        outbox = flow.outbox
        while outbox:
            data, descriptors = outbox[0]
            try:
                sent = self._send(flow, data, descriptors) if descriptors else flow.send(data, _SEND)
            except BlockingIOError:
                return
            except OSError as error:
                self._refused(flow, error)
                return
            if sent < len(data):
                outbox[0] = (data[sent:], [])
            else:
                outbox.popleft()
        self._pump(flow, _READ_ON)

    def _send(self, flow: Flow, data: memoryview, descriptors: list[int]) -> int:
        """Send bytes with descriptors (unix(7), SCM_RIGHTS) and close our copies of these.

        Raises BlockingIOError, with the descriptors kept; OSError.
        """
        if flow.dst.family != socket.AF_UNIX:
            sent = flow.send(data, _SEND)
            flow.pair.owner.descriptors_lost(f"{len(descriptors)} cannot travel over TCP")
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            sent = flow.dst.sendmsg([data], [rights], _SEND)
        _close_all(descriptors)
        return sent

    def _arm(self, flow: Flow) -> None:
        """Be told when ``dst`` takes bytes again. Stays asked for: a flow that blocked once will again."""
        if not flow.armed:
            flow.armed = True
            fd = flow.dst.fileno()
            if fd in self._flows:
                self._epoll.modify(fd, _WATCH | select.EPOLLOUT)

    # --- endings ---

    def _ended(self, flow: Flow) -> None:
        """``src`` has no more to say."""
        flow.pair.first_eof = flow.pair.first_eof or flow.side
        self._finish(flow)

    def _failed(self, flow: Flow, error: OSError) -> None:
        """``src`` cannot be read: a reset. Its peer neither sends nor reads any more."""
        flow.pair.left = flow.pair.left or flow.side
        flow.pair.errno = flow.pair.errno or errno_name(error.errno or errno.EIO)
        flow.gone = True
        self._abandon(flow.twin)
        self._finish(flow)

    def _refused(self, flow: Flow, error: OSError) -> None:
        """``dst`` takes nothing more (EPIPE, ECONNRESET): the sender shall meet the same."""
        if error.errno != errno.EPIPE:
            flow.pair.errno = flow.pair.errno or errno_name(error.errno or errno.EIO)
        self._abandon(flow)
        _shutdown(flow.src, _SHUT_RD)
        if flow.twin.done:
            self._end(flow.pair)

    def _abandon(self, flow: Flow) -> None:
        """Nothing more can pass here; what is held has no reader."""
        flow.done = True
        while flow.outbox:
            _close_all(flow.outbox.popleft()[1])

    def _finish(self, flow: Flow) -> None:
        """All that came was delivered and no more will come: pass the end on."""
        flow.done = True
        if flow.twin.done:
            self._end(flow.pair)
        else:
            _shutdown(flow.dst, _SHUT_WR)

    def _end(self, pair: Pair) -> None:
        if not pair.ended:
            pair.ended = True
            self._over.append(pair)

    def _close_ended(self) -> None:
        ended, self._over = self._over, []
        for pair in ended:
            for flow in (pair.c2s, pair.s2c):
                self._abandon(flow)
                self._flows.pop(flow.src.fileno(), None)
            pair.c2s.src.close()
            pair.s2c.src.close()
            pair.owner.ended(pair)
            # The two hold each other: taken apart, they are freed now, and not by the collector in some pause.
            del pair.c2s.twin, pair.s2c.twin, pair.c2s.pair, pair.s2c.pair


def _shutdown(sock: socket.socket, how: int) -> None:
    try:  # noqa: SIM105 - contextlib.suppress costs more than the call
        sock.shutdown(how)
    except OSError:
        pass  # ENOTCONN: the other end went first


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):  # EIO of a file system is not ours; the descriptor is gone all the same
            os.close(fd)
