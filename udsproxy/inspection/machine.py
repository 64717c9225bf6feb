"""One look at the sockets of this machine and who holds them: each kind is read once, when first asked for.

Rule: what is told is of one moment, more or less; for another, make another `Machine`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from functools import cached_property

import msgspec

from udsproxy.events import printable
from udsproxy.kernel import proc_net_unix, procfs
from udsproxy.kernel.diag_codec import ESTABLISHED, LISTEN, InetSocket, UnixSocket
from udsproxy.kernel.sock_diag import SockDiag

_ALL = ("0.0.0.0", "[::]")  # noqa: S104 - as sock_diag says it; nothing is bound
_INET = (
    ("tcp", socket.AF_INET, socket.IPPROTO_TCP),
    ("tcp", socket.AF_INET6, socket.IPPROTO_TCP),
    ("udp", socket.AF_INET, socket.IPPROTO_UDP),
    ("udp", socket.AF_INET6, socket.IPPROTO_UDP),
)


class Inet(msgspec.Struct, frozen=True):
    """A TCP or UDP socket."""

    kind: str
    family: int
    protocol: int
    sock: InetSocket


class Machine:
    """See the module."""

    def __init__(self) -> None:
        self.without: list[str] = []
        """What could not be seen, and why: a line each. Complete when everything was asked."""
        self._diag: SockDiag | None = None
        try:
            self._diag = SockDiag()
            with socket.socket(socket.AF_UNIX) as known:
                # (A kernel without unix_diag says ENOENT to everything: net/core/sock_diag.c.)
                seen = self._diag.unix_socket(os.fstat(known.fileno()).st_ino) is not None
        except OSError:
            seen = False
        if not seen:
            self._forget_diag()

    def _forget_diag(self) -> None:
        if self._diag is not None:
            self._diag.close()
            self._diag = None
        self.without.append(
            "this kernel has no unix_diag: no backlog, no peers, nobody's owner (modprobe unix_diag, as root)"
        )

    def close(self) -> None:
        if self._diag is not None:
            self._diag.close()

    @cached_property
    def unix(self) -> dict[int, UnixSocket]:
        """Every Unix socket of our network namespace, by inode."""
        if self._diag is not None:
            with contextlib.suppress(OSError):
                return {each.inode: each for each in self._diag.unix_sockets()}
            self._forget_diag()
        return {each.inode: each for each in proc_net_unix.read()}

    @cached_property
    def inet(self) -> dict[int, Inet]:
        """Every TCP and UDP socket of our network namespace, by inode."""
        found = {}
        for kind, family, protocol in _INET:
            with contextlib.suppress(OSError), SockDiag() as diag:  # (a kernel may lack one of them)
                for each in diag.inet_sockets(family, protocol):
                    found[each.inode] = Inet(kind, family, protocol, each)
        return found

    @cached_property
    def holders(self) -> dict[int, list[tuple[int, int]]]:
        """Who holds each socket: (pid, descriptor)."""
        found, hidden = procfs.holders()
        if hidden:
            whose = "" if os.geteuid() == 0 else " of other users (run as root to see them)"
            self.without.append(f"the sockets of {hidden} processes{whose}")
        return found

    @property
    def knows_backlog(self) -> bool:
        return self._diag is not None

    def accepted_under(self, name: bytes, kind: int) -> list[int]:
        """The inodes of what was accepted from a listener of that name and type."""
        return self._accepted.get((name, kind), [])

    @cached_property
    def _accepted(self) -> dict[tuple[bytes, int], list[int]]:
        found: dict[tuple[bytes, int], list[int]] = {}
        for each in self.unix.values():
            if each.name and each.state == ESTABLISHED:
                found.setdefault((each.name, each.type), []).append(each.inode)
        return found

    def others_of(self, inode: int, *pids: int) -> Iterator[int]:
        """The processes that hold this socket, but for these."""
        yield from dict.fromkeys(pid for pid, _ in self.holders.get(inode, ()) if pid not in pids)

    def who_holds(self, inode: int) -> str | None:
        """``mysqld (pid 9)``; where several do, the first (which is a master, mostly) and how many others."""
        pids = list(self.others_of(inode))
        if not pids:
            return None
        more = f", {len(pids) - 1} more" if len(pids) > 1 else ""
        return f"{name_of(pids[0])}, pid {pids[0]}{more}"

    def unix_name(self, inode: int) -> str | None:
        """``/run/x.sock``, or ``@name``; None: it has none, or there is no such socket."""
        found = self.unix.get(inode)
        return None if found is None else spelled(found.name)

    def other_end(self, found: Inet) -> int:
        """The inode of the other end of a connection on this machine; 0: it is elsewhere, or not connected."""
        if self._diag is None:
            return 0
        with contextlib.suppress(OSError), SockDiag() as diag:
            other = diag.other_end(found.family, found.protocol, found.sock)
            return 0 if other is None else other.inode
        return 0

    def listener_at(self, address: str) -> int:
        """The inode of the TCP socket that listens at ``10.0.0.5:3306``, also for all addresses; 0: nobody does."""
        port = address.rpartition(":")[2]
        for each in self.inet.values():
            host, _, its = each.sock.local.rpartition(":")
            if each.sock.state == LISTEN and its == port and (each.sock.local == address or host in _ALL):
                return each.sock.inode
        return 0


def name_of(pid: int) -> str:
    """A process's name, safe to print."""
    return printable(procfs.read_comm(pid) or "?")


def spelled(name: bytes | None) -> str | None:
    """A Unix socket's name as people write it: a path, or ``@NAME`` for an abstract one."""
    if not name:
        return None
    return "@" + printable(name[1:]) if name[:1] == b"\0" else printable(name.partition(b"\0")[0])
