"""The state of Unix sockets, as ``udsproxy state`` tells it: whose, how full, who serves it and what each does now.

Rules: values only; how they look is the command's. The keys are an interface (docs/state.md): add, never rename.
What is not known is absent.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from time import monotonic
from typing import Literal

import msgspec

from udsproxy.events import Doing, printable
from udsproxy.inspection.doing import Doer, waits_at
from udsproxy.inspection.idle import idle_clients
from udsproxy.inspection.machine import Machine, group_name, spelled, user_name
from udsproxy.inspection.mounted import Mounted, mounted
from udsproxy.inspection.roles import roles_at
from udsproxy.inspection.socket_files import File, file_of
from udsproxy.inspection.stops import Stop, stops
from udsproxy.inspection.systemd import SocketUnit, unit_at
from udsproxy.kernel.diag_codec import ESTABLISHED, LISTEN, UnixSocket
from udsproxy.kernel.server_diag import is_bound
from udsproxy.kernel.socket_file import SocketFile

TYPES: dict[int, str] = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_SEQPACKET: "seqpacket",
}

State = Literal["listening", "shut", "bound", "connected", "stale", "unseen"]
"""``shut``: shutdown() was called on a listener, nobody can connect. ``bound``: it receives datagrams, or nobody
has called listen(). ``connected``: a socket for datagrams that takes those of one sender only. ``stale``: a file,
and nobody behind it. ``unseen``: a file, and somebody behind it who is not shown to us (in a container)."""


class Process(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that holds the socket. ``waits`` and what follows it: only where a socket was asked for."""

    pid: int
    comm: str
    fd: int
    inner_pid: int | None = None
    """Its pid in its own pid namespace. Absent: that is ours."""
    waits: bool | None = None
    """It waits for what comes to this socket: the next connection, or datagram. Absent: that cannot be told."""
    master: bool = False
    """It holds the socket for its children, and does not serve it itself."""
    heir: bool = False
    """It has inherited the socket from a worker that started it, and does not serve it either."""
    activator: bool = False
    """It is systemd, which holds the socket for the service that it starts when somebody connects."""
    doing: Doing | None = None
    stopped: Stop | None = None
    """It stands still: whoever waits for it waits until somebody lets it go on."""
    idle_client: str | None = None
    """It waits for the next request on a connection that this client keeps open, and so does every other worker
    (`udsproxy.inspection.idle`)."""

    @property
    def serves(self) -> bool:
        """It takes what comes to the socket."""
        return not (self.master or self.heir or self.activator)


