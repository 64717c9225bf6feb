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
* A flow that faults apply to goes by a detour (`udsproxy.proxy.detour`); of the others none pays for that.
* Sockets are closed after the batch of events in which they ended, so that a descriptor's number cannot be
  taken again while an event of its former owner is still to come.
"""

from __future__ import annotations

import array
import contextlib
import errno
import heapq
import itertools
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Protocol

import trio

from udsproxy.endpoints import Socket
from udsproxy.events import Direction, Side, errno_name
from udsproxy.proxy.descriptors import ROOM, close_all, found_in

if TYPE_CHECKING:
    from udsproxy.proxy.detour import Detour

BUFFER = 256 * 1024
"""Bytes read at once, and so held at most per direction. AF_UNIX's send buffer is 208 KiB by default."""

_READS = range(4)
"""Reads that a flow may do before the others have their turn."""
_EVENTS = 32
"""Events taken at once; with `_READS`, bounds what the tap can be handed between two slices of its work."""
_FEW_CANCELLED = 1000
"""Calls that will not be made are kept up to here, and as long as others are as many."""
_TURN_NS = 5_000_000
"""How long the relay goes on before trio's other tasks have their turn."""
_LINGER_S = 0.001
"""How long the relay waits in its own epoll for more traffic before it goes back to wait by way of trio, which
costs more than moving a chunk does. It is epoll_wait()'s shortest time, and what trio's other tasks may lose."""
_NEAR_NS = 2_000_000
"""What is due sooner is waited for here: trio's own wait is rounded up to milliseconds."""
_SLICE_NS = 300_000
"""How long the tap's work goes on between two looks at the traffic, where there is as much of it. Where clients
wait for us without a pause, shorter is slower for all of them: work and traffic then drive each other out of the
processor's caches, and every chunk has to wake its reader from sleep (docs/cost.md has the figures)."""
_UNITS = 4
"""Units of the tap's work between two looks at the clock: 40 to 80 µs."""

_OUT, _RDHUP = select.EPOLLOUT, select.EPOLLRDHUP
_WATCH = select.EPOLLIN | select.EPOLLPRI | _RDHUP | select.EPOLLET
_GONE = select.EPOLLHUP | select.EPOLLERR
_RARE = _OUT | _GONE
_READ_ON = select.EPOLLPRI | select.EPOLLERR
"""With these, a short read does not mean that the source is drained: out-of-band data cuts reads short, and an
error is still to be had."""
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_CTRUNC = int(socket.MSG_CTRUNC)
_SEND = int(socket.MSG_DONTWAIT)
"""Said with each call: so a client's socket needs no call that makes it non-blocking first."""
_SHUT_RD, _SHUT_WR = int(socket.SHUT_RD), int(socket.SHUT_WR)

_NONE: list[int] = []


Watch = Callable[[Direction, int, bytes], None]
"""Who is given a copy of what was forwarded: which way, when it was read (ns), the bytes."""

_NOTHING: deque[tuple[memoryview, list[int]]] = deque(maxlen=0)
"""The outbox of a flow that never was blocked, which is most of them."""


class Observer(Protocol):
    """The tap, as the relay sees it."""

    def urgency(self) -> int:
        """0: there is nothing to do; 1: there is; 2: so much waits that it cannot wait for an idle moment."""
        ...

    def work(self, units: int) -> bool: ...


class Due:
    """A call that is to be made."""

    __slots__ = ("at", "call")

    def __init__(self, at: int, call: Callable[[int], None]) -> None:
        self.at = at
        self.call: Callable[[int], None] | None = call


