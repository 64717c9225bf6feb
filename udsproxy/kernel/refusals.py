"""How often connect() has given a client EAGAIN: the kernel's tracing counts it, where we may use that (root).

A full queue leaves no trace with the server: net/unix/af_unix.c, unix_stream_connect, keeps no count. But the
kernel can tell of each system call that ends so (perf_event_open(2) on the tracepoint sys_exit_connect, filtered by
result). On AF_INET connect() does not end so.

Rules: it is on only for as long as it is asked for: while it is on, every system call of the machine costs some
100 ns more. It is on by descriptors that this process alone has, so that it ends when the process does, in whatever
way. And since a process that was stopped neither ends nor asks, the kernel ends it, when it has stood still for
`STILL_S` while it counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import struct
from collections import Counter
from collections.abc import Callable

_TRACING = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_EVENT = "events/syscalls/sys_exit_connect/id"
STILL_S = 30
"""The kernel ends a process that counts and has not called `Refusals.taken` for so long."""

_CALLS = {"x86_64": (298, 222, 223), "aarch64": (241, 107, 110), "riscv64": (241, 107, 110)}
"""The numbers of perf_event_open, timer_create and timer_settime."""
_ATTR = struct.Struct("IIQQQQQII64x")
"""struct perf_event_attr as of PERF_ATTR_SIZE_VER5: type, size, config, sample_period, sample_type, read_format,
flags, wakeup_events, bp_type."""
_TRACEPOINT, _SAMPLE_TID, _DISABLED, _CLOEXEC = 2, 1 << 1, 1, 1 << 3
_ENABLE, _SET_FILTER = 0x2400, 0x40082406
"""ioctls."""
_PAGES = 32
"""Of each processor's ring: 8,000 refusals between two calls of `taken`; of more there is no room to tell."""
_HEADER, _TID = struct.Struct("IHH"), struct.Struct("II")
"""struct perf_event_header: type, misc, size; then pid (of the process) and tid."""
_SAMPLE = 9
_HEAD, _TAIL = 1024 // 8, 1032 // 8
"""Of struct perf_event_mmap_page, in words: where the kernel writes next, and we read next."""


class Refusals:
    """See the module. Raises OSError: tracing cannot be used."""

    def __init__(self) -> None:
        numbers = _CALLS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, "not on this kind of machine")
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._open, *timer = numbers
        self._event = _event_number()
        self._end = _DeadMansSwitch(self._syscall, *timer)
        self._rings: list[_Ring] = []
        self._found: Counter[int] = Counter()

    def count(self, *, on: bool) -> None:
        """Count from now on, or no longer. Raises OSError."""
        if on == bool(self._rings):
            return
        if not on:
            self.close()
            return
        # (Not kept open and switched off: the kernel would trace all the same, and tell nobody.)
        self._end.set(STILL_S)
        try:
            for cpu in _cpus():
                self._rings.append(_Ring(_open(self._syscall, self._open, self._event, cpu)))
        except BaseException:
            self.close()
            raise

    def taken(self) -> Counter[int]:
        """How many there have been since this was last called, by process."""
        if self._rings:
            self._end.set(STILL_S)
        self._take()
        found, self._found = self._found, Counter()
        return found

    def _take(self) -> None:
        for ring in self._rings:
            ring.take(self._found)

    def close(self) -> None:
        self._take()
        for ring in self._rings:
            ring.close()
        self._rings = []
        with contextlib.suppress(OSError):
            self._end.set(0)


class _Ring:
    """What happens on one processor, from now on: an event's descriptor, and memory that the kernel writes to."""

    def __init__(self, fd: int) -> None:
        """The descriptor is closed where it raises OSError."""
        self._fd = fd
        try:
            fcntl.ioctl(fd, _SET_FILTER, b"ret == -%d\0" % errno.EAGAIN)
            self._memory = mmap.mmap(fd, (1 + _PAGES) * mmap.PAGESIZE)
            fcntl.ioctl(fd, _ENABLE, 0)
        except BaseException:
            os.close(fd)
            raise
        self._words = memoryview(self._memory).cast("Q")

    def take(self, found: Counter[int]) -> None:
        head, tail = self._words[_HEAD], self._words[_TAIL]
        while tail < head:
            kind, _, size = _HEADER.unpack(self._read(tail, _HEADER.size))
            if kind == _SAMPLE:
                found[_TID.unpack(self._read(tail + _HEADER.size, _TID.size))[0]] += 1
            tail += size
        self._words[_TAIL] = tail

    def _read(self, at: int, nbytes: int) -> bytes:
        """What was written there. (Records are of whole words, and go on at the ring's beginning.)"""
        size = _PAGES * mmap.PAGESIZE
        at %= size
        first = self._memory[mmap.PAGESIZE + at : mmap.PAGESIZE + min(at + nbytes, size)]
        return first + self._memory[mmap.PAGESIZE : mmap.PAGESIZE + nbytes - len(first)]

    def close(self) -> None:
        self._words.release()
        self._memory.close()
        os.close(self._fd)


class _DeadMansSwitch:
    """A timer of the kernel that kills this process, also when it was stopped, unless it is set anew."""

    def __init__(self, syscall: Callable[..., int], create: int, settime: int) -> None:
        """Raises OSError."""
        self._syscall = syscall
        self._settime = settime
        self._number = ctypes.c_int()
        # struct sigevent: a value, the signal, how it is sent (SIGEV_SIGNAL).
        event = ctypes.create_string_buffer(struct.pack("Qii", 0, signal.SIGKILL, 0), 64)
        self._call(create, 1, event, ctypes.byref(self._number))  # CLOCK_MONOTONIC

    def set(self, seconds: int) -> None:
        """So long from now; 0: never. Raises OSError."""
        when = ctypes.create_string_buffer(struct.pack("4l", 0, 0, seconds, 0))
        self._call(self._settime, self._number, 0, when, None)

    def _call(self, number: int, *arguments: object) -> None:
        if self._syscall(ctypes.c_long(number), *arguments):
            raise _os_error()


def _open(syscall: Callable[..., int], number: int, event: int, cpu: int) -> int:
    """A descriptor for what happens on that processor, which tells of nothing yet. Raises OSError."""
    attr = _ATTR.pack(_TRACEPOINT, _ATTR.size, event, 1, _SAMPLE_TID, 0, _DISABLED, 1, 0)
    everybody, no_group = ctypes.c_long(-1), ctypes.c_long(-1)
    fd = syscall(ctypes.c_long(number), attr, everybody, ctypes.c_long(cpu), no_group, ctypes.c_ulong(_CLOEXEC))
    if fd < 0:
        raise _os_error()
    return int(fd)


def _event_number() -> int:
    """The kernel gives it out anew each time it starts. Raises OSError."""
    failed = OSError(errno.ENOENT, "tracefs is not mounted")
    for root in _TRACING:
        try:
            with open(f"{root}/{_EVENT}", encoding="ascii") as file:
                return int(file.read())
        except OSError as error:
            if error.errno != errno.ENOENT:
                failed = error
    raise failed


def _cpus() -> list[int]:
    """The processors that are on."""
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        ranges = [each.partition("-") for each in file.read().split(",")]
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
