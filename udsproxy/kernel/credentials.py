"""Who is at the other end of a Unix socket: SO_PEERCRED (unix(7)); and being somebody else for a system call.

Rules: only the thread that asks is somebody else (raw system calls: those of the C library change every thread),
for no more than the one call that needs it. Where it cannot become itself again the process ends: it must serve
nobody as somebody else. Who cannot be had (in a user namespace, whoever it has no number for) is ourselves in that
part: user, group, or groups.
"""

from __future__ import annotations

import _socket
import array
import contextlib
import ctypes
import os
import platform
import socket
import struct
from collections.abc import Callable
from typing import Any, Self, TypeVar

import msgspec

from udsproxy.events import Client, printable
from udsproxy.kernel.procfs import read_capabilities, read_comm, read_inner_pid

_UCRED = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""

# Plain numbers: the enumerations of the socket module cost more than the system call they are passed to.
_SOL_SOCKET, _SO_PEERCRED, _SO_PEERGROUPS = int(socket.SOL_SOCKET), int(socket.SO_PEERCRED), 59
_MOST_GROUPS = 65536

_KEEP_NS = 1_000_000_000
_MAX_KEPT = 1024

_CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 6, 7, 21
_CALLS = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147), "riscv64": (159, 149, 147)}
"""The numbers of setgroups, setresgid and setresuid."""

T = TypeVar("T")


class Peers:
    """Peers by their credentials, kept for a second: a busy client connects thousands of times in one."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[int, Client]] = {}

    def of(self, sock: _socket.socket, now: int) -> Client:
        """The process that connected ``sock``, or listened on its other end. ``now`` in monotonic ns."""
        return self.who(raw_peer_of(sock), now)

    def pids(self) -> list[int]:
        """Of those who came lately."""
        return [client.pid for _, client in self._kept.values() if client.pid > 0]

    def who(self, raw: bytes, now: int) -> Client:
        """The process of this struct ucred."""
        kept = self._kept.get(raw)
        if kept is not None and now - kept[0] < _KEEP_NS:
            return kept[1]
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        pid, uid, gid = _UCRED.unpack(raw)
        comm = read_comm(pid)
        client = Client(pid, uid, gid, None if comm is None else printable(comm), read_inner_pid(pid))
        self._kept[raw] = now, client
        return client


def raw_peer_of(sock: _socket.socket) -> bytes:
    """Who connected ``sock``, or called listen() for its other end: struct ucred. Raises OSError."""
    return sock.getsockopt(_SOL_SOCKET, _SO_PEERCRED, _UCRED.size)


class Credentials(msgspec.Struct, frozen=True):
    """Effective user, effective group, supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    @classmethod
    def of_peer(cls, sock: _socket.socket) -> Self:
        """Those of who connected ``sock``, or called listen() for its other end. Raises OSError."""
        _, uid, gid = _UCRED.unpack(raw_peer_of(sock))
        groups = array.array("I")
        try:
            groups.frombytes(sock.getsockopt(_SOL_SOCKET, _SO_PEERGROUPS, 1024))
        except OSError:
            # ERANGE: there are more.
            groups.frombytes(sock.getsockopt(_SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * groups.itemsize))
        return cls(uid, gid, tuple(groups))

    @classmethod
    def ours(cls) -> Self:
        return cls(os.geteuid(), os.getegid(), tuple(os.getgroups()))


