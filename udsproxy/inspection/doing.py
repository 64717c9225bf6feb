"""What a process does now: in which system call it waits, and on what.

Rules: it is about a process's main thread. A system call's arguments say which descriptor; ``/proc/PID/fd`` says
what that is; sock_diag who is at its other end. Where one of these may not be read, what is left is told.
"""

from __future__ import annotations

import socket
import struct

import msgspec

from udsproxy.events import Doing, What, printable
from udsproxy.inspection.machine import Inet, Machine, name_of, spelled
from udsproxy.kernel import procfs, syscalls
from udsproxy.kernel.diag_codec import LISTEN, UnixSocket
from udsproxy.kernel.procfs import Activity

_POLLFD = struct.Struct("=ihh")
_MOST_POLLED = 64
"""Descriptors of one poll() that are looked at."""
_MOST_NAMED = 2
"""Of which so many are named."""
_SHOWN = 200
"""Characters of a path."""


class Target(msgspec.Struct, frozen=True):
    """What a descriptor is."""

    what: What
    text: str
    who: str | None = None


class Doer:
    """Tells what processes do, and remembers what they did when it was last asked."""

    def __init__(self) -> None:
        self._before: dict[int, tuple[Activity, float]] = {}

    def doing(self, pid: int, machine: Machine, now: float, *, stack: bool = False) -> Doing | None:
        """``now``: s, of any clock that only goes on. ``stack``: with the kernel's, where we may read that. None:
        there is no such process."""
        seen = procfs.read_activity(pid)
        if seen is None:
            self._before.pop(pid, None)
            return None
        before, since = self._before.get(pid, (None, now))
        same = before is not None and _is_same_wait(before, seen)
        if not same:
            since = now
        self._before[pid] = seen, since
        what, call, target = _tell(pid, seen, machine)
        return Doing(
            what=what,
            call=call,
            on=None if target is None else target.text,
            who=None if target is None else target.who,
            for_s=now - since if same else None,
            wchan=seen.wchan,
            stack=procfs.read_stack(pid) or None if stack else None,
        )

    def forget(self, alive: set[int]) -> None:
        """All but these processes."""
        for pid in self._before.keys() - alive:
            del self._before[pid]


def _is_same_wait(before: Activity, now: Activity) -> bool:
    if now.state == "R":
        return before.state == "R" and before.switches == now.switches
    return (before.call, before.args, before.wchan, before.switches, before.ticks) == (
        now.call, now.args, now.wchan, now.switches, now.ticks,
    )  # fmt: skip


def _tell(pid: int, seen: Activity, machine: Machine) -> tuple[What, str | None, Target | None]:
    if seen.state == "R":
        return "cpu", None, None
    if seen.state in "Tt":
        return "stopped", None, None
    if seen.state in "ZX":
        return "ended", None, None
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
        return "lock", call, _locked_file(pid, args[0] & 0x7FFFFFFF)
    targets = [_describe(pid, number, machine) for number in _descriptors(pid, call, args)]
    if not targets:
        polls = call in syscalls.POLLS | syscalls.SELECTS | syscalls.EPOLLS
        return ("sleep" if polls else "disk" if seen.state == "D" else "unknown"), call, None
    accepting = [each for each in targets if each.what == "accept"]
    if accepting:
        return "accept", call, accepting[0]
    return targets[0].what, call, _joined(targets)


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
    "inet_csk": "accept",
    "nanosleep": "sleep",
    "locks_lock": "lock",
    "flock": "lock",
    "pipe": "pipe",
    "futex": "thread",
    "do_wait": "child",
}


def _descriptors(pid: int, call: str, args: tuple[int, ...]) -> list[int]:
    """The descriptors that it waits for."""
    if call in syscalls.ON_DESCRIPTOR:
        return [args[0]] if args[0] < 1 << 31 else []
    if call in syscalls.POLLS:
        count = min(args[1], _MOST_POLLED)
        data = procfs.read_memory(pid, args[0], count * _POLLFD.size)
        whole = len(data) // _POLLFD.size * _POLLFD.size
        return [number for number, _, _ in _POLLFD.iter_unpack(data[:whole]) if number >= 0]
    if call in syscalls.SELECTS:
        nbytes = (min(args[0], 1024) + 7) // 8
        numbers = []
        for address in args[1:4]:
            bits = int.from_bytes(procfs.read_memory(pid, address, nbytes) if address else b"", "little")
            numbers += [number for number in range(bits.bit_length()) if bits >> number & 1]
        return list(dict.fromkeys(numbers))[:_MOST_POLLED]
    if call in syscalls.EPOLLS:
        return procfs.read_epoll(pid, args[0])[:_MOST_POLLED]
    return []


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
        return Target("socket", "a socket of another kind or network namespace")
    if kind == "pipe":
        return Target("pipe", "a pipe")
    if kind == "anon_inode":
        return Target("unknown", printable(rest.strip("[]")))
    return Target("file", printable(link)[:_SHOWN])


def _inet(found: Inet, machine: Machine) -> Target:
    sock = found.sock
    if found.kind == "tcp" and sock.state == LISTEN:
        return Target("accept", f"tcp {sock.local}")
    to = sock.remote
    who = machine.who_holds(machine.other_end(found) or machine.listener_at(to))
    return Target("socket", f"{found.kind} {to}", who)


def _unix(pid: int, unix: UnixSocket, machine: Machine) -> Target:
    if unix.listening:
        return Target("accept", f"unix {spelled(unix.name) or '(no name)'}")
    if unix.type == socket.SOCK_DGRAM and not unix.peer:
        return Target("socket", f"unix datagrams at {spelled(unix.name) or '(no name)'}")
    peer = machine.unix.get(unix.peer)
    name = spelled(peer.name if peer is not None and peer.name else unix.name)
    other = next(machine.others_of(unix.peer, pid), None) if unix.peer else None
    who = f"{name_of(other)}, pid {other}" if other is not None else None
    if not unix.peer:
        who = "its other end is closed"
    return Target("socket", f"unix {name}" if name else "a unix socket without a name", who)


def _locked_file(pid: int, number: int) -> Target | None:
    link = procfs.read_descriptor(pid, number)
    if link is None:
        return None
    inode = procfs.read_file_inode(pid, number)
    holder = None if inode is None else procfs.holder_of_lock(inode, pid)
    who = None if holder is None else f"{name_of(holder)}, pid {holder}"
    return Target("lock", printable(link)[:_SHOWN], who)


def _joined(targets: list[Target]) -> Target:
    """Of several, those that say most first; and how many more there are."""
    if len(targets) == 1:
        return targets[0]
    ranked = sorted(targets, key=lambda each: each.what == "unknown")
    named, more = ranked[:_MOST_NAMED], len(ranked) - _MOST_NAMED
    text = ", ".join(f"{each.text} ({each.who})" if each.who else each.text for each in named)
    return Target(named[0].what, text + (f" and {more} more" if more > 0 else ""))
