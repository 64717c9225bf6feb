"""Who may control whom: SO_PEERCRED (unix(7)), asked of each connection, from either end.

Rule: the rights of a file are not enough: they can be changed later, by whoever the directory is given to.
"""

from __future__ import annotations

import os
import socket
import struct

from udsproxy.kernel.credentials import raw_peer_of

_UCRED = struct.Struct("3i")


def uid_of(sock: socket.socket) -> int:
    """Of who connected ``sock``, or called listen() for its other end. Raises OSError."""
    uid: int = _UCRED.unpack(raw_peer_of(sock))[1]
    return uid


def is_trusted(uid: int | None) -> bool:
    """Root may control everybody, everybody themselves."""
    return uid in (0, os.geteuid())
