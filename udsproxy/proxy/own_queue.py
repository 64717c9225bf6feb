"""Our own accept queue, where clients wait in it and not in the upstream's: how many, who, and since when.

Rules: nothing waits; a look takes some 10 µs (sock_diag). The kernel tells how many wait, not since when: somebody
waits since the first look at which there was one more. So a look belongs to each arrival, and comes before anybody
is accepted. Where the kernel has no sock_diag, nothing is known.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic_ns

from udsproxy.endpoints import Listener, Socket
from udsproxy.kernel.diag_codec import DiagError
from udsproxy.kernel.sock_diag import SockDiag
from udsproxy.protocols.decoder import AcceptWait
from udsproxy.proxy.connection import Connections

_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


class Waiting:
    """Somebody in the queue."""

    __slots__ = ("number", "since")

    def __init__(self, since: int) -> None:
        self.since = since
        self.number: int | None = None
        """The connection's, where it had to be told of before there is one."""


class Levels:
    """Tells how long a queue is: at each change, and when it has become full or no longer is."""

    def __init__(self, tell_queue: Callable[[int, int, int], None], tell_level: Callable[[int, int], None]) -> None:
        """``tell_queue``: is given queue, backlog, and how many clients the upstream has accepted besides, when the
        queue has become full, and when it no longer is. ``tell_level``: is given queue and backlog."""
        self._tell_queue = tell_queue
        self._tell_level = tell_level
        self._full = False
        self.queue = 0
        """How many waited, as it was told."""

    def tell(self, queue: int, backlog: int, accepted: Callable[[], int]) -> None:
        """So many wait. ``accepted``: as of ``tell_queue``."""
        if queue != self.queue:
            self.queue = queue
            self._tell_level(queue, backlog)
        full = queue > backlog
        if full != self._full:
            self._full = full
            self._tell_queue(queue, backlog, accepted())

    def end(self, backlog: int) -> None:
        """It is not known from here on."""
        if self.queue:
            self.queue = 0
            self._tell_level(0, backlog)


class OwnQueue:
    """See the module."""

    def __init__(
        self, listener: Listener, connections: Connections, held: deque[Socket], diag: SockDiag | None
    ) -> None:
        """``held``: clients who were accepted, and for whom no connection could be made yet: they wait too."""
        self._listener = listener
        self._inode = 0
        self._connections = connections
        self._held = held
        self._diag = diag
        self._waiting: deque[Waiting] = deque()

    def __len__(self) -> int:
        """How many wait, as it was when last looked, less those who were let in since."""
        return len(self._waiting)

    def look(self) -> int:
        """How many wait."""
        waiting, listener = self._waiting, self._listener
        if self._diag is None or listener.withdrawn:
            return len(waiting)
        inode = os.fstat(listener.sock.fileno()).st_ino
        if inode != self._inode:
            self._inode = inode
            waiting.clear()
        try:
            found = self._diag.queue_of(inode)
        except DiagError:
            found = None
        if found is not None:
            now = monotonic_ns()
            count = found[0] + len(self._held)
            waiting.extend(Waiting(now) for _ in range(count - len(waiting)))
            while len(waiting) > count:
                waiting.popleft()
        self._tell_since()
        return len(waiting)

    def pop(self) -> Waiting | None:
        """The first is known to somebody else from here on."""
        if not self._waiting:
            return None
        first = self._waiting.popleft()
        self._tell_since()
        return first

    def take(self, client: Socket) -> tuple[int, AcceptWait | None]:
        """The first has been accepted, and is let in: its connection's number, how long it has waited so far."""
        first = self.pop()
        if first is None:
            return self._connections.number(), None
        now = monotonic_ns()
        wait = AcceptWait(first.since, least=now - first.since)
        wait.hold(now, had_sent=has_sent(client))
        return (self._connections.number() if first.number is None else first.number), wait

    def queued(self, before: int) -> Iterator[tuple[int, int]]:
        """Who came before that time (ns): the number of the connection to be, and since when (ns)."""
        for each in self._waiting:
            if each.since > before:
                return
            if each.number is None:
                each.number = self._connections.number()
            yield each.number, each.since

    def clear(self) -> None:
        """Who was in it has been sent away."""
        self._waiting.clear()
        self._tell_since()

    def _tell_since(self) -> None:
        self._connections.waits.wait_ahead(self._waiting[0].since if self._waiting else None)


def has_sent(client: Socket) -> bool:
    """Is there something to be read?"""
    try:
        return bool(client.recv(1, _PEEK))
    except OSError:
        return False
