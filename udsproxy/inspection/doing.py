"""What a process does now: in which system call it waits, and on what.

Rules: it is about a process's main thread (`waits_at` looks at all). A system call's arguments say which
descriptor; ``/proc/PID/fd`` says what that is; sock_diag who is at its other end. Where one of these may not be
read, what is left is told.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from udsproxy.events import Doing, What, printable
from udsproxy.inspection.machine import Inet, Machine, spelled
from udsproxy.kernel import procfs, syscalls
from udsproxy.kernel.diag_codec import ESTABLISHED, LISTEN, UnixSocket
from udsproxy.kernel.procfs import Activity

_POLLFD = struct.Struct("=ihh")
_MOST_POLLED = 4096
"""Descriptors of one poll() that are looked at."""
_MOST_DESCRIBED = 64
"""Of which so many are looked up."""
_MOST_THREADS = 256
"""Of one process, that are looked at."""
_ADDRESS = struct.Struct("=H")
"""struct sockaddr: the family; behind it the address."""
_MOST_ADDRESS = 110
"""struct sockaddr_un."""
_MOST_NAMED = 2
"""Of which so many are named."""
_SHOWN = 200
"""Characters of a path."""


class Target(msgspec.Struct, frozen=True):
    """What a descriptor is."""

    what: What
    text: str
    who: str | None = None
    local: str | None = None


class Doer:
    """Tells what processes do, and remembers what they did when it was last asked."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[Activity, float]] = {}
        self.hidden: set[int] = set()
        """The processes of which it could not be read in which system call they are."""

    def doing(self, pid: int, machine: Machine, now: float, *, stack: bool = False) -> Doing | None:
        """``now``: s, of any clock that only goes on. ``stack``: with the kernel's, where we may read that. None:
        there is no such process."""
        seen = procfs.read_activity(pid)
        if seen is None:
            self._before.pop(pid, None)
            self.hidden.discard(pid)
            return None
        (self.hidden.add if seen.hidden and seen.state in "SD" else self.hidden.discard)(pid)
        before, since = self._before.get(pid, (None, now))
        same = before is not None and is_same_wait(before, seen)
        if not same:
            since = now
        self._before[pid] = seen, since
        what, call, target = tell(pid, seen, machine)
        return Doing(
            what=what,
            call=call,
            on=None if target is None else target.text,
            who=None if target is None else target.who,
            local=None if target is None else target.local,
            for_s=now - since if same else None,
            wchan=seen.wchan,
            stack=procfs.read_stack(pid) or None if stack else None,
            threads=seen.threads if seen.threads > 1 else None,
        )

    def forget(self, alive: set[int]) -> None:
        """All but these processes."""
        for pid in self._before.keys() - alive:
            del self._before[pid]
        self.hidden &= alive


def waits_at(pid: int, inode: int, numbers: set[int]) -> bool | None:
    """Does a process wait for what comes to a socket of its own (a connection, a datagram)? ``numbers``: the
    descriptors that it has of it. None: it cannot be told."""
    threads = procfs.threads_of(pid)
    unknown = len(threads) > _MOST_THREADS
    for thread in threads[:_MOST_THREADS]:
        seen = procfs.read_activity(pid, thread)
        if seen is None or seen.state in "RZX" or seen.is_held:
            continue
        call, args = seen.call, seen.args
        if call is None or call == "io_uring_enter":
            unknown = True
        elif call in syscalls.EPOLLS:
            if any(watched == inode for _, watched in procfs.read_epoll(pid, args[0])):
                return True
        elif call in syscalls.POLLS | syscalls.SELECTS | syscalls.TAKES and numbers.intersection(
            waited_for(pid, call, args)
        ):
            return True
    return None if unknown or not threads else False


def is_same_wait(before: Activity, now: Activity) -> bool:
    """Has it not gone on since it was looked at before?"""
    if now.state == "R":
        return before.state == "R" and before.switches == now.switches
    return (before.call, before.args, before.wchan, before.switches, before.ticks) == (
        now.call, now.args, now.wchan, now.switches, now.ticks,
    )  # fmt: skip


