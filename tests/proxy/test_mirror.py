"""The mirror: clients of the proxy get EAGAIN when, and only when, clients of the upstream would."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing

from tests.proxy.site import Site, running
from udsproxy import endpoints
from udsproxy.kernel.server_diag import NotShown, ServerDiag
from udsproxy.proxy.asking import LOOK_NS, MOST_LOOKS, Asking


class Crowd:
    """Clients that come to the proxy, and those that the upstream has accepted."""

    def __init__(self, where: Site, listener: socket.socket, stack: contextlib.ExitStack) -> None:
        self.site = where
        self.listener = listener
        self.stack = stack
        self.clients: list[socket.socket] = []
        listener.setblocking(False)

    def come(self) -> int:
        """One more client. Returns the errno of its connect(), or 0."""
        sock = self.stack.enter_context(endpoints.unix_socket())
        failed = endpoints.connect(sock, self.site.listen)
        if not failed:
            self.clients.append(sock)
        return failed

    async def come_until_full(self, most: int = 1000) -> int:
        """Clients, one after the other, until one is refused. Returns how many came in."""
        for number in range(most):
            if failed := self.come():
                assert failed == errno.EAGAIN
                return number
            await trio.sleep(0.02)
        return most

    def accept(self) -> socket.socket:
        """The upstream takes the next."""
        return self.stack.enter_context(self.listener.accept()[0])


@pytest.fixture
def crowd(site: Site) -> Iterator[Callable[[int], Crowd]]:
    with contextlib.ExitStack() as stack:
        yield lambda backlog: Crowd(site, stack.enter_context(site.serve(backlog=backlog)), stack)


BACKLOGS = pytest.mark.parametrize("backlog", [0, 1, 2, 5, 16, 100])


@BACKLOGS
async def test_nobody_accepts(
    site: Site, crowd: Callable[[int], Crowd], backlog: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Where nobody accepts, a backlog of B lets in B + 1 clients, as it does directly; and each that is accepted
    makes room for one more, first come, first served."""
    at = crowd(backlog)
    async with running(site.server(grace_s=0.05)):
        assert await at.come_until_full() == backlog + 1
        for round_number in range(3):
            server = at.accept()
            at.clients[round_number].send(b"%d" % round_number)
            await trio.sleep(0.1)
            assert await at.come_until_full() == 1
            assert server.recv(10) == b"%d" % round_number
    full, *changes = site.events("queue")
    assert (full["queue"], full["backlog"]) == (backlog + 1, backlog)
    assert [event["queue"] > event["backlog"] for event in changes] == [False, True] * 3


@pytest.mark.parametrize("backlog", [0, 2, 16])
async def test_who_is_connected_besides(
    site: Site, crowd: Callable[[int], Crowd], backlog: int, autojump_clock: trio.testing.MockClock
) -> None:
    """A full queue is told with how many clients the server has accepted besides. (With a backlog of 0 each client
    fills it for a moment.)"""
    at = crowd(backlog)
    async with running(site.server(grace_s=0.05)):
        for _ in range(2):
            assert at.come() == 0
            await trio.sleep(0.05)
            at.accept()
            await trio.sleep(0.05)
        assert await at.come_until_full() == backlog + 1
    full = [event for event in site.events("queue") if event["queue"] > event["backlog"]][-1]
    assert (full["queue"], full["backlog"], full["active"]) == (backlog + 1, backlog, 2)


