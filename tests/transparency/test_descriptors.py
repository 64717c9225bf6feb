"""Descriptors (SCM_RIGHTS): they arrive, at their place in the stream, and nobody in between keeps one.

The kernel's rule for a stream: a read may join bytes with the message with descriptors that comes behind them, but
ends with that message.
"""

from __future__ import annotations

import array
import errno
import os
import socket

import pytest

from tests.e2e.tools import receive_exactly
from tests.transparency.ends import (
    LARGE,
    MIB,
    MOST_DESCRIPTORS,
    Burst,
    OneWay,
    Route,
    assert_reset,
    await_broken_pipe,
    await_unheld,
    await_waiting,
    meanwhile,
    outcome,
    read_to_end,
    same,
    send_files,
)

# --- what can be passed ---


@pytest.mark.parametrize("count", [1, 2, MOST_DESCRIPTORS])
def test_descriptors_arrive(route: Route, one_way: OneWay, count: int) -> None:
    """As many descriptors as a message may have arrive, in their order."""
    sender, receiver = one_way
    pipes = [route.pipe() for _ in range(2)]
    files = [pipes[number % 2].writer for number in range(count)]
    send_files(sender, b"x", *files)
    message = route.receive(receiver, 99)
    assert message.data == b"x"
    assert same(message.files, files)


def test_too_many_descriptors_give_einval(route: Route, one_way: OneWay) -> None:
    """A message with more descriptors than there may be gives EINVAL, and is not sent."""
    sender, receiver = one_way
    files = [route.pipe().writer] * (MOST_DESCRIPTORS + 1)
    assert outcome(lambda: send_files(sender, b"x", *files)) == errno.EINVAL
    sender.send(b"y")
    assert route.receive(receiver, 99)[:2] == (b"y", [])


def test_pipe_works_after_passing(route: Route, one_way: OneWay) -> None:
    """What is written into a pipe's end that was passed can be read from its other end."""
    sender, receiver = one_way
    pipe = route.pipe()
    send_files(sender, b"x", pipe.writer)
    [writer] = route.receive(receiver, 99).files
    writer.write(b"through the pipe")
    assert pipe.reader.read(99) == b"through the pipe"


def test_socket_works_after_passing(route: Route, one_way: OneWay) -> None:
    """A connected socket that was passed is still connected."""
    sender, receiver = one_way
    near, far = socket.socketpair()
    with near:
        with far:
            send_files(sender, b"x", far)
        [passed] = route.receive(receiver, 99).files
        passed.write(b"hello")
        assert near.recv(99) == b"hello"


def test_connection_passed_over_itself(route: Route, one_way: OneWay) -> None:
    """An end can be passed to the other over their own connection, and is the same end there."""
    sender, receiver = one_way
    send_files(sender, b"x", sender)
    [passed] = route.receive(receiver, 99).files
    passed.write(b"from the copy")
    assert receiver.recv(99) == b"from the copy"


def test_passed_file_shares_its_offset(route: Route, one_way: OneWay) -> None:
    """A file that was passed is the same open file: the offset is common."""
    sender, receiver = one_way
    file = route.hold(os.memfd_create("data"))
    send_files(sender, b"x", file)
    [passed] = route.receive(receiver, 99).files
    file.write(b"12345")
    assert passed.tell() == 5


def test_sender_closes_at_once(route: Route, one_way: OneWay) -> None:
    """A descriptor that the sender closes at once arrives all the same."""
    sender, receiver = one_way
    pipe = route.pipe()
    send_files(sender, b"x", pipe.writer)
    pipe.writer.close()
    [writer] = route.receive(receiver, 99).files
    writer.write(b"alive")
    assert pipe.reader.read(99) == b"alive"


def test_descriptors_both_ways_at_once(route: Route) -> None:
    """Descriptors that cross each other arrive at the other end each."""
    client, server = route.pair()
    from_client, from_server = route.pipe().writer, route.pipe().writer
    send_files(client, b"c", from_client)
    send_files(server, b"s", from_server)
    assert same(route.receive(server, 99).files, [from_client])
    assert same(route.receive(client, 99).files, [from_server])