def tell(pid: int, seen: Activity, machine: Machine) -> tuple[What, str | None, Target | None]:
    """What a process does that was seen so: what kind of thing, in which system call, on what."""
    if seen.state == "R":
        return "cpu", None, None
    if seen.is_held:
        return "stopped", None, None
    if seen.state in "ZX":
        # (Its main thread may end before the others.)
        return ("ended" if seen.threads <= 1 else "unknown"), None, None
    call, args = seen.call, seen.args
    if call is None:
        return ("disk" if seen.state == "D" else _by_wchan(seen)), None, None
    if call in syscalls.SLEEPS:
        return "sleep", call, None
    if call in syscalls.CHILDREN:
        return "child", call, None
    if call in syscalls.SEMAPHORES:
        return "thread", call, None
    if call in syscalls.LOCKS:
        return "lock", call, _locked_file(pid, args[0] & 0x7FFFFFFF, machine)
    if call in ("connect", "sendto"):
        address, nbytes = args[1:3] if call == "connect" else args[4:6]
        target = _addressed(pid, address, nbytes, machine)
        if target is not None:
            return target.what, call, target
    numbers = waited_for(pid, call, args)
    targets = [_describe(pid, number, machine) for number in numbers[:_MOST_DESCRIBED]]
    if not targets:
        polls = call in syscalls.POLLS | syscalls.SELECTS | syscalls.EPOLLS
        return ("sleep" if polls else "disk" if seen.state == "D" else "unknown"), call, None
    if call in ("accept", "accept4") and targets[0].what in ("file", "pipe"):
        # (A server that expects its socket from systemd, or from a web server, and was started by hand.)
        return "unknown", call, Target("unknown", f"{targets[0].text}, which is no socket: ENOTSOCK")
    accepting = [each for each in targets if each.what == "accept"]
    if accepting:
        return "accept", call, accepting[0]
    joined = _joined(targets, len(numbers) - len(targets))
    return joined.what, call, joined


def _by_wchan(seen: Activity) -> What:
    """What the kernel function alone says, where the system call may not be read."""
    where = seen.wchan or ""
    for part, what in _WCHANS.items():
        if part in where:
            return what
    return "unknown"


_WCHANS: dict[str, What] = {
    "accept": "accept",
    "unix_wait_for_peer": "socket",
    "skb_wait": "socket",
    "unix_stream": "socket",
    "sk_wait": "socket",
    "sk_stream": "socket",
    "inet_wait_for_connect": "socket",
    "inet_csk": "accept",
    "nanosleep": "sleep",
    "locks_lock": "lock",
    "flock": "lock",
    "pipe": "pipe",
    "futex": "thread",
    "do_wait": "child",
}


def waited_for(pid: int, call: str, args: tuple[int, ...]) -> list[int]:
    """The descriptors that a process waits for in a system call."""
    if call in syscalls.ON_DESCRIPTOR:
        return [args[0]] if args[0] < 1 << 31 else []
    if call in syscalls.POLLS:
        count = min(args[1], _MOST_POLLED)
        data = procfs.read_memory(pid, args[0], count * _POLLFD.size)
        whole = len(data) // _POLLFD.size * _POLLFD.size
        return [number for number, _, _ in _POLLFD.iter_unpack(data[:whole]) if number >= 0]
    if call in syscalls.SELECTS:
        nbytes = (min(args[0], _MOST_POLLED) + 7) // 8
        numbers = []
        for address in args[1:4]:
            bits = int.from_bytes(procfs.read_memory(pid, address, nbytes) if address else b"", "little")
            numbers += [number for number in range(bits.bit_length()) if bits >> number & 1]
        return list(dict.fromkeys(numbers))[:_MOST_POLLED]
    if call in syscalls.EPOLLS:
        return _watched(pid, args[0])
    return []


def _watched(pid: int, epoll: int) -> list[int]:
    """What a process knows by other numbers than when it was added, or not at all, is left out."""
    found = sorted(procfs.read_epoll(pid, epoll))[:_MOST_POLLED]  # (the kernel's order is that of addresses)
    return [number for number, inode in found if procfs.read_file_inode(pid, number) == inode]


