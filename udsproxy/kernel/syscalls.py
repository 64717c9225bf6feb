"""System calls in which a process waits: their numbers, and where their arguments say on what.

Rule: a number that is not here has no name for us, and that is all.
"""

from __future__ import annotations

import platform

_X86_64 = {
    0: "read", 1: "write", 2: "open", 7: "poll", 17: "pread64", 18: "pwrite64", 19: "readv", 20: "writev",
    23: "select", 34: "pause", 35: "nanosleep", 40: "sendfile", 42: "connect", 43: "accept", 44: "sendto",
    45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 56: "clone", 58: "vfork", 61: "wait4",
    65: "semop", 70: "msgrcv", 72: "fcntl", 73: "flock",
    74: "fsync", 75: "fdatasync", 77: "ftruncate", 78: "getdents", 128: "rt_sigtimedwait", 130: "rt_sigsuspend",
    202: "futex", 208: "io_getevents", 217: "getdents64", 220: "semtimedop", 230: "clock_nanosleep",
    232: "epoll_wait", 247: "waitid", 257: "openat", 270: "pselect6", 271: "ppoll", 275: "splice",
    281: "epoll_pwait", 288: "accept4", 295: "preadv", 296: "pwritev", 299: "recvmmsg", 307: "sendmmsg",
    426: "io_uring_enter", 435: "clone3", 441: "epoll_pwait2",
}  # fmt: skip
_GENERIC = {
    4: "io_getevents", 22: "epoll_pwait", 25: "fcntl", 32: "flock", 46: "ftruncate", 56: "openat", 61: "getdents64",
    63: "read", 64: "write", 65: "readv", 66: "writev", 67: "pread64", 68: "pwrite64", 69: "preadv", 70: "pwritev",
    71: "sendfile", 72: "pselect6", 73: "ppoll", 76: "splice", 82: "fsync", 83: "fdatasync", 95: "waitid",
    98: "futex", 101: "nanosleep", 115: "clock_nanosleep", 133: "rt_sigsuspend", 137: "rt_sigtimedwait",
    188: "msgrcv", 192: "semtimedop", 193: "semop", 202: "accept", 203: "connect", 206: "sendto", 207: "recvfrom",
    211: "sendmsg", 212: "recvmsg", 220: "clone", 242: "accept4", 243: "recvmmsg", 260: "wait4", 269: "sendmmsg",
    426: "io_uring_enter", 435: "clone3", 441: "epoll_pwait2",
}  # fmt: skip
"""include/uapi/asm-generic/unistd.h: aarch64, riscv64, loongarch64."""

_NAMES = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC, "loongarch64": _GENERIC}

POLLS = frozenset({"poll", "ppoll"})
"""Their arguments: an array of struct pollfd, and how many."""
SELECTS = frozenset({"select", "pselect6"})
"""How many, and three sets of descriptors."""
EPOLLS = frozenset({"epoll_wait", "epoll_pwait", "epoll_pwait2"})
"""An epoll's descriptor."""
SLEEPS = frozenset({"nanosleep", "clock_nanosleep", "pause", "rt_sigsuspend", "rt_sigtimedwait"})
LOCKS = frozenset({"flock", "fcntl"})
"""They wait only for a lock on a file; the first argument is its descriptor."""
CHILDREN = frozenset({"wait4", "waitid", "vfork", "clone", "clone3"})
"""They wait for a child to end, or (as vfork() does) to run another program."""
TAKES = frozenset({"accept", "accept4", "read", "readv", "recvfrom", "recvmsg", "recvmmsg"})
"""They wait for what comes on a descriptor: their first argument."""
SEMAPHORES = frozenset({"futex", "semop", "semtimedop", "msgrcv"})
"""They wait for another thread or process, and say nothing of whom."""
ON_DESCRIPTOR = frozenset(
    {
        "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "connect", "accept",
        "accept4", "sendto", "recvfrom", "sendmsg", "recvmsg", "recvmmsg", "sendmmsg", "fsync", "fdatasync",
        "ftruncate", "getdents", "getdents64", "sendfile", "splice",
    }
)  # fmt: skip
"""The first argument is the descriptor."""


def syscall_name(number: int, machine: str = platform.machine()) -> str | None:
    """``poll`` for 7 on x86_64; None: it is none that waits, or the machine is not known."""
    return _NAMES.get(machine, {}).get(number)