def test_close_on_exec(route: Route, one_way: OneWay) -> None:
    """Descriptors are closed on exec where the receiver asks for it (MSG_CMSG_CLOEXEC), and only there."""
    sender, receiver = one_way
    pipe = route.pipe()
    for flags in (0, socket.MSG_CMSG_CLOEXEC):
        send_files(sender, b"x", pipe.writer)
        [passed] = route.receive(receiver, 99, flags).files
        assert os.get_inheritable(passed.fileno()) == (not flags)


def test_descriptors_without_a_byte(route: Route, one_way: OneWay) -> None:
    """On a stream, descriptors without a byte are not sent."""
    sender, receiver = one_way
    send_files(sender, b"", route.pipe().writer)
    sender.send(b"x")
    assert route.receive(receiver, 99)[:2] == (b"x", [])


# --- their place in the stream ---


def test_place_after_plain_bytes(route: Route, one_way: OneWay, burst: Burst) -> None:
    """A descriptor that was sent with a byte comes with that byte, not with those before or after it."""
    sender, receiver = one_way
    file = route.pipe().writer
    with burst(route):
        sender.send(b"aaaa")
        send_files(sender, b"b", file)
        sender.send(b"cccc")
    messages = [route.receive(receiver, size) for size in (4, 1, 4)]
    assert [message.data for message in messages] == [b"aaaa", b"b", b"cccc"]
    assert [len(message.files) for message in messages] == [0, 1, 0]
    assert same(messages[1].files, [file])


def test_place_when_sent_before_accept(route: Route, burst: Burst) -> None:
    """So it is where all was sent before the server accepted."""
    with burst(route):
        client = route.connect()
        client.send(b"aaaa")
        send_files(client, b"b", route.pipe().writer)
        client.send(b"cccc")
    server = route.accept()
    messages = [route.receive(server, size) for size in (4, 1, 4)]
    assert [(message.data, len(message.files)) for message in messages] == [(b"aaaa", 0), (b"b", 1), (b"cccc", 0)]


def test_place_at_the_very_beginning(route: Route, burst: Burst) -> None:
    """So it is where the first byte of a connection has a descriptor, and all was sent before accept()."""
    with burst(route):
        client = route.connect()
        send_files(client, b"b", route.pipe().writer)
        client.send(b"cccc")
    server = route.accept()
    messages = [route.receive(server, size) for size in (99, 99)]
    assert [(message.data, len(message.files)) for message in messages] == [(b"b", 1), (b"cccc", 0)]


def test_place_in_an_old_connection(route: Route, one_way: OneWay, burst: Burst) -> None:
    """So it is after bytes have gone both ways."""
    sender, receiver = one_way
    for number in range(3):
        sender.send(b"ping")
        assert receive_exactly(receiver, 4) == b"ping"
        receiver.send(b"pong")
        assert receive_exactly(sender, 4) == b"pong"
        with burst(route):
            sender.send(b"a" * number)
            send_files(sender, b"b", route.pipe().writer)
            sender.send(b"cccc")
        receive_exactly(receiver, number)
        messages = [route.receive(receiver, size) for size in (1, 4)]
        assert [(message.data, len(message.files)) for message in messages] == [(b"b", 1), (b"cccc", 0)]


def test_place_behind_a_full_buffer(route: Route, one_way: OneWay) -> None:
    """So it is where megabytes had to wait for a reader before it and behind it."""
    sender, receiver = one_way
    writer = route.pipe().writer

    def send() -> None:
        sender.sendall(b"a" * MIB)
        send_files(sender, b"b", writer)
        sender.sendall(b"c" * MIB)

    with meanwhile(send):
        before = 0
        while not (message := route.receive(receiver, 64 * 1024)).files:
            before += len(message.data)
        assert before + len(message.data) == MIB + 1
        assert message.data.strip(b"a") == b"b"
        assert receive_exactly(receiver, MIB) == b"c" * MIB