def _addressed(pid: int, address: int, nbytes: int, machine: Machine) -> Target | None:
    """The Unix socket that a system call names; None: it names none, or that may not be read."""
    data = procfs.read_memory(pid, address, min(nbytes, _MOST_ADDRESS)) if address else b""
    if len(data) <= _ADDRESS.size or _ADDRESS.unpack_from(data)[0] != socket.AF_UNIX:
        return None
    name = data[_ADDRESS.size :]
    if name[:1] != b"\0":
        name = name.partition(b"\0")[0]
    found = machine.servers_at(name, pid)
    who = _owner(found[0], pid, machine) if len(found) == 1 else None
    if len(found) == 1 and found[0].listening and machine.has_diag and found[0].queue > found[0].backlog:
        full = f"queue full: {found[0].queue} of {found[0].backlog + 1}"
        who = f"{who}, {full}" if who else full
    return Target("socket", f"unix {spelled(name)}", who)


def _describe(pid: int, number: int, machine: Machine) -> Target:
    link = procfs.read_descriptor(pid, number)
    if link is None:
        return Target("unknown", f"descriptor {number}")
    kind, _, rest = link.partition(":")
    if kind == "socket" and rest[1:-1].isdigit():
        inode = int(rest[1:-1])
        found = machine.inet.get(inode)
        if found is not None:
            return _inet(found, machine)
        unix = machine.unix.get(inode)
        if unix is not None:
            return _unix(pid, unix, machine)
        return Target("socket", "a socket of another kind, or of a network namespace that may not be entered")
    if kind == "pipe":
        return Target("pipe", "a pipe")
    if kind == "anon_inode":
        return Target("unknown", printable(rest.strip("[]")))
    return Target("file", printable(link)[:_SHOWN])


def _inet(found: Inet, machine: Machine) -> Target:
    sock = found.sock
    if found.kind == "tcp" and sock.state == LISTEN:
        return Target("accept", f"tcp {sock.local}")
    if sock.remote.endswith(":0"):
        return Target("socket", f"{found.kind} at {sock.local}")
    who = machine.who_holds(machine.other_end(found) or machine.listener_of(found))
    return Target("socket", f"{found.kind} {sock.remote}", who, sock.local)


def _unix(pid: int, unix: UnixSocket, machine: Machine) -> Target:
    if unix.listening:
        return Target("accept", f"unix {spelled(unix.name) or '(no name)'}")
    if unix.type == socket.SOCK_DGRAM and not unix.peer:
        return Target("socket", f"unix datagrams at {spelled(unix.name) or '(no name)'}")
    server = machine.queued.get(unix.inode)
    if server is not None:
        who = f"not accepted yet by {_owner(server, pid, machine) or 'its server'}"
        return Target("socket", f"unix {spelled(server.name) or '(no name)'}", who)
    peer = machine.unix.get(unix.peer)
    name = spelled(peer.name if peer is not None and peer.name else unix.name)
    text = f"unix {name}" if name else "a unix socket without a name"
    if unix.peer:
        return Target("socket", text, _owner(peer, pid, machine) if peer is not None else None)
    if not machine.has_diag:
        return Target("socket", text)
    return Target("socket", text, "its other end is closed" if unix.state == ESTABLISHED else "not connected")


def _owner(sock: UnixSocket, pid: int, machine: Machine) -> str | None:
    """Who holds a socket, another process if there is one."""
    other = next(machine.others_of(sock.inode, pid), None)
    return machine.named(other) if other is not None else machine.who_holds(sock.inode)


def _locked_file(pid: int, number: int, machine: Machine) -> Target | None:
    link = procfs.read_descriptor(pid, number)
    if link is None:
        return None
    inode = procfs.read_file_inode(pid, number)
    holder = None if inode is None else procfs.holder_of_lock(inode, pid)
    who = None if holder is None else machine.named(holder)
    return Target("lock", printable(link)[:_SHOWN], who)


def _joined(targets: list[Target], besides: int) -> Target:
    """Of several, those that say most first; and how many more there are (``besides``: and were not looked at)."""
    if len(targets) == 1 and not besides:
        return targets[0]
    ranked = sorted(targets, key=lambda each: each.what == "unknown")
    named, more = ranked[:_MOST_NAMED], len(ranked) - _MOST_NAMED + besides
    text = ", ".join(f"{each.text} ({each.who})" if each.who else each.text for each in named)
    return Target(named[0].what, text + (f" and {more} more" if more > 0 else ""))
