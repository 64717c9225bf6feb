"""Stream faults on real sockets: what client and server meet, and that nothing is lost when a fault goes."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys

import pytest
import trio
import trio.testing

from tests.proxy.conftest import fill, read_all, read_exactly, send_all
from tests.proxy.site import Site, accepted, running
from udsproxy.config import ProxyConfig
from udsproxy.endpoints import Tcp
from udsproxy.faults.spelling import parse_all
from udsproxy.protocols import fastcgi as wire
from udsproxy.proxy.server import Server


def faulty(site: Site, *faults: str, grace_s: float = 0.05) -> Server:
    return site.server(faults=parse_all(faults), seed=1, grace_s=grace_s)


async def is_silent(sock: trio.socket.SocketType, seconds: float) -> bool:
    """Nothing comes for so long."""
    with trio.move_on_after(seconds) as scope:
        await sock.recv(1, socket.MSG_PEEK)
    return scope.cancelled_caught


async def test_latency(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """In the direction that was asked for, and in order."""
    with site.serve() as listener:
        async with running(faulty(site, "latency=50s@s2c")):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"ask")
                assert await server.recv(10) == b"ask"
                for piece in (b"1", b"2", b"3"):
                    await server.send(piece)
                assert await is_silent(client, 45)
                assert await read_exactly(client, 3) == b"123"


async def test_a_stall_that_is_taken_away(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """What waited comes, whole and in order, also more than is held: the server was kept from sending on."""
    with site.serve() as listener:
        async with running(faulty(site, "stall for=100s")):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"ask")
                assert await server.recv(10) == b"ask"
                data = os.urandom(3_000_000)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all, server, data)
                    assert await is_silent(client, 50)
                    assert await read_exactly(client, len(data)) == data


async def test_faults_change_under_load(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Faults come and go while bytes flow both ways: every byte arrives, in order; open connections meet them."""
    with site.serve() as listener:
        server_ = faulty(site)
        async with running(server_):
            pairs = [(site.connect(), await accepted(listener)) for _ in range(5)]
            data = os.urandom(400_000)

            async def check(sock: trio.socket.SocketType) -> None:
                assert await read_exactly(sock, len(data)) == data

            async with trio.open_nursery() as nursery:
                for client, server in pairs:
                    for sock in (client, server):
                        nursery.start_soon(send_all, sock, data)
                        nursery.start_soon(check, sock)
                for texts in (
                    ["latency=10ms±5ms@both"],
                    ["latency=10ms±5ms@both", "slicer=1000B,variation=500B@both"],
                    ["stall@both"],
                    ["bandwidth=100KB/s@both", "slicer=100B,variation=50B@s2c"],
                    [],
                    ["latency=1s@c2s"],
                    [],
                ):
                    server_.change(
                        [ProxyConfig(listen=site.listen, upstream=site.upstream, name="p", faults=parse_all(texts))]
                    )
                    await trio.sleep(0.05)
            for pair in pairs:
                for sock in pair:
                    sock.close()
    assert {event["rule"] for event in site.events("fault") if "conn" in event} >= {"latency", "stall", "bandwidth"}
    assert all("latency" in event["faults"] for event in site.events("close"))


@pytest.mark.parametrize("fault", ["limit=3B,then=reset", "reset=1s", "stall=1s,then=reset"])
async def test_a_reset_in_the_middle(site: Site, fault: str, autojump_clock: trio.testing.MockClock) -> None:
    """The server got the whole request; the client what passed, and then ECONNRESET."""
    with site.serve() as listener:
        async with running(faulty(site, fault)):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"a question")
                assert await server.recv(100) == b"a question"
                await client.send(b", and more")
                assert await server.recv(100) == b", and more"
                await server.send(b"an answer")
                passed = b"an " if fault.startswith("limit") else b"an answer" if fault.startswith("reset") else b""
                if passed:
                    assert await client.recv(100) == passed
                with pytest.raises(ConnectionResetError):
                    await client.recv(100)
    assert [(event["by"], event["errno"]) for event in site.events("close")] == [("fault", "ECONNRESET")]


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("fault", ["limit=1GiB,then=reset", "reset if uri=/never", "reset=1h"])
async def test_an_ordinary_end_of_what_may_be_reset(
    site: Site, fault: str, first: str, autojump_clock: trio.testing.MockClock
) -> None:
    """It is an end and no reset, once both sides are closed."""
    with site.serve() as listener:
        async with running(faulty(site, fault)):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"ask")
                assert await server.recv(10) == b"ask"
                if first == "client":
                    client.shutdown(socket.SHUT_WR)
                    assert await server.recv(10) == b""
                await server.send(b"answer")
                server.close()
                await trio.sleep(0.1)
                assert await read_all(client) == b"answer"
    assert [event.get("errno") for event in site.events("close")] == [None]


