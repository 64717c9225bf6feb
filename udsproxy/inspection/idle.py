"""Workers that stay with a connection on which nothing flows (keep-alive), and accept nobody else meanwhile.

Rules: it is told of a server only where all its workers are in that state: then whoever connects waits in the
queue, although nobody works. A worker that has just accepted looks the same for a moment: they are looked at twice.
One that has several threads is left out: another of them may do the work. (udsproxy leaves what it has handed on
unread, so that a reset can be passed on: what waits in its socket says nothing.)
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection

from udsproxy.inspection.doing import is_same_wait, waited_for
from udsproxy.inspection.machine import Machine
from udsproxy.kernel import process_table, procfs, syscalls
from udsproxy.kernel.diag_codec import UnixSocket
from udsproxy.kernel.procfs import Activity

_BETWEEN_S = 0.1
"""From one look to the other."""
_MAX_WORKERS = 2000
_READS = syscalls.TAKES | syscalls.POLLS | syscalls.SELECTS | syscalls.EPOLLS | {"read", "readv"}
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def idle_clients(machine: Machine, sock: UnixSocket, workers: Collection[int]) -> dict[int, str]:
    """The client, of each of these processes, for whose next bytes it waits: ``nginx, pid 7``. Empty unless all of
    them wait so. ``sock``: the listening socket."""
    if not workers or len(workers) > _MAX_WORKERS or not machine.has_diag:
        return {}
    accepted = {each.inode: each for each in machine.accepted_from(sock)}
    if len(accepted) < len(workers):
        return {}
    found, looks = dict[int, str](), dict[int, Activity]()
    for pid in workers:
        seen = procfs.read_activity(pid)
        client = None if seen is None else _client(machine, accepted, pid, seen)
        if seen is None or client is None:
            return {}
        found[pid], looks[pid] = client, seen
    time.sleep(_BETWEEN_S)
    for pid, before in looks.items():
        now = procfs.read_activity(pid)
        if now is None or not is_same_wait(before, now):
            return {}
    return found


def _client(machine: Machine, accepted: dict[int, UnixSocket], pid: int, seen: Activity) -> str | None:
    """Whose connection it waits for; None: it does something else, or something is there to be read."""
    if seen.state != "S" or seen.threads > 1 or seen.is_held or seen.call not in _READS:
        return None
    client = None
    for number in waited_for(pid, seen.call, seen.args):
        match = _SOCKET.fullmatch(procfs.read_descriptor(pid, number) or "")
        if match is None:
            continue  # (a pipe for signals, a timer)
        ours = accepted.get(int(match[1]))
        theirs = None if ours is None else machine.unix.get(ours.peer)
        if ours is None or theirs is None or ours.queue:
            return None
        if theirs.queue and not _is_udsproxys(machine, theirs):
            return None
        client = machine.who_holds(theirs.inode) or "?"
    return client


def _is_udsproxys(machine: Machine, sock: UnixSocket) -> bool:
    """Is this an end that a tap or a ``run`` holds?"""
    return any(map(process_table.is_udsproxy, machine.others_of(sock.inode)))
