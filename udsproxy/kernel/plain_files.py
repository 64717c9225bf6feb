"""Files that others have named, read without an effect and without waiting.

Rules: only a regular file of a file system that keeps what was written: reading one of /proc or /sys may wait, or
do something, and what FUSE serves is its server's to withhold. It is looked at by a descriptor that cannot read
(O_PATH), so that opening it has no effect either. Nothing is raised.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat

_MAGICS = frozenset(
    {
        0x9FA0,  # proc
        0x62656572,  # sysfs
        0x64626720,  # debugfs
        0x74726163,  # tracefs
        0x62656570,  # configfs
        0x73636673,  # securityfs
        0xF97CFF8C,  # selinuxfs
        0x27E0EB,  # cgroup
        0x63677270,  # cgroup2
        0xCAFE4A11,  # bpf
        0xDE5E81E4,  # efivarfs
        0x6165676C,  # pstore
        0x42494E4D,  # binfmt_misc
        0x6E736673,  # nsfs
        0x65735546,  # fuse
        0x01021997,  # 9p
    }
)
"""Of statfs(2): file systems whose files are not plain."""
_STATFS = 256
"""More bytes than struct statfs has on any machine."""

_libc = ctypes.CDLL(None, use_errno=True)


def read_plain(pinned: int, max_bytes: int) -> bytes:
    """The first bytes of a file that is open with O_PATH; empty where it is none of these."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(pinned).st_mode) and _magic(pinned) not in _MAGICS:
            with open(f"/proc/self/fd/{pinned}", "rb") as file:
                return file.read(max_bytes)
    return b""


def read_plain_at(path: str, max_bytes: int) -> bytes:
    """The same of a path."""
    try:
        pinned = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    try:
        return read_plain(pinned, max_bytes)
    finally:
        os.close(pinned)


def _magic(pinned: int) -> int:
    """``f_type``, the first word of struct statfs. Raises OSError."""
    buffer = (ctypes.c_long * (_STATFS // ctypes.sizeof(ctypes.c_long)))()
    if _libc.fstatfs(pinned, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer[0] & 0xFFFFFFFF