async def test_descriptors_with_a_single_byte(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Where the byte that they came with would be the one that is kept; and what comes after it passes."""
    with site.serve() as listener, socket.socket() as sent:
        async with running(faulty(site, "limit=1GiB,then=reset")):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"abc")
                assert await server.recv(10) == b"abc"
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sent.fileno()]))
                await client.sendmsg([b"X"], [rights])
                data, ancillary, _, _ = await server.recvmsg(100, 1000)
                assert (data, len(ancillary)) == (b"X", 1)
                os.close(array.array("i", ancillary[0][2])[0])
                await client.send(b"more")
                assert await server.recv(10) == b"more"


async def test_another_sender_before_the_end(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """What another process sends on the same socket, and the end behind that, where no look goes from the bytes of
    one on to those of the other, and the last byte of the first is kept."""
    with site.serve() as listener:
        server_ = site.server(faults=parse_all(["limit=1GiB,then=reset"]), credentials="messages")
        async with running(server_):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"mine")
                assert await read_exactly(server, 4) == b"mine"
                fd = client.fileno()
                # (Nothing is relayed meanwhile.)
                subprocess.run(  # noqa: ASYNC221
                    [sys.executable, "-c", f"import os; os.write({fd}, b'theirs')"], pass_fds=[fd], check=True
                )
                client.shutdown(socket.SHUT_WR)
                assert await read_all(server) == b"theirs"


async def test_that_may_be_reset_but_is_not(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A connection that a fault could reset passes every byte, descriptors, and ends as it would."""
    with site.serve() as listener:
        async with running(faulty(site, "limit=1GiB,then=reset")):
            with site.connect() as client, await accepted(listener) as server:
                data = os.urandom(1_000_000)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(send_all, client, data)
                    assert await read_exactly(server, len(data)) == data
                for byte in (b"x", b"y"):
                    await client.send(byte)
                    assert await server.recv(10) == byte
                client.shutdown(socket.SHUT_WR)
                assert await server.recv(10) == b""
                await server.send(b"bye")
                server.close()
                assert await read_all(client) == b"bye"
    (close,) = site.events("close")
    assert (close["c2s_bytes"], close["by"]) == (1_000_002, "client")


@pytest.mark.parametrize(
    "fault", ["latency=1s@c2s", "limit=1GiB,then=reset", "slicer=1B@c2s", "latency=1s@c2s if uri=/x"]
)
async def test_descriptors(site: Site, fault: str, autojump_clock: trio.testing.MockClock) -> None:
    """Descriptors go with their bytes through faults too."""
    with site.serve() as listener, socket.socket() as sent:
        async with running(faulty(site, fault)):
            with site.connect() as client, await accepted(listener) as server:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sent.fileno()]))
                await client.sendmsg([b"take it"], [rights])
                await trio.lowlevel.wait_readable(server.fileno())
                first, ancillary, _, _ = await server.recvmsg(100, 1000)
                rest = await read_exactly(server, len(b"take it") - len(first))
                assert first + rest == b"take it"
                ((_, _, data),) = ancillary
                (fd,) = array.array("i", data)
                assert os.fstat(fd).st_ino == os.fstat(sent.fileno()).st_ino
                os.close(fd)


