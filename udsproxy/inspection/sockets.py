"""The state of Unix sockets, as ``udsproxy state`` tells it: whose, how full, who serves it and what each does now.

Rule: values only; how they look is the command's.
"""

from __future__ import annotations

import os
import socket
import stat
from time import monotonic

import msgspec

from udsproxy.endpoints.ownership import group_name, user_name
from udsproxy.events import Doing, printable
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine, name_of, spelled
from udsproxy.kernel import procfs
from udsproxy.kernel.diag_codec import ESTABLISHED, UnixSocket

TYPES: dict[int, str] = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_SEQPACKET: "seqpacket",
}


class Process(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that holds the socket. ``doing``: only of a listener's."""

    pid: int
    comm: str
    fd: int
    master: bool = False
    """It holds the socket only for its children."""
    doing: Doing | None = None


class Established(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A connection that was accepted from a listener. Bytes are those that wait to be read."""

    inode: int
    unread: int
    """What the client has sent."""
    client_unread: int | None = None
    """What the server has sent. None: the client has left."""
    server: str | None = None
    client: str | None = None
    """``nginx, pid 7``."""


class SocketState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One socket."""

    address: str | None = None
    """A path, or ``@NAME``; None: it has no name."""
    type: str
    state: str
    """``listening``, ``bound`` (it receives datagrams, or nobody has called listen()), ``connected``, ``shut``
    (shutdown() was called), ``stale`` (a file, and nobody behind it), ``no file`` (its name has been removed)."""
    inode: int | None = None
    queue: int | None = None
    """How many wait to be accepted; of a socket for datagrams, the bytes that wait to be read."""
    backlog: int | None = None
    """The limit that listen() was given: one more than this may wait."""
    gone: int | None = None
    """Of those in the queue, how many have left: a worker will still be given them."""
    owner: str | None = None
    mode: str | None = None
    processes: tuple[Process, ...] = ()
    connections: tuple[Established, ...] = ()

    @property
    def limit(self) -> int | None:
        """How many may wait (net/unix/af_unix.c, unix_recvq_full: backlog + 1)."""
        return None if self.backlog is None else self.backlog + 1

    @property
    def fullness(self) -> float:
        """0: nobody waits; 1: the next client gets EAGAIN."""
        return (self.queue or 0) / (self.limit or 1)


def survey(machine: Machine, doer: Doer | None = None) -> list[SocketState]:
    """Every listening socket, the fullest queue first. ``doer``: tells what the processes do."""
    found = [_state(machine, each, doer) for each in machine.unix.values() if each.listening]
    return sorted(found, key=lambda each: (-each.fullness, -(each.queue or 0), each.address or ""))


def state_of(machine: Machine, address: str, doer: Doer | None = None) -> list[SocketState]:
    """The sockets at an address (a path, or ``@NAME``): several may have had the same path, and names stand for a
    socket of each type. Raises OSError: there is no such path, or it is no socket."""
    if address.startswith("@"):
        name = b"\0" + os.fsencode(address[1:])
        return [_state(machine, each, doer) for each in _servers(machine) if each.name == name]
    file = os.stat(address)
    if not stat.S_ISSOCK(file.st_mode):
        raise OSError(0, "it is no socket", address)
    path = os.path.abspath(address)
    found = [each for each in _servers(machine) if is_at(each, path, file)]
    if not found:
        owner, mode = _owner_and_mode(file)
        return [SocketState(address=printable(address), type="?", state="stale", owner=owner, mode=mode)]
    return [_state(machine, each, doer, path) for each in found]


def is_at(sock: UnixSocket, path: str, file: os.stat_result) -> bool:
    """Is this socket's file that one? (Some file systems show stat() another device than the kernel's own.)"""
    if sock.file is not None:
        return sock.file[1] == file.st_ino & 0xFFFFFFFF
    return sock.name is not None and sock.name.partition(b"\0")[0] == os.fsencode(path)


def _servers(machine: Machine) -> list[UnixSocket]:
    """Sockets with a name of their own: what a listener has accepted shares its name, and is connected."""
    return [each for each in machine.unix.values() if each.name and (each.state != ESTABLISHED or not each.peer)]


def _state(machine: Machine, sock: UnixSocket, doer: Doer | None, path: str | None = None) -> SocketState:
    name = path or (os.fsdecode(sock.name.partition(b"\0")[0]) if sock.name and sock.name[:1] != b"\0" else None)
    owner = mode = None
    state = "listening" if sock.listening else "shut" if sock.shut else "bound"
    if name is not None:
        try:
            file = os.stat(name)
            if is_at(sock, name, file):
                owner, mode = _owner_and_mode(file)
            elif os.path.isabs(name):
                state = "no file"
        except FileNotFoundError:
            state = "no file" if os.path.isabs(name) else state
        except OSError:
            pass  # we may not look there
    holders = machine.holders.get(sock.inode, [])
    serving = set(procfs.without_masters([pid for pid, _ in holders]))
    stream = sock.type != socket.SOCK_DGRAM
    return SocketState(
        address=printable(path) if path else spelled(sock.name),
        type=TYPES.get(sock.type, str(sock.type)),
        state=state,
        inode=sock.inode,
        queue=sock.queue if sock.listening or not stream else None,
        backlog=sock.backlog if sock.listening and machine.knows_backlog else None,
        gone=sum(1 for each in sock.waiting if not each) or None,
        owner=owner,
        mode=mode,
        processes=tuple(_process(machine, pid, fd, pid in serving, doer) for pid, fd in holders),
        connections=_connections(machine, sock) if stream else (),
    )


def _process(machine: Machine, pid: int, fd: int, serves: bool, doer: Doer | None) -> Process:
    doing = None if doer is None or not serves else doer.doing(pid, machine, monotonic())
    return Process(pid=pid, comm=name_of(pid), fd=fd, master=not serves, doing=doing)


def _connections(machine: Machine, listener: UnixSocket) -> tuple[Established, ...]:
    """Those that were accepted from it: connected, and of its name (net/unix/af_unix.c, unix_accept)."""
    if not listener.name:
        return ()
    found = []
    for inode in machine.accepted_under(listener.name, listener.type):
        sock = machine.unix[inode]
        client = machine.unix.get(sock.peer)
        found.append(
            Established(
                inode=inode,
                unread=sock.queue,
                client_unread=None if client is None else client.queue,
                server=machine.who_holds(inode),
                client=None if client is None else machine.who_holds(client.inode),
            )
        )
    return tuple(found)


def _owner_and_mode(file: os.stat_result) -> tuple[str, str]:
    return f"{user_name(file.st_uid)}:{group_name(file.st_gid)}", f"{stat.S_IMODE(file.st_mode):o}"
