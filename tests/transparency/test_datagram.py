"""SOCK_DGRAM: messages without a connection, and replies to the address that they came from.

Rule: a server replies to the address that recvfrom() gave. Which that is, it need not know.
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
    LARGE,
    OPEN,
    ROOT,
    Burst,
    Route,
    as_somebody_else,
    await_polled,
    await_unheld,
    meanwhile,
    outcome,
    polled,
    same,
    send_files,
    send_until_full,
    set_passcred,
)

MOST = 100_000
"""More datagrams than fit in between without a reader."""


@pytest.fixture(scope="module")
def kind() -> socket.SocketKind:
    return socket.SOCK_DGRAM


@pytest.fixture
def server(route: Route) -> socket.socket:
    return route.listener


@pytest.fixture(params=["path", "abstract"])
def bound(route: Route, request: pytest.FixtureRequest) -> socket.socket:
    """A client that has a name: a path, or one in the abstract name space that the kernel chose."""
    client = route.client()
    client.bind(route.new_path() if request.param == "path" else "")
    return client


def bound_client(route: Route) -> socket.socket:
    """A client that has a path."""
    client = route.client()
    client.bind(route.new_path())
    return client


def reply(server: socket.socket, answer: bytes) -> bytes:
    """Answer the next datagram. Returns it."""
    data, address = server.recvfrom(2 * LARGE)
    server.sendto(answer, address)
    return data


def send_failure(client: socket.socket) -> int:
    """What sending comes to fail with."""
    return until(lambda: outcome(lambda: client.send(b"x")), "an error of send()")


# --- to the server ---


def test_datagram_boundaries(route: Route, server: socket.socket) -> None:
    """Each datagram arrives as one, whatever its length, and in order."""
    client = route.client()
    datagrams = [b"1", bytes(100), b"22", os.urandom(LARGE), b"3"]
    with meanwhile(lambda: [client.sendto(each, route.path) for each in datagrams]):
        assert [server.recv(2 * LARGE) for _ in datagrams] == datagrams


def test_empty_datagram(route: Route, server: socket.socket, burst: Burst) -> None:
    """An empty datagram arrives as one."""
    client = route.connect()
    with burst(route):
        for each in (b"", b"a", b""):
            client.send(each)
    assert [server.recv(99) for _ in range(3)] == [b"", b"a", b""]


def test_unbound_sender_has_no_address(route: Route, server: socket.socket) -> None:
    """A datagram of a client without a name comes from nobody who could be answered."""
    route.client().sendto(b"anonymous", route.path)
    assert server.recvfrom(99) == (b"anonymous", None)


def test_many_datagrams(route: Route, server: socket.socket) -> None:
    """Thousands of datagrams arrive in order: none is lost, the sender waits."""
    client = route.connect()
    datagrams = [b"number %d" % number for number in range(3000)]
    with meanwhile(lambda: [client.send(each) for each in datagrams]):
        assert [server.recv(99) for _ in datagrams] == datagrams


def test_datagram_is_cut_to_the_buffer(route: Route, server: socket.socket) -> None:
    """Of a datagram that is longer than the receiver's buffer the rest is dropped, which MSG_TRUNC says."""
    client = route.connect()
    client.send(b"0123456789" * 10)
    client.send(b"next")
    message = route.receive(server, 10)
    assert message.data == b"0123456789"
    assert message.flags & socket.MSG_TRUNC
    assert route.receive(server, 10).data == b"next"


def test_datagram_peek(route: Route, server: socket.socket) -> None:
    """MSG_PEEK shows the next datagram, and leaves it there."""
    client = route.connect()
    client.send(b"first")
    client.send(b"second")
    assert [server.recv(99, flags) for flags in (socket.MSG_PEEK, 0, 0)] == [b"first", b"first", b"second"]


def test_longest_datagram(route: Route, server: socket.socket) -> None:
    """The longest datagram that a socket takes arrives whole; a longer one gives EMSGSIZE."""
    client = route.connect()
    most = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - 32
    datagram = os.urandom(most)
    assert outcome(lambda: client.send(datagram + b"x")) == errno.EMSGSIZE
    with meanwhile(client.send, datagram):
        assert server.recv(most + 1) == datagram


# --- and back ---


