"""NETLINK_SOCK_DIAG (sock_diag(7)): the codec, for AF_UNIX (net/unix/diag.c) and INET (net/ipv4/inet_diag.c).

Rules: no I/O; raises only `DiagError`. `udsproxy.kernel.sock_diag` is the netlink socket on top of it.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator
from typing import TypeVar

import msgspec

from udsproxy.events import errno_name

_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_UNIX_REQUEST = struct.Struct("=BBHIIIII")
"""struct unix_diag_req: family, protocol, pad, states, inode, show, cookie (two words)."""
_UNIX_MESSAGE = struct.Struct("=BBBxIII")
"""struct unix_diag_msg: family, type, state, pad, inode, cookie (two words)."""
_INET_REQUEST = struct.Struct("=BBBxI")
"""struct inet_diag_req_v2, but for the addresses: family, protocol, what else is wanted, pad, states."""
_INET_ID = struct.Struct("!HH16s16s")
"""struct inet_diag_sockid: ports and addresses (network order); behind them interface and cookie (three words)."""
_ANY_INTERFACE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_INET_MESSAGE = struct.Struct("=BBBB48sIIIII")
"""struct inet_diag_msg: family, state, timer, retransmissions, the addresses as above, timeout, unread and unsent
bytes, uid, inode."""
_ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length, type."""
_TWO = struct.Struct("=II")
_MEMORY = struct.Struct("=IIII")
"""The first of SK_MEMINFO_*: rmem_alloc, rcvbuf, wmem_alloc, sndbuf."""
_ONE = struct.Struct("=I")
_FLAGS = struct.Struct("=B")
_ERROR = struct.Struct("=i")
_ANY_COOKIE = 0xFFFFFFFF

NAME, VFS, PEER, ICONS, RQLEN, MEMINFO, _SHUTDOWN, UID = range(8)
"""Attributes of a Unix socket (UNIX_DIAG_*); the bits that ask for them are 1 << attribute (UDIAG_SHOW_*), but for
the last. _SHUTDOWN always comes."""
SHOW_UID = 1 << 6
_RCV_SHUTDOWN = 1
ALL_STATES = 0xFFFFFFFF
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10
"""TCP_ESTABLISHED, TCP_CLOSE (neither connected nor listening), TCP_LISTEN: AF_UNIX has TCP's names for them."""


class DiagError(OSError):
    """The kernel did not answer as it should: an errno of its own, or an answer that cannot be read (EBADMSG)."""


class UnixSocket(msgspec.Struct, frozen=True):
    """One socket, as far as it was asked for.

    ``peer``: the inode of the other end; 0 while a connection waits in an accept queue, and where the other end has
    been closed. ``queue`` and ``backlog``: of a listener, how many wait, and the limit that listen() was given; of
    another socket, the bytes that wait to be read (of a socket for datagrams, those of the next one:
    unix_inq_len()), and memory.
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
    waiting: tuple[int, ...] = ()
    """The clients in a listener's queue, first come first: inodes; 0: this one has left (its socket is closed)."""
    uid: int | None = None
    """Who made it."""

    @property
    def listening(self) -> bool:
        return self.state == LISTEN and not self.shut


class InetSocket(msgspec.Struct, frozen=True):
    """One TCP or UDP socket: addresses as ``10.0.0.5:3306`` or ``[::1]:3306``."""

    inode: int
    state: int
    local: str
    remote: str
    unread: int
    uid: int
    id: bytes
    """struct inet_diag_sockid."""


# --- asking ---


def encode_query(inode: int, what: int, number: int) -> bytes:
    """A query for one Unix socket. ``number`` comes back in the answer."""
    return _encode_unix(inode, 0, what, number, _NLM_F_REQUEST)


def encode_dump(states: int, what: int, number: int) -> bytes:
    """A query for all Unix sockets in these states (a bit for each)."""
    return _encode_unix(0, states, what, number, _NLM_F_REQUEST | _NLM_F_DUMP)


def _encode_unix(inode: int, states: int, what: int, number: int, flags: int) -> bytes:
    family = int(socket.AF_UNIX)
    body = _UNIX_REQUEST.pack(family, 0, 0, states, inode, what, _ANY_COOKIE, _ANY_COOKIE)
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, number, 0) + body


def encode_inet_dump(family: int, protocol: int, number: int) -> bytes:
    """A query for all sockets of AF_INET or AF_INET6, IPPROTO_TCP or IPPROTO_UDP."""
    body = _INET_REQUEST.pack(family, protocol, 0, ALL_STATES) + bytes(48)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, flags, number, 0) + body