class Established(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A connection that was accepted from a listener. Bytes are those that wait to be read."""

    inode: int
    unread: int | None = None
    """What the client has sent."""
    client_unread: int | None = None
    """What the server has sent. Absent: the client has left."""
    client_left: bool = False
    server: str | None = None
    client: str | None = None
    """``nginx, pid 7``."""


class SocketState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One socket."""

    address: str | None = None
    """A path as it was bound, or as it was asked for; or ``@NAME``. Absent: it has no name."""
    type: str | None = None
    state: State
    inode: int | None = None
    queue: int | None = None
    """How many connections wait to be accepted."""
    backlog: int | None = None
    """The limit that listen() was given: one more than this may wait."""
    limit: int | None = None
    """How many may wait (net/unix/af_unix.c, unix_recvq_full: backlog + 1)."""
    gone: int | None = None
    """Of those in the queue, how many have left: a worker will still be given them."""
    waiting: tuple[str, ...] | None = None
    """Who waits in the queue, first come first: ``nginx, pid 7``, ``?``."""
    next_nbytes: int | None = None
    """Of a socket for datagrams: the size of the next one that waits to be read; 0: there is none, or it is
    empty."""
    user: str | None = None
    """Who made the socket."""
    file: File | None = None
    owner: str | None = None
    """Of the file: user:group."""
    mode: str | None = None
    """Of the file: octal."""
    processes: tuple[Process, ...] = ()
    connections: tuple[Established, ...] = ()
    namespace: int | None = None
    """Its network namespace (``net:[4026532281]``). Absent: ours."""
    namespace_pid: int | None = None
    """A process that is in that."""
    mounted: Mounted | None = None
    """Of ``stale``: how the file is mounted, where that may be why nobody is behind it."""
    unit: SocketUnit | None = None
    """Of systemd, where that holds the socket, and the unit is found: only where a socket was asked for."""
    sure: bool = True
    """False: the numbers of the file are this socket's, and may be another one's too (btrfs, FUSE)."""

    @property
    def activator(self) -> Process | None:
        """The systemd that holds the socket."""
        return next((each for each in self.processes if each.activator), None)

    @property
    def servers(self) -> list[Process]:
        """The processes that take what comes to the socket."""
        return [each for each in self.processes if each.serves]

    @property
    def full(self) -> bool:
        return self.queue is not None and self.limit is not None and self.queue >= self.limit

    @property
    def fullness(self) -> float:
        """0: nobody waits; 1: the next client gets EAGAIN."""
        return (self.queue or 0) / (self.limit or 1)


def survey(machine: Machine) -> list[SocketState]:
    """Every listening socket, the fullest queue first."""
    found = [_state(machine, each, None) for each in machine.unix.values() if each.listening]
    return sorted(found, key=lambda each: (-each.fullness, -(each.queue or 0), each.address or ""))


def state_of(machine: Machine, address: str, doer: Doer | None, pid: int | None = None) -> list[SocketState]:
    """The sockets at an address: a path, or ``@NAME``, or as `survey` writes it. There may be several: names stand
    for a socket of each type. ``doer``: None where what the processes do is not asked for. ``pid``: as this process
    finds the path, which has file systems of its own.

    Raises OSError: there is no such path, or it is no socket; ENXIO: nobody has a socket of that name.
    """
    if address.startswith("@"):
        name = b"\0" + os.fsencode(address[1:])
        found = [each for each in machine.servers if each.name == name] or _as_written(machine, address)
        if not found:
            raise OSError(errno.ENXIO, "nobody has a socket of that name", address)
        return [_state(machine, each, doer) for each in found]
    try:
        file = SocketFile.at(address, pid)
    except (OSError, ValueError) as error:  # (a NUL in it)
        # Its file may have been removed, or its name be written with escapes.
        found = _as_written(machine, address) or _as_written(machine, os.path.abspath(address))
        if not found:
            if isinstance(error, ValueError):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), address) from None
            raise
        return [_state(machine, each, doer) for each in found]
    if not file.is_socket:
        raise OSError(errno.ENOTSOCK, "is no socket", address)
    path = os.path.abspath(address)
    found, unsure = machine.at(file)
    if found or unsure:
        return [_state(machine, each, doer, path, file, sure=bool(found)) for each in found or unsure]
    return [_nobodys(machine, file, path)]


def _nobodys(machine: Machine, file: SocketFile, path: str) -> SocketState:
    """Of a file that is of no socket that we see."""
    owner, mode = _owner_and_mode(file.stat)
    left = [each for each in machine.unix.values() if each.state == ESTABLISHED and machine.is_file_of(each, file)]
    unseen = bool(is_bound(path))
    return SocketState(
        address=printable(path),
        state="unseen" if unseen else "stale",
        mounted=None if unseen else mounted(machine, file, path),
        file="there",
        owner=owner,
        mode=mode,
        connections=tuple(_connection(machine, each) for each in left),
    )


def _as_written(machine: Machine, address: str) -> list[UnixSocket]:
    return [each for each in machine.servers if spelled(each.name) == address]


