"""SOCK_SEQPACKET: a connection whose messages (records) stay what they are."""

from __future__ import annotations

import errno
import os
import random
import select
import socket

import pytest

from tests.e2e.tools import until
from tests.transparency.ends import (
    CLOSED,
    HALF_CLOSED,
    LARGE,
    OPEN,
    RESET,
    Burst,
    OneWay,
    Route,
    as_somebody_else,
    assert_reset,
    await_broken_pipe,
    await_polled,
    await_queue,
    await_unheld,
    meanwhile,
    outcome,
    peer_of,
    polled,
    refusal,
    same,
    send_files,
    send_until_full,
    set_passcred,
)

READABLE = OPEN | select.POLLIN
MOST = 100_000
"""More records than fit in between without a reader."""


@pytest.fixture(scope="module")
def kind() -> socket.SocketKind:
    return socket.SOCK_SEQPACKET


def receive_records(sock: socket.socket, count: int) -> list[bytes]:
    return [sock.recv(2 * LARGE) for _ in range(count)]


# --- records ---


def test_record_boundaries(one_way: OneWay) -> None:
    """Each record arrives as one, whatever its length."""
    sender, receiver = one_way
    records = [b"1", bytes(100), b"22", os.urandom(LARGE), b"3"]
    with meanwhile(lambda: [sender.send(record) for record in records]):
        assert receive_records(receiver, len(records)) == records


def test_empty_record(route: Route, one_way: OneWay, burst: Burst) -> None:
    """An empty record arrives as one, and is not the end."""
    sender, receiver = one_way
    records = [b"", b"a", b"", b"", b"b"]
    with burst(route):
        for record in records:
            sender.send(record)
    assert receive_records(receiver, len(records)) == records


def test_many_records(one_way: OneWay) -> None:
    """Thousands of records back to back arrive in order, none joined, none cut."""
    sender, receiver = one_way
    records = [b"%d " % number * random.Random(number).randrange(20) for number in range(3000)]
    with meanwhile(lambda: [sender.send(record) for record in records]):
        assert receive_records(receiver, len(records)) == records


def test_records_both_ways_at_once(route: Route) -> None:
    """Records in both directions at the same time keep their boundaries."""
    client, server = route.pair()
    records = [bytes(number) for number in range(2000)]
    with (
        meanwhile(lambda: [client.send(record) for record in records]),
        meanwhile(lambda: [server.send(record) for record in records]),
        meanwhile(receive_records, server, len(records)) as arrived,
    ):
        assert receive_records(client, len(records)) == records
        assert arrived.result() == records


def test_record_ping_pong(route: Route) -> None:
    """Two hundred records there and back."""
    client, server = route.pair()
    for number in range(200):
        client.send(b"ping %d" % number)
        assert server.recv(99) == b"ping %d" % number
        server.send(b"pong %d" % number)
        assert client.recv(99) == b"pong %d" % number


def test_records_sent_before_accept(route: Route, burst: Burst) -> None:
    """Records that were sent before the server accepted are there after it, each as one."""
    with burst(route):
        client = route.connect()
        for record in (b"one", b"", b"three"):
            client.send(record)
    assert receive_records(route.accept(), 3) == [b"one", b"", b"three"]


def test_record_is_cut_to_the_buffer(route: Route, one_way: OneWay) -> None:
    """Of a record that is longer than the receiver's buffer the rest is dropped, which MSG_TRUNC says."""
    sender, receiver = one_way
    sender.send(b"0123456789" * 10)
    sender.send(b"next")
    message = route.receive(receiver, 10)
    assert message.data == b"0123456789"
    assert message.flags & socket.MSG_TRUNC
    message = route.receive(receiver, 10)
    assert message.data == b"next"
    assert not message.flags & socket.MSG_TRUNC


def test_length_of_a_record(one_way: OneWay) -> None:
    """A read with MSG_TRUNC gives the record's whole length."""
    sender, receiver = one_way
    sender.send(bytes(LARGE))
    assert receiver.recv_into(bytearray(10), 10, socket.MSG_TRUNC) == LARGE


def test_record_peek(one_way: OneWay) -> None:
    """MSG_PEEK shows the next record, and leaves it there."""
    sender, receiver = one_way
    sender.send(b"first")
    sender.send(b"second")
    assert [receiver.recv(99, flags) for flags in (socket.MSG_PEEK, 0, 0)] == [b"first", b"first", b"second"]


def test_longest_record(one_way: OneWay) -> None:
    """The longest record that a socket takes arrives whole; a longer one gives EMSGSIZE."""
    sender, receiver = one_way
    most = sender.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32
    record = os.urandom(most)
    assert outcome(lambda: sender.send(record + b"x")) == errno.EMSGSIZE
    with meanwhile(sender.send, record):
        assert receiver.recv(most + 1) == record


def test_record_backpressure(one_way: OneWay) -> None:
    """Who sends to an end that does not read meets EAGAIN; once that has read all, there is room again."""
    sender, receiver = one_way
    taken = send_until_full(lambda: sender.send(b"x") and 1, sender, MOST)
    assert taken < MOST
    assert receive_records(receiver, taken) == [b"x"] * taken
    await_polled(sender, OPEN)
    sender.send(b"more")
    assert receiver.recv(99) == b"more"


# --- connecting and ending ---


def test_seqpacket_type(route: Route) -> None:
    """Both ends are of the type SOCK_SEQPACKET."""
    for end in route.pair():
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET


