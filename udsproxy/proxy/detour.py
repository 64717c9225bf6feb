"""A flow whose bytes go through faults on their way.

Rules:

* What is read is fed to the flow's `udsproxy.faults.line.Line`; what comes out of that is sent when it is due.
  While much waits there, nothing is read.
* The observer sees, and bytes are counted as, what the client sees: what it sent when that was read, what it gets
  when that is sent.
* An end goes the way of the bytes before it, and behind them: a reset too.
* A connection that a fault may reset keeps the client's last byte unread (it is forwarded all the same): close()
  with unread data is what makes the kernel report ECONNRESET.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from time import monotonic_ns

from udsproxy.endpoints import Socket
from udsproxy.faults.path import Path
from udsproxy.faults.stages import Ending
from udsproxy.kernel.receive_queue import waiting
from udsproxy.proxy.cargo import MOST, Cargo
from udsproxy.proxy.flow import Flow, shutdown
from udsproxy.proxy.relay import Due, Relay

_READS = range(4)
_TURN_NS = 500_000
"""How long what is due is sent before other flows have their turn."""
_PEEKED = 64 * 1024
_NOW = int(socket.MSG_DONTWAIT)
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_LINGER_NS = 5_000_000_000
"""How long a client that a fault closes may go on sending before it is closed altogether."""


class Detour:
    """One flow's way through faults."""

    def __init__(self, relay: Relay, flow: Flow, path: Path) -> None:
        self._relay = relay
        self._flow = flow
        self._path = path
        self._line = path.lines[flow.direction]
        self._paused = False
        """Nothing is read, because too much waits."""
        self._alarm: Due | None = None
        """When the relay will call."""
        self._with_next = Cargo([])
        self._draining = False
        """What is read goes nowhere."""
        self._failed: OSError | None = None
        """How ``src`` ended, where that was no end in order."""

    def pump(self) -> None:
        """Read what is there, and send what is due."""
        if self._draining:
            self._drain()
            return
        flow, line = self._flow, self._line
        now = monotonic_ns()
        for _ in _READS:
            if line.over:
                break
            if self._crowded:
                self._paused = True
                break
            try:
                data = self._read(now)
            except BlockingIOError:
                break
            except OSError as error:
                self._failed, data = error, b""
            now = monotonic_ns()
            if not data:
                self._path.end(flow.direction, now)
                break
            if flow.direction == "c2s":
                flow.nbytes += len(data)
                if flow.pair.watch is not None:
                    flow.pair.watch("c2s", now, data)
            self._path.feed(flow.direction, now, data)
        else:
            self._relay.read_on(flow)
        # The twin first: what a request brings about may end the connection before the server sees it.
        twin = flow.twin.detour
        if twin is not None and flow.direction == "c2s":
            twin.release(now)
        self.release(now)

    def release(self, now: int) -> None:
        """Send what is due, as far as it is taken."""
        flow, line = self._flow, self._line
        if self._is_over():
            return
        began = monotonic_ns()
        while monotonic_ns() - began < _TURN_NS:
            if flow.done or flow.outbox:
                # What a fault ends waits for nobody.
                if (ending := line.ending(now)) is not None:
                    self._end(ending)
                    return
                break
            item = line.take(now)
            if item is None:
                break
            if isinstance(item, bytes):
                self._forward(now, item)
            elif isinstance(item, Ending):
                self._end(item)
                if self._is_over():
                    return
            elif isinstance(item, Cargo):
                self._gather(item)
        else:
            self._relay.read_on(flow)
            return
        self._go_on()
        due = line.ends_at() if flow.done or flow.outbox else line.due()
        if self._alarm is not None and self._alarm.at != due:
            self._relay.cancel(self._alarm)
            self._alarm = None
        if due is not None and self._alarm is None:
            self._alarm = self._relay.call_at(due, self._due)
        if flow.gone and flow.direction == "c2s" and not flow.done and line.due() is None and line.waits:
            self._give_up()

    def _give_up(self) -> None:
        """What the client sent will never be due, but if the fault goes before the client does."""
        if self._relay.unread.has_closed(self._flow.src):
            self._relay.end(self._flow.pair)

    def _is_over(self) -> bool:
        return self._flow.pair.ended or self._draining

    def clear(self) -> None:
        """Nothing more will pass."""
        self._path.close(self._flow.direction)
        self._with_next.discard()

    def leave(self) -> None:
        """The connection has ended, or its faults have."""
        if self._alarm is not None:
            self._relay.cancel(self._alarm)
            self._alarm = None

    @property
    def _crowded(self) -> bool:
        """So much waits that nothing is to be read. (Of the client also, while answers of ours wait for it.)"""
        line = self._line
        if line.held >= line.most:
            return True
        other = self._path.lines["s2c"]
        return self._flow.direction == "c2s" and other.held >= other.most

    def _go_on(self) -> None:
        """Less waits now: read on where nothing was read for that."""
        for detour in (self, self._flow.twin.detour):
            if isinstance(detour, Detour) and detour._paused and not detour._crowded:
                detour._paused = False
                self._relay.read_on(detour._flow)

    def _due(self, at: int) -> None:
        self._alarm = None
        # (Not the clock alone: a test's can be ahead of it.)
        self.release(max(at, monotonic_ns()))

    def _forward(self, now: int, data: bytes) -> None:
        flow = self._flow
        cargo, self._with_next = self._with_next, Cargo([])
        self._relay.forward(flow, data, cargo if cargo.descriptors else None)
        if flow.direction == "s2c":
            flow.nbytes += len(data)
            if flow.pair.watch is not None:
                flow.pair.watch("s2c", now, data)

    def _gather(self, more: Cargo) -> None:
        """They go with the next bytes."""
        if len(self._with_next.descriptors) + len(more.descriptors) > MOST:
            more.discard()
            self._flow.pair.descriptors_lost("there are more than one message takes")
        else:
            self._with_next.descriptors += more.descriptors

    # --- reading ---

    def _read(self, now: int) -> bytes:
        """What is new; nothing at the end. Raises BlockingIOError, OSError."""
        flow = self._flow
        if not flow.unread and not (flow.direction == "c2s" and self._path.may_reset):
            data, cargo = self._relay.receive(flow)
            self._carry(now, cargo)
            return data
        ended = _has_ended(flow.src)  # (before the look: what comes after it is then seen by the next)
        peeked, with_cargo = _peek(flow.src, flow.room)
        new = peeked[flow.unread :]
        # No look goes past a byte that descriptors came with, nor from what one process sent to another's.
        is_more = not new and waiting(flow.src) > flow.unread
        ended = ended and not is_more
        keep = 1 if self._path.may_reset and not (with_cargo or is_more) else 0
        if not new and not ended and keep:
            raise BlockingIOError(errno.EAGAIN, "nothing new")
        if len(peeked) > keep:
            _, cargo = self._relay.receive(flow, len(peeked) - keep)
            self._carry(now, cargo)
        flow.unread = keep if peeked else 0
        if not new and not ended:
            self._relay.read_on(flow)  # the next look begins with what somebody else has sent
            raise BlockingIOError(errno.EAGAIN, "nothing new")
        return new

    def _carry(self, now: int, cargo: Cargo | None) -> None:
        if cargo is not None:
            self._path.cargo(self._flow.direction, now, cargo)

    # --- endings ---

    def _end(self, ending: Ending) -> None:
        flow, relay = self._flow, self._relay
        pair = flow.pair
        if ending is Ending.EOF:
            if self._failed is None:
                relay.ended(flow)
            else:
                relay.failed(flow, self._failed)
        elif ending is Ending.HALF_CLOSE:
            pair.first_eof = pair.first_eof or "fault"
            relay.ended(flow)
            if not pair.ended:
                shutdown(flow.src, socket.SHUT_RD)
        elif ending is Ending.CLOSE:
            self._dismiss()
        else:
            pair.left = "fault"
            pair.errno = "ECONNRESET"
            client = pair.c2s.src
            pair.reset = "client"
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            relay.end(pair)

    def _dismiss(self) -> None:
        """Close in order: both sides read an end. What the client still sends is read, or close() would make a
        reset of it; until it closes, or for a while."""
        relay, pair = self._relay, self._flow.pair
        client, server = pair.c2s, pair.s2c
        pair.left = "fault"
        relay.abandon(client)
        relay.abandon(server)
        server.gone = True
        shutdown(client.src, socket.SHUT_WR)
        shutdown(server.src, socket.SHUT_RDWR)
        assert isinstance(client.detour, Detour)
        client.detour._draining = True
        client.done = False
        relay.read_on(client)
        client.detour.leave()
        client.detour._alarm = relay.call_at(monotonic_ns() + _LINGER_NS, lambda _: relay.end(pair))

    def _drain(self) -> None:
        flow = self._flow
        try:
            for _ in _READS:
                data, cargo = self._relay.receive(flow)
                flow.unread = 0
                if cargo is not None:
                    cargo.discard()
                if not data:
                    self._relay.end(flow.pair)
                    return
            self._relay.read_on(flow)
        except BlockingIOError:
            pass
        except OSError:
            self._relay.end(flow.pair)


def _peek(sock: Socket, room: int) -> tuple[bytes, bool]:
    """What stands in the receive queue, up to what descriptors came with; and whether any did. ``room``: for
    credentials, where these come with it; without them there is none, or a descriptor would find room there."""
    data, _, flags, _ = sock.recvmsg(_PEEKED, room, _PEEK)
    return data, bool(flags & socket.MSG_CTRUNC)


def _has_ended(sock: Socket) -> bool:
    """The peer has no more to say."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
