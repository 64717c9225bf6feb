"""What each process that holds a listening socket has to do with it.

php-fpm's master holds it for the workers that it forks, systemd for a service that it starts, and a program that a
script starts inherits it from its worker: none of them will ever accept a connection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from udsproxy.inspection.machine import Machine
from udsproxy.inspection.systemd import is_systemd
from udsproxy.kernel import procfs
from udsproxy.kernel.diag_codec import UnixSocket

Role = Literal["server", "master", "heir", "activator"]
"""``master``: holds it for its children. ``heir``: inherited it from a server that has started it. ``activator``:
systemd, which starts the server when somebody connects."""

_MOST_GENERATIONS = 20


def roles_at(machine: Machine, sock: UnixSocket, waiting: Collection[int] = ()) -> dict[int, Role]:
    """Of each process that holds this socket. ``waiting``: those that wait for what comes to it."""
    pids = sorted({pid for pid, _ in machine.holders.get(sock.inode, ())})
    connections = [{pid for pid, _ in machine.holders.get(each.inode, ())} for each in machine.accepted_from(sock)]
    return _with_activators(roles_of(pids, machine.parent_of, connections, waiting), machine.parent_of)


def count_servers(inode: int) -> int:
    """How many processes serve a listening socket, by their parents alone. 0 where it cannot be told. Looks at
    every descriptor of every process: not for the traffic's path."""
    roles = _with_activators(roles_of(procfs.holders_of(inode), procfs.read_parent), procfs.read_parent)
    return sum(role == "server" for role in roles.values())


def _with_activators(roles: dict[int, Role], parent_of: Callable[[int], int | None]) -> dict[int, Role]:
    # (Only what nobody has inherited it from can be one: there may be thousands of workers.)
    first = [pid for pid in roles if parent_of(pid) not in roles]
    return roles | {pid: "activator" for pid in first if is_systemd(pid)}


def roles_of(
    pids: list[int],
    parent_of: Callable[[int], int | None],
    connections: Iterable[Collection[int]] = (),
    waiting: Collection[int] = (),
) -> dict[int, Role]:
    """Of these, which hold the socket. ``connections``: who holds each that was accepted."""
    holders = set(pids)
    shared = [those for those in connections if len(those) > 1]
    at_work = set(waiting).union(*connections)

    def is_heir(pid: int) -> bool:
        # A worker that starts a program while it has a connection gives it that, too; a master has none to give.
        for _ in range(_MOST_GENERATIONS):
            parent = parent_of(pid)
            if parent is None or parent not in holders:
                return False
            if any(pid in those and parent in those for those in shared):
                return True
            pid = parent
        return False

    heirs = {pid for pid in pids if pid not in waiting and is_heir(pid)}
    parents = {parent_of(pid) for pid in pids if pid not in heirs}
    return {
        pid: "heir" if pid in heirs else "master" if pid in parents and pid not in at_work else "server"
        for pid in pids
    }
