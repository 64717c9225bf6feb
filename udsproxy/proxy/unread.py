"""What is left unread of what was forwarded, so that close() can make a reset (`udsproxy.proxy.relay` says why).

Rules:

* What is unread must not keep its sender from sending: it is little, and after a while it is looked whether it
  does.
* Where no reset is to be made, all is read before close().
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from time import monotonic_ns

from udsproxy.endpoints import Socket, unix_socket
from udsproxy.kernel import namespaces
from udsproxy.kernel.receive_queue import set_peek_offset, waiting
from udsproxy.kernel.sock_diag import SockDiag
from udsproxy.proxy.cargo import ROOM_FOR_SENDER
from udsproxy.proxy.flow import CHUNK, MOST_CHARGE, Flow, shutdown

LOOK = 16 * 1024
"""So much is looked at before it is read. Where there is more nothing of it is kept unread: all of a message counts
as unread with its sender until its last byte is read, and he may not be told that he can send before it is less."""
_LARGE_SEND_BUFFER = 64 * 1024
"""With less to send into, a sender may notice that much."""
_HINDERED_NS = 50_000_000
"""After so long it is looked whether what we leave unread hinders its sender."""
_LOOKS_NS = 500_000
"""How long these looks may take at once; they take a twentieth of the time at most. (One takes 15 µs, and 300 µs on
a system with 10,000 Unix sockets: net/unix/diag.c looks for one among all.)"""
_KEEP_NS = 1_000_000_000
"""How long a namespace of clients is kept in hand: it could not end."""

_SHUT_RD = int(socket.SHUT_RD)
_NOW = int(socket.MSG_DONTWAIT)
_SEQPACKET = int(socket.SOCK_SEQPACKET)


class Unread:
    """Of all flows of a relay."""

    def __init__(self, call_at: Callable[[int, Callable[[int], None]], object], into: list[bytearray]) -> None:
        """``call_at``: the relay's. ``into``: a buffer for what nobody needs."""
        self._call_at = call_at
        self._keepers: dict[Flow, None] = {}
        """Of whom it has not been looked whether what they leave unread hinders somebody."""
        self._whole = into
        self._scratch = memoryview(bytearray(LOOK + MOST_CHARGE))
        self.diag: SockDiag | None = None
        """Others may ask it too."""
        self._cookie = 0
        with contextlib.suppress(OSError):
            self.diag = SockDiag()
        with contextlib.suppress(OSError), unix_socket() as known:
            self._cookie = namespaces.cookie_of(known)
        self._elsewhere: tuple[int, SockDiag] | None = None
        """In a namespace of clients that is not ours, by its cookie."""
        self._used_at = 0
        self.sees = self.diag is not None and self.diag.works()
        """It does answer."""

    def close(self) -> None:
        if self.diag is not None:
            self.diag.close()
        self._leave()

    @staticmethod
    def follow(flow: Flow, nbytes: int) -> None:
        set_peek_offset(flow.src, nbytes)
        flow.follows = True

    def look_after(self, flow: Flow) -> None:
        """Something more is left unread, and may be what is too much for its sender."""
        if not self._keepers:
            self._call_at(monotonic_ns() + _HINDERED_NS, self._look_after_keepers)
        self._keepers[flow] = None

    def read_most(self, flow: Flow) -> None:
        """Take out what was forwarded, but for the last byte; that too where nothing is to be left."""
        left = int(flow.keeps)
        if flow.unread > left:
            self._take_out(flow, flow.unread - left)
            flow.unread, flow.charge = left, CHUNK

    def read_all(self, flow: Flow) -> None:
        """Take out what was forwarded."""
        if flow.unread:
            self._take_out(flow, flow.unread)
            flow.unread = flow.charge = 0

    def _take_out(self, flow: Flow, nbytes: int) -> None:
        for _ in range(2):
            try:
                flow.receive([self._scratch[:nbytes]], 0, _NOW)
            except ConnectionResetError:
                # Of records the kernel tells that first, and only once (__skb_try_recv_datagram).
                flow.pair.reset, flow.pair.errno = flow.twin.side, "ECONNRESET"
            except OSError:
                return
            else:
                return

    def _look_after_keepers(self, at: int) -> None:
        """Does what we leave unread hinder its sender from sending (net/unix/af_unix.c, unix_writable)?"""
        began = now = max(at, monotonic_ns())
        while self._keepers and now - began < _LOOKS_NS:
            flow = next(iter(self._keepers))
            del self._keepers[flow]
            # (What is left may be of many small messages, each of which the kernel charges for itself. Where more
            # than that waits to be read, it is looked again after the next read.)
            if flow.unread and not flow.done and waiting(flow.src) <= flow.unread and self.hinders(flow):
                flow.keeps = False
                flow.most = 0
                self.read_all(flow)
            now = monotonic_ns()
        if self._keepers:
            self._call_at(now + max(_HINDERED_NS // 10, 20 * (now - began)), self._look_after_keepers)

    def hinders(self, flow: Flow) -> bool:
        try:
            diag = self._diag_of(flow.src)
            if diag is None:
                return True
            memory = diag.memory_of_peer(os.fstat(flow.src.fileno()).st_ino)
        except OSError:
            return True
        if memory is None:
            return False
        used, most = memory
        if most < _LARGE_SEND_BUFFER:
            flow.most = 0
            self.read_most(flow)
        return used * 4 > most

    def has_closed(self, sock: Socket) -> bool:
        """Is its other end closed, and not only shut down?"""
        with contextlib.suppress(OSError):
            diag = self._diag_of(sock)
            if diag is not None:
                return not diag.peer_of(os.fstat(sock.fileno()).st_ino)
        return True

    def _diag_of(self, sock: Socket) -> SockDiag | None:
        """Where the kernel shows this socket: in our namespace, or in that of the client who has connected it.
        Raises OSError: that one may not be entered."""
        cookie = namespaces.cookie_of(sock)
        if self.diag is None or cookie == self._cookie:
            return self.diag
        if self._elsewhere is None or self._elsewhere[0] != cookie:
            self._leave()
            self._elsewhere = cookie, namespaces.diag_of(sock)
            self._call_at(monotonic_ns() + _KEEP_NS, self._leave_unused)
        self._used_at = monotonic_ns()
        return self._elsewhere[1]

    def _leave_unused(self, at: int) -> None:
        if self._elsewhere is not None and at < self._used_at + _KEEP_NS:
            self._call_at(self._used_at + _KEEP_NS, self._leave_unused)
        else:
            self._leave()

    def _leave(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere[1].close()
            self._elsewhere = None

    def read_out(self, flow: Flow) -> None:
        """What its peer sent when nobody was to read it any more: close() would make a reset of that."""
        shutdown(flow.src, _SHUT_RD)
        try:
            if flow.src.type == _SEQPACKET:
                while flow.receive(self._whole, ROOM_FOR_SENDER, _NOW)[1]:  # (no record comes without credentials)
                    pass
            # (A read ends with descriptors, and with a sender; what was forwarded is read with what is behind it.)
            elif flow.receive(self._whole, 0, _NOW)[0] != flow.unread or flow.room:
                while flow.receive(self._whole, 0, _NOW)[0]:
                    pass
        except OSError:
            pass
