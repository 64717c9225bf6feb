"""The nginx that run, what their configurations have about a socket, and what their error logs say of it.

Rules: it only looks. What cannot be read is told; of an nginx that is not known to pass requests on to the socket
only where no other is, since it may be the one that does.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import msgspec

from udsproxy.doctor import nginx, nginx_log, nginx_start
from udsproxy.doctor.facts import ErrorLog, Nginx, Process, Refused
from udsproxy.doctor.known import KnownSocket, SeenFrom
from udsproxy.doctor.nginx_start import Start
from udsproxy.doctor.reading import MAX_TAIL, Reader, shown
from udsproxy.events import printable
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.stops import stops
from udsproxy.kernel import process_table, procfs
from udsproxy.kernel.roots import Root

_MAX_MASTERS = 16
_MAX_LOGS = 8
"""Of all nginx together."""


class Looked(NamedTuple):
    """What was found."""

    found: tuple[Nginx, ...] = ()
    refused: tuple[Refused, ...] = ()
    unseen: tuple[str, ...] = ()


def look(known: KnownSocket, machine: Machine, began_at: float | None) -> Looked:
    """``began_at``: when the process that listens at the path was started (seconds since 1970)."""
    if known.path is None:
        return Looked()
    found: list[Nginx] = []
    refused: list[Refused] = []
    unseen: list[str] = []
    unseen_of_others: list[str] = []
    refused_of_others: list[Refused] = []
    logs_left = _MAX_LOGS
    masters = list(process_table.titled(nginx_start.TITLE))
    for pid, title in masters[:_MAX_MASTERS]:
        root = Root(pid)
        if root.is_hidden:
            unseen_of_others.append(f"the configuration of nginx (pid {pid}): it is in a container (run as root)")
            continue
        try:
            reader = Reader(root)
            start = nginx_start.started(pid, title, root)
            if start is None:
                hint = "" if os.geteuid() == 0 else " (run as root)"
                unseen_of_others.append(f"the configuration of nginx (pid {pid}): nothing says where it is{hint}")
                continue
            sockets = known.seen_from(root, pid)
            seen, keep_it_from_starting = nginx.look(reader, start, pid, sockets)
            if seen is None:
                unseen_of_others += reader.notes
                refused_of_others += keep_it_from_starting if _is_trusted(pid) else []
                continue
            there, way = sockets.there(), sockets.way()
            here = "" if root.is_ours else f"/proc/{pid}/root"
            logs = _logs(reader, seen, start, sockets, began_at, logs_left, here)
            logs_left -= len(logs)
            found.append(
                msgspec.structs.replace(seen, workers=_workers(machine, pid), logs=logs, there=there, way=way)
            )
            refused += keep_it_from_starting
            unseen += reader.notes
        finally:
            root.close()
    if len(masters) > _MAX_MASTERS:
        unseen_of_others.append(f"{len(masters) - _MAX_MASTERS} more nginx that run")
    if not any(each.is_sure and _is_trusted(each.pid) for each in found):
        unseen += unseen_of_others
        refused += refused_of_others
    return Looked(tuple(found), tuple(refused), tuple(unseen))


def _is_trusted(pid: int) -> bool:
    """Anybody can have a process of that title, and a configuration that is broken."""
    ids = procfs.read_ids(pid)
    return ids is not None and ids[0] in (0, os.geteuid())


def _workers(machine: Machine, master: int) -> tuple[Process, ...]:
    pids = process_table.titled_children(master, "nginx: worker process")
    stopped = stops(machine, pids)
    return tuple(
        Process(
            pid,
            printable(procfs.read_comm(pid) or "?"),
            process_table.read_descriptors(pid),
            stopped=stopped.get(pid),
        )
        for pid in pids
    )


def _logs(
    reader: Reader,
    seen: Nginx,
    start: Start,
    sockets: SeenFrom,
    began_at: float | None,
    limit: int,
    here: str,
) -> tuple[ErrorLog, ...]:
    """The error logs, each with the one before it (a rotation of last night is no reason to see nothing). ``here``:
    what stands before a path of theirs where it is opened from our root directory."""
    names = {each.name for each in seen.upstreams}

    def is_same(path: str) -> bool:
        return sockets.is_same(path if path.startswith("/") else f"{start.directory}/{path}")

    found = []
    for log in seen.logs[:limit]:
        tail = reader.tail(log.path)
        if tail is None:
            continue
        data, is_whole, written_at = tail
        files = [f"{here}{log.path}"]
        before = f"{log.path}.1"
        if is_whole and len(data) < MAX_TAIL and reader.root.exists(before):
            older = reader.tail(before)
            if older is not None:
                data, is_whole, written_at = older[0] + data, older[1], written_at if data else older[2]
                files.insert(0, f"{here}{before}")
        whole = msgspec.structs.replace(log, is_whole=is_whole, files=tuple(files))
        found.append(nginx_log.summarize(whole, data, written_at, began_at, is_same, names))
    if len(seen.logs) > limit:
        reader.note(f"{len(seen.logs) - limit} more error logs of {shown(start.file)}")
    return tuple(found)
