"""Copies of other processes' descriptors (pidfd_getfd(2)). That takes the right to trace them: root, or the same
user.

Rule: a copy is the very same socket: it is asked something and closed, nothing else.
"""

from __future__ import annotations

import ctypes
import os

_PIDFD_GETFD = 438
"""The same on every machine."""
_libc = ctypes.CDLL(None, use_errno=True)


def copy_descriptor(pidfd: int, number: int) -> int:
    """A descriptor of ours for what that process has as ``number``. Raises OSError."""
    copy: int = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
    if copy < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, os.strerror(failed))
    return copy