def encode_inet_query(family: int, protocol: int, id_: bytes, number: int) -> bytes:
    """A query for the one socket with these addresses (`InetSocket.id`, or `other_end` of it)."""
    body = _INET_REQUEST.pack(family, protocol, 0, ALL_STATES) + id_[: _INET_ID.size] + _ANY_INTERFACE
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, number, 0) + body


def other_end(id_: bytes) -> bytes:
    """The addresses, as the other end of the connection has them."""
    source, destination, from_, to = _INET_ID.unpack_from(id_)
    return _INET_ID.pack(destination, source, to, from_)


# --- answers ---


_Found = TypeVar("_Found")


def decode(data: bytes, number: int) -> Iterator[UnixSocket | None]:
    """The Unix sockets of one datagram of an answer; None: that was the end of it. Answers to other queries are
    skipped.

    Raises `DiagError`: the errno that the kernel answered with, or EBADMSG.
    """
    return _decode(data, number, _decode_unix)


def decode_inet(data: bytes, number: int) -> Iterator[InetSocket | None]:
    """`decode`, for INET."""
    return _decode(data, number, _decode_inet)


def _decode(data: bytes, number: int, decode_one: Callable[[bytes, int, int], _Found]) -> Iterator[_Found | None]:
    offset = 0
    while offset < len(data):
        try:
            length, kind, _, answers, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size or offset + length > len(data):
                raise struct.error
            if answers == number:
                if kind == _NLMSG_DONE:
                    # (A dump that failed half-way says so here; for some, a kernel without that module, too.)
                    if length >= _HEADER.size + _ERROR.size:
                        _raise_error(data, offset + _HEADER.size)
                    yield None
                    return
                if kind == _NLMSG_ERROR:
                    _raise_error(data, offset + _HEADER.size)
                yield decode_one(data, offset + _HEADER.size, offset + length)
        except struct.error:
            raise DiagError(errno.EBADMSG, "sock_diag: an answer that cannot be read") from None
        offset += length + -length % 4


def _raise_error(data: bytes, start: int) -> None:
    code = -_ERROR.unpack_from(data, start)[0]
    if code:
        raise DiagError(code, f"sock_diag: {errno_name(code)}")


def _decode_unix(data: bytes, start: int, end: int) -> UnixSocket:
    _, kind, state, inode, _, _ = _UNIX_MESSAGE.unpack_from(data, start)
    name: bytes | None = None
    file: tuple[int, int] | None = None
    sending: tuple[int, int] | None = None
    waiting: tuple[int, ...] = ()
    uid: int | None = None
    peer = queue = backlog = 0
    shut = False
    start += _UNIX_MESSAGE.size
    while start < end:
        length, attribute = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size or start + length > end:
            raise struct.error
        value = start + _ATTRIBUTE.size
        if attribute == NAME:
            name = data[value : start + length]
        elif attribute == VFS:
            file_inode, device = _TWO.unpack_from(data, value)
            file = device, file_inode
        elif attribute == PEER:
            peer = _ONE.unpack_from(data, value)[0]
        elif attribute == ICONS:
            waiting = tuple(one for (one,) in _ONE.iter_unpack(data[value : start + length]))
        elif attribute == RQLEN:
            queue, backlog = _TWO.unpack_from(data, value)
        elif attribute == MEMINFO:
            sending = _MEMORY.unpack_from(data, value)[2:]
        elif attribute == _SHUTDOWN:
            shut = bool(_FLAGS.unpack_from(data, value)[0] & _RCV_SHUTDOWN)
        elif attribute == UID:
            uid = _ONE.unpack_from(data, value)[0]
        start += length + -length % 4
    return UnixSocket(inode, kind, state, name, file, peer, queue, backlog, sending, shut, waiting, uid)


def _decode_inet(data: bytes, start: int, _end: int) -> InetSocket:
    family, state, _, _, id_, _, unread, _, uid, inode = _INET_MESSAGE.unpack_from(data, start)
    source, destination, from_, to = _INET_ID.unpack_from(id_)
    return InetSocket(
        inode, state, _address(family, from_, source), _address(family, to, destination), unread, uid, id_
    )


def _address(family: int, packed: bytes, port: int) -> str:
    if family == socket.AF_INET:
        return f"{ipaddress.IPv4Address(packed[:4])}:{port}"
    address = ipaddress.IPv6Address(packed)
    return f"[{address}]:{port}" if address.ipv4_mapped is None else f"{address.ipv4_mapped}:{port}"
