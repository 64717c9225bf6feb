"""NETLINK_SOCK_DIAG for AF_UNIX (sock_diag(7), net/unix/diag.c): what the kernel knows of a Unix socket.

No privilege is needed. Sockets of other network namespaces are not seen.

Rules: the codec (`encode_*`, `decode`) does no I/O and raises only `DiagError`; `SockDiag` is the netlink socket on
top of it. An exact query, by inode, takes about 10 µs; a dump walks every Unix socket of the namespace.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Self

import msgspec

from udsproxy.events import errno_name

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_REQUEST = struct.Struct("=BBHIIIII")
"""struct unix_diag_req: family, protocol, pad, states, inode, show, cookie (two words)."""
_MESSAGE = struct.Struct("=BBBxIII")
"""struct unix_diag_msg: family, type, state, pad, inode, cookie (two words)."""
_ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""
_TWO = struct.Struct("=II")
_MEMORY = struct.Struct("=IIII")
"""The first of SK_MEMINFO_*: rmem_alloc, rcvbuf, wmem_alloc, sndbuf."""
_ONE = struct.Struct("=I")
_FLAGS = struct.Struct("=B")
_ERROR = struct.Struct("=i")
_ANY_COOKIE = 0xFFFFFFFF

_NAME, _VFS, _PEER, _RQLEN, _MEMINFO = 0, 1, 2, 4, 5
"""Attributes (UNIX_DIAG_*), and the bits that ask for them (1 << attribute: UDIAG_SHOW_*)."""
_SHUTDOWN = 6
"""The attribute that always comes."""
_RCV_SHUTDOWN = 1
_ALL_STATES = 0xFFFFFFFF
_LISTEN = 10
"""TCP_LISTEN: AF_UNIX has TCP's names for its states."""

_REPLY = 64 * 1024


class DiagError(OSError):
    """The kernel did not answer as it should: an errno of its own, or an answer that cannot be read (EBADMSG)."""


class UnixSocket(msgspec.Struct, frozen=True):
    """One socket, as far as it was asked for.

    ``peer``: the inode of the other end; 0 while a connection waits in an accept queue, and where the other end has
    been closed. ``queue`` and ``backlog``: of a listener, how many wait, and the limit that listen() was given.
    """

    inode: int
    type: int
    state: int
    name: bytes | None = None
    file: tuple[int, int] | None = None
    """The device (as the kernel writes it: major << 20 | minor) and the inode of the socket's file."""
    peer: int = 0
    queue: int = 0
    backlog: int = 0
    sending: tuple[int, int] | None = None
    """What was sent and is not read, as memory, and the most that this may be."""
    shut: bool = False
    """shutdown(SHUT_RD) was called: nobody can connect any more (net/unix/af_unix.c, unix_stream_connect)."""

    @property
    def listening(self) -> bool:
        return self.state == _LISTEN and not self.shut


# --- the codec ---


def encode_query(inode: int, what: int, number: int) -> bytes:
    """A query for one socket. ``number`` comes back in the answer."""
    return _encode(inode, 0, what, number, _NLM_F_REQUEST)


def encode_dump(states: int, what: int, number: int) -> bytes:
    """A query for all sockets in these states (a bit for each)."""
    return _encode(0, states, what, number, _NLM_F_REQUEST | _NLM_F_DUMP)


def _encode(inode: int, states: int, what: int, number: int, flags: int) -> bytes:
    length = _HEADER.size + _REQUEST.size
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, flags, number, 0)
    family = int(socket.AF_UNIX)
    return header + _REQUEST.pack(family, 0, 0, states, inode, what, _ANY_COOKIE, _ANY_COOKIE)


def decode(data: bytes, number: int) -> Iterator[UnixSocket | None]:
    """The sockets of one datagram of an answer; None: that was the end of it. Answers to other queries are skipped.

    Raises `DiagError`: the errno that the kernel answered with, or EBADMSG.
    """
    offset = 0
    while offset < len(data):
        try:
            length, kind, _, answers, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size or offset + length > len(data):
                raise struct.error
            if answers == number:
                if kind == _NLMSG_DONE:
                    yield None
                    return
                if kind == _NLMSG_ERROR:
                    code = -_ERROR.unpack_from(data, offset + _HEADER.size)[0]
                    raise DiagError(code, f"sock_diag: {errno_name(code)}")
                yield _decode_socket(data, offset + _HEADER.size, offset + length)
        except struct.error:
            raise DiagError(errno.EBADMSG, "sock_diag: an answer that cannot be read") from None
        offset += length + -length % 4


