"""What changes in a directory (inotify(7)).

Rule: what was missed (IN_Q_OVERFLOW) looks like a change of everything: who is told looks for himself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

import trio

_HEADER = struct.Struct("iIII")
"""struct inotify_event: watch, mask, cookie, length of the name that follows."""
_ATTRIB, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x004, 0x040, 0x080, 0x100, 0x200
_ONLYDIR = 0x01000000
_READ = 64 * 1024


class DirectoryWatch:
    """Tells when a name in a directory changes: comes, goes, or gets other attributes."""

    def __init__(self, directory: str, name: str) -> None:
        """Raises OSError (EMFILE, ENOSPC: fs.inotify.max_user_watches, ENOENT)."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._name = os.fsencode(name)
        self._fd = _check(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        mask = _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR
        try:
            _check(libc.inotify_add_watch(self._fd, os.fsencode(directory), mask))
        except OSError:
            os.close(self._fd)
            raise

    async def changed(self) -> None:
        """Return when it has."""
        while not self._read():
            await trio.lowlevel.wait_readable(self._fd)

    def _read(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            data, offset = os.read(self._fd, _READ), 0
            while offset < len(data):
                watch, _, _, length = _HEADER.unpack_from(data, offset)
                offset += _HEADER.size + length
                if watch < 0 or data[offset - length : offset].rstrip(b"\0") == self._name:
                    return True
        return False

    def close(self) -> None:
        """Stop watching; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
