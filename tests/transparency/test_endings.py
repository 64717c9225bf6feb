"""How connections end: closed, closed without reading all, killed; and what comes before the end."""

from __future__ import annotations

import errno
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.tools import LIMIT_S, program, receive_all, receive_exactly, until
from tests.transparency.ends import (
    CLOSED,
    HALF_CLOSED,
    LARGE,
    MIB,
    RESET,
    Burst,
    OneWay,
    Route,
    assert_reset,
    await_broken_pipe,
    await_polled,
    await_waiting,
    meanwhile,
    outcome,
    polled,
    read_to_end,
    send_until_full,
)


def close_without_reading(leaver: socket.socket, other: socket.socket) -> None:
    """Close with a byte unread, which the other end sends."""
    other.send(b"?")
    until(lambda: polled(leaver) & select.POLLIN, "something to be left unread")
    leaver.close()


def kill_holder(end: socket.socket) -> None:
    """Make another process the only one that holds an end, and kill it."""
    holder = subprocess.Popen([program("sleep"), "60"], pass_fds=[end.fileno()])
    end.close()
    holder.kill()
    assert holder.wait(LIMIT_S) == -signal.SIGKILL


@pytest.fixture
def broken_pipes() -> Iterator[list[int]]:
    """The SIGPIPEs that came."""
    came: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: came.append(number))
    yield came
    signal.signal(signal.SIGPIPE, before)


# --- closed ---


def test_close_is_the_end(one_way: OneWay) -> None:
    """When one end closes, the other reads the end."""
    leaver, other = one_way
    leaver.close()
    assert read_to_end(other) == b""


def test_answer_then_close(route: Route, one_way: OneWay, burst: Burst) -> None:
    """What was sent before close() is read before the end."""
    leaver, other = one_way
    with burst(route):
        leaver.send(b"answer")
        leaver.close()
    assert read_to_end(other) == b"answer"


def test_one_mebibyte_then_close(one_way: OneWay) -> None:
    """1 MiB followed at once by close() arrives whole."""
    leaver, other = one_way

    def answer() -> None:
        leaver.sendall(b"a" * MIB)
        leaver.close()

    with meanwhile(answer):
        assert read_to_end(other) == b"a" * MIB


@pytest.mark.parametrize("reads", [True, False])
def test_a_full_socket_then_shutdown_and_close(route: Route, one_way: OneWay, reads: bool) -> None:
    """What was sent before SHUT_WR arrives whole, also where it waits for room; its sender reads to the end of the
    question only then, and closes, or closes without having read that."""
    leaver, other = one_way
    client, server = route.pair()
    other.send(b"question")
    other.shutdown(socket.SHUT_WR)
    await_polled(leaver, HALF_CLOSED)
    piece = b"a" * 4096
    taken = send_until_full(lambda: leaver.send(piece), leaver, 16 * MIB)
    leaver.shutdown(socket.SHUT_WR)
    client.send(b"?")
    assert server.recv(1) == b"?"  # by now a proxy has met that SHUT_WR
    if reads:
        assert read_to_end(leaver) == b"question"
    leaver.close()
    # (Where both have said their last a proxy does not wait for a reset: it may come as an end.)
    assert len(read_to_end(other) if reads else receive_all(other)) == taken


def test_shutdown_then_close(route: Route, one_way: OneWay, burst: Burst) -> None:
    """SHUT_WR followed at once by close() is one end, behind all bytes."""
    leaver, other = one_way
    with burst(route):
        leaver.send(b"answer")
        leaver.shutdown(socket.SHUT_WR)
        leaver.close()
    assert read_to_end(other) == b"answer"
    await_polled(other, CLOSED)


def test_poll_after_close(one_way: OneWay) -> None:
    """After the peer's close() poll() says POLLHUP, and not POLLERR."""
    leaver, other = one_way
    leaver.close()
    await_polled(other, CLOSED)


def test_close_ends_a_recv_that_waits(one_way: OneWay) -> None:
    """A recv() that waits returns when the peer closes."""
    leaver, other = one_way
    leaving = threading.Timer(0.05, leaver.close)
    leaving.start()
    assert other.recv(1) == b""
    leaving.join()


