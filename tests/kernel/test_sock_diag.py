"""sock_diag: answers of this kernel about sockets of this test, and hostile bytes in place of answers."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sockets import inode
from udsproxy.kernel.diag_codec import DiagError, UnixSocket, decode
from udsproxy.kernel.sock_diag import SockDiag


def listen(address: str | bytes, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(address)
    sock.listen(backlog)
    return sock


def test_a_queue_that_fills_and_empties(diag: SockDiag, tmp_path: Path) -> None:
    """Queue length and backlog are those of the listener at that moment; None when it is closed."""
    path = os.path.relpath(tmp_path / "s")  # short enough for an address
    with listen(path, 5) as listener, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3)]
        for number, client in enumerate(clients):
            assert diag.queue_of(inode(listener)) == (number, 5)
            client.connect(path)
        listener.accept()[0].close()
        assert diag.queue_of(inode(listener)) == (2, 5)
        listener.listen(1)
        assert diag.queue_of(inode(listener)) == (2, 1)
        was = inode(listener)
        listener.close()
        assert diag.queue_of(was) is None


def test_the_peer_is_known_from_accept_on(diag: SockDiag, tmp_path: Path) -> None:
    """0 while the connection waits; the accepted socket's inode from then on; 0 when that is closed."""
    path = os.path.relpath(tmp_path / "s")
    with listen(path, 5) as listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert diag.peer_of(inode(client)) == 0
        accepted, _ = listener.accept()
        with accepted:
            assert diag.peer_of(inode(client)) == inode(accepted)
        assert diag.peer_of(inode(client)) == 0


def test_a_listener_that_is_shut_down(diag: SockDiag, tmp_path: Path) -> None:
    """Who has called shutdown() on a listener, so that nobody can connect any more, does not listen."""
    path = str(tmp_path / "sock")
    with listen(path, 5) as listener:
        assert diag.serves(inode(listener))
        listener.shutdown(socket.SHUT_RDWR)
        assert diag.listener(path) is None
        assert diag.queue_of(inode(listener)) is None
        assert not diag.serves(inode(listener))


def test_finding_a_listener(diag: SockDiag, tmp_path: Path) -> None:
    """By path, whatever it was bound as; by abstract name; not where only a dead socket's file is."""
    first, second = (os.path.relpath(tmp_path / name) for name in ("first", "second"))
    with listen(first, 7) as listener:
        os.rename(first, second)
        found = diag.listener(second)
        assert found is not None
        assert (found.inode, found.queue, found.backlog) == (inode(listener), 0, 7)
        assert found.type == socket.SOCK_STREAM
        assert found.listening
        with pytest.raises(FileNotFoundError):
            diag.listener(first)
    assert diag.listener(second) is None
    name = f"udsproxy-test-{os.getpid()}".encode()
    assert diag.listener(name) is None
    with listen(b"\0" + name, 1) as listener:
        found = diag.listener(name)
        assert found is not None
        assert found.inode == inode(listener)


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_answer(data: bytes) -> None:
    """Decoding ends, or says that this is no answer, and does nothing else."""
    with contextlib.suppress(DiagError):
        list(decode(data, 1))


@given(
    number=st.integers(1, 2**32 - 1),
    attributes=st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=20))),
    cut=st.integers(0, 400),
)
def test_answers_of_any_shape(number: int, attributes: list[tuple[int, bytes]], cut: int) -> None:
    """A well-formed frame with any attributes in it, whole or cut: a socket, or a `DiagError`."""
    body = struct.pack("=BBBxIII", 1, 1, 10, 77, 0, 0)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    data = struct.pack("=IHHII", 16 + len(body), 20, 0, number, 0) + body
    with contextlib.suppress(DiagError):
        for found in decode(data[: cut or None], number):
            assert isinstance(found, UnixSocket)
            assert found.inode == 77
    assert not list(decode(data, number ^ 1))


def test_an_error_is_raised_as_the_errno_that_it_is() -> None:
    """NLMSG_ERROR carries a negative errno."""
    data = struct.pack("=IHHIIi", 20, 2, 0, 5, 0, -13)
    with pytest.raises(DiagError) as caught:
        list(decode(data, 5))
    assert caught.value.errno == 13
    assert not list(decode(data, 6))
