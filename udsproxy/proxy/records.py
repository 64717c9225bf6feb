"""How a flow of records goes (SOCK_SEQPACKET): each as it was sent, the empty ones too.

Rules:

* One record is one read and one send. It is looked at, forwarded, and taken out when the next has come: so close()
  has something unread where a reset is to be passed on (as `udsproxy.proxy.relay` keeps a byte).
* A look starts behind what was looked at before (SO_PEEK_OFF). A record that has descriptors is taken out at once:
  while it is in our queue they are open. So is a long one: it could keep its sender from sending.
* The credentials that come with each record, and not with the end, tell an empty record from the end.
"""

from __future__ import annotations

import contextlib
import socket
from time import monotonic_ns

from udsproxy.kernel.receive_queue import set_peek_offset
from udsproxy.proxy.cargo import Cargo
from udsproxy.proxy.flow import Flow
from udsproxy.proxy.relay import Relay
from udsproxy.proxy.unread import LOOK

_SO_SNDBUFFORCE = 32
_READS = range(4)
"""Records that a flow may take before the others have their turn."""
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_TRUNC | socket.MSG_CMSG_CLOEXEC)
_OVERHEAD = 32
"""A record has to be so much shorter than the send buffer (net/unix/af_unix.c, unix_dgram_sendmsg)."""


class Records:
    """The way of one flow (`udsproxy.proxy.flow.Way`)."""

    def __init__(self, relay: Relay, flow: Flow) -> None:
        """Raises OSError."""
        self._relay = relay
        self._flow = flow
        set_peek_offset(flow.src, 0)
        flow.src.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._longest = _longest(flow)
        """Longest record that can be sent on."""

    def pump(self) -> None:
        flow, relay = self._flow, self._relay
        for _ in _READS:
            if flow.outbox or flow.done:
                return
            try:
                record = self._next()
            except BlockingIOError:
                return
            except ConnectionResetError:
                # Here the kernel tells of that before it gives what came before it.
                flow.pair.reset, flow.pair.errno = flow.twin.side, "ECONNRESET"
                continue
            except OSError as error:
                relay.failed(flow, error)
                return
            if record is None:
                relay.ended(flow)
                return
            data, cargo = record
            flow.nbytes += len(data)
            at = monotonic_ns()
            self._forward(data, cargo)
            if flow.pair.watch is not None:
                flow.pair.watch(flow.direction, at, data)
        relay.read_on(flow)

    def _next(self) -> tuple[bytes, Cargo | None] | None:
        """The next record; None: the end. Raises BlockingIOError, OSError."""
        flow, relay = self._flow, self._relay
        data, ancillary, flags = relay.look(flow, _PEEK)
        if not ancillary:
            return None
        if flow.unread:
            relay.unread.read_all(flow)
        else:
            relay.unread.look_after(flow)
        flow.unread = 1
        cargo = relay.take_cargo(flow, ancillary, flags)
        if cargo is not None or not flow.keeps or len(data) >= LOOK:
            relay.unread.read_all(flow)
        return data, cargo

    def _forward(self, data: bytes, cargo: Cargo | None) -> None:
        if len(data) > self._longest:
            for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
                with contextlib.suppress(OSError):
                    self._flow.dst.setsockopt(socket.SOL_SOCKET, option, len(data) + _OVERHEAD)
                    break
            self._longest = _longest(self._flow)
        self._relay.forward(self._flow, data, cargo)

    def release(self, now: int) -> None:
        """Nothing is held."""

    def clear(self) -> None:
        """Nothing is held."""

    def leave(self) -> None:
        """Nothing is held."""


def _longest(flow: Flow) -> int:
    return flow.dst.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _OVERHEAD