def test_large_read_ends_with_the_descriptors(route: Route, one_way: OneWay, burst: Burst) -> None:
    """A read of everything gives the bytes before a descriptor and those that it came with, and no more."""
    sender, receiver = one_way
    with burst(route):
        sender.send(b"aaaa")
        send_files(sender, b"b", route.pipe().writer)
        sender.send(b"cccc")
    await_waiting(receiver, 9)
    messages = [route.receive(receiver, 99) for _ in range(2)]
    assert [(message.data, len(message.files)) for message in messages] == [(b"aaaab", 1), (b"cccc", 0)]


def test_messages_with_descriptors_are_not_joined(route: Route, one_way: OneWay, burst: Burst) -> None:
    """Of two messages with descriptors one after the other each read gives one."""
    sender, receiver = one_way
    first, second = route.pipe().writer, route.pipe().writer
    with burst(route):
        send_files(sender, b"first", first)
        send_files(sender, b"second", second, first)
    await_waiting(receiver, 11)
    messages = [route.receive(receiver, 99) for _ in range(2)]
    assert [message.data for message in messages] == [b"first", b"second"]
    assert same(messages[0].files, [first])
    assert same(messages[1].files, [second, first])


def test_many_places(route: Route, one_way: OneWay, burst: Burst) -> None:
    """Each of fifty descriptors keeps its place among plain bytes."""
    sender, receiver = one_way
    pipes = [route.pipe() for _ in range(2)]
    with burst(route):
        for number in range(50):
            sender.send(b"%04d" % number)
            send_files(sender, b"b", pipes[number % 2].writer)
    for number in range(50):
        plain, message = route.receive(receiver, 4), route.receive(receiver, 1)
        assert plain[:2] == (b"%04d" % number, [])
        assert same(message.files, [pipes[number % 2].writer])


def test_descriptor_with_a_large_payload(route: Route, one_way: OneWay) -> None:
    """A descriptor that was sent with 100 KB comes with their first byte."""
    sender, receiver = one_way
    data = os.urandom(LARGE)
    writer = route.pipe().writer
    with meanwhile(send_files, sender, data, writer):
        message = route.receive(receiver, 1)
        assert same(message.files, [writer])
        rest = b""
        while len(rest) < LARGE - 1:
            piece = route.receive(receiver, LARGE)
            assert piece.files == []
            rest += piece.data
    assert message.data + rest == data


def test_peek_gives_copies(route: Route, one_way: OneWay) -> None:
    """MSG_PEEK gives the descriptors too, and leaves them there."""
    sender, receiver = one_way
    writer = route.pipe().writer
    send_files(sender, b"x", writer)
    for flags in (socket.MSG_PEEK, 0):
        message = route.receive(receiver, 99, flags)
        assert message.data == b"x"
        assert same(message.files, [writer])


# --- ends ---


def test_descriptor_then_the_end(route: Route, one_way: OneWay, burst: Burst) -> None:
    """A descriptor that was sent right before SHUT_WR and close() arrives before the end."""
    sender, receiver = one_way
    writer = route.pipe().writer
    with burst(route):
        send_files(sender, b"x", writer)
        sender.shutdown(socket.SHUT_WR)
        sender.close()
    message = route.receive(receiver, 99)
    assert message.data == b"x"
    assert same(message.files, [writer])
    assert read_to_end(receiver) == b""


def test_descriptor_then_a_reset(route: Route, one_way: OneWay, burst: Burst) -> None:
    """A descriptor that was sent right before a close() with bytes unread arrives before the ECONNRESET."""
    sender, receiver = one_way
    receiver.send(b"?")
    await_waiting(sender, 1)
    writer = route.pipe().writer
    with burst(route):
        send_files(sender, b"x", writer)
        sender.close()
    message = route.receive(receiver, 99)
    assert message.data == b"x"
    assert same(message.files, [writer])
    assert_reset(receiver)


