"""A server's workers, at one moment: who holds its socket, what each does, and which of our connections it has.

Rules: the codec for what the observer is asked and answers is here too, so that both its ends have the same; it is
JSON, a line each. Everything is bounded.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec
from msgspec.structs import replace

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
    door: int = 0
    """The inode of the socket that clients connect to: ours."""
    clients: tuple[int, ...] = ()
    """The processes that connected there lately: a refusal of theirs counts where it cannot be told at which socket
    it was."""


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


class Counted(msgspec.Struct, frozen=True):
    """connect() calls that got EAGAIN since the last answer. Times: CLOCK_MONOTONIC, ns."""

    count: int = 0
    first: int = 0
    last: int = 0
    missed: int = 0
    """How many more there were on this machine of which nothing is known."""
    since: int = 0
    """When they began to be counted."""


class Did(msgspec.Struct, frozen=True):
    """What some workers were seen to do, without who is behind it; and who, where that was seen."""

    doing: Doing | None
    who: str | None

    def text(self, who: str | None) -> str:
        """With that one behind it."""
        if self.doing is None:
            return "something that we may not see"
        return _PID.sub("", replace(self.doing, who=who).text)


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer."""

    number: int
    queue: int = 0
    backlog: int | None = None
    """None: nobody listens, or it is not to be seen."""
    gone_waiting: int = 0
    """Clients in the queue that have left: a worker will be given them all the same."""
    gone_running: int = 0
    """Busy workers that hold a connection whose client has left. (They may have answered it.)"""
    waiting: tuple[int, ...] = ()
    """The connections, of these that were asked for, that nobody has accepted."""
    workers: tuple[WorkerState, ...] = ()
    activator: str | None = None
    """``systemd, pid 1``: it holds the socket, and no worker runs yet."""
    refused: Counted | None = None
    """None: that is not counted."""
    why_not: str | None = None
    """Why it is not."""

    @property
    def busy(self) -> int:
        return sum(worker.is_busy for worker in self.workers)

    def what_they_do(self) -> Counter[Did]:
        """What the busy ones do, and how many of them each. (Not with which pid: a server forks many.)"""
        return Counter(
            Did(None, None)
            if worker.doing is None
            else Did(
                replace(worker.doing, who=None, local=None, for_s=None, stack=None, threads=None),
                None if worker.doing.who is None else _PID.sub("", worker.doing.who),
            )
            for worker in self.workers
            if worker.is_busy
        )


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
    workers = tuple(
        WorkerState(
            pid=pid,
            comm=machine.name_of(pid),
            inner_pid=machine.inner_pid_of(pid),
            doing=doer.doing(pid, machine, now, stack=ask.stack) if ask.doing else None,
            connections=tuple(held.get(pid, ())),
        )
        for pid in dict.fromkeys([*servers, *held])
    )
    left = {
        pid
        for each in machine.accepted_from(listener)
        if not each.peer
        for pid, _ in machine.holders.get(each.inode, ())
    }
    return Sample(
        number=ask.number,
        queue=listener.queue,
        backlog=listener.backlog if machine.has_diag else None,
        gone_waiting=sum(not inode for inode in listener.waiting),
        gone_running=sum(each.pid in left and each.is_busy for each in workers) if ask.doing else 0,
        waiting=tuple(waiting),
        activator=activator if not servers and not held else None,
        workers=workers,
    )