def _state(
    machine: Machine,
    sock: UnixSocket,
    doer: Doer | None,
    path: str | None = None,
    asked: SocketFile | None = None,
    *,
    sure: bool = True,
) -> SocketState:
    """``path``: by which it was asked for. ``asked``: the file there, which is its own as far as is known."""
    holders: dict[int, set[int]] = {}
    for pid, number in machine.holders.get(sock.inode, ()):
        holders.setdefault(pid, set()).add(number)
    bound = os.fsdecode(sock.name.partition(b"\0")[0]) if sock.name and sock.name[:1] != b"\0" else None
    space = machine.namespace_of(sock)
    where, file = (
        file_of(machine, sock, bound, list(holders))
        if asked is None
        else ("there" if sure else "unsure", asked.stat)
    )
    owner, mode = (None, None) if file is None else _owner_and_mode(file)
    streams = sock.type != socket.SOCK_DGRAM
    queues = sock.state == LISTEN
    backlog = sock.backlog if queues and machine.has_diag else None
    processes = _processes(machine, sock, holders, doer)
    return SocketState(
        address=printable(path) if path else spelled(sock.name),
        type=TYPES.get(sock.type, str(sock.type)),
        state=_name_of_state(sock),
        inode=sock.inode,
        queue=sock.queue if queues else None,
        backlog=backlog,
        limit=None if backlog is None else backlog + 1,
        gone=sum(1 for each in sock.waiting if not each) or None,
        waiting=tuple(machine.who_holds(each) or "?" for each in sock.waiting if each) or None,
        next_nbytes=sock.queue if not streams and machine.has_diag else None,
        user=None if sock.uid is None else user_name(sock.uid),
        file=where,
        owner=owner,
        mode=mode,
        processes=processes,
        unit=_unit(processes, bound or (f"@{os.fsdecode(sock.name[1:])}" if sock.name else None), path),
        connections=tuple(_connection(machine, each) for each in machine.accepted_from(sock)),
        namespace=None if space is None else space.number,
        namespace_pid=None if space is None else next(iter(holders), space.pid),
        sure=sure,
    )


def _unit(processes: tuple[Process, ...], *addresses: str | None) -> SocketUnit | None:
    activator = next((each for each in processes if each.activator), None)
    return None if activator is None else unit_at([each for each in addresses if each], activator.pid)


def _name_of_state(sock: UnixSocket) -> State:
    if sock.state == ESTABLISHED:
        return "connected"
    if sock.state != LISTEN:
        return "bound"
    return "shut" if sock.shut else "listening"


def _processes(
    machine: Machine, sock: UnixSocket, holders: dict[int, set[int]], doer: Doer | None
) -> tuple[Process, ...]:
    stopped = stops(machine, holders)
    if doer is None:
        return tuple(
            Process(
                pid=pid,
                comm=machine.name_of(pid),
                fd=min(fds),
                inner_pid=machine.inner_pid_of(pid),
                stopped=stopped.get(pid),
            )
            for pid, fds in holders.items()
        )
    waits = {pid: waits_at(pid, sock.inode, fds) for pid, fds in holders.items()}
    roles = roles_at(machine, sock, {pid for pid in waits if waits[pid]})
    workers = [pid for pid in holders if roles[pid] == "server"]
    idle = {} if any(waits[pid] for pid in workers) else idle_clients(machine, sock, workers)
    return tuple(
        Process(
            pid=pid,
            comm=machine.name_of(pid),
            fd=min(fds),
            inner_pid=machine.inner_pid_of(pid),
            waits=waits[pid],
            master=roles[pid] == "master",
            heir=roles[pid] == "heir",
            activator=roles[pid] == "activator",
            doing=doer.doing(pid, machine, monotonic()),
            stopped=stopped.get(pid),
            idle_client=idle.get(pid),
        )
        for pid, fds in holders.items()
    )


def _connection(machine: Machine, sock: UnixSocket) -> Established:
    if not machine.has_diag:
        return Established(inode=sock.inode, server=machine.who_holds(sock.inode))
    client = machine.unix.get(sock.peer)
    return Established(
        inode=sock.inode,
        unread=sock.queue,
        client_unread=None if client is None else client.queue,
        client_left=not sock.peer,
        server=machine.who_holds(sock.inode),
        client=None if client is None else machine.who_holds(client.inode),
    )


def _owner_and_mode(file: os.stat_result) -> tuple[str, str]:
    return f"{user_name(file.st_uid)}:{group_name(file.st_gid)}", f"{stat.S_IMODE(file.st_mode):o}"
