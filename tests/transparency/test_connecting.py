"""Connecting: who gets in, who is refused with which errno, and what both then know of each other.

Rule: where a server ends, a proxy may learn it from the next client; from the one after that on connect() fails.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat

import pytest

from tests.e2e.tools import until
from tests.transparency.ends import (
    OTHER_ID,
    ROOT,
    Burst,
    Route,
    as_somebody_else,
    await_queue,
    meanwhile,
    outcome,
    read_to_end,
    refusal,
    set_limit,
)

BACKLOGS = pytest.mark.parametrize("backlog", [0, 1, 2, 5])


def fill_queue(route: Route, backlog: int) -> None:
    """As many clients as may wait, one after the other."""
    for length in range(1, backlog + 2):
        assert route.try_connect() == 0
        await_queue(route.path, length, backlog)


# --- who gets in ---


def test_connect_succeeds(route: Route) -> None:
    """connect() succeeds, and the server's accept() gives a connection."""
    assert outcome(lambda: route.client().connect(route.path)) == 0
    assert route.accept().fileno() >= 0


def test_connect_never_is_in_progress(route: Route) -> None:
    """A connect() that must not wait has succeeded when it returns."""
    assert route.try_connect() == 0


def test_waiting_client_makes_the_listener_readable(route: Route) -> None:
    """A client that waits makes the server's listener readable, and once it is accepted no longer."""
    poll = select.poll()
    poll.register(route.listener, select.POLLIN)
    assert poll.poll(0) == []
    route.connect()
    until(lambda: poll.poll(0), "a readable listener")
    route.accept()
    assert poll.poll(0) == []


def test_accept_is_in_order_of_connect(route: Route, burst: Burst) -> None:
    """Clients are accepted in the order in which they connected, each once, and nobody else is."""
    with burst(route):
        for number in range(20):
            route.connect().send(bytes([number]))
    assert [route.accept().recv(9) for _ in range(20)] == [bytes([number]) for number in range(20)]


def test_many_connections_at_once(route: Route) -> None:
    """Fifty connections at once do not mix."""
    pairs = [route.pair() for _ in range(50)]
    for number, (client, server) in enumerate(pairs):
        client.send(b"question %d" % number)
        server.send(b"answer %d" % number)
    for number, (client, server) in enumerate(pairs):
        assert server.recv(99) == b"question %d" % number
        assert client.recv(99) == b"answer %d" % number


def test_bytes_sent_before_accept(route: Route, burst: Burst) -> None:
    """What a client sent before the server accepted is there after it."""
    with burst(route):
        route.connect().send(b"early")
    assert route.accept().recv(99) == b"early"


def test_left_before_accept(route: Route, burst: Burst) -> None:
    """Of a client that connected, sent and closed before accept() the server reads all, and then the end."""
    with burst(route), route.connect() as client:
        client.send(b"last words")
    assert read_to_end(route.accept()) == b"last words"


def test_left_before_accept_without_a_word(route: Route, burst: Burst) -> None:
    """Of a client that connected and closed before accept() the server reads the end."""
    with burst(route):
        route.connect().close()
    assert read_to_end(route.accept()) == b""


def test_client_bound_to_a_path(route: Route) -> None:
    """A client that has a path of its own is served as any other."""
    client, path = route.client(), route.new_path()
    client.bind(path)
    client.connect(route.path)
    client.send(b"question")
    server = route.accept()
    assert server.recv(99) == b"question"
    server.send(b"answer")
    assert client.recv(99) == b"answer"
    assert client.getsockname() == path


# --- who does not ---


def test_no_file_gives_enoent(fresh: Route) -> None:
    """Where there is no file, connect() gives ENOENT."""
    fresh.open()
    assert refusal(fresh) == errno.ENOENT


