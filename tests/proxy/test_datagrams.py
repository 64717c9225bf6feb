"""Datagrams through a proxy: who sends is known for a while, and nothing of them is kept for longer."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.proxy.site import Site, running
from tests.transparency.ends import ROOT, as_somebody_else
from udsproxy.faults.spelling import parse_rules
from udsproxy.proxy import datagrams
from udsproxy.units import ConfigError

DGRAM = socket.SOCK_DGRAM


class Field:
    """A server that receives datagrams, and those who send to the proxy before it. A context manager."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._held = contextlib.ExitStack()
        self.server = self.serve()

    def serve(self) -> socket.socket:
        """The server, or a new one."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.site.upstream.path)
        server = self._socket()
        server.bind(self.site.upstream.path)
        return server

    def client(self, name: str | None = "") -> socket.socket:
        """Somebody with this name; one that the kernel chooses; or none."""
        client = self._socket()
        if name is not None:
            client.bind(name)
        return client

    def _socket(self) -> socket.socket:
        return self._held.enter_context(socket.socket(socket.AF_UNIX, DGRAM | socket.SOCK_NONBLOCK))

    async def send(self, client: socket.socket, data: bytes = b"x") -> Any:
        """Send, and receive it at the server: where it came from."""
        client.sendto(data, self.site.listen.path)
        found, address = await received(self.server)
        assert found == data
        return address

    def close(self) -> None:
        self._held.close()


async def received(sock: socket.socket) -> tuple[bytes, Any]:
    with trio.fail_after(60):
        await trio.lowlevel.wait_readable(sock.fileno())
    return sock.recvfrom(1 << 20)


async def until(found: Callable[[], object]) -> None:
    """Until it is so."""
    with trio.fail_after(60):
        while not found():
            await trio.sleep(0.01)


def fails(call: Callable[[], object]) -> int:
    """The errno of a call, or 0."""
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def connects(client: socket.socket, path: str) -> bool:
    return client.connect_ex(path) == 0


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def field(site: Site) -> Iterator[Field]:
    made = Field(site)
    yield made
    made.close()


async def test_senders_are_bounded(field: Field) -> None:
    """Of more senders than can be known, the one that was silent for longest is forgotten: the server cannot reply
    to it any more, until it sends again."""
    async with running(field.site.server()):
        clients = [field.client() for _ in range(datagrams.MOST_SENDERS + 1)]
        addresses = [await field.send(client) for client in clients]
        assert len(set(addresses)) == len(clients)
        assert fails(lambda: field.server.sendto(b"answer", addresses[0])) == errno.ECONNREFUSED
        for client, address in ((clients[2], addresses[2]), (clients[0], await field.send(clients[0]))):
            field.server.sendto(b"answer", address)
            assert (await received(client))[0] == b"answer"
        await until(lambda: len(field.site.events("close")) == 2)
    assert [event["conn"] for event in field.site.events("close")[:2]] == [1, 2]
    assert len(field.site.events("close")) == len(field.site.events("open")) == datagrams.MOST_SENDERS + 2


async def test_client_that_has_gone(field: Field) -> None:
    """A reply to a client that has gone ends its connection, and gives its descriptors back."""
    async with running(field.site.server()):
        stays, goes = field.client(), field.client()
        await field.send(stays)
        idle = open_files()
        address = await field.send(goes)
        goes.close()
        field.server.sendto(b"answer", address)
        await until(lambda: field.site.events("close"))
        assert fails(lambda: field.server.sendto(b"answer", address)) == errno.ECONNREFUSED
        assert open_files() == idle - 1
        await field.send(stays)
    [first, _] = field.site.events("close")
    assert (first["conn"], first["by"], first["c2s_bytes"], first["s2c_bytes"]) == (2, "client", 1, 0)


async def test_strangers_cannot_reply(field: Field, site: Site) -> None:
    """The name under which the server knows a client is open to all, the client's own file is not: who is neither
    the server's user nor the client's cannot reply in its place."""
    async with running(site.server()):
        client, stranger = field.client(str(site.log.parent / "client")), field.client(None)
        address = await field.send(client)
        with as_somebody_else():
            stranger.sendto(b"from a stranger", address)
        stranger.sendto(b"from a worker", address)
        field.server.sendto(b"from the server", address)
        came = [(await received(client))[0] for _ in range(2 if ROOT else 3)]
    assert came[-2:] == [b"from a worker", b"from the server"]


async def test_silent_senders_are_forgotten(
    field: Field, site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Who has no name is forgotten after some silence; who has one when it is gone."""
    async with running(site.server()):
        path = str(site.log.parent / "client")
        stays, goes, nameless = field.client(path), field.client(path + "2"), field.client(None)
        for client in (stays, goes, nameless):
            await field.send(client)
        goes.close()
        await until(lambda: len(site.events("close")) == 2)
        await trio.sleep(30)
        address = await field.send(stays)
        field.server.sendto(b"answer", address)
        assert (await received(stays))[0] == b"answer"
        assert {event["conn"] for event in site.events("close")} == {2, 3}


