"""What travels with bytes and is none: descriptors, credentials (unix(7)); and that a byte is urgent (send(2)).

Rules: who takes it out of a message owns it, and passes it on or discards it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Sequence

from udsproxy.endpoints import Socket

_OWN_PID = struct.pack("i", os.getpid())
MOST = 253
"""As many descriptors as one message can carry (SCM_MAX_FD, include/net/scm.h)."""
_RIGHTS, _CREDENTIALS = int(socket.SCM_RIGHTS), int(socket.SCM_CREDENTIALS)
_SOL_SOCKET = int(socket.SOL_SOCKET)
_CANNOT_SAY = (errno.EPERM, errno.ESRCH, errno.EINVAL)
"""That we may not, that there is no such process, that our user namespace has no number for its user."""
_UCRED = struct.calcsize("3i")
Ancillary = Sequence[tuple[int, int, "bytes | array.array[int]"]]
"""As sendmsg() takes it."""
ROOM = socket.CMSG_SPACE(MOST * array.array("i").itemsize) + socket.CMSG_SPACE(_UCRED)
"""For those of one message."""
ROOM_FOR_SENDER = socket.CMSG_SPACE(_UCRED)
"""For credentials alone: that there are descriptors shows by MSG_CTRUNC."""


class Cargo:
    """Of one message."""

    __slots__ = ("credentials", "descriptors", "urgent")

    def __init__(self, descriptors: list[int], credentials: bytes | None = None, *, urgent: bool = False) -> None:
        self.descriptors = descriptors
        self.credentials = credentials
        """struct ucred."""
        self.urgent = urgent

    def discard(self) -> None:
        """It is not passed on."""
        close_all(self.descriptors)
        self.descriptors = []

    def ancillary(self, *, credentials: bool = True) -> list[tuple[int, int, bytes | array.array[int]]]:
        """As sendmsg() takes it."""
        found: list[tuple[int, int, bytes | array.array[int]]] = []
        if self.descriptors:
            found.append((_SOL_SOCKET, _RIGHTS, array.array("i", self.descriptors)))
        if credentials and self.credentials is not None:
            found.append((_SOL_SOCKET, _CREDENTIALS, self.credentials))
        return found


def cargo_of(ancillary: list[tuple[int, int, bytes]]) -> Cargo | None:
    """What came with a message; None: nothing."""
    descriptors, credentials = array.array("i"), None
    for level, kind, data in ancillary:
        if level == _SOL_SOCKET and kind == _RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        elif level == _SOL_SOCKET and kind == _CREDENTIALS and len(data) >= _UCRED:
            credentials = data[:_UCRED]
    return Cargo(list(descriptors), credentials) if descriptors or credentials is not None else None


def send_as(
    dst: Socket,
    sender: bytes,
    data: memoryview | bytes,
    flags: int,
    ancillary: Ancillary = (),
    to: str | bytes | None = None,
) -> int:
    """sendmsg() in the name of ``sender`` (struct ucred), of its user where the process has ended, or where that is
    not permitted in our own. Raises as that does (net/core/scm.c, scm_check_creds)."""
    for name in (sender, _OWN_PID + sender[4:]):
        try:
            return dst.sendmsg((data,), [*ancillary, (_SOL_SOCKET, _CREDENTIALS, name)], flags, to)
        except OSError as error:
            if error.errno not in _CANNOT_SAY:
                raise
    return dst.sendmsg((data,), ancillary, flags, to)


def speaker(dst: Socket, sender: bytes) -> Callable[..., int]:
    """`send_as` of these two, for a sender of whom much comes."""
    sendmsg = dst.sendmsg
    says = [(_SOL_SOCKET, _CREDENTIALS, sender)]

    def send(data: memoryview, flags: int, ancillary: Ancillary = ()) -> int:
        if not ancillary:
            try:
                return sendmsg((data,), says, flags)
            except OSError as error:
                if error.errno not in _CANNOT_SAY:
                    raise
        return send_as(dst, sender, data, flags, ancillary)

    return send


def close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):  # EIO of a file system is not ours; the descriptor is gone all the same
            os.close(fd)
