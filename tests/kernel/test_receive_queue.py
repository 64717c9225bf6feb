"""What waits in a receive queue, as the kernel tells it."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from udsproxy.kernel.receive_queue import bytes_before_descriptors, is_at_mark, knows_marks, unread, waiting

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def send_descriptor(sock: socket.socket, data: bytes) -> None:
    rights = array.array("i", [sock.fileno()])
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def test_waiting_and_unread(ends: Ends) -> None:
    """How much there is to read; whether the peer has read all."""
    one, other = ends
    assert (waiting(other), unread(one)) == (0, False)
    one.send(b"abc")
    one.send(b"de")
    assert (waiting(other), unread(one)) == (5, True)
    other.recv(4)
    assert (waiting(other), unread(one)) == (1, True)
    other.recv(4)
    assert (waiting(other), unread(one)) == (0, False)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(before=st.lists(st.integers(1, 5000), max_size=6), own=st.integers(1, 5000), after=st.integers(0, 100))
def test_bytes_before_descriptors(before: list[int], own: int, after: int) -> None:
    """As many as were sent before the message that has some, whatever these are. Nothing is taken out."""
    one, other = socket.socketpair()
    with one, other:
        for nbytes in before:
            one.send(bytes(nbytes))
        send_descriptor(one, bytes(own))
        if after:
            one.send(bytes(after))
        room = memoryview(bytearray(100_000))
        for _ in range(2):
            assert bytes_before_descriptors(other, room) == sum(before)
        assert waiting(other) == sum(before) + own + after
        if before:
            assert other.recvmsg_into([room[: sum(before)]], 100)[1] == []
        _, ancillary, _, _ = other.recvmsg(own, 100)
        [(_, kind, data)] = ancillary
        os.close(array.array("i", data)[0])
        assert kind == socket.SCM_RIGHTS


def test_mark(ends: Ends) -> None:
    """The place of an urgent byte, where the kernel has those."""
    one, other = ends
    if knows_marks():
        one.send(b"a")
        one.send(b"x", socket.MSG_OOB)
        assert not is_at_mark(other)
        other.recv(1)
        assert is_at_mark(other)
    else:
        with pytest.raises(OSError, match=r"\[Errno"):
            is_at_mark(other)