def test_reply(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """A client that has a name gets the server's reply."""
    bound.sendto(b"question", route.path)
    assert reply(server, b"answer") == b"question"
    assert bound.recv(99) == b"answer"


def test_reply_to_a_connected_client(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """So does one that has connected, which takes datagrams from the server only."""
    bound.connect(route.path)
    bound.send(b"question")
    assert reply(server, b"answer") == b"question"
    assert bound.recv(99) == b"answer"


def test_address_of_a_reply(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """A reply comes from the address that the client sent to."""
    bound.sendto(b"question", route.path)
    reply(server, b"answer")
    assert bound.recvfrom(99) == (b"answer", route.path)


def test_large_and_empty_replies(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """Several replies to one question arrive, each as one, whatever their length."""
    bound.sendto(b"question", route.path)
    _, address = server.recvfrom(99)
    replies = [b"1", b"", os.urandom(LARGE), b"4"]
    with meanwhile(lambda: [server.sendto(each, address) for each in replies]):
        assert [bound.recv(2 * LARGE) for _ in replies] == replies


def test_each_client_gets_its_own_replies(route: Route, server: socket.socket, burst: Burst) -> None:
    """Replies to clients that have asked at the same time do not mix."""
    clients = [bound_client(route) for _ in range(5)]
    with burst(route):
        for number, client in enumerate(clients):
            client.sendto(b"%d" % number, route.path)
    asked = [server.recvfrom(99) for _ in clients]
    for data, address in reversed(asked):
        server.sendto(b"answer " + data, address)
    assert [client.recv(99) for client in clients] == [b"answer %d" % number for number in range(5)]


def test_address_of_a_client_stays(route: Route, server: socket.socket) -> None:
    """All datagrams of a client come from one address, which is another than the next client's."""
    one, other = bound_client(route), bound_client(route)
    addresses = []
    for client in (one, other, one, other):
        client.sendto(b"x", route.path)
        addresses.append(server.recvfrom(99)[1])
    assert addresses[0] == addresses[2] != addresses[1] == addresses[3]


def test_server_that_connects_to_its_client(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """A server's other socket that connects to the client's address reaches it too."""
    bound.sendto(b"question", route.path)
    _, address = server.recvfrom(99)
    worker = route.client()
    worker.connect(address)
    worker.send(b"from the worker")
    assert bound.recv(99) == b"from the worker"


def test_datagram_ping_pong(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """Two hundred questions and replies."""
    bound.connect(route.path)
    for number in range(200):
        bound.send(b"ping %d" % number)
        assert reply(server, b"pong %d" % number) == b"ping %d" % number
        assert bound.recv(99) == b"pong %d" % number


def test_reply_to_a_client_that_has_gone(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """Who replies to a client that has closed comes to get ECONNREFUSED."""
    bound.sendto(b"question", route.path)
    _, address = server.recvfrom(99)
    bound.close()
    failed = until(lambda: outcome(lambda: server.sendto(b"answer", address)), "an error of sendto()")
    assert failed == errno.ECONNREFUSED


def test_client_that_was_started_anew(route: Route, server: socket.socket) -> None:
    """A client that has taken the path of the one before it gets the replies to its own questions."""
    first = bound_client(route)
    path = first.getsockname()
    first.sendto(b"first", route.path)
    assert reply(server, b"answer to first") == b"first"
    assert first.recv(99) == b"answer to first"  # one that is under way goes to whom it finds at that path
    first.close()
    os.unlink(path)
    second = route.client()
    second.bind(path)
    second.sendto(b"second", route.path)
    assert reply(server, b"answer to second") == b"second"
    assert second.recv(99) == b"answer to second"


# --- a full receiver, and none ---


def test_full_receiver_gives_eagain(route: Route, server: socket.socket) -> None:
    """Who sends to a server that does not read meets EAGAIN; what was taken arrives, and there is room again."""
    client = route.connect()
    taken = send_until_full(lambda: client.send(b"x"), client, MOST)
    assert taken < MOST
    assert [server.recv(99) for _ in range(taken)] == [b"x"] * taken
    await_polled(client, OPEN)
    client.send(b"more")
    assert server.recv(99) == b"more"


def test_blocked_datagram_goes_on(route: Route, server: socket.socket) -> None:
    """A send() that waits for room goes on when the server reads."""
    client = route.connect()
    taken = send_until_full(lambda: client.send(b"x"), client, MOST)
    client.setblocking(True)
    with meanwhile(client.send, b"patient"):
        assert [server.recv(99) for _ in range(taken)] == [b"x"] * taken
        assert server.recv(99) == b"patient"


def test_closed_receiver_gives_econnrefused(fresh: Route) -> None:
    """Who sends to a server that has closed gets ECONNREFUSED, from the second datagram on at the latest."""
    fresh.start()
    client, stranger = fresh.connect(), fresh.client()
    client.send(b"x")
    assert fresh.listener.recv(99) == b"x"
    fresh.listener.close()
    assert send_failure(client) == errno.ECONNREFUSED
    assert outcome(lambda: stranger.sendto(b"x", fresh.path)) == errno.ECONNREFUSED


def test_removed_receiver_gives_enoent(fresh: Route) -> None:
    """Who sends to a server that has closed and removed its file comes to get ENOENT."""
    fresh.start()
    fresh.listener.close()
    os.unlink(fresh.server_path)
    client = fresh.client()
    failed = until(lambda: outcome(lambda: client.sendto(b"x", fresh.path)), "an error of sendto()")
    assert failed == errno.ENOENT


def test_restarted_receiver(fresh: Route) -> None:
    """A server that is started anew gets the datagrams of clients that come then, and they its replies."""
    fresh.start()
    client = bound_client(fresh)
    fresh.listener.close()
    until(lambda: outcome(lambda: client.sendto(b"x", fresh.path)), "an error of sendto()")
    fresh.serve()
    until(lambda: not outcome(lambda: client.sendto(b"question", fresh.path)), "the new server")
    assert reply(fresh.listener, b"answer") == b"question"
    assert client.recv(99) == b"answer"


def test_datagram_refuses_streams(route: Route) -> None:
    """A stream socket gets EPROTOTYPE from connect()."""
    assert route.try_connect(socket.SOCK_STREAM) == errno.EPROTOTYPE


def test_datagram_file(fresh: Route) -> None:
    """The file is a socket with the server's mode, owner and group."""
    fresh.serve()
    os.chmod(fresh.server_path, 0o624)
    fresh.open()
    expected, found = os.stat(fresh.server_path), os.stat(fresh.path)
    assert found.st_mode == stat.S_IFSOCK | 0o624
    assert (found.st_uid, found.st_gid) == (expected.st_uid, expected.st_gid)


# --- what comes with a datagram ---


def test_descriptors_with_a_datagram(route: Route, server: socket.socket, burst: Burst) -> None:
    """Descriptors come with the datagram that they were sent with, an empty one or not, and with no other."""
    client = route.connect()
    writer = route.pipe().writer
    with burst(route):
        client.send(b"a")
        send_files(client, b"b", writer)
        send_files(client, b"", writer, writer)
        client.send(b"d")
    messages = [route.receive(server, 99) for _ in range(4)]
    assert [message.data for message in messages] == [b"a", b"b", b"", b"d"]
    assert [len(message.files) for message in messages] == [0, 1, 2, 0]
    assert same(messages[1].files + messages[2].files, [writer] * 3)


def test_descriptors_with_a_reply(route: Route, server: socket.socket, bound: socket.socket) -> None:
    """Descriptors come with a reply."""
    bound.sendto(b"question", route.path)
    _, address = server.recvfrom(99)
    writer = route.pipe().writer
    send_files(server, b"answer", writer, to=address)
    message = route.receive(bound, 99)
    assert message.data == b"answer"
    assert same(message.files, [writer])


def test_descriptors_of_a_datagram_are_held_by_nobody_else(route: Route, server: socket.socket) -> None:
    """Once they have arrived, only the receiver holds descriptors."""
    pipe = route.pipe()
    send_files(route.connect(), b"x", pipe.writer)
    assert server.recv(99) == b"x"
    await_unheld(pipe)


def test_credentials_with_a_datagram(fresh: Route) -> None:
    """With SO_PASSCRED each datagram comes with its sender's uid and gid, and its pid."""
    fresh.serve()
    set_passcred(fresh.listener)
    fresh.open()
    client = fresh.connect()
    client.send(b"mine")
    with as_somebody_else() as user:
        client.send(b"theirs")
    for data, expected in ((b"mine", (os.geteuid(), os.getegid())), (b"theirs", user)):
        message = fresh.receive(fresh.listener, 99)
        assert message.data == data
        [credentials] = message.credentials
        assert credentials[1:] == expected
        assert credentials.pid == os.getpid() or not ROOT


def test_datagram_makes_the_server_readable(route: Route, server: socket.socket) -> None:
    """poll() says POLLIN to the server for as long as a datagram waits."""
    assert polled(server) == OPEN
    route.client().sendto(b"x", route.path)
    await_polled(server, OPEN | select.POLLIN)
    server.recv(1)
    assert polled(server) == OPEN
