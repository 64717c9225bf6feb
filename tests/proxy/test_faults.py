"""Faults as a client meets them, and that they end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time

import pytest
import trio
import trio.testing

from tests.proxy.conftest import read_all
from tests.proxy.site import Site, accepted, running
from udsproxy.endpoints import unix_socket
from udsproxy.faults.spelling import parse_all, parse_rules
from udsproxy.proxy.server import Server


def faulty(site: Site, *faults: str, seed: int = 1) -> Server:
    return site.server(faults=parse_all(faults), seed=seed, grace_s=0.05)


async def works(site: Site, listener: socket.socket) -> None:
    """A client is served."""
    with site.connect() as client, await accepted(listener) as server:
        await client.send(b"ping")
        assert await server.recv(10) == b"ping"


def accept_all(listener: socket.socket, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Everybody who waits at the upstream now."""
    listener.setblocking(False)
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(stack.enter_context(listener.accept()[0]))
    return found


def ready(sock: socket.socket) -> bool:
    """There is something to read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


SHUT = pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("refuse", errno.ECONNREFUSED),
        ("missing", errno.ENOENT),
        ("deny", errno.ECONNREFUSED if os.geteuid() == 0 else errno.EACCES),
        ("eagain", errno.EAGAIN),
    ],
)


@SHUT
async def test_what_connect_says(
    site: Site, fault: str, number: int, autojump_clock: trio.testing.MockClock
) -> None:
    """While the fault is in force every connect() fails with its errno; after it, clients are served."""
    with site.serve(backlog=2) as listener:
        async with running(faulty(site, f"{fault} for=10s")):
            await trio.sleep(1)
            assert [site.try_to_connect() for _ in range(5)] == [number] * 5
            await trio.sleep(10)
            await works(site, listener)
    assert [event["detail"] for event in site.events("fault")] == [f"in force: {fault} for=10s", "taken away"]
    assert not os.path.lexists(site.listen.path)  # noqa: ASYNC240 - nothing runs any more


async def test_stopping_while_the_queue_is_plugged(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Our own plug is nobody to wait for."""
    with site.serve():
        server = site.server(faults=tuple(parse_rules("eagain")), grace_s=100)
        async with running(server):
            await trio.sleep(1)
            assert site.try_to_connect() == errno.EAGAIN
            stopped_at = trio.current_time()
        assert trio.current_time() - stopped_at < 1