def test_nobody_listening_gives_econnrefused(fresh: Route) -> None:
    """Where a socket is bound on which nobody listens, connect() gives ECONNREFUSED."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(fresh.server_path)
        fresh.open()
        assert refusal(fresh) == errno.ECONNREFUSED


def test_closed_server_gives_econnrefused(fresh: Route) -> None:
    """Where the server has closed and left its file, connect() gives ECONNREFUSED."""
    fresh.start()
    fresh.listener.close()
    assert refusal(fresh) == errno.ECONNREFUSED


def test_shut_down_server_gives_econnrefused(fresh: Route) -> None:
    """Where the server has called shutdown() on its listener, connect() gives ECONNREFUSED."""
    fresh.start()
    fresh.listener.shutdown(socket.SHUT_RDWR)
    assert refusal(fresh) == errno.ECONNREFUSED


def test_removed_server_gives_enoent(fresh: Route) -> None:
    """Where the server has closed and removed its file, connect() gives ENOENT."""
    fresh.start()
    fresh.listener.close()
    os.unlink(fresh.server_path)
    assert refusal(fresh) == errno.ENOENT


def test_restarted_server_is_reached(fresh: Route) -> None:
    """A server that is started anew after clients were refused gets the next client, and no other connection."""
    fresh.start()
    fresh.listener.close()
    assert refusal(fresh) == errno.ECONNREFUSED
    fresh.serve()
    until(lambda: not outcome(lambda: fresh.connect().send(b"hello")), "a connection to the new server")
    assert fresh.accept().recv(9) == b"hello"


def test_bound_server_gives_econnrefused(fresh: Route) -> None:
    """A server that has made its file (bind()) and does not listen refuses; once it listens the first who comes
    is a client."""
    fresh.start()
    fresh.listener.close()
    os.unlink(fresh.server_path)
    assert refusal(fresh) == errno.ENOENT
    with fresh.client() as listener:
        listener.bind(fresh.server_path)
        os.chmod(fresh.server_path, 0o666)
        until(lambda: fresh.try_connect() == errno.ECONNREFUSED, "ECONNREFUSED")
        listener.listen()
        until(lambda: not outcome(lambda: fresh.connect().send(b"hello")), "a connection to the server")
        with listener.accept()[0] as server:
            assert server.recv(9) == b"hello"


def test_replaced_server_is_reached(fresh: Route) -> None:
    """A server that has taken another's path gets the next client."""
    fresh.start()
    with fresh.listener:
        fresh.serve()
        fresh.connect().send(b"hello")
        assert fresh.accept().recv(9) == b"hello"


def test_mode_000_gives_eacces(fresh: Route) -> None:
    """Who may not write to the socket's file gets EACCES."""
    fresh.serve()
    os.chmod(fresh.server_path, 0)
    fresh.open()
    with as_somebody_else():
        assert fresh.try_connect() == errno.EACCES


