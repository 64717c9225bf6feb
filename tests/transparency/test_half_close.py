"""Half-closes: one direction of a connection ends, the other goes on."""

from __future__ import annotations

import errno
import select
import socket
import threading

from tests.transparency.ends import (
    CLOSED,
    HALF_CLOSED,
    MIB,
    OPEN,
    OneWay,
    Route,
    await_broken_pipe,
    await_polled,
    meanwhile,
    outcome,
    polled,
    read_to_end,
)


def test_answer_after_the_end_of_the_question(one_way: OneWay) -> None:
    """After SHUT_WR the other end reads the end, and its answer still arrives."""
    asker, answerer = one_way
    asker.send(b"question")
    asker.shutdown(socket.SHUT_WR)
    assert read_to_end(answerer) == b"question"
    answerer.sendall(b"answer")
    answerer.close()
    assert read_to_end(asker) == b"answer"


def test_late_answer_after_the_end_of_the_question(one_way: OneWay) -> None:
    """After SHUT_WR an answer still arrives that comes much later."""
    asker, answerer = one_way
    asker.shutdown(socket.SHUT_WR)
    assert read_to_end(answerer) == b""
    answer = threading.Timer(0.3, answerer.send, [b"late answer"])
    answer.start()
    assert asker.recv(99) == b"late answer"
    answer.join()


def test_long_question_and_its_end(one_way: OneWay) -> None:
    """1 MiB that was sent before SHUT_WR arrives before the end."""
    asker, answerer = one_way

    def ask() -> None:
        asker.sendall(b"q" * MIB)
        asker.shutdown(socket.SHUT_WR)

    with meanwhile(ask):
        assert read_to_end(answerer) == b"q" * MIB
    answerer.send(b"answer")
    assert asker.recv(99) == b"answer"


def test_answer_sent_before_the_end_of_the_question(one_way: OneWay) -> None:
    """What had come before SHUT_WR can be read after it."""
    asker, answerer = one_way
    answerer.send(b"greeting")
    await_polled(asker, OPEN | select.POLLIN)
    asker.shutdown(socket.SHUT_WR)
    assert read_to_end(answerer) == b""
    assert asker.recv(99) == b"greeting"


def test_end_in_both_directions(route: Route) -> None:
    """When both ends have sent their last, both read the end."""
    client, server = route.pair()
    client.send(b"question")
    client.shutdown(socket.SHUT_WR)
    server.send(b"answer")
    server.shutdown(socket.SHUT_WR)
    assert read_to_end(server) == b"question"
    assert read_to_end(client) == b"answer"


def test_end_is_read_again_and_again(one_way: OneWay) -> None:
    """Who reads on after the end reads the end again."""
    sender, receiver = one_way
    sender.shutdown(socket.SHUT_WR)
    assert [receiver.recv(9) for _ in range(3)] == [b""] * 3


def test_sending_after_the_own_end_gives_epipe(one_way: OneWay) -> None:
    """After its own SHUT_WR an end cannot send: EPIPE."""
    sender, _ = one_way
    sender.shutdown(socket.SHUT_WR)
    assert outcome(lambda: sender.send(b"x")) == errno.EPIPE


def test_sending_to_who_reads_no_more_gives_epipe(one_way: OneWay) -> None:
    """After SHUT_RD the other end comes to get EPIPE when it sends."""
    sender, receiver = one_way
    receiver.shutdown(socket.SHUT_RD)
    await_broken_pipe(lambda: sender.send(b"x"))


def test_sending_after_shut_rd(one_way: OneWay) -> None:
    """Who has called SHUT_RD reads the end, and can still send."""
    receiver, sender = one_way
    sender.shutdown(socket.SHUT_RD)
    assert sender.recv(9) == b""
    sender.send(b"still here")
    assert receiver.recv(99) == b"still here"


def test_sending_goes_on_after_epipe(one_way: OneWay) -> None:
    """After EPIPE in one direction the other still works."""
    sender, receiver = one_way
    receiver.shutdown(socket.SHUT_RD)
    await_broken_pipe(lambda: sender.send(b"x"))
    receiver.send(b"still here")
    assert sender.recv(99) == b"still here"


def test_shut_rdwr(one_way: OneWay) -> None:
    """After SHUT_RDWR the other end reads what was sent, then the end, and comes to get EPIPE."""
    leaver, other = one_way
    leaver.send(b"last words")
    leaver.shutdown(socket.SHUT_RDWR)
    assert read_to_end(other) == b"last words"
    await_broken_pipe(lambda: other.send(b"x"))


def test_poll_after_the_peers_end(one_way: OneWay) -> None:
    """After the peer's SHUT_WR poll() says POLLIN and POLLRDHUP, not POLLHUP; and nothing new to the peer."""
    sender, receiver = one_way
    sender.shutdown(socket.SHUT_WR)
    await_polled(receiver, HALF_CLOSED)
    assert polled(sender) == OPEN


def test_poll_after_both_ends(route: Route) -> None:
    """When both ends have called SHUT_WR, poll() says POLLHUP to both."""
    client, server = route.pair()
    client.shutdown(socket.SHUT_WR)
    server.shutdown(socket.SHUT_WR)
    await_polled(client, CLOSED)
    await_polled(server, CLOSED)


def test_poll_after_shut_rdwr(one_way: OneWay) -> None:
    """After the peer's SHUT_RDWR poll() says POLLHUP."""
    leaver, other = one_way
    leaver.shutdown(socket.SHUT_RDWR)
    await_polled(other, CLOSED)