class Flow:
    """One direction of one connection: from ``src`` to ``dst``."""

    __slots__ = (
        "armed", "detour", "direction", "done", "dst", "gone", "nbytes", "outbox", "pair", "receive", "send", "src",
        "twin",
    )  # fmt: skip

    twin: Flow

    def __init__(self, pair: Pair, direction: Direction, src: Socket, dst: Socket) -> None:
        self.pair = pair
        self.direction = direction
        self.src = src
        self.dst = dst
        self.receive = src.recvmsg_into
        self.send = dst.send
        self.detour: Detour | None = None
        """Its bytes go through faults."""
        self.outbox = _NOTHING
        """What ``dst`` did not take yet, and the descriptors that go with it."""
        self.nbytes = 0
        self.armed = False
        """EPOLLOUT of ``dst`` is asked for."""
        self.gone = False
        """``src``'s peer has closed altogether: it reads nothing more either."""
        self.done = False
        """Nothing more will pass."""

    @property
    def side(self) -> Side:
        """Whose ``src`` is."""
        return "client" if self.direction == "c2s" else "upstream"


class Pair:
    """A relayed connection: two sockets, and the flows between them. Who owns it says what its end means."""

    __slots__ = ("c2s", "ended", "errno", "first_eof", "left", "s2c", "watch")

    def __init__(self, client: Socket, upstream: Socket, watch: Watch | None = None) -> None:
        c2s = self.c2s = Flow(self, "c2s", client, upstream)
        s2c = self.s2c = Flow(self, "s2c", upstream, client)
        c2s.twin, s2c.twin = s2c, c2s
        self.watch = watch
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

    def closed(self) -> None:
        """Both sockets are closed; the attributes say how it ended."""
        raise NotImplementedError

    def descriptors_lost(self, why: str) -> None:
        """Descriptors (SCM_RIGHTS) were not passed on, and are closed."""
        raise NotImplementedError


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
        self._calls_due: list[tuple[int, int, Due]] = []
        """A heap: when (ns), a number that keeps the order, what."""
        self._cancelled = 0
        """Of these."""
        self._due_number = itertools.count()
        self._owed = 0
        """What traffic took since the tap last worked, where much waits for it (ns)."""
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        self._calls[self._wake_fd] = self._woken

    # --- what others ask of it; all plain calls ---

    def pairs(self) -> set[Pair]:
        """All that are relayed."""
        return {flow.pair for flow in self._flows.values()}

    def add(self, pair: Pair) -> None:
        """Relay this pair from now on. The relay owns its sockets; where it raises OSError (ENOMEM, ENOSPC: the
        kernel has no room to watch them) it has ended the pair.

        A client has mostly spoken before it is accepted, and a server reads as soon as it has accepted: what is
        there is forwarded before anything else, so that the server need not go to sleep again for want of it.
        """
        c2s, s2c = pair.c2s, pair.s2c
        self._pump(c2s, 0)
        if pair.ended:
            self.wake()
            return
        register, flows = self._epoll.register, self._flows
        try:
            fd = c2s.src.fileno()
            flows[fd] = c2s
            register(fd, _WATCH | _OUT if s2c.armed else _WATCH)
            fd = s2c.src.fileno()
            flows[fd] = s2c
            register(fd, _WATCH | _OUT if c2s.armed else _WATCH)
        except OSError:
            self.end(pair)
            raise

    def end(self, pair: Pair) -> None:
        """End a pair from our side, now, whatever it still holds. (Its sockets are closed a moment later.)"""
        if not pair.ended:
            pair.left = pair.left or "proxy"
            self._end(pair)
            self.wake()

    def watch(self, sock: Socket, call: Callable[[], None]) -> None:
        """Call ``call`` whenever ``sock`` is readable, for as long as it is (level-triggered)."""
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._calls[sock.fileno()] = call

    def call_at(self, at: int, call: Callable[[int], None]) -> Due:
        """Call ``call`` once with ``at``, at that time (monotonic ns) or up to some 100 µs later."""
        due = Due(at, call)
        heapq.heappush(self._calls_due, (at, next(self._due_number), due))
        self.wake()
        return due

    def cancel(self, due: Due) -> None:
        """Do not call."""
        if due.call is not None:
            due.call = None
            self._cancelled += 1
            if self._cancelled > _FEW_CANCELLED and self._cancelled > len(self._calls_due) // 2:
                self._calls_due[:] = [each for each in self._calls_due if each[2].call is not None]
                heapq.heapify(self._calls_due)
                self._cancelled = 0

    def pause(self, sock: Socket) -> None:
        """Do not call for now. (The descriptor stays in the epoll: putting it back could fail, this cannot.)"""
        self._epoll.modify(sock.fileno(), 0)

    def resume(self, sock: Socket, *, edge: bool = False) -> None:
        """Call again; ``edge``: not for as long as it is readable, but once now if it is, and whenever more comes
        (edge-triggered)."""
        self._epoll.modify(sock.fileno(), select.EPOLLIN | select.EPOLLET if edge else select.EPOLLIN)

    def unwatch(self, sock: Socket) -> None:
        if self._calls.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def wake(self) -> None:
        """There is work besides traffic; if the relay sleeps it shall get up for it."""
        if self._waiting:
            self._waiting = False
            os.eventfd_write(self._wake_fd, 1)

    async def run(self) -> None:
        """Relay until cancelled."""
        busy = False
        while True:
            self._waiting = not (busy or self._again or self._over or self._tap.urgency())
            if not self._waiting:
                await trio.lowlevel.checkpoint()
            elif self._calls_due:
                await self._wait_until_due()
            else:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
            self._waiting = False
            busy = self._turn()

    async def _wait_until_due(self) -> None:
        at = self._calls_due[0][0]
        with trio.move_on_after(max(0, at - monotonic_ns() - _NEAR_NS // 2) / 1e9) as scope:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
        if scope.cancelled_caught and at - monotonic_ns() > _NEAR_NS:
            self._run_due(at)  # trio's clock is not the system's: a test's, which jumps

    def close(self) -> None:
        """End every connection that is left. Nothing can be asked of the relay after that."""
        for pair in self.pairs():
            self.end(pair)
        self._close_ended()
        self._epoll.close()
        os.close(self._wake_fd)

    # --- the loop ---

    def _turn(self) -> bool:
        """Move bytes, and observe when there are none to move. Returns whether there may be more of that: it ends
        where trio's other tasks are due, or nothing has come for a while."""
        poll, tap = self._epoll.poll, self._tap
        urgency = tap.urgency()
        began = now = monotonic_ns()
        due = self._calls_due
        while now - began < _TURN_NS:
            if due and due[0][0] - now < _NEAR_NS:
                now = self._wait_near(due[0][0] - now if not (urgency or self._again) else 0)
                events = poll(0, _EVENTS)
            else:
                events = poll(0 if urgency or self._again else _LINGER_S, _EVENTS)
            if events or self._again or self._over:
                self._round(events)
                urgency = tap.urgency()
                before, now = now, monotonic_ns()
                if urgency > 1:
                    # No idle moment: observation may take as long as the traffic it observes took.
                    self._owed += now - before
                    if self._owed >= _SLICE_NS:
                        now = self._observe(now, self._owed)
            elif urgency:
                now = self._observe(now, _SLICE_NS)
                urgency = tap.urgency()
            elif due and due[0][0] - now < _NEAR_NS:
                now = monotonic_ns()
            else:
                return False
        return True

    def _wait_near(self, wait: int) -> int:
        """Wait so long (ns) for traffic, and make the calls that are due then. Returns the time.

        By select(), because epoll_wait() and poll() count in milliseconds. It takes descriptors below 1024 only;
        ours is one unless we were started with that many.
        """
        if wait > 0 and self._epoll.fileno() < 1024:
            select.select([self._epoll], [], [], wait / 1e9)
        now = monotonic_ns()
        self._run_due(now)
        return now

    def _run_due(self, now: int) -> None:
        due, calls = self._calls_due, []
        while due and due[0][0] <= now:
            calls.append(heapq.heappop(due)[2])
        for each in calls:  # (not those that are added meanwhile: all flows get their turn first)
            call, each.call = each.call, None
            if call is not None:
                call(each.at)
            else:
                self._cancelled = max(0, self._cancelled - 1)

    def _observe(self, now: int, most: int) -> int:
        """Let the tap work, for so long at most. Returns when it has ended (ns)."""
        self._owed = 0
        until = now + most
        while self._tap.work(_UNITS) and (now := monotonic_ns()) < until:
            pass
        return now

    def _round(self, events: list[tuple[int, int]]) -> None:
        if self._again:
            again, self._again = self._again, {}
            for flow in again:
                if not (flow.done or flow.outbox):
                    self._pump(flow, _READ_ON)
        flow_of = self._flows.get
        for fd, mask in events:
            found = flow_of(fd)
            if found is None:
                if fd in self._calls:
                    self._calls[fd]()
            elif mask & _RARE:
                self._rare(found, mask)
            elif not (found.done or found.outbox):
                self._pump(found, mask)
        if self._over:
            self._close_ended()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def _rare(self, flow: Flow, mask: int) -> None:
        """Besides that it is readable, something happened on ``flow.src``, which is also where its twin writes."""
        twin, pair = flow.twin, flow.pair
        if mask & _GONE and not flow.gone:
            flow.gone = True
            if not twin.done:
                pair.left = pair.left or flow.side
                self.abandon(twin)
            if flow.done:
                self._end(pair)
                return
        if mask & _OUT and twin.outbox:
            self._flush(twin)
        if mask & ~_OUT and not (flow.done or flow.outbox):
            self._pump(flow, mask)
        if flow.gone and not flow.done:
            # It is gone, but the other side has yet to take its last bytes; what that one sends has no reader.
            shutdown(flow.dst, _SHUT_RD)

    def _pump(self, flow: Flow, mask: int) -> None:
        """Read and forward. ``mask`` is what epoll said of the source, before anything was read."""
        if flow.detour is not None:
            flow.detour.pump()
            return
        watch = flow.pair.watch
        for _ in _READS:
            try:
                nbytes, ancillary, flags, _ = flow.receive(self._into, ROOM, _RECEIVE)
            except BlockingIOError:
                return
            except OSError as error:
                self.failed(flow, error)
                return
            if not nbytes:
                self.ended(flow)
                return
            flow.nbytes += nbytes
            descriptors = _NONE
            if ancillary or flags & _CTRUNC:
                descriptors = self._take_descriptors(flow, ancillary, flags)
            # The time is taken before the send: that wakes the reader, who may well have answered before we run on.
            at = monotonic_ns() if watch is not None else 0
            data = self._view[:nbytes]
            try:
                sent = self._send(flow, data, descriptors) if descriptors else flow.send(data, _SEND)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                close_all(descriptors)
                self._refused(flow, error)
                sent = nbytes
            if watch is not None:
                watch(flow.direction, at, bytes(data))
            if sent < nbytes:
                flow.outbox = deque([(memoryview(bytes(data[sent:])), [] if sent else descriptors)])
                self._arm(flow)
                return
            if flow.done:
                return
            if nbytes < BUFFER and not mask & _READ_ON and not descriptors:
                # The source is drained, and where its end had come before we read, this was all.
                if mask & _RDHUP:
                    self.ended(flow)
                return
        self._again[flow] = None

    @staticmethod
    def _take_descriptors(flow: Flow, ancillary: list[tuple[int, int, bytes]], flags: int) -> list[int]:
        if flags & _CTRUNC:
            flow.pair.descriptors_lost("some could not be taken (open files are at their limit)")
        return found_in(ancillary)

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
            flow.pair.descriptors_lost(f"{len(descriptors)} cannot travel over TCP")
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            sent = flow.dst.sendmsg([data], [rights], _SEND)
        close_all(descriptors)
        return sent

    def _arm(self, flow: Flow) -> None:
        """Be told when ``dst`` takes bytes again. Stays asked for: a flow that blocked once will again."""
        if not flow.armed:
            flow.armed = True
            fd = flow.dst.fileno()
            if fd in self._flows:
                self._epoll.modify(fd, _WATCH | _OUT)

    # --- for detours ---

    def read_on(self, flow: Flow) -> None:
        """There may be more to read, or to send, that no event will tell of."""
        self._again[flow] = None
        self.wake()

    def receive(self, flow: Flow, size: int = BUFFER) -> tuple[bytes, list[int]]:
        """What came, and its descriptors; nothing at the end. Raises BlockingIOError, OSError."""
        nbytes, ancillary, flags, _ = flow.receive([self._view[:size]], ROOM, _RECEIVE)
        descriptors = _NONE
        if ancillary or flags & _CTRUNC:
            descriptors = self._take_descriptors(flow, ancillary, flags)
        return bytes(self._view[:nbytes]), descriptors

    def forward(self, flow: Flow, data: bytes, descriptors: list[int]) -> None:
        """Send; what is not taken waits in the outbox, which is empty now."""
        view = memoryview(data)
        try:
            sent = self._send(flow, view, descriptors) if descriptors else flow.send(view, _SEND)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            close_all(descriptors)
            self._refused(flow, error)
            return
        if sent < len(data):
            flow.outbox = deque([(view[sent:], [] if sent else descriptors)])
            self._arm(flow)

    # --- endings ---

    def ended(self, flow: Flow) -> None:
        """``src`` has no more to say, and all that it said was delivered: pass the end on."""
        pair = flow.pair
        if pair.first_eof is None:
            pair.first_eof = flow.side
        flow.done = True
        if flow.twin.done:
            self._end(pair)
        else:
            shutdown(flow.dst, _SHUT_WR)

    def failed(self, flow: Flow, error: OSError) -> None:
        """``src`` cannot be read: a reset. Its peer neither sends nor reads any more."""
        flow.pair.left = flow.pair.left or flow.side
        flow.pair.errno = flow.pair.errno or errno_name(error.errno or errno.EIO)
        flow.gone = flow.done = True
        self.abandon(flow.twin)
        self._end(flow.pair)

    def _refused(self, flow: Flow, error: OSError) -> None:
        """``dst`` takes nothing more (EPIPE, ECONNRESET): the sender shall meet the same."""
        if error.errno != errno.EPIPE:
            flow.pair.errno = flow.pair.errno or errno_name(error.errno or errno.EIO)
        self.abandon(flow)
        shutdown(flow.src, _SHUT_RD)
        if flow.twin.done:
            self._end(flow.pair)

    def abandon(self, flow: Flow) -> None:
        """Nothing more can pass here; what is held has no reader."""
        flow.done = True
        if flow.detour is not None:
            flow.detour.clear()
        while flow.outbox:
            close_all(flow.outbox.popleft()[1])

    def _end(self, pair: Pair) -> None:
        if pair.ended:
            return
        pair.ended = True
        for flow in (pair.c2s, pair.s2c):
            flow.done = True
            if flow.outbox or flow.detour is not None:
                self.abandon(flow)
            self._flows.pop(flow.src.fileno(), None)
        self._over.append(pair)

    def _close_ended(self) -> None:
        ended, self._over = self._over, []
        for pair in ended:
            c2s, s2c = pair.c2s, pair.s2c
            c2s.src.close()
            s2c.src.close()
            pair.closed()
            # The three hold each other: taken apart, they are freed now, and not by the collector in some pause.
            c2s.pair = s2c.pair = c2s.twin = s2c.twin = None  # type: ignore[assignment]
            if c2s.detour is not None and s2c.detour is not None:
                c2s.detour.leave()
                s2c.detour.leave()
                c2s.detour = s2c.detour = None


def shutdown(sock: Socket, how: int) -> None:
    """shutdown(2), where the other end has not gone first."""
    try:  # noqa: SIM105 - contextlib.suppress costs more than the call
        sock.shutdown(how)
    except OSError:
        pass  # ENOTCONN: the other end went first