@pytest.mark.parametrize("other_kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_wrong_type_gives_eprototype(route: Route, other_kind: socket.SocketKind) -> None:
    """A socket of another type than the server's gets EPROTOTYPE."""
    assert route.try_connect(other_kind) == errno.EPROTOTYPE


# --- a full queue ---


@BACKLOGS
def test_full_queue_gives_eagain(fresh: Route, backlog: int) -> None:
    """While nobody accepts, backlog + 1 clients get in, and the next one gets EAGAIN."""
    fresh.start(backlog)
    fill_queue(fresh, backlog)
    assert fresh.try_connect() == errno.EAGAIN


@pytest.mark.parametrize("backlog", [0, 2])
def test_accept_makes_room_for_one(fresh: Route, backlog: int) -> None:
    """Each accept() makes room for one more client in a full queue."""
    fresh.start(backlog)
    fill_queue(fresh, backlog)
    for _ in range(3):
        fresh.accept()
        await_queue(fresh.path, backlog, backlog)
        assert fresh.try_connect() == 0
        await_queue(fresh.path, backlog + 1, backlog)
        assert fresh.try_connect() == errno.EAGAIN


def test_who_left_keeps_the_place(fresh: Route) -> None:
    """A client that closes while it waits to be accepted still takes its place in the queue."""
    fresh.start(0)
    fresh.connect().close()
    await_queue(fresh.path, 1, 0)
    assert fresh.try_connect() == errno.EAGAIN


def test_full_queue_ends_a_wait_with_eagain(fresh: Route) -> None:
    """A connect() that waits for a place in the queue gives EAGAIN when SO_SNDTIMEO is over."""
    fresh.start(0)
    fill_queue(fresh, 0)
    client = fresh.client()
    set_limit(client, socket.SO_SNDTIMEO, 0.1)
    assert client.connect_ex(fresh.path) == errno.EAGAIN


def test_blocked_connect_goes_on(fresh: Route) -> None:
    """A connect() that waits for a place in the queue succeeds when the server accepts."""
    fresh.start(0)
    fill_queue(fresh, 0)
    assert fresh.try_connect() == errno.EAGAIN
    client = fresh.client()
    with meanwhile(client.connect, fresh.path):
        fresh.accept()
        server = fresh.accept()
    client.send(b"patient")
    assert server.recv(9) == b"patient"


# --- what can be seen of the socket ---


def test_file_mode(fresh: Route) -> None:
    """The file is a socket, and has the server's mode."""
    fresh.serve()
    os.chmod(fresh.server_path, 0o624)
    fresh.open()
    assert os.stat(fresh.path).st_mode == stat.S_IFSOCK | 0o624


def test_file_owner_and_group(fresh: Route) -> None:
    """The file belongs to the server's user and group."""
    owner, group = (OTHER_ID, OTHER_ID - 1) if ROOT else (os.getuid(), os.getgid())
    fresh.serve()
    os.chown(fresh.server_path, owner, group)
    fresh.open()
    found = os.stat(fresh.path)
    assert (found.st_uid, found.st_gid) == (owner, group)


def test_file_that_changes(fresh: Route) -> None:
    """A server may change its file when it listens: mode, owner and group stay the server's, also when it has been
    started anew."""
    owner, group = (OTHER_ID, OTHER_ID - 1) if ROOT else (os.getuid(), os.getgid())
    fresh.start()
    for mode in (0o600, 0o640):
        os.chown(fresh.server_path, owner, group)
        os.chmod(fresh.server_path, mode)
        expected = stat.S_IFSOCK | mode, owner, group
        until(lambda expected=expected: attributes(fresh.path) == expected, f"mode {mode:o}")  # type: ignore[misc]
        fresh.listener.close()
        os.chmod(fresh.server_path, 0o666)
        assert refusal(fresh) == errno.ECONNREFUSED
        fresh.serve()
        until(lambda: not outcome(lambda: fresh.connect().close()), "a connection to the new server")
        fresh.accept()


def test_unlinked_server_keeps_who_may_connect(fresh: Route) -> None:
    """A server removes its file and goes on: clients get ENOENT, whoever they are (and never EACCES)."""
    fresh.start()
    os.unlink(fresh.server_path)
    with as_somebody_else():
        first = fresh.client()
        assert outcome(lambda: first.connect(fresh.path)) in (0, errno.ENOENT)
        until(lambda: fresh.try_connect() == errno.ENOENT, "ENOENT")


def attributes(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_mode, found.st_uid, found.st_gid


def test_name_of_the_client(route: Route) -> None:
    """A client that has no name has none on either side."""
    client, server = route.pair()
    assert not client.getsockname()
    assert not server.getpeername()


def test_name_of_the_client_peer(route: Route) -> None:
    """The client's peer has the name that the client connected to. (Who may not use chroot() has to bind beside the
    path, and then that shows.)"""
    client, _ = route.pair()
    name = client.getpeername()
    assert name == route.path or (not ROOT and name.startswith(f"{route.path}."))


def test_name_of_the_server(route: Route) -> None:
    """An accepted connection has the name that the server's listener was bound to."""
    _, server = route.pair()
    assert server.getsockname() == route.server_path


def test_type_domain_and_protocol(route: Route) -> None:
    """Both ends are stream sockets, AF_UNIX, protocol 0."""
    for end in route.pair():
        found = [
            end.getsockopt(socket.SOL_SOCKET, option)
            for option in (socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL)
        ]
        assert found == [socket.SOCK_STREAM, socket.AF_UNIX, 0]


def test_no_pending_error(route: Route) -> None:
    """A connection begins without an error (SO_ERROR)."""
    for end in route.pair():
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_connecting_again_gives_eisconn(route: Route) -> None:
    """A client that is connected cannot connect again: EISCONN."""
    client, _ = route.pair()
    assert client.connect_ex(route.path) == errno.EISCONN
