"""Questions about the server at an address, in whatever network namespace its socket is.

connect() by a path crosses network namespaces, sock_diag does not: a server in a container (with a volume that it
shares) is served to everybody, and shown only there.

Rules: ours is asked first, and others only where the file is somebody's whom ours does not show: connect() with a
socket of another type tells that, and no server notices it (net/unix/af_unix.c, unix_find_bsd: EPROTOTYPE). What
may not be seen is said (`NotShown`), never taken for nobody. Questions are answered at once, but for the first in
another namespace, which looks at all processes.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Self, TypeVar

from udsproxy.kernel import diag_codec as codec
from udsproxy.kernel import namespaces
from udsproxy.kernel.credentials import raw_peer_of
from udsproxy.kernel.diag_codec import DiagError, UnixSocket
from udsproxy.kernel.namespaces import Namespace
from udsproxy.kernel.procfs import holders_of
from udsproxy.kernel.sock_diag import SockDiag, Unsure
from udsproxy.kernel.socket_file import SocketFile

T = TypeVar("T")


class NotShown(DiagError):
    """Somebody has the socket's file, in a network namespace that we may not look at; why."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EPERM, why)


def is_bound(path: str) -> bool | None:
    """Has somebody a socket that is bound to this file (and may have called listen() or not)? None: we may not
    connect to it, so that is not known."""
    failed = errno.ENOENT
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            # (By a short name: an address has 107 bytes.)
            failed = other.connect_ex(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        if failed == errno.ENOENT:
            failed = other.connect_ex(path)
    return True if failed in (0, errno.EPROTOTYPE, errno.EPERM) else False if failed == errno.ECONNREFUSED else None


class ServerDiag:
    """See the module. Raises OSError where the kernel has no unix_diag at all."""

    def __init__(self) -> None:
        self.own = SockDiag()
        """In our namespace."""
        self._there: SockDiag | None = None
        self.namespace: Namespace | None = None
        """That the server was found in, where it is not ours."""

    def close(self) -> None:
        self.own.close()
        self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave(self) -> None:
        if self._there is not None:
            self._there.close()
        self._there = self.namespace = None

    # --- who serves ---

    def listener(self, address: str | bytes) -> UnixSocket | None:
        """Who listens on a path (str), or under an abstract name (bytes, without the NUL: that is of our namespace
        alone); None: nobody does. Raises `DiagError`, `NotShown`, `Unsure`, OSError: there is no such file."""
        return self._find(address, 1 << codec.LISTEN)

    def server(self, address: str | bytes) -> UnixSocket | None:
        """`listener`, or who receives datagrams there. Raises as that does."""
        return self._find(address, codec.ALL_STATES)

    def _find(self, address: str | bytes, states: int) -> UnixSocket | None:
        if isinstance(address, bytes):
            return self.own.listener(address) if states != codec.ALL_STATES else self.own.server(address)
        file = SocketFile.at(address)
        unsure: Unsure | None = None
        try:
            found = self.own.at(file)
        except Unsure as error:
            found, unsure = [], error
        if not found and is_bound(address) is not False:
            found, unsure = self._elsewhere(file, unsure)
        if not found and unsure is not None:
            if is_bound(address) is False:
                return None
            raise unsure
        serving = [each for each in found if each.listening or each.type == socket.SOCK_DGRAM]
        return next((each for each in serving if states & 1 << each.state), None)

    def _elsewhere(self, file: SocketFile, unsure: Unsure | None) -> tuple[list[UnixSocket], Unsure | None]:
        """Raises `NotShown`."""
        if self._there is not None and (found := self._there.at(file)):
            return found, unsure
        for namespace in namespaces.look().others:
            try:
                diag = namespaces.diag_in(namespace)
            except OSError:
                continue  # we may not, or it has gone meanwhile
            try:
                if found := diag.at(file):
                    self._leave()
                    self._there, self.namespace = diag, namespace
                    return found, unsure
            except Unsure as error:
                unsure = error
            finally:
                if self._there is not diag:
                    diag.close()
        if unsure is not None or not is_bound(file.path):
            return [], unsure
        if not (found := self.own.at(file)):  # (it may have come just now)
            raise NotShown(
                "its server is in another network namespace (a container), and to look there takes root "
                "(CAP_SYS_ADMIN, CAP_SYS_PTRACE) and the sight of its processes"
            )
        return found, None

    def settle(self, unsure: Unsure, client: _socket.socket) -> UnixSocket | None:
        """Of sockets that it may be, that which ``client``, a connection of ours to the file, has come to; None: it
        was accepted at once, and by whom cannot be seen."""
        inode = os.fstat(client.fileno()).st_ino
        for each in unsure.found:
            found = self.own.unix_socket(each.inode)
            if found is not None and inode in found.waiting:
                return each
        pid = struct.unpack("3i", raw_peer_of(client))[0]
        held = [each for each in unsure.found if pid and pid in holders_of(each.inode)]
        return held[0] if len(held) == 1 else None

    # --- one that was found ---

    def queue_of(self, inode: int) -> tuple[int, int] | None:
        """(queue, backlog) of a listener that was found; None: there is no such listener any more. Raises
        `DiagError`."""
        return self._there_or_here(lambda diag: diag.queue_of(inode))

    def serves(self, inode: int) -> bool:
        """Is there still somebody who listens on this socket, or receives datagrams? Raises `DiagError`."""
        return bool(self._there_or_here(lambda diag: diag.serves(inode)))

    def is_bound_only(self, path: str) -> bool:
        """Has a socket made this file, and does not listen (yet), where the server was found or in our namespace?
        Raises `DiagError`, `Unsure`, OSError."""
        return self._there_or_here(lambda diag: diag.is_bound_only(path))

    def _there_or_here(self, ask: Callable[[SockDiag], T]) -> T:
        if self._there is not None and (found := ask(self._there)):
            return found
        found = ask(self.own)
        if not found:
            self._leave()
        return found
