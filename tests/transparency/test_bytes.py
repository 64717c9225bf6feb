"""The bytes of a stream: all of them, in order, at the pace of the one who reads.

Rule: pieces may be joined and cut on the way, as a stream may; so what is compared is the stream.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import select
import socket
import threading
import time

from tests.e2e.tools import receive_exactly
from tests.transparency.ends import (
    KIB,
    LARGE,
    MIB,
    OPEN,
    OneWay,
    Route,
    await_polled,
    await_waiting,
    meanwhile,
    outcome,
    polled,
    send_eventfully,
    send_until_full,
    set_limit,
    waiting,
)

BOUND = 16 * MIB
"""Nobody in between takes so much without a reader."""


def noise(nbytes: int) -> bytes:
    """Bytes that show when some are lost, or out of order."""
    return random.Random(nbytes).randbytes(nbytes)


def fill(sender: socket.socket) -> int:
    """Send until nothing more is taken; how many bytes that were."""
    piece = bytes(64 * KIB)
    taken = send_until_full(lambda: sender.send(piece), sender, BOUND)
    assert taken < BOUND
    return taken


# --- amounts ---


def test_a_few_bytes(one_way: OneWay) -> None:
    """A short message arrives."""
    sender, receiver = one_way
    sender.send(b"hello")
    assert receive_exactly(receiver, 5) == b"hello"


def test_one_byte(one_way: OneWay) -> None:
    """A single byte arrives, and is the only one."""
    sender, receiver = one_way
    assert sender.send(b"1") == 1
    assert receiver.recv(99) == b"1"


def test_sending_nothing(one_way: OneWay) -> None:
    """To send no bytes is nothing: neither an end nor a message."""
    sender, receiver = one_way
    assert sender.send(b"") == 0
    sender.send(b"x")
    assert receiver.recv(99) == b"x"


def test_every_byte_value(one_way: OneWay) -> None:
    """All 256 values of a byte arrive as they are."""
    sender, receiver = one_way
    data = bytes(range(256))
    sender.send(data)
    assert receive_exactly(receiver, 256) == data


def test_one_mebibyte(one_way: OneWay) -> None:
    """1 MiB arrives whole."""
    sender, receiver = one_way
    data = noise(MIB)
    with meanwhile(sender.sendall, data):
        assert receive_exactly(receiver, MIB) == data


def test_many_small_writes(one_way: OneWay) -> None:
    """Thousands of small writes arrive in order."""
    sender, receiver = one_way
    lines = [b"line %d\n" % number for number in range(5000)]

    def write() -> None:
        for line in lines:
            sender.send(line)

    data = b"".join(lines)
    with meanwhile(write):
        assert receive_exactly(receiver, len(data)) == data


def test_small_reads(one_way: OneWay) -> None:
    """What was sent at once can be read byte by byte."""
    sender, receiver = one_way
    data = noise(KIB)
    sender.send(data)
    assert b"".join(receiver.recv(1) for _ in data) == data


def test_both_directions_at_once(route: Route) -> None:
    """4 MiB in each direction at the same time arrive whole."""
    client, server = route.pair()
    question, answer = noise(4 * MIB), noise(4 * MIB + 1)
    with (
        meanwhile(client.sendall, question),
        meanwhile(server.sendall, answer),
        meanwhile(receive_exactly, server, len(question)) as arrived,
    ):
        assert receive_exactly(client, len(answer)) == answer
        assert arrived.result() == question


def test_ping_pong(route: Route) -> None:
    """Two hundred times there and back."""
    client, server = route.pair()
    for number in range(200):
        client.send(b"ping %03d" % number)
        assert receive_exactly(server, 8) == b"ping %03d" % number
        server.send(b"pong %03d" % number)
        assert receive_exactly(client, 8) == b"pong %03d" % number


# --- ways to send and receive ---


def test_writev_and_readv(one_way: OneWay) -> None:
    """writev() and readv() gather and scatter."""
    sender, receiver = one_way
    assert os.writev(sender.fileno(), [b"ab", b"", b"cdef"]) == 6
    await_waiting(receiver, 6)
    pieces = [bytearray(3), bytearray(1), bytearray(9)]
    assert os.readv(receiver.fileno(), pieces) == 6
    assert [bytes(piece) for piece in pieces] == [b"abc", b"d", b"ef" + bytes(7)]


def test_sendfile(one_way: OneWay) -> None:
    """A file that is sent with sendfile() arrives whole."""
    sender, receiver = one_way
    data = noise(3 * LARGE)
    file = os.memfd_create("data")
    try:
        os.write(file, data)

        def send() -> None:
            offset = 0
            while offset < len(data):
                offset += os.sendfile(sender.fileno(), file, offset, len(data) - offset)

        with meanwhile(send):
            assert receive_exactly(receiver, len(data)) == data
    finally:
        os.close(file)


def test_splice(route: Route, one_way: OneWay) -> None:
    """Bytes can be taken from the socket into a pipe with splice()."""
    sender, receiver = one_way
    pipe = route.pipe()
    sender.send(b"spliced")
    await_waiting(receiver, 7)
    assert os.splice(receiver.fileno(), pipe.writer.fileno(), 99) == 7
    assert pipe.reader.read(99) == b"spliced"


def test_peek(one_way: OneWay) -> None:
    """MSG_PEEK shows what comes next, and leaves it there."""
    sender, receiver = one_way
    sender.send(b"hello")
    await_waiting(receiver, 5)
    assert [receiver.recv(3, flags) for flags in (socket.MSG_PEEK, socket.MSG_PEEK, 0)] == [b"hel"] * 3
    assert receiver.recv(99, socket.MSG_PEEK) == b"lo"
    assert receiver.recv(99) == b"lo"


def test_waitall(one_way: OneWay) -> None:
    """MSG_WAITALL waits for all that was asked for."""
    sender, receiver = one_way
    sender.send(b"abc")
    await_waiting(receiver, 3)
    rest = threading.Timer(0.05, sender.send, [b"defg"])
    rest.start()
    assert receiver.recv(6, socket.MSG_WAITALL) == b"abcdef"
    assert receiver.recv(99) == b"g"
    rest.join()


def test_waitall_ends_with_the_stream(one_way: OneWay) -> None:
    """MSG_WAITALL gives what there was where the end comes first."""
    sender, receiver = one_way
    sender.send(b"abc")
    sender.shutdown(socket.SHUT_WR)
    assert receiver.recv(6, socket.MSG_WAITALL) == b"abc"


def test_low_water_mark(one_way: OneWay) -> None:
    """With SO_RCVLOWAT a read waits for so many bytes."""
    sender, receiver = one_way
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 4)
    sender.send(b"ab")
    await_waiting(receiver, 2)
    rest = threading.Timer(0.05, sender.send, [b"cd"])
    rest.start()
    assert receiver.recv(99) == b"abcd"
    rest.join()


def test_amount_to_be_read(one_way: OneWay) -> None:
    """FIONREAD comes to what was sent, and goes down with each read."""
    sender, receiver = one_way
    assert waiting(receiver) == 0
    sender.send(bytes(60))
    sender.send(bytes(40))
    await_waiting(receiver, 100)
    receive_exactly(receiver, 70)
    assert waiting(receiver) == 30


def test_poll_before_and_after_bytes(one_way: OneWay) -> None:
    """poll() says POLLOUT, POLLIN too while there is something to read, and POLLOUT again."""
    sender, receiver = one_way
    assert polled(receiver) == OPEN
    sender.send(b"x")
    await_polled(receiver, OPEN | select.POLLIN)
    receiver.recv(1)
    assert polled(receiver) == OPEN
    await_polled(sender, OPEN)


def test_edge_triggered_reader(one_way: OneWay) -> None:
    """A reader that epoll tells once of each arrival (EPOLLET), and that reads until EAGAIN, gets everything."""
    sender, receiver = one_way
    data = noise(2 * MIB)
    received = bytearray()
    receiver.setblocking(False)
    with select.epoll() as epoll, meanwhile(sender.sendall, data):
        epoll.register(receiver, select.EPOLLIN | select.EPOLLET)
        while len(received) < len(data):
            assert epoll.poll(30), f"no event after {len(received)} bytes"
            while not outcome(lambda: received.extend(receiver.recv(5000))):
                pass
    assert received == data


# --- nothing there, no room ---


def test_nothing_there_gives_eagain(one_way: OneWay) -> None:
    """Where nothing was sent MSG_DONTWAIT gives EAGAIN."""
    _, receiver = one_way
    assert outcome(lambda: receiver.recv(1, socket.MSG_DONTWAIT)) == errno.EAGAIN


def test_receive_timeout_gives_eagain(one_way: OneWay) -> None:
    """When SO_RCVTIMEO is over recv() gives EAGAIN, and the connection goes on."""
    sender, receiver = one_way
    set_limit(receiver, socket.SO_RCVTIMEO, 0.05)
    assert outcome(lambda: receiver.recv(1)) == errno.EAGAIN
    set_limit(receiver, socket.SO_RCVTIMEO, 30)
    sender.send(b"late")
    assert receiver.recv(99) == b"late"


def test_send_timeout_gives_eagain(one_way: OneWay) -> None:
    """When the other end does not read, SO_SNDTIMEO comes to be over and send() gives EAGAIN."""
    sender, _ = one_way
    set_limit(sender, socket.SO_SNDTIMEO, 0.1)
    sends = (outcome(lambda: sender.send(bytes(LARGE))) for _ in range(BOUND // LARGE))
    assert next(filter(None, sends)) == errno.EAGAIN


def test_backpressure(one_way: OneWay) -> None:
    """Who sends to an end that does not read meets EAGAIN; once that end has read all, all is there, and there is
    room again."""
    sender, receiver = one_way
    taken = fill(sender)
    assert receive_exactly(receiver, taken) == bytes(taken)
    await_polled(sender, OPEN)
    assert sender.send(b"more") == 4
    assert receiver.recv(99) == b"more"


def test_backpressure_in_one_direction_only(one_way: OneWay) -> None:
    """While one direction is full the other is free."""
    sender, receiver = one_way
    fill(sender)
    receiver.sendall(b"x" * LARGE)
    sender.setblocking(True)
    assert receive_exactly(sender, LARGE) == b"x" * LARGE


def test_blocked_send_goes_on(one_way: OneWay) -> None:
    """A send() that waits for room goes on when the other end reads."""
    sender, receiver = one_way
    taken = fill(sender)
    sender.setblocking(True)
    with meanwhile(sender.sendall, b"x" * MIB):
        assert receive_exactly(receiver, taken + MIB) == bytes(taken) + b"x" * MIB


def test_small_send_buffer(one_way: OneWay) -> None:
    """100 KB get through a sender's buffer of 4608 bytes, event by event."""
    sender, receiver = one_way
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    data = noise(LARGE)
    with meanwhile(send_eventfully, sender, data):
        assert receive_exactly(receiver, LARGE) == data


