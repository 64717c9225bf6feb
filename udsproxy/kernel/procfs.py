"""What /proc says of a process (proc(5)).

Rules: never raises because a process is gone or hidden: then the answer is None, or empty.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator

import msgspec

from udsproxy.kernel.syscalls import syscall_name

_SOCKET = re.compile(r"socket:\[(\d+)\]")
_LOCK = re.compile(r"(\d+): *((?:-> *)*)(\S+) +\S+ +\S+ +(-?\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ")
_WATCHED = re.compile(r"^tfd:\s*(\d+)\s.*?\bino:([0-9a-f]+)", re.MULTILINE)
_MOST_STACK = 24
"""Lines of a kernel stack."""
FREEZERS = ("get_signal", "do_freezer_trap", "__refrigerator")
"""Kernel functions in which a process waits while its control group is frozen (kernel/signal.c, do_freezer_trap, of
version 2, which the compiler may put into its caller; kernel/freezer.c, of version 1)."""
_32_BIT = 1 << 32
"""A stack pointer below this is that of a program for another machine (i386): its system calls have other
numbers."""


class Activity(msgspec.Struct, frozen=True):
    """A thread at one moment, its process's main one mostly."""

    pid: int
    comm: str
    state: str
    """``R`` runs or could, ``S`` waits, ``D`` waits uninterruptibly, ``T`` is stopped, ``t`` by a tracer, ``Z`` has
    ended."""
    ticks: int
    """Processor time that it has taken, user and system (1/SC_CLK_TCK s)."""
    switches: int | None
    """How often it has given up the processor to wait."""
    call: str | None
    """The system call in which it waits, where that may be read and has a name for us."""
    args: tuple[int, ...]
    wchan: str | None
    """The kernel function in which it waits."""
    hidden: bool
    """We may not read in which system call it is (ptrace access mode: root, mostly, or the same user)."""
    threads: int = 1
    """Of the process."""

    @property
    def is_held(self) -> bool:
        """By a signal, by a tracer, or with its control group: it goes on when somebody lets it."""
        return self.state in "Tt" or self.wchan in FREEZERS


def read_comm(pid: int) -> str | None:
    """``/proc/PID/comm``: the first 15 bytes of the process's name."""
    if pid <= 0:
        return None  # a process outside our pid namespace (pid_namespaces(7))
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode("utf-8", "backslashreplace")
    except OSError:
        return None