# --- nobody keeps one ---


def test_delivered_descriptor_is_held_by_nobody_else(route: Route, one_way: OneWay) -> None:
    """While the connection goes on, only the receiver holds what it was sent."""
    sender, receiver = one_way
    pipe = route.pipe()
    send_files(sender, b"x", pipe.writer)
    [writer] = route.receive(receiver, 99).files
    writer.close()
    await_unheld(pipe)
    sender.send(b"y")
    assert receiver.recv(99) == b"y"


def test_plain_recv_drops_descriptors(route: Route, one_way: OneWay) -> None:
    """Who reads with recv() gets the bytes; the descriptors are closed."""
    sender, receiver = one_way
    pipe = route.pipe()
    send_files(sender, b"x", pipe.writer)
    assert receiver.recv(99) == b"x"
    await_unheld(pipe)


def test_unread_descriptors_are_closed(route: Route, one_way: OneWay) -> None:
    """Descriptors that the receiver never read are closed with the connection."""
    sender, receiver = one_way
    pipe = route.pipe()
    send_files(sender, b"x", pipe.writer)
    await_waiting(receiver, 1)
    sender.close()
    receiver.close()
    await_unheld(pipe)


def test_descriptors_of_who_was_never_accepted_are_closed(fresh: Route) -> None:
    """Descriptors of a client that the server never accepted are closed with its listener."""
    fresh.start()
    pipe = fresh.pipe()
    client = fresh.connect()
    send_files(client, b"x", pipe.writer)
    fresh.listener.close()
    client.close()
    await_unheld(pipe)


def test_descriptors_behind_a_full_buffer_are_closed(route: Route, one_way: OneWay) -> None:
    """Descriptors that wait behind bytes that nobody reads are closed with the connection."""
    sender, receiver = one_way
    pipe = route.pipe()

    def send() -> int:
        def all_of_it() -> None:
            sender.sendall(bytes(MIB))
            send_files(sender, b"x", pipe.writer)

        return outcome(all_of_it)

    with meanwhile(send):
        receive_exactly(receiver, LARGE)
        receiver.close()
    sender.close()
    await_unheld(pipe)


def test_descriptors_to_who_has_closed_are_closed(route: Route, one_way: OneWay) -> None:
    """Descriptors for an end that has closed come to fail with EPIPE, and none of them stays open."""
    sender, receiver = one_way
    pipe = route.pipe()
    receiver.close()
    await_broken_pipe(lambda: send_files(sender, b"x", pipe.writer))
    await_unheld(pipe)


@pytest.mark.parametrize("room", [0, 1])
def test_too_little_room_for_descriptors(route: Route, one_way: OneWay, room: int) -> None:
    """Where the receiver has room for fewer descriptors than came it gets these and MSG_CTRUNC; the others are
    closed."""
    sender, receiver = one_way
    kept, dropped = route.pipe(), route.pipe()
    send_files(sender, b"x", kept.writer, dropped.writer, dropped.writer)
    message = route.receive(receiver, 99, room=room)
    assert message.data == b"x"
    assert message.flags & socket.MSG_CTRUNC
    assert same(message.files, [kept.writer][:room])
    await_unheld(dropped)


def test_no_truncation_without_descriptors(one_way: OneWay) -> None:
    """Bytes without descriptors come without control messages, and without MSG_CTRUNC."""
    sender, receiver = one_way
    sender.send(b"x")
    _, ancillary, flags, _ = receiver.recvmsg(99, socket.CMSG_SPACE(array.array("i").itemsize))
    assert (ancillary, flags) == ([], 0)


def test_many_descriptors_leave_none(route: Route, one_way: OneWay) -> None:
    """Hundreds of messages with descriptors, each closed by the receiver, leave none open anywhere."""
    sender, receiver = one_way
    pipe = route.pipe()
    for _ in range(300):
        send_files(sender, b"x", pipe.writer)
        [passed] = route.receive(receiver, 99).files
        passed.close()
    await_unheld(pipe)
