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
* What comes is looked at (MSG_PEEK) and forwarded, and stays unread for a while; its last byte until the next
  has come. Where one side ends with a reset, that is what makes the kernel report a reset to the other: close()
  with unread data. And the look tells where in the bytes descriptors are: they go on in a message of their own.
  Each look begins where the one before has ended (SO_PEEK_OFF).
* What is unread must not keep its sender from sending: it is little, and after a while it is looked whether it
  does.
* Where we may speak for others, each chunk is sent in the name of who wrote it (SCM_CREDENTIALS). What different
  processes wrote comes in different looks, so a short one does not mean that there is no more: that is looked at
  before the relay waits again.
* A flow that faults apply to goes by a detour (`udsproxy.proxy.detour`); of the others none pays for that.
* Sockets are closed after the batch of events in which they ended, so that a descriptor's number cannot be
  taken again while an event of its former owner is still to come.
"""

from __future__ import annotations

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
from typing import Protocol

import trio

from udsproxy.endpoints import Socket
from udsproxy.events import errno_name
from udsproxy.kernel.receive_queue import (
    bytes_before_descriptors,
    is_at_mark,
    knows_marks,
    set_peek_offset,
    unread,
    waiting,
)
from udsproxy.proxy.cargo import ROOM, Cargo, cargo_of
from udsproxy.proxy.flow import CHUNK, Flow, Pair, Way, shutdown
from udsproxy.proxy.unread import LOOK, Unread

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
_ENDS = _RDHUP | _GONE
_RARE = _OUT | _GONE | select.EPOLLPRI
_READ_ON = select.EPOLLPRI | select.EPOLLERR
"""With these, a short read does not mean that the source is drained: out-of-band data cuts reads short, and an
error is still to be had."""
_UNASKED = select.EPOLLERR
"""Stands for what epoll would say, where it was not asked."""
_CHILD_NS = 10_000_000_000
"""How long it may take until a child runs its own program."""
_SURE_NS = 1_000_000
"""After so long it is looked whether more has come than was seen, also where traffic leaves no time for that."""
_PRI, _ERROR = select.EPOLLPRI, select.EPOLLERR
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_CTRUNC = int(socket.MSG_CTRUNC)
_NOW = int(socket.MSG_DONTWAIT)
_OOB = int(socket.MSG_OOB | socket.MSG_DONTWAIT)
_SOL_SOCKET, _SO_PASSCRED = int(socket.SOL_SOCKET), int(socket.SO_PASSCRED)
_SEQPACKET = int(socket.SOCK_SEQPACKET)
_SEND = int(socket.MSG_DONTWAIT)
"""Said with each call: so a client's socket needs no call that makes it non-blocking first."""
_SHUT_RD, _SHUT_WR, _SHUT_RDWR = int(socket.SHUT_RD), int(socket.SHUT_WR), int(socket.SHUT_RDWR)


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
        self._unsure: dict[Flow, None] = {}
        """There may be more to read than was seen: of another sender."""
        self._sure_at = 0
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._into = [self._buffer]
        self._look_into = [self._view[:LOOK]]
        self.unread = Unread(self.call_at, self._into)
        self._marks = knows_marks()
        self._waiting = False
        self._calls_due: list[tuple[int, int, Due]] = []
        """A heap: when (ns), a number that keeps the order, what."""
        self._cancelled = 0
        """Of these."""
        self._careful_until = 0
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
            pair.lingers = None
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

    def expect_child(self) -> None:
        """A child process is about to be started. Until it runs its own program it has copies of our descriptors,
        and what we close meanwhile stays in the epoll: its events would come under a number that may be another's
        by then (epoll(7)). So for a while everything is taken out of the epoll before it is closed."""
        self._careful_until = monotonic_ns() + _CHILD_NS

    def close(self) -> None:
        """End every connection that is left. Nothing can be asked of the relay after that."""
        for pair in self.pairs():
            self.end(pair)
        self._close_ended()
        self._epoll.close()
        os.close(self._wake_fd)
        self.unread.close()

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
                if self._unsure and now - self._sure_at > _SURE_NS:
                    self._make_sure(now)
                if urgency > 1:
                    # No idle moment: observation may take as long as the traffic it observes took.
                    self._owed += now - before
                    if self._owed >= _SLICE_NS:
                        now = self._observe(now, self._owed)
            elif self._unsure:
                self._make_sure(now)
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
                    self._pump(flow, _UNASKED)
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
        if mask & _ERROR:
            pair.reset, pair.errno = twin.side, pair.errno or "ECONNRESET"
        if pair.lingers and mask & _GONE:
            if not (mask & _ERROR or self.unread.has_closed(flow.src)):
                return
            pair.lingers = None
            if flow.done and twin.done:
                self._end(pair)
                return
        if mask & _GONE and not flow.gone:
            flow.gone = True
            if not mask & _ERROR and unread(flow.src):
                pair.lingers = flow.side  # who closes with bytes unread makes an error: it has not closed yet
            if not twin.done:
                pair.left = pair.left or flow.side
                self.abandon(twin)
            if flow.done:
                self._end(pair)
                return
        if mask & _PRI:
            flow.urgent = True
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
        looks = flow.looks
        if mask == _UNASKED and looks and self._marks and _polls(flow.src, select.POLLPRI):
            flow.urgent = True  # (a look that begins at its mark does not tell it from the others)
        is_told = bool(mask & ~_UNASKED)  # epoll would have told of an urgent byte
        for _ in _READS:
            if flow.urgent:
                self._pump_urgent(flow)
                return
            start, cargo = 0, None
            try:
                if looks:
                    if flow.unread and not flow.follows:
                        if is_told and not mask & _ENDS and waiting(flow.src) == flow.unread:
                            return  # epoll tells of what is unread when it is asked for the first time
                        self.unread.follow(flow, flow.unread)
                    nbytes, ancillary, flags, _ = flow.receive(self._look_into, flow.room, _PEEK)
                    if not (flow.unread or is_told) and self._marks and is_at_mark(flow.src):
                        flow.urgent = True  # a look that begins there leaves it out
                        continue
                    is_told = False
                    if flow.room and nbytes and ancillary[0][2] != flow.sender:
                        self.unread.read_all(flow)  # (no read goes from one sender's bytes on to another's)
                        flow.speak_as(ancillary[0][2])
                    if nbytes == LOOK and not flags & _CTRUNC:
                        # Read what has come by now, if that is so of all of it (and no more: what comes meanwhile
                        # may have descriptors). A look of no length goes through the whole queue.
                        come = waiting(flow.src)
                        with contextlib.suppress(OSError):  # EAGAIN: it was all
                            _, _, flags, _ = flow.receive((), flow.room, _PEEK)
                        if not flags & _CTRUNC:
                            nbytes, _, _, _ = flow.receive([self._view[:come]], 0, _NOW)
                            start, flow.unread, flow.charge = flow.unread, 0, 0
                    if flags & _CTRUNC:
                        nbytes, cargo = self._read_with_cargo(flow)
                else:
                    nbytes, cargo = self._read(flow)
            except BlockingIOError:
                return
            except OSError as error:
                self.failed(flow, error)
                return
            if not nbytes:
                self.ended(flow)
                return
            flow.nbytes += nbytes - start
            # The time is taken before the send: that wakes the reader, who may well have answered before we run on.
            at = monotonic_ns() if watch is not None else 0
            data = self._view[start:nbytes]
            try:
                sent = self._send(flow, data, cargo) if cargo is not None else flow.send(data, _SEND)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                if cargo is not None:
                    cargo.discard()
                self._refused(flow, error)
                sent = nbytes - start
            if watch is not None:
                watch(flow.direction, at, bytes(data))
            drained = nbytes < (LOOK if looks else BUFFER) and cargo is None
            if sent < nbytes - start:
                flow.outbox = deque([(memoryview(bytes(data[sent:])), None if sent else cargo)])
                self._arm(flow)
            if looks and drained:
                self.unread.look_after(flow)
                flow.unread += nbytes
                flow.charge += nbytes + CHUNK
                if flow.charge > flow.most:
                    self.unread.read_most(flow)
                if flow.room:
                    self._unsure[flow] = None
            if flow.outbox or flow.done:
                return
            if drained and not mask & _READ_ON:
                # The source is drained, and where its end had come before we read, this was all.
                if mask & _RDHUP:
                    if flow.room and waiting(flow.src) > flow.unread:
                        continue  # (there is more, of another sender)
                    self.ended(flow)
                return
        self._again[flow] = None

    def _read(self, flow: Flow) -> tuple[int, Cargo | None]:
        """Raises BlockingIOError, OSError."""
        nbytes, ancillary, flags, _ = flow.receive(self._into, ROOM, _RECEIVE)
        return nbytes, self.take_cargo(flow, ancillary, flags) if ancillary or flags & _CTRUNC else None

    @staticmethod
    def take_cargo(flow: Flow, ancillary: list[tuple[int, int, bytes]], flags: int) -> Cargo | None:
        """What came with a message, and has to go on with it."""
        if flags & _CTRUNC:
            flow.pair.descriptors_lost("some could not be taken (open files are at their limit)")
        cargo = cargo_of(ancillary)
        if cargo is not None and cargo.credentials is not None:
            if flow.room and cargo.credentials != flow.sender:
                flow.speak_as(cargo.credentials)
            cargo.credentials = None
        return cargo if cargo is not None and cargo.descriptors else None

    def _make_sure(self, now: int) -> None:
        self._sure_at = now
        unsure, self._unsure = self._unsure, {}
        for flow in unsure:
            if not (flow.done or flow.outbox) and waiting(flow.src) > flow.unread:
                self._pump(flow, _UNASKED)

    def _read_with_cargo(self, flow: Flow) -> tuple[int, Cargo]:
        """Read what stands before the message that descriptors come with; or, where that is next, it.

        Raises BlockingIOError, OSError.
        """
        self.unread.read_all(flow)
        flow.follows = True
        before = bytes_before_descriptors(flow.src, self._view)
        if before:
            nbytes, _, _, _ = flow.receive([self._view[:before]], 0, _NOW)
            return nbytes, Cargo([])
        nbytes, cargo = self._read(flow)
        return nbytes, cargo or Cargo([])  # (None would stand for bytes that have only been looked at)

    def _pump_urgent(self, flow: Flow) -> None:
        """Bytes up to the urgent one, then it."""
        if flow.looks:
            self.unread.read_all(flow)
            self.unread.follow(flow, 0)
        watch = flow.pair.watch
        for _ in _READS:
            if flow.outbox or flow.done:
                return
            data, cargo = b"", None
            try:
                if is_at_mark(flow.src):
                    # EINVAL: it has been taken, and its mark is still there.
                    with contextlib.suppress(OSError):
                        data, cargo = flow.src.recv(1, _OOB), Cargo([], urgent=True)
                if not data:
                    nbytes, cargo = self._read(flow)
                    data = bytes(self._view[:nbytes])
            except BlockingIOError:
                flow.urgent = False
                return
            except OSError as error:
                self.failed(flow, error)
                return
            if not data:
                self.ended(flow)
                return
            flow.nbytes += len(data)
            if watch is not None:
                watch(flow.direction, monotonic_ns(), data)
            self.forward(flow, data, cargo)
        self._again[flow] = None

    def _flush(self, flow: Flow) -> None:
        """``dst`` takes bytes again."""
        outbox = flow.outbox
        while outbox:
            data, cargo = outbox[0]
            try:
                sent = self._send(flow, data, cargo) if cargo is not None else flow.send(data, _SEND)
            except BlockingIOError:
                return
            except OSError as error:
                self._refused(flow, error)
                return
            if sent < len(data):
                outbox[0] = (data[sent:], None)
            else:
                outbox.popleft()
        self._pump(flow, _UNASKED)

    def _send(self, flow: Flow, data: memoryview, cargo: Cargo) -> int:
        """Send bytes with what goes with them, and close our copies of that.

        Raises BlockingIOError, with the cargo kept; OSError.
        """
        flags = _OOB if cargo.urgent else _SEND
        if flow.dst.family != socket.AF_UNIX:
            sent = flow.send(data, flags)
            if cargo.descriptors:
                flow.pair.descriptors_lost(f"{len(cargo.descriptors)} cannot travel over TCP")
        else:
            if not cargo.descriptors:
                sent = flow.send(data, flags)
            elif flow.sender:
                sent = flow.send(data, flags, cargo.ancillary())
            else:
                sent = flow.dst.sendmsg([data], cargo.ancillary(), flags)
        cargo.discard()
        return sent

    def _arm(self, flow: Flow) -> None:
        """Be told when ``dst`` takes bytes again. Stays asked for: a flow that blocked once will again."""
        if not flow.armed:
            flow.armed = True
            fd = flow.dst.fileno()
            if fd in self._flows:
                self._epoll.modify(fd, _WATCH | _OUT)

    # --- for other ways ---

    def divert(self, flow: Flow, way: Way) -> None:
        """From now on its bytes go this way, whose looks begin at the head of the queue."""
        if flow.looks and flow.detour is None:
            self.unread.read_most(flow)
            set_peek_offset(flow.src, -1)
            flow.follows = False
        flow.detour = way

    def undivert(self, flow: Flow) -> None:
        """From now on its bytes go as plain ones do."""
        if flow.detour is not None:
            flow.detour.leave()
            flow.detour = None

    def read_on(self, flow: Flow) -> None:
        """There may be more to read, or to send, that no event will tell of."""
        self._again[flow] = None
        self.wake()

    def receive(self, flow: Flow, size: int = BUFFER) -> tuple[bytes, Cargo | None]:
        """What came, and what came with it; nothing at the end. Raises BlockingIOError, OSError."""
        nbytes, ancillary, flags, _ = flow.receive([self._view[:size]], ROOM, _RECEIVE)
        cargo = self.take_cargo(flow, ancillary, flags) if ancillary or flags & _CTRUNC else None
        return bytes(self._view[:nbytes]), cargo

    def look(self, flow: Flow, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        """The next record, which is not taken out: all of it, what came with it, and recvmsg()'s flags. ``flags``
        include MSG_TRUNC; each look begins where the one before has ended (SO_PEEK_OFF).

        Raises BlockingIOError, OSError.
        """
        nbytes, ancillary, found, _ = flow.receive(self._into, ROOM, flags)
        data = bytes(self._view[:nbytes])
        if nbytes > BUFFER:
            rest = bytearray(nbytes - BUFFER)
            flow.receive([rest], 0, flags)  # (copies of descriptors came with the first part)
            data += rest
        return data, ancillary, found

    def forward(self, flow: Flow, data: bytes, cargo: Cargo | None) -> None:
        """Send; what is not taken waits in the outbox, which is empty now."""
        view = memoryview(data)
        try:
            sent = self._send(flow, view, cargo) if cargo is not None else flow.send(view, _SEND)
        except BlockingIOError:
            flow.outbox = deque([(view, cargo)])  # (also where that is an empty record)
            self._arm(flow)
            return
        except OSError as error:
            if cargo is not None:
                cargo.discard()
            self._refused(flow, error)
            return
        if sent < len(data):
            flow.outbox = deque([(view[sent:], None if sent else cargo)])
            self._arm(flow)

    # --- endings ---

    def ended(self, flow: Flow) -> None:
        """``src`` has no more to say, and all that it said was delivered: pass the end on."""
        pair = flow.pair
        if pair.first_eof is None:
            pair.first_eof = flow.side
        flow.done = flow.eof = True
        if flow.twin.done:
            self._end(pair)
        else:
            shutdown(flow.dst, _SHUT_WR)

    def failed(self, flow: Flow, error: OSError) -> None:
        """``src`` cannot be read: a reset. Its peer neither sends nor reads any more."""
        flow.pair.left = flow.pair.left or flow.side
        flow.pair.errno = flow.pair.errno or errno_name(error.errno or errno.EIO)
        flow.gone = flow.done = True
        if error.errno == errno.ECONNRESET:
            flow.pair.reset = flow.twin.side
        self.abandon(flow.twin)
        self._end(flow.pair)

    def _refused(self, flow: Flow, error: OSError) -> None:
        """``dst`` takes nothing more (EPIPE, ECONNRESET): the sender shall meet the same."""
        if _polls(flow.dst, 0):
            # It has closed. What epoll says of that may come after what it says of the sender's answer to it.
            flow.pair.left = flow.pair.left or flow.twin.side
        if error.errno != errno.EPIPE:
            flow.pair.errno = flow.pair.errno or errno_name(error.errno or errno.EIO)
        if error.errno == errno.ECONNRESET:
            flow.pair.reset = flow.side  # (the error was told, and taken, by this: epoll will not tell of it)
        self.abandon(flow)
        shutdown(flow.src, _SHUT_RD)
        if flow.twin.done:
            self._end(flow.pair)
        elif flow.looks and self.unread.hinders(flow):
            self.unread.read_out(flow)  # a sender that waits for POLLOUT shall have it, and then EPIPE

    def abandon(self, flow: Flow) -> None:
        """Nothing more can pass here; what is held has no reader."""
        flow.done = True
        if flow.detour is not None:
            flow.detour.clear()
        while flow.outbox:
            cargo = flow.outbox.popleft()[1]
            if cargo is not None:
                cargo.discard()

    def _end(self, pair: Pair) -> None:
        if pair.ended:
            return
        if pair.lingers:
            # SHUT_RDWR, so far; where a close follows, so does a reset.
            shutdown((pair.s2c if pair.lingers == "client" else pair.c2s).src, _SHUT_RDWR)
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
        is_careful = self._careful_until > 0 and self._is_careful()
        for pair in ended:
            c2s, s2c = pair.c2s, pair.s2c
            for flow in (c2s, s2c):
                if is_careful:
                    with contextlib.suppress(OSError):  # (it may never have been in it)
                        self._epoll.unregister(flow.src.fileno())
                if pair.reset != flow.side:
                    if not flow.eof or flow.detour is not None:
                        self.unread.read_out(flow)
                    elif flow.unread:
                        self.unread.read_all(flow)
                flow.src.close()
            pair.closed()
            # The three hold each other: taken apart, they are freed now, and not by the collector in some pause.
            c2s.pair = s2c.pair = c2s.twin = s2c.twin = None  # type: ignore[assignment]
            if c2s.detour is not None and s2c.detour is not None:
                c2s.detour.leave()
                s2c.detour.leave()
                c2s.detour = s2c.detour = None

    def _is_careful(self) -> bool:
        if monotonic_ns() >= self._careful_until:
            self._careful_until = 0
        return self._careful_until > 0


def _polls(sock: Socket, mask: int) -> bool:
    """Does poll() say one of these now (or POLLHUP, or POLLERR, which it says unasked)?"""
    poll = select.poll()
    poll.register(sock, mask)
    return bool(poll.poll(0))
