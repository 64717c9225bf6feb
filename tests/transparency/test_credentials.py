"""Who the other end is: SO_PEERCRED, and credentials that come with messages (SO_PASSCRED, SCM_CREDENTIALS).

Rules: as root, the other end is another user where the test says so (and so no proxy's own user); without, it is
the same one. Only root can say another process's pid, so only for root is that compared.
"""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext

import pytest

from tests.transparency.ends import (
    OTHER_ID,
    ROOT,
    Burst,
    Credentials,
    OneWay,
    Route,
    as_somebody_else,
    await_waiting,
    peer_of,
    same,
    send_as,
    send_files,
    set_passcred,
)

SELF = os.geteuid(), os.getegid()


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    """Without it the proxy passes credentials on from when it has seen that somebody asks."""
    return ("--credentials", "messages")


def assert_from(credentials: list[Credentials], user: tuple[int, int]) -> None:
    """There are credentials, of this process as this user."""
    [found] = credentials
    assert found[1:] == user
    assert found.pid == os.getpid() or not ROOT


# --- SO_PEERCRED ---


def test_peer_credentials(route: Route) -> None:
    """Each end knows the user and the group of the other."""
    for end in route.pair():
        assert peer_of(end) == SELF


def test_peer_credentials_of_another_user(route: Route) -> None:
    """A server knows the user and the group of a client that is somebody else."""
    with as_somebody_else() as user:
        route.connect()
    assert peer_of(route.accept()) == user


def test_peer_credentials_of_each_client(route: Route, burst: Burst) -> None:
    """A server tells clients of different users apart, whatever the order in which they come."""
    users = []
    with burst(route):
        for number in range(6):
            with as_somebody_else() if number % 3 else nullcontext(SELF) as user:
                route.connect()
            users.append(user)
    assert [peer_of(route.accept()) for _ in users] == users


def test_peer_credentials_of_another_users_server(fresh: Route) -> None:
    """A client knows the user and the group of a server that is somebody else: who called listen(). (A proxy may
    learn that with its first client.)"""
    with as_somebody_else() as user:
        fresh.serve()
    fresh.open()
    client, server = fresh.pair()
    client.send(b"x")
    assert server.recv(1) == b"x"
    assert peer_of(fresh.connect()) == user


def test_peer_credentials_stay(route: Route) -> None:
    """They are those of the moment of connecting: bytes that somebody else sends do not change them."""
    client, server = route.pair()
    with as_somebody_else():
        client.send(b"x")
    assert server.recv(1) == b"x"
    assert peer_of(server) == SELF


# --- SO_PASSCRED ---


def test_passcred_on_the_listener(fresh: Route) -> None:
    """A server that has set SO_PASSCRED on its listener gets the client's credentials with its bytes."""
    fresh.start()
    set_passcred(fresh.listener)
    client, server = fresh.pair()
    client.send(b"question")
    message = fresh.receive(server, 99)
    assert message.data == b"question"
    assert_from(message.credentials, SELF)


def test_passcred_and_bytes_sent_before_accept(fresh: Route) -> None:
    """So it is for what was sent before accept(), by another user."""
    fresh.serve()
    set_passcred(fresh.listener)
    fresh.open()
    with as_somebody_else() as user:
        fresh.connect().send(b"question")
    message = fresh.receive(fresh.accept(), 99)
    assert message.data == b"question"
    assert_from(message.credentials, user)


def test_passcred_on_one_end(route: Route, one_way: OneWay) -> None:
    """An end that has set SO_PASSCRED gets the sender's credentials with each message."""
    sender, receiver = one_way
    set_passcred(receiver)
    for data in (b"1", b"2", b"3"):
        sender.send(data)
        message = route.receive(receiver, 99)
        assert message.data == data
        assert_from(message.credentials, SELF)


def test_passcred_and_another_user(route: Route, one_way: OneWay) -> None:
    """They are those of who sends, not of who connected."""
    sender, receiver = one_way
    set_passcred(receiver)
    with as_somebody_else() as user:
        sender.send(b"x")
    assert_from(route.receive(receiver, 99).credentials, user)


def test_passcred_after_the_first_bytes(route: Route, one_way: OneWay) -> None:
    """SO_PASSCRED that is set late counts from then on."""
    sender, receiver = one_way
    sender.send(b"before")
    message = route.receive(receiver, 99)
    assert (message.data, message.credentials) == (b"before", [])
    set_passcred(receiver)
    sender.send(b"after")
    message = route.receive(receiver, 99)
    assert message.data == b"after"
    assert_from(message.credentials, SELF)


def test_no_credentials_without_passcred(route: Route, one_way: OneWay) -> None:
    """Who has not set SO_PASSCRED gets none."""
    sender, receiver = one_way
    sender.send(b"x")
    assert route.receive(receiver, 99) == (b"x", [], [], 0)


def test_explicit_credentials(route: Route, one_way: OneWay) -> None:
    """Credentials that the sender says itself (SCM_CREDENTIALS) arrive."""
    sender, receiver = one_way
    set_passcred(receiver)
    user = (OTHER_ID, OTHER_ID - 1) if ROOT else SELF
    send_as(sender, b"x", Credentials(os.getpid(), *user))
    message = route.receive(receiver, 99)
    assert message.data == b"x"
    assert_from(message.credentials, user)


def test_credentials_with_descriptors(route: Route, one_way: OneWay) -> None:
    """Credentials and descriptors come with the same message."""
    sender, receiver = one_way
    set_passcred(receiver)
    writer = route.pipe().writer
    send_files(sender, b"x", writer)
    message = route.receive(receiver, 99)
    assert message.data == b"x"
    assert_from(message.credentials, SELF)
    assert same(message.files, [writer])


def test_different_senders_are_not_joined(route: Route, one_way: OneWay, burst: Burst) -> None:
    """A read never joins the bytes of different senders, where it gives credentials."""
    sender, receiver = one_way
    set_passcred(receiver)
    with burst(route):
        sender.send(b"mine")
        with as_somebody_else() as user:
            sender.send(b"theirs")
    await_waiting(receiver, 10)
    mine = route.receive(receiver, 99 if ROOT else 4)
    assert mine.data == b"mine"
    assert_from(mine.credentials, SELF)
    theirs = route.receive(receiver, 99)
    assert theirs.data == b"theirs"
    assert_from(theirs.credentials, user)


@pytest.mark.parametrize("size", [1, 3])
def test_credentials_with_every_read(route: Route, one_way: OneWay, size: int) -> None:
    """Where a message is read in pieces its credentials come with each."""
    sender, receiver = one_way
    set_passcred(receiver)
    sender.send(b"sextet")
    for _ in range(0, 6, size):
        message = route.receive(receiver, size)
        assert len(message.data) == size
        assert_from(message.credentials, SELF)


def test_passcred_is_of_one_end(one_way: OneWay) -> None:
    """SO_PASSCRED of one end is not set at the other."""
    sender, receiver = one_way
    set_passcred(receiver)
    assert not sender.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
