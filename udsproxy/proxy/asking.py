"""Who asks for the senders of messages: servers and clients whose sockets have SO_PASSCRED.

To send each message in its sender's name costs as much again as to send it, and hardly anybody asks. So that is
done from the start, and no longer once sockets at both ends were seen and none asks; and again as soon as one does.

Rule: this only looks, in a thread, once in a while.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from collections.abc import Callable

from udsproxy.endpoints import UnixAbstract, UnixPath
from udsproxy.kernel.passcred import who_asks
from udsproxy.kernel.procfs import holders_of
from udsproxy.kernel.server_diag import ServerDiag

LOOK_NS = 1_000_000_000
"""How often, while connections come."""
FIRST_LOOK_NS = 20_000_000
"""When first, where nothing is known; each time twice as long, up to that."""
MOST_LOOKS = 10
"""So often also while none comes."""
_FEW = 8
"""Processes that are looked at at once, at each end."""


class Asking:
    """What is known of both ends of a proxy."""

    def __init__(self, address: UnixPath | UnixAbstract) -> None:
        """``address``: the server's."""
        self._address = address.path if isinstance(address, UnixPath) else os.fsencode(address.name)
        self._inode = 0
        self._servers: list[int] = []
        """The processes that hold the socket with that inode."""
        self._seen: set[str] = set()

    def look(self, clients: list[int], name: str | bytes) -> bool:
        """Is there somebody who asks, or is that not known yet? ``clients``: processes; ``name``: of the socket
        that they have connected to."""
        servers, server_name = self._find()
        return any(
            [
                self._asks("server", servers, lambda sock: sock.getsockname() == server_name),
                self._asks("client", clients, lambda sock: sock.getpeername() == name),
            ]
        )

    def _find(self) -> tuple[list[int], str | bytes | None]:
        with contextlib.suppress(OSError), ServerDiag() as diag:
            found = diag.server(self._address)
            if found is not None and found.name is not None:
                if found.inode != self._inode:
                    self._inode, self._servers = found.inode, holders_of(found.inode)
                name = found.name
                return self._servers, name if name[:1] == b"\0" else os.fsdecode(name.partition(b"\0")[0])
        return [], None

    def _asks(self, end: str, pids: list[int], is_meant: Callable[[socket.socket], bool]) -> bool:
        for pid in random.sample(pids, min(_FEW, len(pids))):
            found = who_asks(pid, is_meant)
            if any(found):
                return True
            if found:
                self._seen.add(end)
        return end not in self._seen
