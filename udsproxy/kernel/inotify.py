"""What changes in a directory, or of a file (inotify(7)).

Rule: what was missed (IN_Q_OVERFLOW), and what becomes of the directory itself, looks like a change: who is told
looks for himself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

import trio

_HEADER = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, length of the name that follows."""
_ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = (
    *(0x004, 0x040, 0x080, 0x100, 0x200),
    *(0x400, 0x800),
)
_ONLYDIR = 0x01000000
_READ = 64 * 1024


class Watch:
    """Of one file, or of one name in a directory, at a time. (To close it may take 20 ms: the kernel waits for all
    who may see it. To watch something else does not.)"""

    def __init__(self) -> None:
        """Raises OSError (EMFILE: fs.inotify.max_user_instances)."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._name = b""
        self._number = -1
        self._fd = _check(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def of_file(self, path: str) -> None:
        """Tell when this file gets other attributes, another name, or loses one. Raises OSError (ENOENT; ENOSPC:
        fs.inotify.max_user_watches)."""
        self._watch(path, "", _ATTRIB)

    def of_name(self, directory: str, name: str) -> None:
        """Tell when that name comes, goes, or gets other attributes. Raises OSError as `of_file` does."""
        self._watch(directory, name, _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR)

    def _watch(self, path: str, name: str, mask: int) -> None:
        mask |= _DELETE_SELF | _MOVE_SELF
        number = _check(self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask))
        if self._number not in (-1, number):
            self._libc.inotify_rm_watch(self._fd, self._number)  # EINVAL: what it was of has gone
        self._number, self._name = number, os.fsencode(name)

    def fileno(self) -> int:
        """Readable when something may have changed."""
        return self._fd

    def has_changed(self) -> bool:
        """It has, since this was last asked."""
        found = False
        with contextlib.suppress(BlockingIOError):
            data, offset = os.read(self._fd, _READ), 0
            while offset < len(data):
                number, _, _, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size + length
                name = data[offset - length : offset].rstrip(b"\0")
                found = found or number < 0 or (number == self._number and name in (b"", self._name))
        return found

    async def changed(self) -> None:
        """Return when it has."""
        while not self.has_changed():
            await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """Stop watching; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class DirectoryWatch(Watch):
    """Of one name in a directory."""

    def __init__(self, directory: str, name: str) -> None:
        """Raises OSError (EMFILE, ENOSPC, ENOENT)."""
        super().__init__()
        try:
            self.of_name(directory, name)
        except OSError:
            self.close()
            raise


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
