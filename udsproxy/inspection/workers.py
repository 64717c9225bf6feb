"""A server's workers, at one moment: who holds its socket, what each does, and which of our connections it has.

Rules: the codec for what the observer is asked and answers is here too, so that both its ends have the same; it is
JSON, a line each. Everything is bounded.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

from udsproxy.events import Doing
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.roles import roles_at

MOST_WORKERS = 2000
_PID = re.compile(r", pid \d+(?: \(\d+ in its container\))?(?: and \d+ more)?")


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wanted of a listening socket and of connections to it."""

    number: int
    """Comes back in the answer."""
    proxy: str = ""
    """Who asks."""
    listener: int = 0
    """Its inode; 0: nothing is wanted."""
    connections: tuple[tuple[int, int], ...] = ()
    """Number, and inode of our end."""
    doing: bool = True
    """What the workers do; else only who they are."""
    stack: bool = False
    count_refusals: bool = False
    """Count the connect() calls that get EAGAIN until this is said otherwise."""
    clients: tuple[int, ...] = ()
    """The processes whose these may be."""


class WorkerState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One worker."""

    pid: int
    comm: str
    inner_pid: int | None = None
    doing: Doing | None = None
    connections: tuple[int, ...] = ()
    """The numbers of those that it holds, of these that were asked for."""

    @property
    def is_busy(self) -> bool:
        """It does not wait for somebody to come."""
        return self.doing is None or self.doing.what not in ("accept", "ended")


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer."""

    number: int
    queue: int = 0
    backlog: int | None = None
    """None: nobody listens, or it is not to be seen."""
    gone_waiting: int = 0
    """Clients in the queue that have left: a worker will be given them all the same."""
    gone_running: int = 0
    """Connections that a worker holds, and whose client has left."""
    waiting: tuple[int, ...] = ()
    """The connections, of these that were asked for, that nobody has accepted."""
    workers: tuple[WorkerState, ...] = ()
    activator: str | None = None
    """``systemd, pid 1``: it holds the socket, and no worker runs yet."""
    refused: int | None = None
    """How many connect() calls got EAGAIN since the last answer; None: that is not counted."""
    why_not: str | None = None
    """Why it is not."""

    @property
    def busy(self) -> int:
        return sum(worker.is_busy for worker in self.workers)

    def what_they_do(self) -> list[tuple[str, int]]:
        """What the busy ones do, and how many of them do the same, the largest number first. What differs from one
        worker to the next is left out: pids, and the address of a connection's own end."""
        told = Counter(
            _PID.sub("", worker.doing.common_text) if worker.doing is not None else "something that we may not see"
            for worker in self.workers
            if worker.is_busy
        )
        return told.most_common()


def take_sample(ask: Ask, machine: Machine, doer: Doer, now: float) -> Sample:
    """``now``: s, monotonic."""
    listener = machine.unix.get(ask.listener)
    if listener is None:
        return Sample(number=ask.number)
    roles = roles_at(machine, listener)
    servers = [pid for pid, role in roles.items() if role == "server"][:MOST_WORKERS]
    activator = next((machine.named(pid) for pid, role in roles.items() if role == "activator"), None)
    held: dict[int, list[int]] = {}
    waiting = []
    for number, inode in ask.connections:
        ours = machine.unix.get(inode)
        if ours is None:
            continue
        if not ours.peer:
            waiting.append(number)
            continue
        holders = {pid for pid, _ in machine.holders.get(ours.peer, ())}
        # (A worker's children, which a script has started, hold it too.)
        pid = next((pid for pid in sorted(holders) if machine.parent_of(pid) not in holders), 0)
        if pid:
            held.setdefault(pid, []).append(number)
    return Sample(
        number=ask.number,
        queue=listener.queue,
        backlog=listener.backlog if machine.has_diag else None,
        gone_waiting=sum(not inode for inode in listener.waiting),
        gone_running=sum(
            not each.peer for each in machine.accepted_from(listener) if each.inode in machine.holders
        ),
        waiting=tuple(waiting),
        activator=activator if not servers and not held else None,
        workers=tuple(
            WorkerState(
                pid=pid,
                comm=machine.name_of(pid),
                inner_pid=machine.inner_pid_of(pid),
                doing=doer.doing(pid, machine, now, stack=ask.stack) if ask.doing else None,
                connections=tuple(held.get(pid, ())),
            )
            for pid in dict.fromkeys([*servers, *held])
        ),
    )