def read_capabilities() -> int:
    """Our own effective capabilities (capabilities(7)), a bit each; 0 where it cannot be told."""
    with contextlib.suppress(OSError), open("/proc/thread-self/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def read_ids(pid: int) -> tuple[int, int, tuple[int, ...]] | None:
    """Effective user and group, and the supplementary groups, of ``/proc/PID/status``."""
    found: dict[str, list[int]] = {}
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, values = line.partition(":")
                if key in ("Uid", "Gid", "Groups"):
                    found[key] = [int(value) for value in values.split()]
        return found["Uid"][1], found["Gid"][1], tuple(found["Groups"])
    except (OSError, ValueError, LookupError):
        return None


def read_inner_pid(pid: int) -> int | None:
    """What a process is called in its own pid namespace (``NSpid`` of ``/proc/PID/status``); None: that is ours, or
    it may not be seen."""
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid"):
            found = re.search(rb"^NSpid:\s*(.*)$", _read(f"/proc/{pid}/status"), re.MULTILINE)
            pids = found[1].split() if found else []
            return int(pids[-1]) if len(pids) > 1 else None
    return None


def read_parent(pid: int) -> int | None:
    """The parent's pid: the second field after the name in ``/proc/PID/stat``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def read_age(pid: int) -> float | None:
    """For how many seconds a process has been there: field 22 of ``/proc/PID/stat``, and ``/proc/uptime``."""
    try:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        return float(_read("/proc/uptime").split()[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError):
        return None


def read_tracer(pid: int) -> int | None:
    """Who traces it (ptrace(2)): ``TracerPid`` of ``/proc/PID/status``."""
    found = re.search(rb"^TracerPid:\s*([1-9]\d*)", _read(f"/proc/{pid}/status"), re.MULTILINE)
    return int(found[1]) if found else None


def read_activity(pid: int, thread: int | None = None) -> Activity | None:
    """What a process's main thread does now, or another of its threads. None: there is no such process."""
    of = f"/proc/{pid}" if thread is None else f"/proc/{pid}/task/{thread}"
    stat = _read(f"{of}/stat")
    try:
        name, _, rest = stat.partition(b"(")[2].rpartition(b")")
        fields = rest.split()
        state, ticks, threads = fields[0].decode("ascii"), int(fields[11]) + int(fields[12]), int(fields[17])
    except (ValueError, IndexError):
        return None
    text = _read(f"{of}/syscall")
    words = text.split()
    call: str | None = None
    args: tuple[int, ...] = ()
    if words == [b"running"] and state in "SD":
        state = "R"  # from one file to the other
    with contextlib.suppress(ValueError):
        # (Shorter: "running", or it is in no system call, or nothing.)
        if len(words) == 9 and int(words[7], 16) >= _32_BIT:
            call, args = syscall_name(int(words[0])), tuple(int(word, 16) for word in words[1:7])
    switches = re.search(rb"^voluntary_ctxt_switches:\s*(\d+)", _read(f"{of}/status"), re.MULTILINE)
    wchan = _read(f"{of}/wchan").decode("ascii", "replace")
    return Activity(
        pid,
        name.decode("utf-8", "backslashreplace"),
        state,
        ticks,
        int(switches[1]) if switches else None,
        call,
        args,
        wchan if wchan not in ("", "0") else None,
        hidden=not text,
        threads=threads,
    )


def threads_of(pid: int) -> list[int]:
    """Their ids; the main thread's is the process's. Empty where there is no such process."""
    try:
        return sorted(int(name) for name in os.listdir(f"/proc/{pid}/task"))
    except (OSError, ValueError):
        return []


def read_stack(pid: int) -> tuple[str, ...]:
    """The kernel functions in which a process waits, innermost first; empty where we may not read that."""
    lines = _read(f"/proc/{pid}/stack").decode("ascii", "replace").splitlines()
    return tuple(line.partition("] ")[2].partition("+")[0] for line in lines[:_MOST_STACK])


def read_memory(pid: int, address: int, nbytes: int) -> bytes:
    """Of a process; less than was asked for, or nothing, where it is not there or not to be read."""
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
            return os.pread(file.fileno(), nbytes, address)
    except (OSError, OverflowError):
        return b""


def read_descriptor(pid: int, number: int) -> str | None:
    """What a descriptor is: a path, or ``socket:[INODE]``, ``pipe:[INODE]``, ``anon_inode:[eventpoll]``."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{number}")
    except OSError:
        return None


def read_epoll(pid: int, number: int) -> list[tuple[int, int]]:
    """What an epoll watches (``/proc/PID/fdinfo``): the number that each descriptor had when it was added, which
    may stand for another by now, or in another process; and its inode."""
    text = _read(f"/proc/{pid}/fdinfo/{number}").decode("ascii", "replace")
    return [(int(added_as), int(inode, 16)) for added_as, inode in _WATCHED.findall(text)]


def read_file_inode(pid: int, number: int) -> int | None:
    """The inode of a process's open file."""
    try:
        return os.stat(f"/proc/{pid}/fd/{number}").st_ino
    except OSError:
        return None


def holder_of_lock(inode: int, waiter: int) -> int | None:
    """Who holds the lock on a file for which a process waits (``/proc/locks``); None: it cannot be told. It may
    have ended, and left the lock to its children (flock(2))."""
    found: dict[str, int] = {}
    for number, blocked, _, pid, of in _LOCK.findall(_read("/proc/locks").decode("ascii", "replace")):
        if int(of) != inode:
            continue
        if blocked:
            if int(pid) == waiter and found.get(number, 0) > 0:  # (-1: an open file's, no process's: fcntl(2))
                return found[number]
        else:
            found[number] = int(pid)
    return None


def sockets_of(pid: int) -> dict[int, int] | None:
    """The sockets that a process holds: the lowest descriptor by inode. None: that may not be read."""
    found = _sockets_of(pid)
    return None if found is None else dict(sorted(found, reverse=True))


def _sockets_of(pid: int) -> list[tuple[int, int]] | None:
    """(inode, descriptor)"""
    found = []
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return None
    for name in names:
        with contextlib.suppress(OSError):
            match = _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{name}"))
            if match:
                found.append((int(match[1]), int(name)))
    return found


def holders(pids: Iterable[int] | None = None) -> tuple[dict[int, list[tuple[int, int]]], int]:
    """Who holds each socket, by inode: (pid, descriptor), of these processes or all; and how many processes could
    not be looked at. Looks at every descriptor: not for the traffic's path."""
    found: dict[int, list[tuple[int, int]]] = {}
    hidden = 0
    for pid in sorted(_pids()) if pids is None else pids:
        sockets = _sockets_of(pid)
        if sockets is None:
            hidden += os.path.exists(f"/proc/{pid}")
            continue
        for inode, number in sockets:
            found.setdefault(inode, []).append((pid, number))
    return found, hidden


def holders_of(inode: int) -> list[int]:
    """The processes that hold this socket, as far as their ``/proc/PID/fd`` may be read: all for root, else
    those of the same user. Looks at every descriptor of every process: not for the traffic's path."""
    wanted = f"socket:[{inode}]"
    return [pid for pid in _pids() if wanted in _descriptors(pid)]


def descriptors_of(inode: int) -> Iterator[tuple[int, int]]:
    """Who holds this socket: (pid, descriptor), as `holders_of`."""
    for pid in holders_of(inode):
        for found, number in _sockets_of(pid) or ():
            if found == inode:
                yield pid, number


def listener_of(inode: int) -> int | None:
    """Who probably called listen() on a socket: the process that holds it and whose parent does not."""
    pids = holders_of(inode)
    return next((pid for pid in sorted(pids) if read_parent(pid) not in pids), None)


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _descriptors(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""
