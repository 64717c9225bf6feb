"""Files as another process finds them: it may have another root directory and other mounts (a container, a chroot,
a unit with PrivateTmp=).

Rules:

* Absolute symbolic links and ``..`` stay below that root (openat2(2), RESOLVE_IN_ROOT): what is in a container
  never leads to a file of ours. Links of /proc (/dev/stderr is one) are not followed: they would lead to what we
  have open ourselves.
* A file is looked at before it is opened to be read: only a regular one is, and none of /proc, /sys or /dev, where
  reading may have an effect.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from typing import Self

from udsproxy.kernel.plain_files import is_plain

_OPENAT2 = 437
_RESOLVE_IN_ROOT = 0x10
_OPEN_HOW = struct.Struct("=QQQ")
"""struct open_how: flags, mode, resolve."""
_PIN = os.O_PATH | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_OPENAT2 = (errno.ENOSYS, errno.EPERM)
"""Before Linux 5.6; or a container's seccomp filter does not know the call."""
_NO_FILES = ("/proc/", "/sys/", "/dev/")

_libc = ctypes.CDLL(None, use_errno=True)


class Root:
    """The root directory of a process. ``is_ours``: paths mean the same there as here. ``is_hidden``: it is that of
    a container, and we may not look into it; then nothing is there."""

    def __init__(self, pid: int | None = None) -> None:
        """``pid``: None for ours. Where that of a process may not be seen, and nothing says that it is in a
        container, it is taken to be ours."""
        seen = None if pid is None else _is_ours(pid)
        self.is_hidden = pid is not None and seen is None and _has_inner_pid(pid)
        self.is_ours = not self.is_hidden and (pid is None or seen is not False)
        self._fd = -1
        if self.is_hidden:
            return
        if not self.is_ours:
            try:
                self._fd = os.open(f"/proc/{pid}/root", _PIN | os.O_DIRECTORY)
            except OSError:
                self.is_ours = True

    @classmethod
    def at(cls, directory: str) -> Self:
        """A directory that is to be taken for a root directory. Raises OSError."""
        root = cls()
        root._fd = os.open(directory, _PIN | os.O_DIRECTORY)
        root.is_ours = False
        return root

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def pin(self, path: str, *, follow: bool = True) -> int:
        """A descriptor (O_PATH) of what is at an absolute path. Raises OSError, ValueError (a NUL in it)."""
        flags = _PIN if follow else _PIN | os.O_NOFOLLOW
        if self.is_hidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not self.is_ours:
            return open_in(self._fd, path, flags)
        root = os.open("/", _PIN | os.O_DIRECTORY)
        try:
            return open_in(root, path, flags)
        except OSError as error:
            if error.errno not in _NO_OPENAT2:
                raise
            return os.open(path, flags)
        finally:
            os.close(root)

    def stat(self, path: str, *, follow: bool = True) -> os.stat_result:
        """Raises OSError, ValueError."""
        fd = self.pin(path, follow=follow)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Something is there, if only a symbolic link that leads nowhere."""
        try:
            self.stat(path, follow=False)
        except (OSError, ValueError):
            return False
        return True

    def link(self, path: str) -> str | None:
        """What a symbolic link says; None: it is none."""
        try:
            fd = self.pin(path, follow=False)
        except (OSError, ValueError):
            return None
        try:
            return os.readlink("", dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)

    def names(self, path: str) -> list[str]:
        """The names in a directory, in no order. Raises OSError, ValueError."""
        fd = self.pin(path)
        try:
            listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        try:
            return os.listdir(listed)
        finally:
            os.close(listed)

    def open(self, path: str) -> int:
        """A descriptor to read a regular file. Raises OSError (EINVAL: it is no such file), ValueError."""
        pinned = self.pin(path)
        try:
            mode = os.fstat(pinned).st_mode
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            if not is_plain(pinned) or os.readlink(f"/proc/self/fd/{pinned}").startswith(_NO_FILES):
                raise OSError(errno.EINVAL, "no such file is read")
            return os.open(f"/proc/self/fd/{pinned}", _READ)
        finally:
            os.close(pinned)

    def read(self, path: str, max_bytes: int) -> bytes:
        """The first bytes of a regular file; empty where it cannot be read."""
        try:
            with os.fdopen(self.open(path), "rb") as file:
                return file.read(max_bytes)
        except (OSError, ValueError):
            return b""


def open_in(root: int, path: str, flags: int) -> int:
    """Open a path as if the open directory ``root`` was the root directory. Raises OSError (ENOSYS: before Linux
    5.6), ValueError."""
    if "\0" in path:
        raise ValueError("embedded null byte")
    how = _OPEN_HOW.pack(flags, 0, _RESOLVE_IN_ROOT)
    fd: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), how, ctypes.c_size_t(len(how)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


def _is_ours(pid: int) -> bool | None:
    """The same directory, and the same mounts below it. None: that may not be seen."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/root/."), os.stat("/")) and os.path.samestat(
            os.stat(f"/proc/{pid}/ns/mnt"), os.stat("/proc/self/ns/mnt")
        )
    except OSError:
        return None


def _has_inner_pid(pid: int) -> bool:
    """It is in a pid namespace below ours (NSpid of /proc/PID/status, which everybody may read)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("NSpid:"):
                return len(line.split()) > 2
    return False