@pytest.mark.parametrize("backlog", [0, 2, 16])
async def test_clients_of_the_upstream_itself(
    site: Site, crowd: Callable[[int], Crowd], backlog: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Who connects to the upstream directly takes a place there, and so one of ours."""
    at = crowd(backlog)
    async with running(site.server(grace_s=0.05)):
        assert at.come() == 0
        await trio.sleep(0.02)
        with contextlib.ExitStack() as others:
            for _ in range(backlog // 2):
                assert endpoints.connect(others.enter_context(endpoints.unix_socket()), site.upstream) == 0
            await trio.sleep(0.02)
            assert await at.come_until_full() == backlog - backlog // 2


async def test_others_who_have_left_the_queue(
    site: Site, crowd: Callable[[int], Crowd], autojump_clock: trio.testing.MockClock
) -> None:
    """Once the upstream has accepted those who came to it directly, their places are ours again."""
    at = crowd(5)
    async with running(site.server(grace_s=0.05)):
        assert at.come() == 0
        await trio.sleep(0.02)
        with contextlib.ExitStack() as others:
            for _ in range(5):
                assert endpoints.connect(others.enter_context(endpoints.unix_socket()), site.upstream) == 0
            await trio.sleep(0.02)
            for _ in range(6):
                at.accept()
            await trio.sleep(0.1)
            assert [at.come() for _ in range(6)] == [0] * 6


async def test_clients_that_wait_in_connect(
    site: Site, crowd: Callable[[int], Crowd], autojump_clock: trio.testing.MockClock
) -> None:
    """A client whose connect() blocks comes in when there is room, as it would directly."""
    at = crowd(0)
    async with running(site.server(grace_s=0.05)):
        assert await at.come_until_full() == 1
        with socket.socket(socket.AF_UNIX) as patient:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, patient.connect, site.listen.path)
                await trio.sleep(0.1)
                at.accept()
            while not select.select([at.listener], [], [], 0)[0]:
                await trio.sleep(0.01)  # it is in our queue, and its connection is made after that
            at.accept().send(b"served")
            assert await trio.to_thread.run_sync(patient.recv, 10) == b"served"


async def test_servers_at_rest(
    site: Site, crowd: Callable[[int], Crowd], autojump_clock: trio.testing.MockClock
) -> None:
    """Once 3 servers were seen at work, a burst that comes before anyone can accept finds room for 3 + B + 1; if
    they do not accept after all, that is soon forgotten."""
    at = crowd(1)
    async with running(site.server(grace_s=0.05)):
        for _ in range(3):
            assert at.come() == 0
            await trio.sleep(0.05)
            at.accept()
            await trio.sleep(0.05)
        for client in at.clients:
            client.close()
        await trio.sleep(0.1)
        assert [at.come() for _ in range(7)] == [0] * 5 + [errno.EAGAIN] * 2
        await trio.sleep(0.1)  # two wait in the upstream's queue, three in ours
        for _ in range(4):
            assert at.come() == errno.EAGAIN
            at.accept().close()
            await trio.sleep(0.1)
        assert at.come() == 0


async def test_another_backlog_after_a_restart(
    site: Site, crowd: Callable[[int], Crowd], autojump_clock: trio.testing.MockClock
) -> None:
    """An upstream that was started anew with another backlog is mirrored with that one."""
    first = crowd(1)
    async with running(site.server(grace_s=0.05)):
        assert await first.come_until_full() == 2
        first.listener.close()
        await trio.sleep(0.3)
        for client in first.clients:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        second = crowd(3)
        await trio.sleep(0.3)
        with pytest.raises(BlockingIOError):
            second.accept()  # it was noticed without a connection
        assert await second.come_until_full() == 4
    assert [event["backlog"] for event in site.events("listening")] == [1, 3]


async def test_a_queue_that_cannot_be_seen(
    site: Site,
    crowd: Callable[[int], Crowd],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An upstream of another network namespace that we may not enter: that is said once, without a connection to
    it, and clients wait in our queue."""

    def not_shown(*_: object) -> None:
        raise NotShown("it takes root")

    monkeypatch.setattr(ServerDiag, "listener", not_shown)
    at = crowd(1)
    async with running(site.server(grace_s=0.05)):
        await trio.sleep(0.1)
        assert await at.come_until_full(10) == 10
    [error] = site.events("proxy_error")
    assert error["op"] == "sock_diag"
    assert "not mirrored: it takes root" in error["message"]
    assert "--backlog" in error["hint"]


async def test_who_waited_while_senders_were_asked_for(
    site: Site,
    crowd: Callable[[int], Crowd],
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Connections that were made while it was asked who sends (SO_PASSCRED), and are accepted when it no longer is,
    carry every byte."""
    asks = [True]
    monkeypatch.setattr(Asking, "look", lambda *_: asks[0])
    at = crowd(5)
    async with running(site.server(grace_s=0.05)):
        assert await at.come_until_full() == 6
        asks[0] = False
        await trio.sleep(MOST_LOOKS * LOOK_NS / 1e9)
        for client in at.clients:
            server = at.accept()
            for number in range(5):
                server.send(b"%d: hello" % number)
                await trio.sleep(0.01)
            assert client.recv(1000) == b"".join(b"%d: hello" % number for number in range(5))