@pytest.mark.parametrize("other_kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_seqpacket_refuses_other_types(route: Route, other_kind: socket.SocketKind) -> None:
    """A socket of another type gets EPROTOTYPE."""
    assert route.try_connect(other_kind) == errno.EPROTOTYPE


def test_seqpacket_full_queue(fresh: Route) -> None:
    """While nobody accepts, backlog + 1 clients get in, and the next one gets EAGAIN."""
    fresh.start(1)
    for length in (1, 2):
        assert fresh.try_connect() == 0
        await_queue(fresh.path, length, 1)
    assert fresh.try_connect() == errno.EAGAIN


def test_seqpacket_closed_listener(fresh: Route) -> None:
    """Who waits to be accepted when the server closes its listener, and has said something, gets ECONNRESET once,
    then the end."""
    fresh.start()
    client = fresh.connect()
    client.send(b"question")
    fresh.listener.close()
    assert_reset(client)


def test_seqpacket_closed_server_gives_econnrefused(fresh: Route) -> None:
    """Where the server has closed and left its file, connect() gives ECONNREFUSED."""
    fresh.start()
    fresh.listener.close()
    assert refusal(fresh) == errno.ECONNREFUSED


def test_seqpacket_end(route: Route, one_way: OneWay, burst: Burst) -> None:
    """Records that were sent before close() are read before the end."""
    leaver, other = one_way
    with burst(route):
        leaver.send(b"last")
        leaver.send(b"words")
        leaver.close()
    assert receive_records(other, 3) == [b"last", b"words", b""]
    await_polled(other, CLOSED)


def test_seqpacket_half_close(one_way: OneWay) -> None:
    """After SHUT_WR the other end reads the end, and its answer still arrives."""
    asker, answerer = one_way
    asker.send(b"question")
    asker.shutdown(socket.SHUT_WR)
    assert receive_records(answerer, 2) == [b"question", b""]
    await_polled(answerer, HALF_CLOSED)
    answerer.send(b"answer")
    assert asker.recv(99) == b"answer"


def test_seqpacket_sending_after_close_gives_epipe(one_way: OneWay) -> None:
    """Who sends to an end that has closed comes to get EPIPE."""
    leaver, other = one_way
    leaver.close()
    await_broken_pipe(lambda: other.send(b"x"))


def test_seqpacket_reset(one_way: OneWay) -> None:
    """Who closes without having read all: ECONNRESET once, then the end."""
    leaver, other = one_way
    other.send(b"?")
    until(lambda: polled(leaver) & select.POLLIN, "something to be left unread")
    leaver.close()
    assert_reset(other)


def test_seqpacket_reset_comes_before_records(one_way: OneWay) -> None:
    """ECONNRESET is read before the records that were sent before it, which are read then."""
    leaver, other = one_way
    other.send(b"?")
    leaver.send(b"answer")
    until(lambda: polled(leaver) & select.POLLIN, "something to be left unread")
    await_polled(other, READABLE)
    leaver.close()
    await_polled(other, RESET)
    assert outcome(lambda: other.recv(99)) == errno.ECONNRESET
    assert receive_records(other, 2) == [b"answer", b""]


# --- what comes with a record ---


def test_descriptors_with_a_record(route: Route, one_way: OneWay, burst: Burst) -> None:
    """Descriptors come with the record that they were sent with, and with no other."""
    sender, receiver = one_way
    first, second = route.pipe().writer, route.pipe().writer
    with burst(route):
        sender.send(b"a")
        send_files(sender, b"b", first)
        send_files(sender, b"c", second, first)
        sender.send(b"d")
    messages = [route.receive(receiver, 99) for _ in range(4)]
    assert [message.data for message in messages] == [b"a", b"b", b"c", b"d"]
    assert [len(message.files) for message in messages] == [0, 1, 2, 0]
    assert same(messages[1].files, [first])
    assert same(messages[2].files, [second, first])


def test_descriptors_with_an_empty_record(route: Route, one_way: OneWay) -> None:
    """An empty record can have descriptors."""
    sender, receiver = one_way
    writer = route.pipe().writer
    send_files(sender, b"", writer)
    message = route.receive(receiver, 99)
    assert message.data == b""
    assert same(message.files, [writer])


def test_unread_descriptors_of_a_record_are_closed(route: Route, one_way: OneWay) -> None:
    """Descriptors of a record that nobody reads are closed with the connection."""
    sender, receiver = one_way
    pipe = route.pipe()
    send_files(sender, b"x", pipe.writer)
    await_polled(receiver, READABLE)
    sender.close()
    receiver.close()
    await_unheld(pipe)


def test_credentials_with_a_record(route: Route, one_way: OneWay) -> None:
    """With SO_PASSCRED the sender's credentials come with each record."""
    sender, receiver = one_way
    set_passcred(receiver)
    with as_somebody_else() as user:
        sender.send(b"theirs")
    sender.send(b"mine")
    for data, expected in ((b"theirs", user), (b"mine", (os.geteuid(), os.getegid()))):
        message = route.receive(receiver, 99)
        assert message.data == data
        assert [credentials[1:] for credentials in message.credentials] == [expected]


def test_seqpacket_peer_credentials(route: Route) -> None:
    """A server knows the user and the group of its client."""
    with as_somebody_else() as user:
        route.connect()
    assert peer_of(route.accept()) == user
