"""Whether a file is the one that a Unix socket is bound to.

connect() finds a socket by the inode of its file (net/unix/af_unix.c, unix_find_bsd). sock_diag names that inode by
the device of its file system and its number (UNIX_DIAG_VFS), and so do /proc/self/mountinfo and /proc/self/fdinfo
for a file of ours; stat() shows another device on btrfs and overlayfs.

Rules: what differs in either is another file. What is equal in both is the same one, but where a file system may
have a number twice: on btrfs each subvolume has its own numbers (stat() shows it, by a device of its own), and what
a server of a file system (FUSE) says is what it likes. There the answer is None, not known, until the socket itself
is asked for its file (SIOCUNIXFILE): that takes CAP_NET_ADMIN, and the right to trace who holds the socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable
from functools import cached_property
from typing import Self

from udsproxy.kernel import mounts
from udsproxy.kernel.diag_codec import UnixSocket
from udsproxy.kernel.mounts import Mount
from udsproxy.kernel.pidfd import copy_descriptor
from udsproxy.kernel.roots import open_in

_SIOCUNIXFILE = 0x89E0
_AT_EMPTY_PATH = 0x1000
_MAX_HANDLE = 128
_HANDLE = struct.Struct(f"=Ii{_MAX_HANDLE}s")
"""struct file_handle: its size, its type, what it is."""
_ANY_NUMBERS = re.compile(r"fuse(blk|\..*)?|virtiofs|9p|cifs|smb3")
"""File systems whose numbers are their server's."""
_LOW = 0xFFFFFFFF
"""sock_diag has the lower half of an inode's number."""

_libc = ctypes.CDLL(None, use_errno=True)


class SocketFile:
    """A file that is there, as sock_diag would name it."""

    def __init__(self, fd: int, path: str, mounts_at: str = "/proc/self/mountinfo") -> None:
        """``fd``: it, opened with O_PATH. ``mounts_at``: where its mount is listed. Raises OSError."""
        self.path = path
        self.stat = os.fstat(fd)
        self._handle = _handle_of(fd)
        self._mounts_at = mounts_at
        self._known: tuple[int | None, bool] | None = None
        told = _told_of(fd)
        self._mount = told.get("mnt_id")
        self._place = _place_of(fd, self._mount)
        self._inode = told.get("ino", self.stat.st_ino) & _LOW  # (since Linux 5.14)

    @classmethod
    def at(cls, path: str, pid: int | None = None) -> Self:
        """The file at a path, symbolic links followed; as process ``pid`` finds it, which may have another root
        directory and other mounts. Raises OSError, ValueError."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC) if pid is None else open_as(pid, path)
        try:
            return cls(fd, path, f"/proc/{'self' if pid is None else pid}/mountinfo")
        finally:
            os.close(fd)

    @property
    def is_socket(self) -> bool:
        return stat.S_ISSOCK(self.stat.st_mode)

    @cached_property
    def mounts(self) -> list[Mount]:
        """All mounts of the process that finds it so."""
        return mounts.read(self._mounts_at)

    @property
    def mount(self) -> Mount | None:
        """The one that it is on; None: that cannot be told."""
        return next((each for each in self.mounts if each.id == self._mount), None)

    def is_of(self, sock: UnixSocket) -> bool | None:
        """Is it the file of this socket? None: that is not known."""
        if sock.file is None:
            # (Of /proc/net/unix, which has nothing but names: whoever looks there says so.)
            name = b"" if sock.name is None else sock.name.partition(b"\0")[0]
            return bool(name) and name == os.fsencode(self.path)
        device, inode = sock.file
        if inode != self._inode:
            return False
        if self._known is None:
            self._known = self._look_up()
        own, is_unique = self._known
        shown = os.major(self.stat.st_dev) << 20 | os.minor(self.stat.st_dev)
        if own is None:
            return True if is_unique and shown == device else None
        if own != device:
            return False
        return True if is_unique and shown == device else None

    def is_of_holders(self, sock: UnixSocket, holders: Iterable[tuple[int, int]]) -> bool | None:
        """`is_of`, where that is not known by asking the socket itself. ``holders``: who holds it (pid,
        descriptor)."""
        known = self.is_of(sock)
        if known is not None or sock.file is None:
            return known
        for pid, number in holders:
            with contextlib.suppress(OSError):
                bound = _file_of(pid, number, sock.inode)
                try:
                    return self._is(bound)
                finally:
                    os.close(bound)
        return None

    def _look_up(self) -> tuple[int | None, bool]:
        """The device of its file system, where that is told, and whether no two files there have one number."""
        mount = self.mount
        if mount is not None:
            return mount.device, not _ANY_NUMBERS.fullmatch(mount.kind)
        return None, not self.mounts  # (without /proc stat() is all there is)

    def _is(self, other: int) -> bool | None:
        """Is what this descriptor leads to the same file? (It is on the same file system.)"""
        found = os.fstat(other)
        if (found.st_dev, found.st_ino) != (self.stat.st_dev, self.stat.st_ino):
            return False
        if self._known is None:
            self._known = self._look_up()
        if self._known[1]:
            return True
        handle = _handle_of(other)
        if handle is not None and self._handle is not None:
            return handle == self._handle
        return (
            True
            if self._place is not None and self._place == _place_of(other, _told_of(other).get("mnt_id"))
            else None
        )


def _file_of(pid: int, number: int, inode: int) -> int:
    """The file that another process's socket is bound to, opened with O_PATH. Raises OSError."""
    pidfd = os.pidfd_open(pid)
    try:
        copy = copy_descriptor(pidfd, number)
    finally:
        os.close(pidfd)
    with socket.socket(fileno=copy) as sock:
        if os.fstat(sock.fileno()).st_ino != inode:  # (its number is another's by now)
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fcntl.ioctl(sock.fileno(), _SIOCUNIXFILE)


def open_as(pid: int, path: str) -> int:
    """A file as another process finds it, opened with O_PATH. Raises OSError, ValueError."""
    if "\0" in path:
        raise ValueError("embedded null byte")
    if not path.startswith("/"):
        return os.open(f"/proc/{pid}/cwd/{path}", os.O_PATH | os.O_CLOEXEC)
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_in(root, path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        # (Absolute symbolic links then lead to our own root.)
        return os.open(f"/proc/{pid}/root{path}", os.O_PATH | os.O_CLOEXEC)
    finally:
        os.close(root)


def _told_of(fd: int) -> dict[str, int]:
    """The numbers of ``/proc/self/fdinfo``."""
    found = {}
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            with contextlib.suppress(ValueError):
                found[key] = int(value)
    return found


def _place_of(fd: int, mount: int | None) -> tuple[int, str] | None:
    """Mount and path: one place, at a moment, is one file."""
    with contextlib.suppress(OSError):
        return None if mount is None else (mount, os.readlink(f"/proc/self/fd/{fd}"))
    return None


def _handle_of(fd: int) -> tuple[int, bytes] | None:
    """What tells a file from all others of its file system (name_to_handle_at(2)); None: that has no such thing."""
    if not hasattr(_libc, "name_to_handle_at"):
        return None
    buffer = ctypes.create_string_buffer(_HANDLE.pack(_MAX_HANDLE, 0, b""), _HANDLE.size)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _AT_EMPTY_PATH):
        return None
    nbytes, kind, data = _HANDLE.unpack(buffer.raw)
    return kind, data[:nbytes]