async def test_descriptors_when_the_server_ends(field: Field) -> None:
    """Descriptors that came with a datagram for which there was no room are closed when the server ends."""
    idle = open_files()
    reader, writer = os.pipe()
    async with running(field.site.server()):
        sender = field.client(None)
        sender.connect(field.site.listen.path)
        while not fails(lambda: socket.send_fds(sender, [b"x"], [writer])):
            await trio.sleep(0.005)
        os.close(writer)
        assert not select.select([reader], [], [], 0)[0]
        field.server.close()
        with trio.fail_after(60):
            await trio.lowlevel.wait_readable(reader)
        assert os.read(reader, 1) == b""
        os.close(reader)
        await until(lambda: field.site.events("upstream_error"))
        assert fails(lambda: sender.send(b"x")) == errno.ECONNREFUSED
    sender.close()
    assert open_files() == idle - 1  # the server's


async def test_server_that_does_not_read(field: Field) -> None:
    """That a server does not read shows; when it does, all comes, in order."""
    async with running(field.site.server()):
        one, other = field.client(), field.client(None)
        sent = [0, 0]
        for _ in range(500):
            for number, client in enumerate((one, other)):
                data = b"%d %d" % (number, sent[number])
                sent[number] += not fails(partial(client.sendto, data, field.site.listen.path))
            await trio.sleep(0.0002)
        await until(lambda: field.site.events("queue"))
        came = [(await received(field.server))[0] for _ in range(sum(sent))]
        for number in (0, 1):
            assert [each for each in came if each[0] == ord(str(number))] == [
                b"%d %d" % (number, count) for count in range(sent[number])
            ]
        await until(lambda: len(field.site.events("queue")) == 2)
    full, not_full = field.site.events("queue")
    assert full["queue"] > full["backlog"] >= not_full["queue"]


async def test_server_of_another_type(field: Field) -> None:
    """Where a server comes back with a socket of another type, clients find one of that type."""
    site = field.site
    async with running(site.server()):
        await field.send(field.client())
        field.server.close()
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
            os.unlink(site.upstream.path)
            with socket.socket(socket.AF_UNIX, kind) as server, socket.socket(socket.AF_UNIX, kind) as client:
                server.bind(site.upstream.path)
                server.listen()
                await until(partial(connects, client, site.listen.path))
        field.server = field.serve()
        await until(lambda: not fails(lambda: field.client().sendto(b"back", site.listen.path)))
        assert (await received(field.server))[0] == b"back"
    assert [event.get("type") for event in site.events("listening")] == ["datagram", None, "seqpacket", "datagram"]


async def test_bytes_of_a_datagram_are_shown_as_they_are(field: Field) -> None:
    """What looks like FastCGI is none in a datagram."""
    async with running(field.site.server()):
        await field.send(field.client(), b"\x01\x01\x00\x01\x00\x08\x00\x00" + bytes(8))
    assert not field.site.events("decode_error")
    [close] = field.site.events("close")
    assert "protocol" not in close


def test_backlog_that_datagrams_do_not_have(field: Field) -> None:
    """A limit of the accept queue is an error, of one line, and nothing is left."""
    with pytest.raises(ConfigError, match=r"^backlog 3: .* receives datagrams, and has no accept queue$"):
        field.site.server(backlog=3).open()
    assert not os.path.exists(field.site.listen.path)


@pytest.mark.parametrize(
    "fault", ["latency=1s", "accept-delay=1s", "eagain", "backlog=2", "workers=1", "fcgi-status=500"]
)
async def test_faults_that_datagrams_do_not_have(field: Field, fault: str) -> None:
    """A fault that is for connections is an error, of one line, at the start and later."""
    rules = parse_rules(fault)
    expected = rf"^fault {rules[0].fault.kind}: it is for connections; .* receives datagrams$"
    with pytest.raises(ConfigError, match=expected):
        field.site.server(faults=tuple(rules)).open()
    server = field.site.server()
    async with running(server):
        await server.started.wait()
        with pytest.raises(ConfigError, match=expected):
            server.faults.add(rules)
        await field.send(field.client())


async def test_hold(field: Field) -> None:
    """While nothing is received, what is sent waits; who has sent keeps its name."""
    client = field.client()
    server = field.site.server()
    async with running(server):
        await server.started.wait()
        address = await field.send(client)
        server.faults.add(parse_rules("hold"))
        client.sendto(b"later", field.site.listen.path)
        await trio.sleep(0.05)
        assert fails(lambda: field.server.recv(9)) == errno.EAGAIN
        server.faults.clear()
        assert await received(field.server) == (b"later", address)
