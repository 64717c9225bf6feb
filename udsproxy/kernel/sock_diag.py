"""Questions to NETLINK_SOCK_DIAG: what the kernel knows of Unix sockets, and of TCP and UDP ones.

No privilege is needed. It answers for the network namespace that it was made in
(`udsproxy.kernel.namespaces.diag_in` makes one in another).

Rules: each is answered at once. An exact query takes about 10 µs (of a Unix socket, by inode, more where there are
thousands: net/unix/diag.c looks for one among all); a dump walks every socket of its kind.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

from udsproxy.kernel import diag_codec as codec
from udsproxy.kernel.diag_codec import ESTABLISHED, DiagError, InetSocket, UnixSocket
from udsproxy.kernel.procfs import descriptors_of
from udsproxy.kernel.socket_file import SocketFile

_NETLINK_SOCK_DIAG = 4
_REPLY = 64 * 1024
_EVERYTHING = (
    1 << codec.NAME | 1 << codec.VFS | 1 << codec.PEER | 1 << codec.ICONS | 1 << codec.RQLEN | codec.SHOW_UID
)

_Found = TypeVar("_Found")


_UNSURE = (
    "its file system numbers files so that it is not sure which socket it is of (root can ask the socket itself)"
)


class Unsure(DiagError):
    """It cannot be told which socket the file is of: the numbers of two may be the same there."""

    def __init__(self, found: list[UnixSocket]) -> None:
        super().__init__(errno.EXDEV, _UNSURE)
        self.found = found
        """Those that it may be."""


class SockDiag:
    """Questions to the kernel, each answered at once. Raises OSError where the kernel has no unix_diag at all."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._number = 0
        # The answer is there when send() returns (net/netlink/af_netlink.c): this limit is for a kernel with a bug.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
        try:
            self._socket.connect((0, 0))  # from then on the kernel alone can send to it
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def works(self) -> bool:
        """Does the kernel have unix_diag? (Without it the answer to everything is ENOENT: net/core/sock_diag.c.)"""
        with socket.socket(socket.AF_UNIX) as known:
            try:
                return self._ask(os.fstat(known.fileno()).st_ino, 1 << codec.PEER) is not None
            except DiagError:
                return False

    def queue_of(self, inode: int) -> tuple[int, int] | None:
        """(queue, backlog) of a listener; None: there is no such listener any more. Raises `DiagError`."""
        found = self._ask(inode, 1 << codec.RQLEN)
        return (found.queue, found.backlog) if found is not None and found.listening else None

    def serves(self, inode: int) -> bool:
        """Is there still somebody who listens on this socket, or receives datagrams? Raises `DiagError`."""
        found = self._ask(inode, 1 << codec.RQLEN)
        return found is not None and (found.listening or found.type == socket.SOCK_DGRAM)

    def server(self, address: str | bytes) -> UnixSocket | None:
        """`listener`, or who receives datagrams there. Raises as that does."""
        return self._find(address, codec.ALL_STATES)

    def peer_of(self, inode: int) -> int:
        """The inode of the other end of our own connection: 0 while nobody has accepted it. Raises `DiagError`."""
        found = self._ask(inode, 1 << codec.PEER)
        return 0 if found is None else found.peer

    def memory_of_peer(self, inode: int) -> tuple[int, int] | None:
        """What the other end of our own connection has sent and was not read, as memory, and the most that this may
        be (sk_wmem_alloc, sk_sndbuf; bytes). None: there is no other end. Raises `DiagError`."""
        peer = self.peer_of(inode)
        found = self._ask(peer, 1 << codec.MEMINFO) if peer else None
        return None if found is None else found.sending

    def listener(self, address: str | bytes) -> UnixSocket | None:
        """Who listens on a path (str), or under an abstract name (bytes, without the NUL); None: nobody that the
        kernel shows us. Raises `DiagError`, `Unsure`, OSError: there is no such file."""
        return self._find(address, 1 << codec.LISTEN)

    def is_bound_only(self, path: str) -> bool:
        """Does the kernel show us a socket that has made this file, and does not listen (yet)? Raises `DiagError`,
        `Unsure`, OSError."""
        return bool(self.at(SocketFile.at(path), 1 << codec.CLOSE))

    def _find(self, address: str | bytes, states: int) -> UnixSocket | None:
        if isinstance(address, str):
            found = self.at(SocketFile.at(address), states)
        else:
            found = [each for each in self._named(states) if each.name == b"\0" + address]
        serving = [each for each in found if each.listening or each.type == socket.SOCK_DGRAM]
        # (A name stands for a socket of each type.)
        return next((each for each in serving if each.listening), serving[0] if serving else None)

    def at(self, file: SocketFile, states: int = codec.ALL_STATES) -> list[UnixSocket]:
        """The sockets in these states (a bit for each) that are bound to a file: one at most, and what it has
        accepted is none of them. Raises `DiagError`, `Unsure`."""
        maybe = []
        for each in self._named(states):
            if each.state == ESTABLISHED and each.type != socket.SOCK_DGRAM:
                continue
            known = file.is_of(each)
            if known:
                return [each]
            if known is None:
                maybe.append(each)
        known_by = [(each, file.is_of_holders(each, descriptors_of(each.inode))) for each in maybe]
        sure = [each for each, known in known_by if known]
        unsure = [each for each, known in known_by if known is None]
        if not sure and unsure:
            raise Unsure(unsure)
        return sure

    def _named(self, states: int) -> list[UnixSocket]:
        # To its end: the kernel answers no other question before (EBUSY).
        return list(self._dump(states, 1 << codec.NAME | 1 << codec.VFS | 1 << codec.RQLEN))

    def unix_sockets(self) -> list[UnixSocket]:
        """All of our network namespace, with all that can be told of them. Raises `DiagError`."""
        return list(self._dump(codec.ALL_STATES, _EVERYTHING))

    def unix_socket(self, inode: int) -> UnixSocket | None:
        """One, with all that can be told of it; None: there is none. Raises `DiagError`."""
        return self._ask(inode, _EVERYTHING)

    def inet_sockets(self, family: int, protocol: int) -> list[InetSocket]:
        """All of AF_INET or AF_INET6, IPPROTO_TCP or IPPROTO_UDP. Raises `DiagError`."""
        self._number += 1
        self._socket.send(codec.encode_inet_dump(family, protocol, self._number))
        return list(self._read_dump(codec.decode_inet))

    def other_end(self, family: int, protocol: int, sock: InetSocket) -> InetSocket | None:
        """The other end of a connection, where that is on this machine (and in this namespace). Raises
        `DiagError`."""
        self._number += 1
        # (net/ipv4/udp_diag.c, udp_dump_one: "src and dst are swapped for historical reasons".)
        id_ = sock.id if protocol == socket.IPPROTO_UDP else codec.other_end(sock.id)
        self._socket.send(codec.encode_inet_query(family, protocol, id_, self._number))
        found = self._read_one(codec.decode_inet)
        # Where there is no such connection, the kernel answers with who listens there. (The ids are not compared: a
        # socket of AF_INET6 has the other end of one of AF_INET as ::ffff:127.0.0.1.)
        return found if found is not None and (found.local, found.remote) == (sock.remote, sock.local) else None

    def _ask(self, inode: int, what: int) -> UnixSocket | None:
        self._number += 1
        self._socket.send(codec.encode_query(inode, what, self._number))
        return self._read_one(codec.decode)

    def _read_one(self, decode: Callable[[bytes, int], Iterator[_Found | None]]) -> _Found | None:
        try:
            while True:
                for found in decode(self._socket.recv(_REPLY), self._number):
                    return found
        except DiagError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _dump(self, states: int, what: int) -> Iterator[UnixSocket]:
        self._number += 1
        self._socket.send(codec.encode_dump(states, what, self._number))
        return self._read_dump(codec.decode)

    def _read_dump(self, decode: Callable[[bytes, int], Iterator[_Found | None]]) -> Iterator[_Found]:
        number = self._number
        while True:
            for found in decode(self._socket.recv(_REPLY), number):
                if found is None:
                    return
                yield found