def test_close_leaves_other_connections_alone(route: Route) -> None:
    """The end of one connection is nothing to another."""
    first, second = route.pair(), route.pair()
    first[0].close()
    assert read_to_end(first[1]) == b""
    second[0].send(b"still here")
    assert second[1].recv(99) == b"still here"


def test_descriptors_of_one_end_closed_one_by_one(one_way: OneWay) -> None:
    """A connection ends with the last descriptor of an end, not with the first."""
    leaver, other = one_way
    with leaver.dup() as copy:
        leaver.close()
        copy.send(b"still here")
        assert other.recv(99) == b"still here"
    assert read_to_end(other) == b""


# --- sending to who has closed ---


def test_sending_after_close_gives_epipe(one_way: OneWay) -> None:
    """Who sends to an end that has closed comes to get EPIPE."""
    leaver, other = one_way
    leaver.close()
    await_broken_pipe(lambda: other.send(b"x"))


def test_sigpipe(one_way: OneWay, broken_pipes: list[int]) -> None:
    """With EPIPE comes SIGPIPE."""
    leaver, other = one_way
    leaver.close()
    await_broken_pipe(lambda: other.send(b"x"))
    until(lambda: broken_pipes, "SIGPIPE")


def test_no_sigpipe_with_msg_nosignal(one_way: OneWay, broken_pipes: list[int]) -> None:
    """With MSG_NOSIGNAL there is EPIPE alone."""
    leaver, other = one_way
    leaver.close()
    await_broken_pipe(lambda: other.send(b"x", socket.MSG_NOSIGNAL))
    signal.raise_signal(signal.SIGPIPE)
    until(lambda: broken_pipes, "the SIGPIPE of our own")
    assert len(broken_pipes) == 1


def test_close_ends_a_send_that_waits(one_way: OneWay) -> None:
    """A send() that waits for room fails with EPIPE or ECONNRESET when the reader closes."""
    reader, sender = one_way[1], one_way[0]
    with meanwhile(outcome, lambda: sender.sendall(bytes(16 * MIB))) as sending:
        receive_exactly(reader, LARGE)
        reader.close()
    assert sending.result() in (errno.EPIPE, errno.ECONNRESET)


# --- closed without reading all ---


def test_close_with_unread_bytes_resets(one_way: OneWay) -> None:
    """Who closes without having read all, and has sent nothing: ECONNRESET once, then the end."""
    leaver, other = one_way
    close_without_reading(leaver, other)
    assert_reset(other)


def test_answer_then_reset(route: Route, one_way: OneWay, burst: Burst) -> None:
    """Who answers and closes without having read all: the answer, then ECONNRESET once, then the end."""
    leaver, other = one_way
    other.send(b"?")
    await_waiting(leaver, 1)
    with burst(route):
        leaver.send(b"answer")
        leaver.close()
    assert receive_exactly(other, 6) == b"answer"
    assert_reset(other)


@pytest.mark.parametrize("nbytes", [LARGE, MIB])
def test_long_answer_then_reset(one_way: OneWay, nbytes: int) -> None:
    """A long answer arrives whole before the ECONNRESET that follows it at once."""
    leaver, other = one_way
    other.send(b"?")
    await_waiting(leaver, 1)

    def answer() -> None:
        leaver.sendall(b"a" * nbytes)
        leaver.close()

    with meanwhile(answer):
        assert receive_exactly(other, nbytes) == b"a" * nbytes
    assert_reset(other)


def test_reset_after_the_end_of_the_question(one_way: OneWay) -> None:
    """Who closes without having read a question that has its end resets all the same."""
    leaver, other = one_way
    other.send(b"question")
    other.shutdown(socket.SHUT_WR)
    await_polled(leaver, HALF_CLOSED)
    leaver.close()
    assert_reset(other)


def test_reset_by_who_has_sent_the_last(route: Route, one_way: OneWay, burst: Burst) -> None:
    """Who answers, calls SHUT_WR, and closes without having read all: the answer, then ECONNRESET."""
    leaver, other = one_way
    other.send(b"?")
    await_waiting(leaver, 1)
    with burst(route):
        leaver.send(b"answer")
        leaver.shutdown(socket.SHUT_WR)
        leaver.close()
    assert receive_exactly(other, 6) == b"answer"
    await_polled(other, RESET)
    assert_reset(other)


