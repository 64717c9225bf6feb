"""Descriptors that travel with bytes (unix(7), SCM_RIGHTS).

Rules: who takes them out of a message owns them, and passes them on or closes them.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket

MOST = 253
"""As many as one message can carry (SCM_MAX_FD, include/net/scm.h)."""
ROOM = socket.CMSG_SPACE(MOST * array.array("i").itemsize)
"""For those of one message."""


def found_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a message."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def close_all(descriptors: list[int]) -> None:
    """They are not passed on."""
    for fd in descriptors:
        with contextlib.suppress(OSError):  # EIO of a file system is not ours; the descriptor is gone all the same
            os.close(fd)
