"""What tests of several rooms ask of their own sockets."""

from __future__ import annotations

import os
import socket


def inode(sock: socket.socket) -> int:
    """By which sock_diag and /proc know it."""
    return os.fstat(sock.fileno()).st_ino
