"""Urgent bytes (MSG_OOB): one byte beside the stream, with a mark at its place in it.

Only what Linux has said since it had urgent bytes on AF_UNIX (5.15) is seen here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.tools import receive_exactly, until
from tests.transparency.ends import (
    OPEN,
    Burst,
    OneWay,
    Route,
    await_polled,
    await_waiting,
    is_at_mark,
    outcome,
    polled,
    read_to_end,
)

URGENT = OPEN | select.POLLIN | select.POLLPRI


def send_urgent(sender: socket.socket) -> None:
    """Send bytes, an urgent x, and bytes."""
    sender.send(b"before")
    sender.send(b"x", socket.MSG_OOB)
    sender.send(b"after")


def await_urgent(receiver: socket.socket) -> None:
    """Until all of that is there."""
    await_waiting(receiver, 12)
    await_polled(receiver, URGENT)


@pytest.fixture
def urgent_signals() -> Iterator[list[int]]:
    """The SIGURGs that came."""
    came: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, _: came.append(number))
    yield came
    signal.signal(signal.SIGURG, before)


def test_urgent_byte(one_way: OneWay) -> None:
    """An urgent byte is read with MSG_OOB."""
    sender, receiver = one_way
    assert sender.send(b"x", socket.MSG_OOB) == 1
    await_polled(receiver, URGENT)
    assert receiver.recv(1, socket.MSG_OOB) == b"x"


def test_urgent_byte_and_the_stream(route: Route, one_way: OneWay, burst: Burst) -> None:
    """The bytes before and after an urgent byte are read without it."""
    sender, receiver = one_way
    with burst(route):
        send_urgent(sender)
    await_urgent(receiver)
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert receive_exactly(receiver, 11) == b"beforeafter"


def test_urgent_byte_ahead_of_the_stream(one_way: OneWay) -> None:
    """An urgent byte can be read before what was sent before it; poll() says POLLPRI until it was."""
    sender, receiver = one_way
    send_urgent(sender)
    await_urgent(receiver)
    assert polled(receiver) & select.POLLPRI
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert polled(receiver) == OPEN | select.POLLIN


def test_urgent_byte_after_the_stream_before_it(one_way: OneWay) -> None:
    """An urgent byte can be read when what was sent before it has been read."""
    sender, receiver = one_way
    send_urgent(sender)
    await_urgent(receiver)
    assert receive_exactly(receiver, 6) == b"before"
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert receive_exactly(receiver, 5) == b"after"


def test_reads_stop_at_the_mark(one_way: OneWay) -> None:
    """A read ends where the urgent byte was sent, though more is there."""
    sender, receiver = one_way
    send_urgent(sender)
    await_urgent(receiver)
    assert receiver.recv(99) == b"before"
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert receiver.recv(99) == b"after"


def test_mark(route: Route, one_way: OneWay, burst: Burst) -> None:
    """SIOCATMARK says whether the urgent byte's place has been reached."""
    sender, receiver = one_way
    with burst(route):
        send_urgent(sender)
    await_urgent(receiver)
    assert not is_at_mark(receiver)
    assert receive_exactly(receiver, 6) == b"before"
    assert is_at_mark(receiver)
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert receive_exactly(receiver, 5) == b"after"
    assert not is_at_mark(receiver)


def test_urgent_byte_inline(route: Route, one_way: OneWay, burst: Burst) -> None:
    """With SO_OOBINLINE the urgent byte is read in its place in the stream, and not with MSG_OOB."""
    sender, receiver = one_way
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    with burst(route):
        send_urgent(sender)
    await_urgent(receiver)
    assert outcome(lambda: receiver.recv(1, socket.MSG_OOB)) == errno.EINVAL
    assert receiver.recv(99) == b"before"
    assert is_at_mark(receiver)
    assert receive_exactly(receiver, 6) == b"xafter"


def test_nothing_urgent_gives_einval(one_way: OneWay) -> None:
    """Where nothing urgent was sent MSG_OOB gives EINVAL, whatever else was."""
    sender, receiver = one_way
    sender.send(b"normal")
    await_waiting(receiver, 6)
    assert outcome(lambda: receiver.recv(1, socket.MSG_OOB)) == errno.EINVAL


def test_urgent_byte_is_read_once(one_way: OneWay) -> None:
    """An urgent byte can be read once; then MSG_OOB gives EINVAL."""
    sender, receiver = one_way
    send_urgent(sender)
    await_urgent(receiver)
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert outcome(lambda: receiver.recv(1, socket.MSG_OOB)) == errno.EINVAL


def test_last_byte_is_the_urgent_one(one_way: OneWay) -> None:
    """Of several bytes sent with MSG_OOB the last is urgent, and the others are normal."""
    sender, receiver = one_way
    sender.send(b"abcx", socket.MSG_OOB)
    await_polled(receiver, URGENT)
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert receive_exactly(receiver, 3) == b"abc"


def test_next_urgent_byte_replaces_the_one_before(route: Route, one_way: OneWay, burst: Burst) -> None:
    """A second urgent byte makes of the first, where that was not read, a normal one."""
    sender, receiver = one_way
    with burst(route):
        sender.send(b"x", socket.MSG_OOB)
        sender.send(b"y", socket.MSG_OOB)
    await_waiting(receiver, 2)
    await_polled(receiver, URGENT)
    assert receiver.recv(1, socket.MSG_OOB) == b"y"
    assert receiver.recv(99) == b"x"


def test_urgent_bytes_one_after_the_other(one_way: OneWay) -> None:
    """Each of several urgent bytes arrives, where each is read before the next is sent."""
    sender, receiver = one_way
    for byte in (b"1", b"2", b"3"):
        send_urgent(sender)
        await_urgent(receiver)
        assert receiver.recv(1, socket.MSG_OOB) == b"x"
        assert receive_exactly(receiver, 11) == b"beforeafter"
        sender.send(byte, socket.MSG_OOB)
        await_polled(receiver, URGENT)
        assert receiver.recv(1, socket.MSG_OOB) == byte


def test_urgent_byte_before_accept(route: Route, burst: Burst) -> None:
    """An urgent byte that was sent before the server accepted is there after it, and in its place."""
    with burst(route):
        client = route.connect()
        send_urgent(client)
    server = route.accept()
    await_urgent(server)
    assert server.recv(99) == b"before"
    assert server.recv(1, socket.MSG_OOB) == b"x"
    assert server.recv(99) == b"after"


def test_urgent_byte_raises_sigurg(one_way: OneWay, urgent_signals: list[int]) -> None:
    """The process that the receiver belongs to (F_SETOWN) gets SIGURG."""
    sender, receiver = one_way
    fcntl.fcntl(receiver, fcntl.F_SETOWN, os.getpid())
    sender.send(b"x", socket.MSG_OOB)
    until(lambda: urgent_signals, "SIGURG")


def test_urgent_byte_then_the_end(route: Route, one_way: OneWay, burst: Burst) -> None:
    """An urgent byte that was sent right before close() can still be read, and the end comes after the stream."""
    sender, receiver = one_way
    with burst(route):
        sender.send(b"before")
        sender.send(b"x", socket.MSG_OOB)
        sender.close()
    await_polled(receiver, URGENT | select.POLLRDHUP | select.POLLHUP)
    assert receiver.recv(1, socket.MSG_OOB) == b"x"
    assert read_to_end(receiver) == b"before"