async def test_a_limit_that_closes(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """The client reads an end behind what passed, though it is still sending; the server reads one too."""
    with site.serve() as listener:
        async with running(faulty(site, "limit=3B")):
            with site.connect() as client, await accepted(listener) as server:
                await fill(client)
                await server.send(b"an answer")
                assert await read_all(client) == b"an "
                await client.send(b"does anybody hear me?")
                assert len(await read_all(server)) > 0
    assert [event["by"] for event in site.events("close")] == ["fault"]


async def test_half_close(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """The server reads an end behind the first bytes, and can still answer."""
    with site.serve() as listener:
        async with running(faulty(site, "half-close@c2s")):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"ask")
                assert await read_all(server) == b"ask"
                await server.send(b"answer")
                assert await client.recv(100) == b"answer"
                server.close()
                assert await client.recv(100) == b""
    assert [event["by"] for event in site.events("close")] == ["fault"]


async def test_slow_close(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """The end comes so much later, the bytes do not."""
    with site.serve() as listener:
        async with running(faulty(site, "slow-close=30s")):
            with site.connect() as client, await accepted(listener) as server:
                await server.send(b"answer")
                server.shutdown(socket.SHUT_WR)
                assert await client.recv(100) == b"answer"
                assert await is_silent(client, 25)
                assert await client.recv(100) == b""


async def test_a_server_that_leaves_a_stalled_connection(
    site: Site, autojump_clock: trio.testing.MockClock
) -> None:
    """Its client waits on: that is what was asked for."""
    with site.serve() as listener:
        async with running(faulty(site, "stall")):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"ask")
                assert await server.recv(10) == b"ask"
                for _ in range(5):
                    await server.send(bytes(6000))
                    await trio.sleep(0.1)
                server.close()
                assert await is_silent(client, 30)


@pytest.mark.parametrize("fault", ["close=1s", "reset=1s"])
@pytest.mark.parametrize("who", ["client", "server"])
async def test_an_ending_waits_for_nobody(
    site: Site, fault: str, who: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Neither for a client nor for a server that does not read, nor for one who has said all."""
    with site.serve() as listener:
        async with running(faulty(site, fault)):
            with site.connect() as client, await accepted(listener) as server:
                await client.send(b"ask")
                if who == "client":
                    client.shutdown(socket.SHUT_WR)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    await fill(server if who == "client" else client)
                await trio.sleep(20)
    assert [event["by"] for event in site.events("close")] == ["fault"]


async def test_an_answer_that_does_not_fit_at_once(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """To a request that was there before its connection was accepted, longer than the socket takes: all of it
    comes."""
    with site.serve():
        server = faulty(site, "fcgi-status=503,fcgi-header-too-big=1MiB")
        server.open()
        with site.connect() as client:
            await client.send(wire.encode_request({b"A": b"b"}))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run)
                assert len(await read_all(client)) > 1024 * 1024
                server.stop()


async def test_answers_that_nobody_reads(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A client that asks and does not read is not read from: what we would answer takes no memory."""
    with site.serve():
        async with running(faulty(site, "fcgi-status=503,fcgi-header-too-big=1MiB")):
            with site.connect() as client:
                ask = wire.encode_request({}, flags=wire.KEEP_CONN)
                sent = await fill(client, ask * 50)
                assert sent < 3 * 1024 * 1024
                await trio.sleep(1)
                assert await read_exactly(client, 1024 * 1024)


@pytest.mark.parametrize("fault", ["slicer=1B", "corrupt=1", "bandwidth=1B/s", "slicer=1B,slicer=1B,slicer=1B"])
async def test_other_connections_have_their_turn(
    site: Site, fault: str, autojump_clock: trio.testing.MockClock
) -> None:
    """While a fault is busy with one connection, others are served: an answer takes few of the relay's turns."""
    with site.serve() as listener:
        async with running(faulty(site, f"{fault} if conn=1")):
            busy, server = site.connect(), await accepted(listener)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_all, server, bytes(1_000_000))
                got = 0
                with site.connect() as client, await accepted(listener) as other:
                    for _ in range(50):
                        await client.send(b"x")
                        assert await other.recv(1) == b"x"
                        got += len(await busy.recv(1 << 20)) if fault == "slicer=1B" else 0
                assert got < 1_000_000
                nursery.cancel_scope.cancel()
            busy.close()
            server.close()


async def test_what_ends_leaves_no_alarm(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Connections that end before their fault are not kept for it."""
    with site.serve() as listener:
        server_ = faulty(site, "close=1h")
        async with running(server_):
            for _ in range(3000):
                site.connect().close()
                (await accepted(listener)).close()
            await trio.sleep(1)
            assert len(server_._loops[0]._relay._calls_due) < 2500


async def test_who_gives_up_leaves_nothing(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A client that leaves a stalled connection frees it, whichever way was stalled."""
    for fault in ("stall@c2s", "stall@s2c", "latency=1s@c2s,stall@c2s"):
        with site.serve() as listener:
            async with running(faulty(site, fault)):
                client, server = site.connect(), await accepted(listener)
                await client.send(b"ask")
                await server.send(b"answer")
                await trio.sleep(1)
                client.close()
                await read_all(server)
                server.close()
                await trio.sleep(1)
        assert [event["by"] for event in site.events("close")] == ["client"]
        assert len(site.events("summary")) == 1
        site.log.unlink()


async def test_the_log_shows_what_the_client_sees(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Of an answer that a fault made: its status, its time, and which faults it was."""
    with site.serve() as listener:
        async with running(faulty(site, "fcgi-status=503,latency=2s if script=/slow.php")):
            with site.connect() as client, await accepted(listener):
                await client.send(wire.encode_request({b"SCRIPT_NAME": b"/slow.php"}))
                assert b"503" in await read_all(client)
    (request,) = site.events("request")
    assert (request["status"], request["faults"]) == (503, ["fcgi-status", "latency"])
    assert request["total_s"] > 0
    assert site.events("close")[0]["faults"] == ["fcgi-status", "latency"]
    assert [event["detail"] for event in site.events("fault") if "conn" in event] == [
        "fcgi-status=503, request 1",
        "latency=2s@s2c, request 1",
    ]


async def test_open_connections_are_as_before(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """When the last fault is gone, what is open goes the straight way again, whatever was kept of it."""
    with site.serve() as listener:
        server_ = faulty(site, "limit=1GiB,then=reset", "latency=1ms@both")
        async with running(server_):
            with site.connect() as client, await accepted(listener) as server:
                for _ in range(2):
                    await client.send(b"ask")
                    assert await server.recv(10) == b"ask"
                    await server.send(b"answer")
                    assert await client.recv(10) == b"answer"
                    server_.faults.clear()
                    [pair] = server_._loops[0]._relay.pairs()
                    assert pair.c2s.detour is None
                    assert pair.s2c.detour is None
                server.close()
                assert await read_all(client) == b""


async def test_a_tcp_client_is_reset(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """With TCP's own reset."""
    with site.serve() as listener, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server_ = site.server(listen=Tcp("127.0.0.1", port), faults=parse_all(["limit=2B,then=reset"]))
        async with running(server_):
            client = await trio.open_tcp_stream("127.0.0.1", port)
            with await accepted(listener) as server:
                await server.send(b"answer")
                assert await client.receive_some(10) == b"an"
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some(10)
                await client.aclose()


async def test_a_rule_that_ends_a_connection_at_once(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Many of them: none is left, none of the server's."""
    with site.serve() as listener:
        async with running(faulty(site, "close p=0.5", "reset p=0.5")):
            for _ in range(30):
                with site.connect() as client, await accepted(listener) as server:
                    await client.send(b"x")
                    with trio.move_on_after(1):
                        try:
                            await client.recv(1)
                        except ConnectionResetError:
                            continue
                    server.close()
        assert len(os.listdir("/proc/self/fd")) < 40
    by = [event["by"] for event in site.events("close")]
    assert len(by) == 30
    assert 10 < by.count("fault") < 30
