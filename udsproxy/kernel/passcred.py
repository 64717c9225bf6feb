"""Whether sockets of other processes ask who sends (SO_PASSCRED, unix(7)).

Rules: a copy of a socket (pidfd_getfd(2)) is asked that and closed, nothing else. What may not be looked at is not
known. It takes some 10 µs a descriptor: not for the traffic's path.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Callable, Iterator

from udsproxy.kernel.pidfd import copy_descriptor

_MOST = 200
"""Descriptors of one process that are looked at."""


def who_asks(pid: int, is_meant: Callable[[socket.socket], bool]) -> list[bool]:
    """Of the Unix sockets of this process that are meant, which ask; as far as that may be looked at."""
    found = []
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            for sock in _sockets_of(pid, pidfd):
                with sock, contextlib.suppress(OSError):
                    if sock.family == socket.AF_UNIX and is_meant(sock):
                        found.append(bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)))
        finally:
            os.close(pidfd)
    return found


def _sockets_of(pid: int, pidfd: int) -> Iterator[socket.socket]:
    """Copies. (The newest first: of a server, its connections.)"""
    numbers = sorted((int(name) for name in os.listdir(f"/proc/{pid}/fd")), reverse=True)
    for number in itertools.islice(numbers, _MOST):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
                yield socket.socket(fileno=copy_descriptor(pidfd, number))
