"""The network namespaces of this machine, and sock_diag in those that are not ours (network_namespaces(7)).

A netlink socket asks the namespace that it was made in. A thread enters another one, makes it there, and ends.

Rules: that thread does nothing else, and is thrown away: who has been elsewhere serves nobody here. A socket that
is there keeps a namespace alive after its container: it is closed as soon as it is not needed.
"""

from __future__ import annotations

import _socket
import contextlib
import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

import msgspec

from udsproxy.kernel.sock_diag import SockDiag

_CLONE_NEWNET = 0x40000000
_SIOCGSKNS = 0x894C
_SO_NETNS_COOKIE = 71
_COOKIE = struct.Struct("=Q")
_LINK = re.compile(r"net:\[(\d+)\]")
_MOUNTED = re.compile(r"^\d+ \d+ \S+ net:\[(\d+)\] (\S+) ", re.MULTILINE)
"""A line of mountinfo: a namespace that ``ip netns`` keeps (mount(8) of nsfs), and where."""

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Namespace(msgspec.Struct, frozen=True):
    """A network namespace."""

    number: int
    """As in ``net:[4026531833]``."""
    path: str
    """By which it can be entered."""
    pid: int | None = None
    """A process in it."""


class Namespaces(msgspec.Struct, frozen=True):
    """Those of this machine that are not ours."""

    others: tuple[Namespace, ...]
    hidden: int = 0
    """Processes of which we may not see in which they are."""


def own_number() -> int | None:
    """Ours; None: that cannot be told."""
    return _number_of("/proc/self/ns/net")


def look() -> Namespaces:
    """Reads a link of every process: not for the traffic's path. Those are found in which a process is (its main
    thread), or that are mounted somewhere."""
    ours, found, hidden = own_number(), dict[int, Namespace](), 0
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir("/proc")
    for pid in sorted(int(name) for name in names if name.isdigit()):
        try:
            number = _number_of(f"/proc/{pid}/ns/net", hide=False)
        except PermissionError:
            hidden += 1
            continue
        if number is not None and number != ours and number not in found:
            found[number] = Namespace(number, f"/proc/{pid}/ns/net", pid)
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for digits, path in _MOUNTED.findall(file.read()):
            number = int(digits)
            if number != ours and number not in found:
                found[number] = Namespace(number, path.replace("\\040", " "))
    return Namespaces(tuple(found.values()), hidden)


def of_process(pid: int) -> int | None:
    """The number of the one that a process is in; None: that may not be seen."""
    return _number_of(f"/proc/{pid}/ns/net")


def _number_of(link: str, *, hide: bool = True) -> int | None:
    try:
        match = _LINK.fullmatch(os.readlink(link))
    except OSError as error:
        if not hide and isinstance(error, PermissionError):
            raise
        return None
    return int(match[1]) if match else None


def diag_in(namespace: Namespace) -> SockDiag:
    """Raises OSError, as `within`."""
    return within(namespace, SockDiag)


def within(namespace: Namespace, call: Callable[[], T]) -> T:
    """Make a call in another namespace. Raises OSError: it may not be entered (EACCES, EPERM: that takes
    CAP_SYS_ADMIN), or is there no more; and what the call does."""
    fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _within(fd, call)
    finally:
        os.close(fd)


def diag_of(sock: _socket.socket) -> SockDiag:
    """In the namespace that a socket of ours belongs to: what accept() returns is in that of who connected
    (net/unix/af_unix.c, unix_stream_connect). Raises OSError (EPERM: that takes CAP_NET_ADMIN there)."""
    fd = fcntl.ioctl(sock.fileno(), _SIOCGSKNS)
    try:
        return _within(fd, SockDiag)
    finally:
        os.close(fd)


def cookie_of(sock: _socket.socket) -> int:
    """Tells the namespace that a socket belongs to from all others; 0: this kernel does not tell (before 5.14)."""
    try:
        cookie: int = _COOKIE.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size))[0]
    except OSError:
        return 0
    return cookie


def _within(fd: int, call: Callable[[], T]) -> T:
    made: list[T] = []
    failed: list[OSError] = []

    def enter() -> None:
        try:
            if _libc.setns(fd, _CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            made.append(call())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter, name="setns")
    try:
        thread.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no more threads can be started") from None
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
