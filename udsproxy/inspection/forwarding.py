"""From a path through every udsproxy that stands there (a tap, a ``run``) to the server behind them.

Rules: that a process listens at a path is the kernel's word. Where a tap forwards to is the name at which it has
put the server's socket aside. Where a ``run`` forwards to is said by its command line, or by the configuration file
that this names; the connections that it has confirm it. What another user's process says, and nothing confirms, is
told as its own word.
"""

from __future__ import annotations

import errno
import os
from typing import Literal, NamedTuple

import msgspec

from udsproxy.endpoints import Tcp, UnixAbstract
from udsproxy.events import printable
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine, spelled
from udsproxy.inspection.sockets import Process, SocketState, state_of
from udsproxy.inspection.taps import SUFFIX, Holder, Tapped, tapped_at
from udsproxy.inspection.upstreams import absolute, upstream_of, words_of_run
from udsproxy.kernel import procfs
from udsproxy.kernel.diag_codec import UnixSocket

MAX_HOPS = 16
_MAX_HOLDERS = 16
"""Processes of one socket that are looked at: a udsproxy holds its socket alone."""


class Hop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A udsproxy that stands between a path and the server."""

    kind: Literal["tap", "run"]
    path: str
    """Where it listens."""
    inode: int | None = None
    """Of its listening socket."""
    to: str | None = None
    """The socket that it forwards to: a path, ``unix:@NAME`` or ``tcp:HOST:PORT``. Absent: that cannot be seen."""
    process: Holder | None = None
    """Absent: it may not be seen."""
    seen: bool = True
    """False: only the process itself, which is another user's, says where it forwards to."""

    @property
    def stopped(self) -> bool:
        """Its process is."""
        return self.process is not None and self.process.stopped is not None

    @property
    def name(self) -> str:
        """``udsproxy run, pid 7``."""
        pid = "" if self.process is None else f", pid {self.process.pid}"
        return f"tapped by udsproxy{pid}" if self.kind == "tap" else f"udsproxy run{pid}"

    @property
    def text(self) -> str:
        """``udsproxy run, pid 7, forwards to /run/php.sock``."""
        if self.kind == "tap":
            line = f"{self.name}; the server's own socket is {self.to}"
        elif self.to is None:
            line = f"{self.name}; where it forwards to cannot be seen while nobody is connected"
        else:
            line = f"{self.name}, forwards to {self.to}" + ("" if self.seen else " (as it says itself)")
        if self.process is not None and self.process.stopped is not None:
            line += f"; it is stopped: clients wait; kill -CONT {self.process.pid}"
        return line


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """From a path to its server."""

    hops: tuple[Hop, ...] = ()
    fronts: tuple[SocketState, ...] = ()
    """The socket of each hop."""
    tap: Tapped | None = None
    """What a tap has to do with the path itself."""
    address: str | None
    """Of the server's own socket, to be printed: the path itself where nothing stands in front. None: it is not to
    be seen, or no Unix socket."""
    paths: tuple[str, ...] = ()
    """By which a server behind this path may know its socket."""
    servers: tuple[SocketState, ...] = ()
    """The server's own sockets, as `state_of` tells them."""
    error: OSError | None = None
    """Why those cannot be told."""


class _Place(NamedTuple):
    """Where to look for a socket: an address as `state_of` takes it, and as which process (None: as ourselves)."""

    address: str
    pid: int | None = None

    @property
    def shown(self) -> str:
        return printable(self.address)


def follow(machine: Machine, address: str, doer: Doer | None) -> Route:
    """``address``: as of `state_of`. Raises nothing."""
    tap = None if address.startswith("@") else tapped_at(machine, address)
    place: _Place | None = _Place(address)
    hops, fronts, paths = list[Hop](), list[SocketState](), [address]
    while True:
        assert place is not None
        states, error = _look(machine, place, doer)
        listener = next((each for each in states if each.state == "listening"), None)
        if listener is None or len(hops) >= MAX_HOPS or listener.inode in {each.inode for each in fronts}:
            break
        found = _tap(machine, place) or _run(machine, place, listener)
        if found is None:
            break
        hop, place = found
        hops.append(msgspec.structs.replace(hop, inode=listener.inode))
        fronts.append(listener)
        if place is None:
            states, error = [], None
            break
        paths.append(place.address)
    return Route(
        hops=tuple(hops),
        fronts=tuple(fronts),
        tap=tap,
        address=None if place is None else place.shown,
        paths=tuple(paths),
        servers=tuple(_with_real_clients(each, hops, fronts) for each in states),
        error=error,
    )