@pytest.mark.parametrize("fault", ["eagain=0.9", "refuse", "hold", "backlog=5"])
async def test_a_fault_that_ends_while_the_proxy_stops(
    site: Site, fault: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Who is connected keeps the grace time, and nothing is made anew."""
    with site.serve() as listener:
        faults = tuple(parse_rules(f"{fault} for=30s if proxy=p"))
        server = site.server(faults=faults, grace_s=100)
        server.open()
        client = site.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            if fault in ("refuse", "hold"):
                await trio.sleep(1)
            else:
                upstream = await accepted(listener)
            server.stop()
            await trio.sleep(60)
            assert not os.path.lexists(site.listen.path)  # noqa: ASYNC240 - a look that does not wait
            if fault == "hold":
                upstream = await accepted(listener)
            if fault != "refuse":
                await client.send(b"x")
                assert await upstream.recv(1) == b"x"
                upstream.close()
            client.close()
    assert site.events("proxy_error") == []


async def test_a_path_that_somebody_else_took(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """While the fault has our file away somebody binds the path: that is told once and left alone; when it is free,
    we are back."""
    with site.serve() as listener:
        async with running(faulty(site, "missing for=10s")):
            await trio.sleep(5)
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(site.listen.path)
                other.listen(100)
                await trio.sleep(30)
                assert site.try_to_connect() == 0
                other.accept()[0].close()
            os.unlink(site.listen.path)
            await trio.sleep(2)
            with contextlib.ExitStack() as stack:
                accept_all(listener, stack)  # by which the upstream was found to be there
            await works(site, listener)
    [error] = site.events("proxy_error")
    assert "somebody already listens there" in error["message"]


async def test_a_file_of_somebody_else_is_not_taken_for_ours(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Also where it has the inode's number that ours had before it was removed."""
    with site.serve():
        async with running(faulty(site, "refuse")):
            await trio.sleep(1)
            os.unlink(site.listen.path)
            other = socket.socket(socket.AF_UNIX)
            other.bind(site.listen.path)
            other.listen()
        assert site.try_to_connect() == 0
        other.close()


async def test_a_share_of_the_time(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """EAGAIN comes and goes, for about that share of the time, and those who came in between are served."""
    with site.serve(backlog=1000), contextlib.ExitStack() as stack:
        async with running(faulty(site, "eagain=0.3")):
            answers = []
            for _ in range(300):
                sock = stack.enter_context(unix_socket())
                answers.append(sock.connect_ex(site.listen.path))
                await trio.sleep(0.01)
    assert set(answers) == {0, errno.EAGAIN}
    assert 45 < answers.count(errno.EAGAIN) < 150
    assert len(site.events("open")) == answers.count(0)


async def test_hold(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Nobody is accepted: clients connect and wait, and are served when the fault is gone."""
    with site.serve() as listener:
        async with running(faulty(site, "hold for=10s")):
            await trio.sleep(1)
            with site.connect() as client:
                await client.send(b"x")
                await trio.sleep(5)
                listener.setblocking(False)
                with pytest.raises(BlockingIOError):
                    listener.accept()
                await trio.sleep(5)
                with await accepted(listener) as server:
                    assert await server.recv(10) == b"x"
    assert site.events("queue") == []


async def test_who_is_held_waits(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Who comes while nobody is accepted is in the queue since then, also when the fault is gone; and the queue is
    full when the server's would be."""
    with site.serve(backlog=2) as listener, contextlib.ExitStack() as stack:
        async with running(faulty(site, "hold for=10s")):
            await trio.sleep(1)
            clients = [stack.enter_context(site.connect()) for _ in range(3)]
            assert site.try_to_connect() == errno.EAGAIN
            await trio.sleep(5)
            began = time.monotonic()
            await trio.sleep(1)
            ended = time.monotonic()
            await trio.sleep(10)
            for client in clients:
                with await accepted(listener) as server:
                    await client.send(b"question")
                    assert await server.recv(100) == b"question"
                    await server.send(b"answer")
                assert await read_all(client) == b"answer"
                await trio.sleep(1)
    full = site.events("queue")[0]
    assert (full["queue"], full["backlog"], full["active"]) == (3, 2, 0)
    waits = [event["accept_wait_s"] + event["accept_error_s"] for event in site.events("close")]
    assert len(waits) == 3
    assert min(waits) >= ended - began
    assert site.events("incident")[-1]["queue"] == 3


@pytest.mark.parametrize(("backlog", "workers"), [(0, 1), (2, 2), (5, 3)])
async def test_another_pool(site: Site, backlog: int, workers: int, autojump_clock: trio.testing.MockClock) -> None:
    """With backlog B and W workers W + B + 1 of a burst come in, however fast it comes; W reach the upstream; and
    each that ends makes room for the next."""
    with site.serve() as listener, contextlib.ExitStack() as stack:
        async with running(faulty(site, f"backlog={backlog},workers={workers}")):
            await trio.sleep(1)
            clients = [stack.enter_context(unix_socket()) for _ in range(20)]
            answers = [client.connect_ex(site.listen.path) for client in clients]
            room = workers + backlog + 1
            assert answers == [0] * room + [errno.EAGAIN] * (20 - room)
            await trio.sleep(1)
            servers = accept_all(listener, stack)
            assert len(servers) == workers
            assert site.try_to_connect() == errno.EAGAIN
            servers[0].close()
            clients[0].close()
            await trio.sleep(1)
            assert len(accept_all(listener, stack)) == 1
            assert [site.try_to_connect() for _ in range(2)] == [0, errno.EAGAIN]


async def test_the_queue_of_another_pool(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """With backlog and workers of a fault the queue is told of as a server's own: when it is full and when it no
    longer is, how long each client waited since its connect(), and an incident with these workers and limit."""
    with site.serve() as listener, contextlib.ExitStack() as stack:
        async with running(faulty(site, "backlog=1,workers=1")):
            await trio.sleep(1)
            clients, began = [], []
            for _ in range(3):
                clients.append(stack.enter_context(site.connect()))
                await trio.sleep(1)
                began.append(time.monotonic())
            assert site.try_to_connect() == errno.EAGAIN
            ended = []
            for client in clients:
                with await accepted(listener) as server:
                    await client.send(b"question")
                    await server.recv(100)
                    ended.append(time.monotonic())
                    await server.send(b"answer")
                assert await read_all(client) == b"answer"
                await trio.sleep(1)
    told = [(event["queue"], event["backlog"], event["active"]) for event in site.events("queue")]
    assert told == [(2, 1, 1), (1, 1, 1)]
    waits = {event["conn"]: event["accept_wait_s"] + event["accept_error_s"] for event in site.events("close")}
    assert waits[2] >= ended[0] - began[1]
    assert waits[3] >= ended[1] - began[2]
    incident = site.events("incident")[-1]
    assert (incident["queue"], incident["backlog"], incident["workers"]) == (2, 1, 1)


async def test_an_orderly_close(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """The client that is meant reads an end, whatever it has sent; others are served."""
    with site.serve() as listener:
        async with running(faulty(site, "close on=1")):
            with site.connect() as client:
                await client.send(b"hello")
                assert await client.recv(10) == b""
            with await accepted(listener) as server:
                assert await read_all(server) == b""
            await works(site, listener)
    [fault] = [event for event in site.events("fault") if "conn" in event]
    assert (fault["conn"], fault["rule"], fault["kind"], fault["detail"]) == (1, "close", "close", "close")
    first = site.events("close")[0]
    assert (first["conn"], first["by"]) == (1, "fault")


async def test_a_reset(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """The client that is meant gets ECONNRESET, once it has said something."""
    with site.serve():
        async with running(faulty(site, "reset")):
            with site.connect() as client:
                await trio.sleep(0.1)
                await client.send(b"hello")
                with pytest.raises(ConnectionResetError):
                    await client.recv(10)
    assert [(event["by"], event["errno"]) for event in site.events("close")] == [("fault", "ECONNRESET")]


async def test_delays(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """connect-delay: nothing passes for so long, then all of it."""
    with site.serve() as listener:
        async with running(faulty(site, "connect-delay=30s")):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"hello")
                with trio.move_on_after(25) as scope:
                    await server.recv(10)
                assert scope.cancelled_caught
                assert await server.recv(10) == b"hello"


async def test_a_delay_goes_on_in_the_grace_time(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A connection that a fault delays when the proxy is stopped begins all the same, if the grace time lasts."""
    with site.serve() as listener:
        server = site.server(faults=tuple(parse_rules("connect-delay=10s")), grace_s=100)
        async with running(server):
            client, upstream = site.connect(), await accepted(listener)
            await client.send(b"hello")
            await trio.sleep(1)
            server.stop()
            assert await upstream.recv(10) == b"hello"
            client.close()
            upstream.close()


async def test_a_slow_accept_loop_near_the_limit(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """accept-delay holds also where several were accepted by the upstream at once."""
    with site.serve(backlog=5) as listener, contextlib.ExitStack() as stack:
        async with running(faulty(site, "accept-delay=30s")):
            clients = [stack.enter_context(site.connect()) for _ in range(3)]
            for client in clients:
                await client.send(b"x")
            await trio.sleep(1)
            servers = accept_all(listener, stack)
            served = []
            for _ in range(3):
                await trio.sleep(29)
                served.append(sum(server.recv(1, socket.MSG_PEEK) == b"x" for server in servers if ready(server)))
            assert served[0] < 3


async def test_a_slow_accept_loop(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """accept-delay: who comes second is accepted so much later, and has been in the queue until then."""
    with site.serve() as listener, contextlib.ExitStack() as stack:
        async with running(faulty(site, "accept-delay=30s")):
            first, second = stack.enter_context(site.connect()), stack.enter_context(site.connect())
            server = stack.enter_context(await accepted(listener))
            await trio.sleep(20)
            began = time.monotonic()
            assert not accept_all(listener, stack)
            await trio.sleep(5)
            waited_s = time.monotonic() - began
            await trio.sleep(15)
            [other] = accept_all(listener, stack)
            for client, upstream in ((first, server), (second, trio.socket.from_stdlib_socket(other))):
                await upstream.send(b"x")
                assert await client.recv(10) == b"x"
    wait = next(event for event in site.events("close") if event["conn"] == 2)
    assert wait["accept_wait_s"] + wait["accept_error_s"] >= waited_s


async def test_what_a_fault_holds_is_closed_at_the_end(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A proxy that ends while a fault holds a connection leaves nothing open."""
    with site.serve() as listener:
        async with running(faulty(site, "connect-delay=10m")):
            client, server = site.connect(), await accepted(listener)
            await trio.sleep(1)
        assert await client.recv(10) == b""
        assert await server.recv(10) == b""
        client.close()
        server.close()
    assert [event["by"] for event in site.events("close")] == ["proxy"]


async def test_who_waits_for_room_is_kept(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A client who was accepted while the server's queue is full is served when there is room, in its turn,
    whatever comes and goes on the socket meanwhile."""
    with site.serve(backlog=0) as listener, contextlib.ExitStack() as stack:
        server_ = faulty(site, "backlog=5")
        async with running(server_):
            clients = [stack.enter_context(site.connect()) for _ in range(3)]
            for number, client in enumerate(clients):
                await client.send(b"%d" % number)
            await trio.sleep(1)
            for rules in ("backlog=7", "workers=9", "hold", "backlog=9", "eagain=0.1", ""):
                server_.faults.clear()
                server_.faults.add(parse_rules(rules) if rules else [])
                await trio.sleep(1)
            for number, client in enumerate(clients):
                with trio.fail_after(100), await accepted(listener) as server:
                    assert await server.recv(10) == b"%d" % number
                    await server.send(b"yes")
                assert await read_all(client) == b"yes"