def _decode_socket(data: bytes, start: int, end: int) -> UnixSocket:
    _, kind, state, inode, _, _ = _MESSAGE.unpack_from(data, start)
    name: bytes | None = None
    file: tuple[int, int] | None = None
    sending: tuple[int, int] | None = None
    peer = queue = backlog = 0
    shut = False
    start += _MESSAGE.size
    while start < end:
        length, attribute = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > end:
            raise struct.error
        value = start + _ATTRIBUTE.size
        if attribute == _NAME:
            name = data[value : start + length]
        elif attribute == _VFS:
            file_inode, device = _TWO.unpack_from(data, value)
            file = device, file_inode
        elif attribute == _PEER:
            peer = _ONE.unpack_from(data, value)[0]
        elif attribute == _RQLEN:
            queue, backlog = _TWO.unpack_from(data, value)
        elif attribute == _MEMINFO:
            sending = _MEMORY.unpack_from(data, value)[2:]
        elif attribute == _SHUTDOWN:
            shut = bool(_FLAGS.unpack_from(data, value)[0] & _RCV_SHUTDOWN)
        start += length + -length % 4
    return UnixSocket(inode, kind, state, name, file, peer, queue, backlog, sending, shut)


def _is_file(found: tuple[int, int], file: os.stat_result) -> bool:
    device = os.major(file.st_dev) << 20 | os.minor(file.st_dev)
    return found == (device, file.st_ino & 0xFFFFFFFF)


# --- the socket ---


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

    def queue_of(self, inode: int) -> tuple[int, int] | None:
        """(queue, backlog) of a listener; None: there is no such listener any more. Raises `DiagError`."""
        found = self._ask(inode, 1 << _RQLEN)
        return (found.queue, found.backlog) if found is not None and found.listening else None

    def serves(self, inode: int) -> bool:
        """Is there still somebody who listens on this socket, or receives datagrams? Raises `DiagError`."""
        found = self._ask(inode, 1 << _RQLEN)
        return found is not None and (found.listening or found.type == socket.SOCK_DGRAM)

    def server(self, address: str | bytes) -> UnixSocket | None:
        """`listener`, or who receives datagrams there. Raises `DiagError`."""
        return self._find(address, _ALL_STATES)

    def peer_of(self, inode: int) -> int:
        """The inode of the other end of our own connection: 0 while nobody has accepted it. Raises `DiagError`."""
        found = self._ask(inode, 1 << _PEER)
        return 0 if found is None else found.peer

    def memory_of_peer(self, inode: int) -> tuple[int, int] | None:
        """What the other end of our own connection has sent and was not read, as memory, and the most that this may
        be (sk_wmem_alloc, sk_sndbuf; bytes). None: there is no other end. Raises `DiagError`."""
        peer = self.peer_of(inode)
        found = self._ask(peer, 1 << _MEMINFO) if peer else None
        return None if found is None else found.sending

    def listener(self, address: str | bytes) -> UnixSocket | None:
        """Who listens on a path (str), or under an abstract name (bytes, without the NUL); None: nobody that the
        kernel shows us. Raises `DiagError`."""
        return self._find(address, 1 << _LISTEN)

    def _find(self, address: str | bytes, states: int) -> UnixSocket | None:
        found = None
        file = os.stat(address) if isinstance(address, str) else None
        # To its end: the kernel answers no other question before (EBUSY).
        for each in list(self._dump(states, 1 << _NAME | 1 << _VFS | 1 << _RQLEN)):
            if not (each.listening or each.type == socket.SOCK_DGRAM):
                continue
            if file is None:
                # (A name stands for a socket of each type.)
                if each.name == b"\0" + address and (found is None or each.listening):  # type: ignore[operator]
                    found = each
            elif each.file is not None and each.file[1] == file.st_ino & 0xFFFFFFFF:
                # Some file systems show stat() another device than the kernel's own (btrfs, overlayfs).
                found = found or each
                if _is_file(each.file, file):
                    return each
        return found

    def _ask(self, inode: int, what: int) -> UnixSocket | None:
        self._number += 1
        self._socket.send(encode_query(inode, what, self._number))
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
        self._socket.send(encode_dump(states, what, self._number))
        number = self._number
        while True:
            for found in decode(self._socket.recv(_REPLY), number):
                if found is None:
                    return
                yield found
