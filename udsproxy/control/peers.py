"""Who may control whom: SO_PEERCRED (unix(7)), asked of each connection, from either end.

Rule: the rights of a file are not enough: they can be changed later, by whoever the directory is given to.
"""

from __future__ import annotations

import os
import socket
import struct

from udsproxy.kernel.credentials import raw_peer_of

_UCRED = struct.Struct("3i")


def credentials_of(sock: socket.socket) -> tuple[int, int]:
    """Process and user that connected ``sock``, or called listen() for its other end. Raises OSError."""
    pid, uid, _ = _UCRED.unpack(raw_peer_of(sock))
    return pid, uid


def uid_of(sock: socket.socket) -> int:
    """The user alone (`credentials_of`). Raises OSError."""
    return credentials_of(sock)[1]


def is_trusted(uid: int | None) -> bool:
    """Root may control everybody, everybody themselves."""
    return uid in (0, os.geteuid())
