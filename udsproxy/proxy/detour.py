"""A flow whose bytes go through faults on their way.

Rules:

* What is read is fed to the flow's `udsproxy.faults.line.Line`; what comes out of that is sent when it is due.
  While much waits there, nothing is read.
* The observer sees, and bytes are counted as, what the client sees: what it sent when that was read, what it gets
  when that is sent.
* A connection that a fault may reset keeps the client's last byte unread (it is forwarded all the same): close()
  with unread data is what makes the kernel report ECONNRESET.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from time import monotonic_ns
from typing import TYPE_CHECKING

from udsproxy.endpoints import Socket
from udsproxy.faults.line import Cargo
from udsproxy.faults.path import Path
from udsproxy.faults.stages import Ending

if TYPE_CHECKING:
    from udsproxy.proxy.relay import Flow, Relay

_READS = range(4)
_SENDS = 64
"""Pieces sent before other flows have their turn."""
_PEEKED = 64 * 1024
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_LINGER_NS = 5_000_000_000
"""How long a client that a fault closes may go on sending before it is closed altogether."""


class Descriptors:
    """Descriptors that travel with bytes."""

    def __init__(self, descriptors: list[int]) -> None:
        self.descriptors = descriptors

    def discard(self) -> None:
        for fd in self.descriptors:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.descriptors = []


class Detour:
    """One flow's way through faults."""

    def __init__(self, relay: Relay, flow: Flow, path: Path) -> None:
        self._relay = relay
        self._flow = flow
        self._path = path
        self._line = path.lines[flow.direction]
        self._unread = 0
        """So many bytes that were forwarded still stand in the receive queue."""
        self._full = False
        """Nothing is read, because too much waits."""
        self._alarm: int | None = None
        """When the relay will call."""
        self._with_next = Descriptors([])
        self._draining = False
        """What is read goes nowhere."""

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
            if line.held >= line.most:
                self._full = True
                break
            try:
                data = self._read(now)
            except BlockingIOError:
                break
            except OSError as error:
                self._relay.failed(flow, error)
                return
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
        if not flow.done:
            self.release(now)

    def release(self, now: int) -> None:
        """Send what is due, as far as it is taken."""
        flow, line = self._flow, self._line
        for _ in range(_SENDS):
            if flow.done or flow.outbox:
                return
            item = line.take(now)
            if item is None:
                break
            if isinstance(item, bytes):
                descriptors, self._with_next = self._with_next.descriptors, Descriptors([])
                self._relay.forward(flow, item, descriptors)
                if flow.direction == "s2c":
                    flow.nbytes += len(item)
                    if flow.pair.watch is not None:
                        flow.pair.watch("s2c", now, item)
            elif isinstance(item, Ending):
                self._end(item)
                return
            elif isinstance(item, Descriptors):
                self._with_next.descriptors += item.descriptors
        else:
            self._relay.read_on(flow)
        if self._full and line.held < line.most:
            self._full = False
            self._relay.read_on(flow)
        due = line.due()
        if due is not None and (self._alarm is None or due < self._alarm):
            self._alarm = due
            self._relay.call_at(due, lambda: self._due(due))

    def clear(self) -> None:
        """Nothing more will pass."""
        self._path.close(self._flow.direction)
        self._with_next.discard()

    @property
    def stuck(self) -> bool:
        """Something waits that will never be due."""
        return self._line.held > 0 and self._line.due() is None

    def _due(self, at: int) -> None:
        if self._alarm == at:
            self._alarm = None
            # (Not the clock alone: a test's can be ahead of it.)
            if not self._flow.done:
                self.release(max(at, monotonic_ns()))

    # --- reading ---

    def _read(self, now: int) -> bytes:
        """What is new; nothing at the end. Raises BlockingIOError, OSError."""
        flow = self._flow
        if not self._unread and not (flow.direction == "c2s" and self._path.may_reset):
            data, descriptors = self._relay.receive(flow)
            self._carry(now, descriptors)
            return data
        peeked = flow.src.recv(_PEEKED, _PEEK)  # (not recvmsg: each look would make descriptors anew)
        new = peeked[self._unread :]
        if not new:
            if peeked and not _has_ended(flow.src):
                raise BlockingIOError(errno.EAGAIN, "nothing new")
            return b""
        keep = 1 if self._path.may_reset else 0
        if len(peeked) > keep:
            _, descriptors = self._relay.receive(flow, len(peeked) - keep)
            self._carry(now, descriptors)
        self._unread = keep
        return new

    def _carry(self, now: int, descriptors: list[int]) -> None:
        if descriptors:
            cargo: Cargo = Descriptors(descriptors)
            self._path.cargo(self._flow.direction, now, cargo)

    # --- endings ---

    def _end(self, ending: Ending) -> None:
        flow, relay = self._flow, self._relay
        pair = flow.pair
        if ending is Ending.EOF:
            relay.ended(flow)
        elif ending is Ending.HALF_CLOSE:
            pair.first_eof = pair.first_eof or "fault"
            relay.ended(flow)
            if not pair.ended:
                with contextlib.suppress(OSError):
                    flow.src.shutdown(socket.SHUT_RD)
        elif ending is Ending.CLOSE:
            self._dismiss()
        else:
            pair.left = "fault"
            pair.errno = "ECONNRESET"
            client = pair.c2s.src
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
        with contextlib.suppress(OSError):
            client.src.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            server.src.shutdown(socket.SHUT_RDWR)
        assert client.detour is not None
        client.detour._draining = True
        client.done = False
        relay.read_on(client)
        relay.call_at(monotonic_ns() + _LINGER_NS, lambda: relay.end(pair))

    def _drain(self) -> None:
        flow = self._flow
        try:
            for _ in _READS:
                data, descriptors = self._relay.receive(flow)
                Descriptors(descriptors).discard()
                if not data:
                    self._relay.end(flow.pair)
                    return
            self._relay.read_on(flow)
        except BlockingIOError:
            pass
        except OSError:
            self._relay.end(flow.pair)


def _has_ended(sock: Socket) -> bool:
    """The peer has no more to say."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