def run_at(machine: Machine, state: SocketState) -> Hop | None:
    """The ``run`` that listens with this socket; None: there is none."""
    found = None if state.address is None else _run(machine, _Place(state.address), state)
    return None if found is None else msgspec.structs.replace(found[0], inode=state.inode)


def _with_real_clients(state: SocketState, hops: list[Hop], fronts: list[SocketState]) -> SocketState:
    """Whose connections its workers stay with: not udsproxy's, but its clients', for each of whom it has one.
    (Where these are several, and more than the workers, it is not known which of them.)"""
    whose = {each.pid: each.idle_client for each in state.processes if each.idle_client is not None}
    for hop, front in zip(reversed(hops), reversed(fronts), strict=False):
        pid = None if hop.process is None else f"pid {hop.process.pid}"
        is_its = all(pid in each.split(", ") for each in whose.values())
        clients = [each.client for each in front.connections if each.client is not None]
        if not is_its or len(clients) < len(whose) or (len(clients) > len(whose) and len(set(clients)) > 1):
            break
        whose = dict(zip(whose, clients, strict=False))
    processes = (
        msgspec.structs.replace(each, idle_client=whose.get(each.pid, each.idle_client)) for each in state.processes
    )
    return msgspec.structs.replace(state, processes=tuple(processes)) if whose else state


def _look(machine: Machine, place: _Place, doer: Doer | None) -> tuple[list[SocketState], OSError | None]:
    try:
        return state_of(machine, place.address, doer, place.pid), None
    except OSError as error:
        return [], error


def _tap(machine: Machine, place: _Place) -> tuple[Hop, _Place] | None:
    if place.pid is not None or place.address.startswith("@"):
        return None
    tap = tapped_at(machine, place.address)
    if tap is None or tap.case != "standing":
        return None
    hop = Hop(kind="tap", path=tap.path, to=tap.aside, process=tap.tap)
    return hop, _Place(os.path.realpath(place.address) + SUFFIX)


# --- udsproxy run ---


def _run(machine: Machine, place: _Place, listener: SocketState) -> tuple[Hop, _Place | None] | None:
    sock = machine.unix.get(listener.inode or 0)
    if sock is None:
        return None
    for process in listener.processes[:_MAX_HOLDERS]:
        words = words_of_run(process.pid) if process.comm == "udsproxy" else None
        if words is not None:
            return _forwarding(machine, place, sock, process, words)
    return None


def _forwarding(
    machine: Machine, place: _Place, sock: UnixSocket, process: Process, words: list[str]
) -> tuple[Hop, _Place | None]:
    holder = Holder(process.pid, process.comm, process.stopped)
    asked = upstream_of(process.pid, sock, words)
    reached = _reached_by(machine, process.pid)
    if isinstance(asked, Tcp):
        trusted = _is_trusted(process.pid)
        return Hop(kind="run", path=place.shown, to=printable(str(asked)), process=holder, seen=trusted), None
    if asked is None:
        # (Of several proxies in one process it is not known which goes where.)
        if len(reached) != 1 or (to := spelled(reached[0].name)) is None:
            return Hop(kind="run", path=place.shown, process=holder), None
        return Hop(kind="run", path=place.shown, to=to, process=holder), _Place(to)
    behind = _Place(f"@{asked.name}") if isinstance(asked, UnixAbstract) else _as_found_by(process.pid, asked.path)
    there = {each.inode for each in _look(machine, behind, None)[0]}
    seen = _is_trusted(process.pid) or not there.isdisjoint(each.inode for each in reached)
    to = printable(str(asked)) if isinstance(asked, UnixAbstract) else behind.shown
    return Hop(kind="run", path=place.shown, to=to, process=holder, seen=seen), behind


def _reached_by(machine: Machine, pid: int) -> list[UnixSocket]:
    """The listening sockets that a process is connected to, or in whose queue it waits."""
    found = {}
    for inode, holders in machine.holders.items():
        if any(holder == pid for holder, _ in holders):
            listener = machine.connected_to(inode)
            if listener is not None:
                found[listener.inode] = listener
    return list(found.values())


def _is_trusted(pid: int) -> bool:
    """Its user may make us say anything: it is ours, or root's."""
    ids = procfs.read_ids(pid)
    return ids is not None and ids[0] in (0, os.geteuid())


def _as_found_by(pid: int, path: str) -> _Place:
    """A path of another process: ours, unless that has file systems of its own."""
    found = absolute(pid, path)
    try:
        same = all(
            os.path.samestat(os.stat(f"/proc/{pid}/{of}"), os.stat(f"/proc/self/{of}"))
            for of in ("ns/mnt", "root/.")
        )
    except OSError as error:
        same = error.errno not in (errno.EACCES, errno.EPERM)
    return _Place(found, None if same else pid)