class Actor:
    """Makes calls as somebody else."""

    def __init__(self) -> None:
        self.falls_short: Callable[[Credentials, Credentials], None] | None = None
        """Is told, once, of somebody whom we cannot be: who, and as whom calls are made in that place."""
        self._users, self._groups = _mapped("uid_map"), _mapped("gid_map")
        self._sets_groups = _read_own("setgroups") != "deny\n"
        self._kept: dict[bytes, Credentials] = {}
        self.own = Credentials.ours()
        capabilities = read_capabilities()
        self.able = platform.machine() in _CALLS and all(
            capabilities >> number & 1 for number in (_CAP_SETUID, _CAP_SETGID)
        )
        """We may."""
        self.speaks = self.able and bool(capabilities >> _CAP_SYS_ADMIN & 1)
        """We may send messages in the name of other processes, their pid included (net/core/scm.c)."""
        if self.able:
            # (Not CDLL, which lets other threads run at each call: these return at once.)
            self._syscall = ctypes.PyDLL(None, use_errno=True).syscall
        self._as: Credentials | None = None
        """Of whom these are the system calls that make us that one, and ourselves again."""
        self._become: list[tuple[Any, ...]] = []
        self._return: list[tuple[Any, ...]] = []

    def of_peer(self, sock: _socket.socket) -> Credentials:
        """`Credentials.of_peer`, faster for who was seen before."""
        raw = raw_peer_of(sock)[4:]
        with contextlib.suppress(OSError):
            raw += sock.getsockopt(_SOL_SOCKET, _SO_PEERGROUPS, 1024)
            found = self._kept.get(raw)
            if found is None:
                if len(self._kept) >= _MAX_KEPT:
                    self._kept.clear()
                found = self._kept[raw] = Credentials.of_peer(sock)
            return found
        return Credentials.of_peer(sock)

    def act(self, as_: Credentials, call: Callable[[], T]) -> T:
        """Make this call, which must not wait, as somebody. Raises what the call does."""
        if as_ is not self._as:
            near = self._nearest(as_)
            if near != as_:
                self._tell(as_, near)
            self._become = _steps(self.own, near)
            self._return = _steps(near, self.own)
            self._as = as_
        syscall, done = self._syscall, 0
        try:
            for step in self._become:
                if syscall(*step):
                    break
                done += 1
            else:
                return call()
        finally:
            for step in self._return[:done][::-1]:
                if syscall(*step):
                    os.abort()
        # (They have an effect at once, or none: a security module may say no, whatever our capabilities.)
        self._tell(as_, self.own)
        return call()

    def _nearest(self, wanted: Credentials) -> Credentials:
        """The nearest to it that we can be."""
        return Credentials(
            wanted.uid if _holds(self._users, wanted.uid) else self.own.uid,
            wanted.gid if _holds(self._groups, wanted.gid) else self.own.gid,
            tuple(group for group in wanted.groups if _holds(self._groups, group))
            if self._sets_groups
            else self.own.groups,
        )

    def _tell(self, wanted: Credentials, near: Credentials) -> None:
        if self.falls_short is not None:
            tell, self.falls_short = self.falls_short, None
            tell(wanted, near)


def _mapped(name: str) -> list[range]:
    """The numbers of users, or groups, that there are in our user namespace (user_namespaces(7))."""
    rows = [[int(number) for number in line.split()] for line in _read_own(name).splitlines()]
    return [range(first, first + count) for first, _, count in rows] or [range(2**32 - 1)]


def _holds(mapped: list[range], number: int) -> bool:
    return any(number in each for each in mapped)


def _read_own(name: str) -> str:
    """A file of our own; what is not there is empty."""
    with contextlib.suppress(OSError), open(f"/proc/thread-self/{name}", encoding="ascii") as file:
        return file.read()
    return ""


def _steps(before: Credentials, after: Credentials) -> list[tuple[Any, ...]]:
    """System calls that lead from one to the other, the user last: who is not root may not change the rest."""
    setgroups, setresgid, setresuid = (ctypes.c_long(number) for number in _CALLS[platform.machine()])
    same = ctypes.c_long(-1)
    steps: list[tuple[Any, ...]] = []
    if after.groups != before.groups:
        count = len(after.groups)
        steps.append((setgroups, ctypes.c_long(count), (ctypes.c_uint * count)(*after.groups)))
    if after.gid != before.gid:
        steps.append((setresgid, same, ctypes.c_ulong(after.gid), same))
    if after.uid != before.uid:
        steps.append((setresuid, same, ctypes.c_ulong(after.uid), same))
    return steps
