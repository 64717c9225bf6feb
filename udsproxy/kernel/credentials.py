"""Who is at the other end of a Unix socket: SO_PEERCRED (unix(7)), and that process's name."""

from __future__ import annotations

import _socket
import socket
import struct

from udsproxy.events import Client, printable
from udsproxy.kernel.procfs import read_comm

_UCRED = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""

# Plain numbers: the enumerations of the socket module cost more than the system call they are passed to.
_SOL_SOCKET, _SO_PEERCRED = int(socket.SOL_SOCKET), int(socket.SO_PEERCRED)

_KEEP_NS = 1_000_000_000
_MAX_KEPT = 1024


class Peers:
    """Peers by their credentials, kept for a second: a busy client connects thousands of times in one."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[int, Client]] = {}

    def of(self, sock: _socket.socket, now: int) -> Client:
        """The process that connected ``sock``, or listened on its other end. ``now`` in monotonic ns."""
        raw = sock.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _UCRED.size)
        kept = self._kept.get(raw)
        if kept is not None and now - kept[0] < _KEEP_NS:
            return kept[1]
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        pid, uid, gid = _UCRED.unpack(raw)
        comm = read_comm(pid)
        client = Client(pid, uid, gid, None if comm is None else printable(comm))
        self._kept[raw] = now, client
        return client