def test_reset_after_a_partial_read(one_way: OneWay) -> None:
    """To have read a part of what came is not to have read all: ECONNRESET."""
    leaver, other = one_way
    other.send(b"question")
    await_waiting(leaver, 8)
    assert leaver.recv(4) == b"ques"
    leaver.close()
    assert_reset(other)


def test_no_reset_when_all_was_read(one_way: OneWay) -> None:
    """Who has read all before closing resets nothing."""
    leaver, other = one_way
    other.send(b"question")
    assert receive_exactly(leaver, 8) == b"question"
    leaver.close()
    assert read_to_end(other) == b""
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def shut_down_without_reading(leaver: socket.socket, other: socket.socket) -> None:
    """SHUT_RDWR with a byte unread, until the other end has read the end."""
    other.send(b"?")
    await_waiting(leaver, 1)
    leaver.shutdown(socket.SHUT_RDWR)
    assert other.recv(1) == b""


def test_no_reset_after_shut_rdwr(one_way: OneWay) -> None:
    """SHUT_RDWR with bytes unread is an end, not a reset."""
    leaver, other = one_way
    shut_down_without_reading(leaver, other)
    await_polled(other, CLOSED)
    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_reset_after_shut_rdwr(one_way: OneWay) -> None:
    """Where close() follows after that, a reset follows."""
    leaver, other = one_way
    shut_down_without_reading(leaver, other)
    leaver.close()
    await_polled(other, RESET)
    assert_reset(other)


def test_poll_after_a_reset(one_way: OneWay) -> None:
    """After a reset poll() says POLLERR too, until the error was taken."""
    leaver, other = one_way
    close_without_reading(leaver, other)
    await_polled(other, RESET)
    assert_reset(other)
    assert polled(other) == CLOSED


def test_error_of_a_reset(one_way: OneWay) -> None:
    """SO_ERROR gives the ECONNRESET, and takes it."""
    leaver, other = one_way
    close_without_reading(leaver, other)
    await_polled(other, RESET)
    errors = [other.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for _ in range(2)]
    assert errors == [errno.ECONNRESET, 0]
    assert other.recv(1) == b""


def test_sending_after_a_reset_gives_epipe(one_way: OneWay) -> None:
    """Sending after a reset gives EPIPE, and leaves the ECONNRESET to who reads."""
    leaver, other = one_way
    close_without_reading(leaver, other)
    await_polled(other, RESET)
    assert outcome(lambda: other.send(b"x")) == errno.EPIPE
    assert_reset(other)


# --- killed ---


def test_killed_process_is_the_end(one_way: OneWay) -> None:
    """When the process at one end is killed, the other reads the end."""
    leaver, other = one_way
    leaver.send(b"last words")
    kill_holder(leaver)
    assert read_to_end(other) == b"last words"


def test_killed_process_with_unread_bytes_resets(one_way: OneWay) -> None:
    """When the process at one end is killed before it has read all, the other gets ECONNRESET."""
    leaver, other = one_way
    other.send(b"?")
    await_waiting(leaver, 1)
    kill_holder(leaver)
    assert_reset(other)


# --- never accepted ---


@pytest.mark.parametrize("backlog", [2, 64])
def test_closed_listener_resets_who_waits(fresh: Route, burst: Burst, backlog: int) -> None:
    """Who waits to be accepted when the server closes its listener, and has said something, gets ECONNRESET once,
    then the end."""
    fresh.start(backlog)
    with burst(fresh):
        clients = [fresh.connect() for _ in range(3)]
        for client in clients:
            client.send(b"question")
        fresh.listener.close()
    for client in clients:
        assert_reset(client)


def test_closed_listener_leaves_the_accepted_alone(fresh: Route) -> None:
    """Who was accepted is served after the server has closed its listener."""
    fresh.start()
    client, server = fresh.pair()
    fresh.listener.close()
    client.send(b"question")
    assert server.recv(99) == b"question"
    server.send(b"answer")
    server.close()
    assert read_to_end(client) == b"answer"
