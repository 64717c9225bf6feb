"""Whether a file can be read without an effect and without waiting.

Rule: a file of a file system that keeps what was written can: reading one of /proc or /sys may wait, or do
something, and what FUSE or 9p serve is their server's to withhold.
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


def is_plain(fd: int) -> bool:
    """Is this open file (O_PATH will do) a regular one, of such a file system?"""
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.fstat(fd).st_mode) and _magic(fd) not in _MAGICS
    return False


def _magic(fd: int) -> int:
    """``f_type``, the first word of struct statfs. Raises OSError."""
    buffer = (ctypes.c_long * (_STATFS // ctypes.sizeof(ctypes.c_long)))()
    if _libc.fstatfs(fd, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer[0] & 0xFFFFFFFF
