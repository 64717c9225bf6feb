"""One look at the sockets of this machine and who holds them: each kind is read once, when first asked for.

Rules: what is told is of one moment, more or less; for another, make another `Machine`. Sockets of all network
namespaces that we may enter are looked at (an inode is one socket's over all of them); those that we may not are
counted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Iterator
from functools import cached_property

import msgspec

from udsproxy.endpoints import ownership
from udsproxy.events import pid_text, printable
from udsproxy.inspection.abilities import WORKERS, how_to_have
from udsproxy.inspection.everywhere import Everywhere
from udsproxy.kernel import namespaces, proc_net_unix, process_table, procfs
from udsproxy.kernel.diag_codec import ESTABLISHED, LISTEN, InetSocket, UnixSocket
from udsproxy.kernel.namespaces import Namespace, Namespaces
from udsproxy.kernel.server_diag import is_bound
from udsproxy.kernel.sock_diag import SockDiag
from udsproxy.kernel.socket_file import SocketFile

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
    namespace: int = 0
    """The number of its network namespace; 0: it is ours."""


class Machine:
    """See the module."""

    def __init__(self, *, diag: bool = True, spaces: Namespaces | None = None) -> None:
        """``diag``: False where unix_diag shall not be used, although the kernel has it. ``spaces``: the network
        namespaces, where they were looked for before."""
        self._diag: SockDiag | None = None
        self.everywhere = Everywhere(spaces)
        self._hidden_processes = 0
        self._names: dict[int, str] = {}
        self._inner_pids: dict[int, int | None] = {}
        self._parents: dict[int, int | None] = {}
        self.closed_directories: set[str] = set()
        """Names of sockets whose directory we may not enter. (Whoever looks there adds them.)"""
        if not diag:
            return
        try:
            self._diag = SockDiag()
            seen = self._diag.works()
        except OSError:
            seen = False
        if not seen:
            self._forget_diag()

    def _forget_diag(self) -> None:
        if self._diag is not None:
            self._diag.close()
            self._diag = None

    def close(self) -> None:
        if self._diag is not None:
            self._diag.close()
        self.everywhere.close()

    @property
    def has_diag(self) -> bool:
        """Without it neither backlog, nor peers, nor unread bytes are known (`proc_net_unix`)."""
        return self._diag is not None

    @property
    def without(self) -> list[str]:
        """What could not be seen, and why: a line each. Complete when everything was asked."""
        lines = []
        if self._diag is None:
            lines.append(
                "backlogs, peers, unread bytes: this kernel has no unix_diag (modprobe unix_diag), "
                "/proc/net/unix is all there is, and which socket is at a path is told by its name alone"
            )
        if self._hidden_processes:
            several = "process" if self._hidden_processes == 1 else "processes"
            whose = "" if os.geteuid() == 0 else " of other users"
            how = how_to_have([WORKERS])
            lines.append(f"the sockets of {self._hidden_processes} {several}{whose} ({how} to see them)")
        if closed := self.everywhere.closed:
            several = "namespace" if closed == 1 else "namespaces"
            lines.append(f"{closed} other network {several} (that takes root: CAP_SYS_ADMIN)")
        if not os.path.exists("/proc/self"):
            lines.append("processes: /proc is not mounted (mount -t proc proc /proc)")
        elif not os.path.exists("/proc/1"):
            lines.append("processes of other users: /proc is mounted with hidepid")
        if self.closed_directories:
            some = sorted(self.closed_directories)
            more = f" and {len(some) - 1} more" if len(some) > 1 else ""
            lines.append(f"owner and mode of {some[0]}{more}: the directory may not be entered")
        return lines

    @cached_property
    def unix(self) -> dict[int, UnixSocket]:
        """Every Unix socket, by inode."""
        if self._diag is not None:
            try:
                found = {each.inode: each for each in self._diag.unix_sockets()}
            except OSError:
                self._forget_diag()
            else:
                for space, diag in self.everywhere.diags:
                    with contextlib.suppress(OSError):
                        there = {each.inode: each for each in diag.unix_sockets()}
                        self._foreign |= dict.fromkeys(there, space)
                        found |= there
                return found
        return {each.inode: each for each in proc_net_unix.read()}

    @cached_property
    def _foreign(self) -> dict[int, Namespace]:
        """The Unix sockets that are in another network namespace than ours."""
        return {}

    def namespace_of(self, sock: UnixSocket) -> Namespace | None:
        """None: ours."""
        return self._foreign.get(sock.inode)

    @cached_property
    def inet(self) -> dict[int, Inet]:
        """Every TCP and UDP socket, by inode."""
        found = {}
        with contextlib.suppress(OSError), SockDiag() as own:
            for number, diag in self._spaces_of_inet(own):
                for kind, family, protocol in _INET:
                    with contextlib.suppress(OSError):  # (a kernel may lack one of them)
                        for each in diag.inet_sockets(family, protocol):
                            if each.inode:  # (else nobody holds it any more: TIME_WAIT)
                                found[each.inode] = Inet(kind, family, protocol, each, number)
        return found

    def _spaces_of_inet(self, own: SockDiag) -> list[tuple[int, SockDiag]]:
        elsewhere = self.everywhere.diags if self._diag is not None else []
        return [(0, own), *((space.number, diag) for space, diag in elsewhere)]

    @cached_property
    def holders(self) -> dict[int, list[tuple[int, int]]]:
        """Who holds each socket: (pid, descriptor)."""
        found, self._hidden_processes = procfs.holders()
        return found

    def accepted_from(self, listener: UnixSocket) -> list[UnixSocket]:
        """What has the name, the file and the type of a listener, and is connected (net/unix/af_unix.c,
        unix_stream_connect)."""
        return self._accepted.get(self._key_of(listener), []) if listener.name else []

    @cached_property
    def _accepted(self) -> dict[tuple[object, ...], list[UnixSocket]]:
        found: dict[tuple[object, ...], list[UnixSocket]] = {}
        for each in self.unix.values():
            if each.name and each.state == ESTABLISHED and each.type != socket.SOCK_DGRAM:
                found.setdefault(self._key_of(each), []).append(each)
        return found

    def _key_of(self, sock: UnixSocket) -> tuple[object, ...]:
        # (What was accepted is in the client's network namespace; who has no file has clients in its own alone.)
        space = None if sock.file is not None else self.namespace_of(sock)
        return sock.name, sock.file, sock.type, space

    def connected_to(self, inode: int) -> UnixSocket | None:
        """The listening socket that a connection was made to, given the client's end of it, accepted or not; None:
        it is no such end, or nobody listens there any more."""
        client = self.unix.get(inode)
        if client is None or client.state != ESTABLISHED:
            return None
        accepted = self.unix.get(client.peer)
        if accepted is None:
            return self.queued.get(inode)
        return self._listeners.get(self._key_of(accepted)) if accepted.name else None

    @cached_property
    def _listeners(self) -> dict[tuple[object, ...], UnixSocket]:
        return {self._key_of(each): each for each in self.unix.values() if each.listening and each.name}

    @cached_property
    def queued(self) -> dict[int, UnixSocket]:
        """The clients that nobody has accepted yet, by inode: in whose queue."""
        return {client: each for each in self.unix.values() for client in each.waiting if client}

    @cached_property
    def servers(self) -> list[UnixSocket]:
        """Who can be addressed: all sockets with a name of their own. (What a listener has accepted shares its
        name, and is connected.)"""
        return [
            each for each in self.unix.values()
            if each.name and (each.state != ESTABLISHED or each.type == socket.SOCK_DGRAM)
        ]  # fmt: skip

    def servers_at(self, name: bytes, pid: int) -> list[UnixSocket]:
        """Those that a process would address by a name as connect() takes it, as far as that is sure."""
        if name.startswith(b"\0"):
            number = namespaces.of_process(pid)
            return [each for each in self.servers if each.name == name and self._is_in(each, number)]
        path = os.fsdecode(name.partition(b"\0")[0])
        try:
            file = SocketFile.at(path, pid)
        except (OSError, ValueError):
            return []
        return self.at(file)[0]

    def _is_in(self, sock: UnixSocket, number: int | None) -> bool:
        space = self.namespace_of(sock)
        return number in (None, namespaces.own_number() if space is None else space.number)

    def at(self, file: SocketFile) -> tuple[list[UnixSocket], list[UnixSocket]]:
        """The sockets that are bound to a file: those that are it for sure, and those that may be."""
        sure, unsure = [], []
        for each in self.servers:
            known = self.is_file_of(each, file)
            if known:
                sure.append(each)
            elif known is None:
                unsure.append(each)
        if not sure and unsure and is_bound(file.path) is False:
            unsure = []
        return sure, [] if sure else unsure

    def is_file_of(self, sock: UnixSocket, file: SocketFile) -> bool | None:
        """Is this the file that a socket is bound to? None: that cannot be told."""
        known = file.is_of(sock)
        return file.is_of_holders(sock, self.holders.get(sock.inode, ())) if known is None else known

    def others_of(self, inode: int, *pids: int) -> Iterator[int]:
        """The processes that hold this socket, but for these."""
        yield from dict.fromkeys(pid for pid, _ in self.holders.get(inode, ()) if pid not in pids)

    def who_holds(self, inode: int) -> str | None:
        """``mysqld, pid 9``; where several do, the first (which is a master, mostly) and how many others; ``user
        mysql`` where no process is seen, but who made the socket."""
        pids = list(self.others_of(inode))
        if not pids:
            sock = self.unix.get(inode)
            return None if sock is None or sock.uid is None else f"user {user_name(sock.uid)}"
        more = f" and {len(pids) - 1} more" if len(pids) > 1 else ""
        return f"{self.named(pids[0])}{more}"

    def named(self, pid: int) -> str:
        """``mysqld, pid 9``; of a process in a container ``mysqld, pid 812 (7 in its container)``."""
        return f"{self.name_of(pid)}, pid {pid_text(pid, self.inner_pid_of(pid))}"

    def inner_pid_of(self, pid: int) -> int | None:
        """Its pid in its own pid namespace, where that is not ours."""
        if pid not in self._inner_pids:
            self._inner_pids[pid] = procfs.read_inner_pid(pid)
        return self._inner_pids[pid]

    def name_of(self, pid: int) -> str:
        """A process's name, safe to print. (That of a udsproxy is its interpreter's.)"""
        if pid not in self._names:
            name = procfs.read_comm(pid) or "?"
            is_ours = name.startswith("python") and process_table.is_udsproxy(pid)
            self._names[pid] = "udsproxy" if is_ours else printable(name)
        return self._names[pid]

    def parent_of(self, pid: int) -> int | None:
        if pid not in self._parents:
            self._parents[pid] = procfs.read_parent(pid)
        return self._parents[pid]

    def other_end(self, found: Inet) -> int:
        """The inode of the other end of a connection on this machine; 0: it is elsewhere, or not connected."""
        local = found.sock.remote.startswith(("127.", "[::1]"))
        with contextlib.suppress(OSError), SockDiag() as own:
            for number, diag in self._spaces_of_inet(own):
                if local and number != found.namespace:
                    continue
                with contextlib.suppress(OSError):
                    other = diag.other_end(found.family, found.protocol, found.sock)
                    if other is not None and other.inode:
                        return other.inode
        return 0

    def listener_of(self, found: Inet) -> int:
        """The inode of the TCP socket that listens where a connection goes to; 0: nobody does in its namespace."""
        sock = found.sock
        host, _, port = sock.remote.rpartition(":")
        # Only an address of this machine is answered by who listens at all of its addresses, and a connection to
        # such a one comes from it, too.
        ours = host.startswith(("127.", "[::1]")) or host == sock.local.rpartition(":")[0]
        for each in self.inet.values():
            if found.kind != each.kind or each.sock.state != LISTEN or each.namespace != found.namespace:
                continue
            its_host, _, its_port = each.sock.local.rpartition(":")
            if its_port == port and (its_host == host or (ours and its_host in _ALL)):
                return each.sock.inode
        return 0


@functools.lru_cache(1024)
def user_name(uid: int) -> str:
    return printable(ownership.user_name(uid))


@functools.lru_cache(1024)
def group_name(gid: int) -> str:
    return printable(ownership.group_name(gid))


def spelled(name: bytes | None) -> str | None:
    """A Unix socket's name as people write it, safe to print: a path, or ``@NAME`` for an abstract one."""
    if not name:
        return None
    if name[:1] == b"\0":
        return "@" + printable(name[1:])
    path = printable(name.partition(b"\0")[0])
    return path if path[:1] != "@" else f"./{path}"
