"""Making sockets, and connecting them.

Rule: connect() on AF_UNIX succeeds or fails at once, EAGAIN meaning "the accept queue is full" and never "in
progress" (net/unix/af_unix.c, unix_stream_connect): `connect` is a plain call that returns the errno.
"""

from __future__ import annotations

import _socket
import errno
import functools
import os
import socket
from collections.abc import Callable

import trio

from udsproxy.endpoints.spelling import MAX_PATH, Tcp, UnixAbstract, UnixPath
from udsproxy.events import errno_message

# Plain numbers: the enumerations of the socket module cost more than the system calls they are passed to.
AF_UNIX, STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)
_NONBLOCK = int(socket.SOCK_NONBLOCK)


Socket = _socket.socket
"""The class under `socket.socket`, without its detours in Python."""


def unix_socket(kind: int = STREAM) -> socket.socket:
    """A new non-blocking AF_UNIX socket. Raises OSError (EMFILE, ENFILE, ENOBUFS, ENOMEM)."""
    return socket.socket(AF_UNIX, kind | _NONBLOCK)


def plain_socket(kind: int = STREAM) -> Socket:
    """`unix_socket` without the comforts of `socket.socket`, for one in each connection. Raises as that."""
    return Socket(AF_UNIX, kind | _NONBLOCK)


def connect(sock: Socket, upstream: UnixPath | UnixAbstract) -> int:
    """connect() of an AF_UNIX socket, which never waits. Returns 0 or the errno.

    After EAGAIN the same socket can be tried again; poll never tells when.
    """
    return dialer(upstream)(sock)


def dialer(upstream: UnixPath | UnixAbstract) -> Callable[[Socket], int]:
    """`connect` to one upstream, for who does it often."""
    if isinstance(upstream, UnixPath) and len(os.fsencode(upstream.path)) > MAX_PATH:
        return functools.partial(_connect_far, upstream.path)
    address = upstream.path if isinstance(upstream, UnixPath) else b"\0" + os.fsencode(upstream.name)
    return lambda sock: sock.connect_ex(address)


def _connect_far(path: str, sock: Socket) -> int:
    """`connect` where the path is longer than an address can be."""
    try:
        pinned = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        return sock.connect_ex(f"/proc/self/fd/{pinned}")
    finally:
        os.close(pinned)


def tcp_socket(family: int) -> socket.socket:
    """A new non-blocking TCP socket that sends at once (TCP_NODELAY): a proxy adds no delay of its own."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def connect_tcp(upstream: Tcp) -> socket.socket:
    """A connection to the first address of the host that answers. Waits; the caller sets the limit.

    Raises socket.gaierror, OSError.
    """
    found = await trio.socket.getaddrinfo(upstream.host, upstream.port, type=socket.SOCK_STREAM)
    failed = OSError(errno.EHOSTUNREACH, errno_message(errno.EHOSTUNREACH))
    for family, _, _, _, address in found:
        sock = trio.socket.from_stdlib_socket(tcp_socket(family))
        try:
            await sock.connect(address)
            return socket.socket(fileno=sock.detach())
        except OSError as error:
            failed = error
        finally:
            sock.close()
    raise failed