def test_event_driven_sender(one_way: OneWay) -> None:
    """3 MiB sent event by event arrive whole."""
    sender, receiver = one_way
    data = noise(3 * MIB)
    with meanwhile(send_eventfully, sender, data):
        assert receive_exactly(receiver, len(data)) == data


def test_slow_start_of_the_reader(one_way: OneWay) -> None:
    """What was sent before anybody read is read at last, in pieces of all sizes."""
    sender, receiver = one_way
    data = noise(LARGE)
    sender.sendall(data)
    stream, sizes = io.BytesIO(), itertools.cycle([1, 4095, 4096, 4097, 17])
    while stream.tell() < LARGE:
        stream.write(receiver.recv(next(sizes)))
    assert stream.getvalue() == data
    assert waiting(receiver) == 0


def test_many_small_messages(one_way: OneWay) -> None:
    """Who has sent as many bytes, each for itself, as are taken may send again once they were read: the kernel
    charges each of them with some hundred bytes. So it is after a pause."""
    sender, receiver = one_way
    sender.setblocking(False)
    for _ in range(2):
        sender.send(b"y")
        assert receive_exactly(receiver, 1) == b"y"
        time.sleep(0.1)  # what is left unread in between is looked at after 50 ms
        sent = send_until_full(lambda: sender.send(b"x"), sender, BOUND)
        assert receive_exactly(receiver, sent) == b"x" * sent
        await_polled(sender, select.POLLOUT)
