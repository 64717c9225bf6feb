"""The connect() calls that got EAGAIN, each with whose it was and which socket it named: the kernel's tracing tells
that, where we may use it (root).

A full queue leaves no trace with the server: net/unix/af_unix.c, unix_stream_connect, keeps no count. But the
kernel can tell of each system call that ends so (perf_event_open(2) on the tracepoint sys_exit_connect, filtered by
result). On AF_INET connect() does not end so. A sample has the caller's registers: where the address stands in its
memory, and how long it is. That is read a moment later. It may have been overwritten by then (nginx keeps it for as
long as its configuration); a name that leads to no socket is no name.

Rules:

* While it is on, every system call of the machine takes some 10 ns more (docs/where.md has the measurement), and
  one that is refused some µs.
* It is on by descriptors that this process alone has, so that it ends when the process does, in whatever way. (They
  may be handed to a child, so that nothing is missed while that starts.) And since a process that was stopped
  neither ends nor reads, the kernel ends it when it has stood still for `STILL_S` while it counted; but not the
  parent.
* tracefs need not be mounted: an instance of it that has no place in the tree serves as well.
* What is kept is bounded. What was not kept is counted.
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
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from udsproxy.kernel import procfs
from udsproxy.kernel.socket_file import SocketFile

_TRACING = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_EVENT = "events/syscalls/sys_exit_connect/id"
STILL_S = 30
"""The kernel ends a process that counts and has called neither `Refusals.read` nor `taken` for so long."""
MAX_KINDS = 1000
"""Callers and names that are told apart between two calls of `Refusals.taken`."""

_CALLS = {
    "x86_64": (298, 222, 223, (4, 3)),
    "aarch64": (241, 107, 110, (1, 2)),
    "riscv64": (241, 107, 110, (11, 12)),
}
"""The numbers of perf_event_open, timer_create and timer_settime; the registers of a system call's second and third
argument, as bits of sample_regs_user (arch/*/include/uapi/asm/perf_regs.h)."""
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CREATE = 6
"""FSCONFIG_CMD_CREATE."""
_ATTR = struct.Struct("IIQQQQQII24xQIi24x")
"""struct perf_event_attr as of PERF_ATTR_SIZE_VER6: type, size, config, sample_period, sample_type, read_format,
flags, wakeup_events, bp_type; sample_regs_user, sample_stack_user, clockid."""
_TRACEPOINT, _CLOEXEC = 2, 1 << 3
_TID, _TIME, _REGS_USER = 1 << 1, 1 << 2, 1 << 12
"""What a sample has (sample_type)."""
_DISABLED, _USE_CLOCKID, _CLOCK_MONOTONIC = 1, 1 << 25, 1
_ENABLE, _SET_FILTER = 0x2400, 0x40082406
"""ioctls."""
_PAGES = 32
"""Of each processor's ring: 2,700 refusals between two calls of `read`. Those that do not fit are counted, too."""
_MAPPED = (1 + _PAGES) * mmap.PAGESIZE
_HEADER = struct.Struct("IHH")
"""struct perf_event_header: type, misc, size."""
_SAMPLE_HEAD = struct.Struct("IIQQ")
"""The process, the thread, the time, and which registers follow."""
_TWO_WORDS = struct.Struct("QQ")
_SAMPLE = 9
_ABI_64 = 2
_HEAD, _TAIL = 1024 // 8, 1032 // 8
"""Of struct perf_event_mmap_page, in words: where the kernel writes next, and we read next."""
_MAX_ADDRESS = 110
"""struct sockaddr_un."""
_FAMILY = struct.Struct("=H")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)


@dataclass(slots=True)
class Refused:
    """Refusals of one process at one socket, as far as that could be told. Times: CLOCK_MONOTONIC, ns."""

    pid: int
    name: bytes | None
    """The address that it named, as connect() takes it; None: that could not be read."""
    file: SocketFile | None
    """What was at that path, where it is a socket's."""
    count: int
    first: int
    last: int


class Refusals:
    """See the module."""

    def __init__(self, *, for_child: bool = False, inherited: Sequence[int] = ()) -> None:
        """``for_child``: who has started to count will hand it on, and `close` when that was taken. ``inherited``:
        the descriptors that a parent has handed on. Raises OSError: tracing cannot be used."""
        numbers = _CALLS.get(platform.machine())
        if numbers is None:
            raise OSError(errno.ENOSYS, "not on this kind of machine")
        self._syscall = _libc.syscall
        self._open, create, settime, self._registers = numbers
        self._event = _event_number(self._syscall)
        self._end = None if for_child else _DeadMansSwitch(self._syscall, create, settime)
        is_first = self._registers[0] < self._registers[1]
        self._rings = [_Ring(fd, address_first=is_first, is_new=False) for fd in inherited]
        self._found: dict[tuple[int, bytes | None], Refused] = {}
        self._missed = 0

    @property
    def descriptors(self) -> list[int]:
        """They are readable when somebody was refused: then `read` is to be called soon."""
        return [ring.fd for ring in self._rings]

    def count(self, *, on: bool) -> None:
        """Count from now on, or no longer. Raises OSError."""
        if on == bool(self._rings):
            return
        if not on:
            self.close()
            return
        # (Not kept open and switched off: the kernel would trace all the same, and tell nobody.)
        self._set_end(STILL_S)
        try:
            is_first = self._registers[0] < self._registers[1]
            for cpu in _cpus():
                fd = _open(self._syscall, self._open, self._event, self._registers, cpu)
                self._rings.append(_Ring(fd, address_first=is_first))
        except BaseException:
            self.close()
            raise

    def read(self) -> None:
        """Take what the kernel has written, and read the names that were called."""
        if self._rings:
            self._set_end(STILL_S)
        self._read()

    def _set_end(self, seconds: int) -> None:
        if self._end is not None:
            self._end.set(seconds)

    def taken(self) -> tuple[list[Refused], int]:
        """Those since this was last called, and of how many nothing is known."""
        self.read()
        found, self._found = list(self._found.values()), {}
        missed, self._missed = self._missed, 0
        return found, missed

    def _read(self) -> None:
        names: dict[_Call, bytes | None] = {}
        """What one place holds is read once for all calls of this round."""
        for ring in self._rings:
            count = ring.count()
            for call, at in ring.take():
                if call not in names:
                    names[call] = _name_at(call)
                self._add(call.pid, names[call], at)
            self._missed += ring.missed(count)

    def _add(self, pid: int, name: bytes | None, at: int) -> None:
        known = self._found.get((pid, name))
        if known is not None:
            known.count += 1
            known.first, known.last = min(known.first, at), max(known.last, at)
        elif len(self._found) >= MAX_KINDS:
            self._missed += 1
        else:
            self._found[pid, name] = Refused(pid, name, _file_at(pid, name), 1, at, at)

    def hand_on(self) -> None:
        """A child has the descriptors now: what has been counted is there for it until `close`."""
        for ring in self._rings:
            ring.hand_on()

    def close(self) -> None:
        """What has been counted can still be `taken`, but where it is a child's."""
        if self._end is not None:
            self._read()
        for ring in self._rings:
            ring.close()
        self._rings = []
        with contextlib.suppress(OSError):
            self._set_end(0)


class _Call(NamedTuple):
    """Whose call it was, and where its address stands and how long it is (0: that is not told)."""

    pid: int
    place: int
    nbytes: int


class _Ring:
    """What happens on one processor, from now on: an event's descriptor, and memory that the kernel writes to."""

    def __init__(self, fd: int, *, address_first: bool, is_new: bool = True) -> None:
        """``address_first``: of the two registers that come. ``is_new``: it has no filter yet. The descriptor is
        closed where it raises OSError."""
        self.fd = fd
        self._address_first = address_first
        self._taken = self._missed = 0
        try:
            if is_new:
                fcntl.ioctl(fd, _SET_FILTER, b"ret == -%d\0" % errno.EAGAIN)
            self._address = _map(fd)
        except BaseException:
            os.close(fd)
            raise
        memory = (ctypes.c_ubyte * _MAPPED).from_address(self._address)
        self._memory = memoryview(memory).cast("B")
        self._words = self._memory.cast("Q")
        if is_new:
            fcntl.ioctl(fd, _ENABLE, 0)

    def count(self) -> int:
        """How many there have been, those for which there was no room too."""
        return int.from_bytes(os.read(self.fd, 8), sys.byteorder)

    def missed(self, count: int) -> int:
        """Of so many, for how many more than before there was no room; all that could be were taken."""
        more = max(0, count - self._taken - self._missed)
        self._missed += more
        return more

    def take(self) -> Iterator[tuple[_Call, int]]:
        """Each, and when it was (ns)."""
        head, tail = self._words[_HEAD], self._words[_TAIL]
        while tail < head:
            kind, _, size = _HEADER.unpack(self._read(tail, _HEADER.size))
            body = self._read(tail + _HEADER.size, size - _HEADER.size)
            if kind == _SAMPLE:
                pid, _, at, abi = _SAMPLE_HEAD.unpack_from(body)
                place = nbytes = 0
                if abi == _ABI_64:
                    place, nbytes = _TWO_WORDS.unpack_from(body, _SAMPLE_HEAD.size)[
                        :: 1 if self._address_first else -1
                    ]
                self._taken += 1
                yield _Call(pid, place, nbytes & 0xFFFFFFFF), at
            tail += size
        self._words[_TAIL] = tail

    def _read(self, at: int, nbytes: int) -> bytes:
        """What was written there. (Records are of whole words, and go on at the ring's beginning.)"""
        size = _PAGES * mmap.PAGESIZE
        at %= size
        first = bytes(self._memory[mmap.PAGESIZE + at : mmap.PAGESIZE + min(at + nbytes, size)])
        return first + bytes(self._memory[mmap.PAGESIZE : mmap.PAGESIZE + nbytes - len(first)])

    def hand_on(self) -> None:
        """Keep the memory (the kernel throws it away when nobody has it), and no descriptor."""
        os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        self._words.release()
        self._memory.release()
        _libc.munmap(ctypes.c_void_p(self._address), _MAPPED)
        if self.fd >= 0:
            os.close(self.fd)


def _map(fd: int) -> int:
    """Where a ring is in memory from now on. (Python's own mmap keeps a descriptor besides.) Raises OSError."""
    found = _libc.mmap(None, _MAPPED, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if found == ctypes.c_void_p(-1).value:
        raise _os_error()
    return int(found)


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


def _name_at(call: _Call) -> bytes | None:
    """The address of a Unix socket that stands there in a process's memory; None: none does, or it may not be
    read."""
    data = procfs.read_memory(call.pid, call.place, min(call.nbytes, _MAX_ADDRESS)) if call.place else b""
    if len(data) <= _FAMILY.size or _FAMILY.unpack_from(data)[0] != socket.AF_UNIX:
        return None
    name = data[_FAMILY.size :]
    return name if name[:1] == b"\0" else name.partition(b"\0")[0]


def _file_at(pid: int, name: bytes | None) -> SocketFile | None:
    if name is None or name[:1] == b"\0":
        return None
    with contextlib.suppress(OSError, ValueError):
        found = SocketFile.at(os.fsdecode(name), pid)
        return found if found.is_socket else None
    return None


def _open(syscall: Callable[..., int], number: int, event: int, registers: tuple[int, int], cpu: int) -> int:
    """A descriptor for what happens on that processor, which tells of nothing yet. Raises OSError."""
    sample, flags = _TID | _TIME | _REGS_USER, _DISABLED | _USE_CLOCKID
    wanted = sum(1 << each for each in registers)
    attr = _ATTR.pack(
        _TRACEPOINT, _ATTR.size, event, 1, sample, 0, flags, 1, 0, wanted, 0, _CLOCK_MONOTONIC
    )  # fmt: skip
    everybody, no_group = ctypes.c_long(-1), ctypes.c_long(-1)
    return _call(syscall, number, attr, everybody, ctypes.c_long(cpu), no_group, ctypes.c_ulong(_CLOEXEC))


def _event_number(syscall: Callable[..., int]) -> int:
    """The kernel gives it out anew each time it starts. Raises OSError."""
    failed = None
    for root in _TRACING:
        try:
            with open(f"{root}/{_EVENT}", encoding="ascii") as file:
                return int(file.read())
        except OSError as error:
            if error.errno != errno.ENOENT:
                failed = error
    if failed is not None:
        raise failed
    mount = _tracefs(syscall)
    try:
        with open(os.open(_EVENT, os.O_RDONLY | os.O_CLOEXEC, dir_fd=mount), encoding="ascii") as file:
            return int(file.read())
    finally:
        os.close(mount)


def _tracefs(syscall: Callable[..., int]) -> int:
    """The root of a tracefs that is mounted nowhere, and ends with this descriptor. Raises OSError."""
    try:
        context = _call(syscall, _FSOPEN, b"tracefs", ctypes.c_uint(1))
    except OSError as error:
        why = "the kernel has no tracefs" if error.errno in (errno.ENODEV, errno.ENOSYS) else error.strerror
        raise OSError(error.errno, why) from None
    try:
        _call(syscall, _FSCONFIG, context, ctypes.c_uint(_CREATE), None, None, 0)
        return _call(syscall, _FSMOUNT, context, ctypes.c_uint(1), ctypes.c_uint(0))
    finally:
        os.close(context)


def _cpus() -> list[int]:
    """The processors that are on."""
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        ranges = [each.partition("-") for each in file.read().split(",")]
    return [cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)]


def _call(syscall: Callable[..., int], number: int, *arguments: object) -> int:
    """Raises OSError."""
    result = int(syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise _os_error()
    return result


def _os_error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
