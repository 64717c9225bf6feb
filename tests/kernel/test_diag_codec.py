"""diag_codec: hostile answers, what it writes, and this kernel's answers about TCP and UDP sockets of this test."""

from __future__ import annotations

import contextlib
import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sockets import inode
from udsproxy.kernel import diag_codec as codec
from udsproxy.kernel.diag_codec import DiagError, InetSocket
from udsproxy.kernel.sock_diag import SockDiag

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


def frame(number: int, kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, number, 0) + body + bytes(-len(body) % 4)


# --- hostile ---


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_answer(data: bytes) -> None:
    """Decoding ends, or says that this is no answer, and does nothing else."""
    for decode in (codec.decode, codec.decode_inet):
        with contextlib.suppress(DiagError):
            list(decode(data, 1))


@given(
    number=st.integers(0, 2**32 - 1), kind=st.integers(0, 30), body=st.binary(max_size=120), cut=st.integers(0, 200)
)
def test_frames_with_anything_in_them(number: int, kind: int, body: bytes, cut: int) -> None:
    """A well-formed header, and behind it anything, whole or cut: sockets, the end, or a `DiagError`."""
    data = frame(number, kind, body)[: cut or None]
    for decode in (codec.decode, codec.decode_inet):
        with contextlib.suppress(DiagError):
            list(decode(data, number))
        if not cut:
            assert not list(decode(data, number ^ 1))


def test_a_dump_that_failed() -> None:
    """NLMSG_DONE may carry an errno: a kernel without that module, a dump that could not go on."""
    assert list(codec.decode(frame(1, 3, struct.pack("=i", 0)), 1)) == [None]
    assert list(codec.decode(frame(1, 3, b""), 1)) == [None]
    with pytest.raises(DiagError) as caught:
        list(codec.decode_inet(frame(1, 3, struct.pack("=i", -2)), 1))
    assert caught.value.errno == 2


# --- what is written ---


@given(
    number=st.integers(1, 2**32 - 1),
    state=st.integers(0, 255),
    ports=st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    addresses=st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16)),
    numbers=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
    family=st.sampled_from([socket.AF_INET, socket.AF_INET6]),
)
def test_what_was_written_is_read(
    number: int,
    state: int,
    ports: tuple[int, int],
    addresses: tuple[bytes, bytes],
    numbers: tuple[int, int, int],
    family: socket.AddressFamily,
) -> None:
    """An answer of the form that inet_diag.c writes comes back as it was; turned round twice, its addresses too."""
    id_ = struct.pack("!HH16s16s", *ports, *addresses)
    unread, uid, inode = numbers
    body = (
        struct.pack("=BBBB", family, state, 0, 0)
        + id_
        + bytes(12)
        + struct.pack("=IIIII", 0, unread, 0, uid, inode)
    )
    [found] = codec.decode_inet(frame(number, 20, body), number)
    assert isinstance(found, InetSocket)
    assert (found.state, found.unread, found.uid, found.inode) == (state, unread, uid, inode)
    assert found.id[: len(id_)] == id_
    assert found.local.endswith(f":{ports[0]}")
    assert found.remote.endswith(f":{ports[1]}")
    turned = codec.other_end(found.id)
    assert turned == struct.pack("!HH16s16s", *ports[::-1], *addresses[::-1])
    assert codec.other_end(turned) == id_


def test_queries_have_the_kernels_sizes() -> None:
    """unix_diag_req has 24 bytes, inet_diag_req_v2 has 56; the length stands in front."""
    for query, nbytes in (
        (codec.encode_query(7, 1, 2), 24),
        (codec.encode_dump(codec.ALL_STATES, 1, 2), 24),
        (codec.encode_inet_dump(socket.AF_INET, TCP, 2), 56),
        (codec.encode_inet_query(socket.AF_INET, TCP, bytes(60), 2), 56),
    ):
        assert struct.unpack_from("=IHHI", query)[::3] == (len(query), 2)
        assert len(query) == 16 + nbytes


# --- this kernel ---


def tcp_pair(family: socket.AddressFamily, host: str, to: str) -> list[socket.socket]:
    """A listener, a client and what was accepted."""
    listener = socket.socket(family)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((host, 0))
    listener.listen(3)
    client = socket.create_connection((to, listener.getsockname()[1]))
    return [listener, client, listener.accept()[0]]


def spelled(address: tuple[str, int]) -> str:
    host, port = address[:2]
    host = host.removeprefix("::ffff:")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@pytest.mark.parametrize(
    ("family", "host", "to"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.2"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_tcp(diag: SockDiag, family: socket.AddressFamily, host: str, to: str) -> None:
    """A dump has listener and both ends with their addresses; from each end the other is found, also where one is a
    socket of IPv6 and the connection is of IPv4."""
    listener, client, accepted = socks = tcp_pair(family, host, to)
    with contextlib.ExitStack() as stack:
        for sock in socks:
            stack.enter_context(sock)
        client.sendall(b"unread")
        dump = {
            each.inode: (kind, each)
            for kind in (socket.AF_INET, socket.AF_INET6)
            for each in diag.inet_sockets(kind, TCP)
        }
        assert dump[inode(listener)][1].state == codec.LISTEN
        assert dump[inode(listener)][1].local == spelled(listener.getsockname())
        for end, other in ((client, accepted), (accepted, client)):
            kind, found = dump[inode(end)]
            assert kind == end.family
            assert (found.local, found.remote) == (spelled(end.getsockname()), spelled(end.getpeername()))
            assert found.state == codec.ESTABLISHED
            assert found.uid == os.geteuid()
            there = diag.other_end(kind, TCP, found)
            assert there is not None
            assert there.inode == inode(other)
        assert dump[inode(accepted)][1].unread == 6


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_udp(diag: SockDiag, family: socket.AddressFamily, host: str) -> None:
    """UDP sockets have their addresses too, and connected ones find each other."""
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as two:
        one.bind((host, 0))
        two.connect(one.getsockname())
        one.connect(two.getsockname())
        dump = {each.inode: each for each in diag.inet_sockets(family, UDP)}
        found = dump[inode(one)]
        assert (found.local, found.remote) == (spelled(one.getsockname()), spelled(two.getsockname()))
        there = diag.other_end(family, UDP, found)
        assert there is not None
        assert there.inode == inode(two)


def test_an_other_end_that_is_gone(diag: SockDiag) -> None:
    """Not the listener in its place, with which the kernel answers."""
    listener, client, accepted = tcp_pair(socket.AF_INET, "127.0.0.1", "127.0.0.1")
    with listener, client:
        found = next(each for each in diag.inet_sockets(socket.AF_INET, TCP) if each.inode == inode(client))
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        assert diag.other_end(socket.AF_INET, TCP, found) is None


def test_who_made_a_socket(diag: SockDiag) -> None:
    """The user is told (UDIAG_SHOW_UID is no bit of the row that the others are in)."""
    with socket.socket(socket.AF_UNIX) as sock:
        found = diag.unix_socket(inode(sock))
        assert found is not None
        assert found.uid == os.geteuid()
        assert [each.uid for each in diag.unix_sockets() if each.inode == inode(sock)] == [os.geteuid()]
