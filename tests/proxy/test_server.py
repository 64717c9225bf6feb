"""A proxy as a whole, in this process: listening, full and missing upstreams, limits, and its end."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from typing import Any

import pytest
import trio
import trio.testing

from tests.proxy.conftest import read_all, read_exactly
from tests.proxy.site import Site, accepted, running
from udsproxy import endpoints
from udsproxy.config import LogConfig, ProxyConfig
from udsproxy.endpoints import ListenError, Tcp, UnixAbstract, UnixPath
from udsproxy.kernel.procfs import read_comm
from udsproxy.proxy.server import Server


async def test_a_connection(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A client reaches the upstream; the log tells of listening, opening (by whom) and closing."""
    with site.serve() as listener:
        async with running(site.server()):
            client = site.connect()
            with await accepted(listener) as server:
                await client.send(b"ping")
                assert await server.recv(10) == b"ping"
                await server.send(b"pong!")
                assert await client.recv(10) == b"pong!"
                client.close()
                assert await server.recv(10) == b""
    names = [event["event"] for event in site.events()]
    names = [name for name in names if name != "accepted"]  # it may be answered before that is looked at
    assert names == ["listening", "open", "close", "summary"]
    [listening], [opened], [closed] = (site.events(name) for name in ("listening", "open", "close"))
    assert (listening["listen"], listening["upstream"]) == (site.listen.path, site.upstream.path)
    who = opened["client"]
    assert (who["pid"], who["uid"], who["gid"]) == (os.getpid(), os.getuid(), os.getgid())
    assert who["comm"] == read_comm(os.getpid())
    assert opened["connect_s"] > 0
    assert (closed["by"], closed["c2s_bytes"], closed["s2c_bytes"]) == ("client", 4, 5)
    assert not os.path.exists(site.listen.path)  # noqa: ASYNC240 - nothing runs any more


async def test_upstream_not_there(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """No file, nobody listening: the first client is reset, all others get from connect() what they would get from
    the upstream's socket; the event has the kernel's words, and service resumes."""
    async with running(site.server()):
        with site.connect() as client:
            assert await read_all(client) == b""
        assert site.try_to_connect() == errno.ENOENT
        site.serve().close()
        await trio.sleep(0.2)
        assert site.try_to_connect() == errno.ECONNREFUSED
        with site.serve() as listener:
            await trio.sleep(0.2)
            with site.connect() as client, await accepted(listener) as server:
                await server.send(b"back")
                assert await client.recv(10) == b"back"
    told = [(e["op"], e["errno"], e["message"]) for e in site.events("upstream_error")]
    assert told == [
        ("connect", "ENOENT", "No such file or directory"),
        ("connect", "ECONNREFUSED", "Connection refused"),
    ]
    assert [event["conn"] for event in site.events("open")] == [1]
    assert len(site.events("listening")) == 2


async def test_a_full_upstream(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """With a limit of our own, clients of a full upstream wait in our queue, unaccepted, and are served in turn
    when there is room."""
    with site.serve(backlog=0) as listener:
        async with running(site.server(backlog=100)):
            clients = [site.connect() for _ in range(5)]
            for number, client in enumerate(clients):
                await client.send(b"%d" % number)
            await trio.sleep(10)
            assert len(read_log_when_told(site, "open")) == 1
            for number, client in enumerate(clients):
                with client, await accepted(listener) as server:
                    assert await server.recv(10) == b"%d" % number
    assert [(e["errno"], e["message"]) for e in site.events("upstream_error")][:1] == [
        ("EAGAIN", "Resource temporarily unavailable")
    ]
    assert len(site.events("open")) == 5


def read_log_when_told(site: Site, name: str) -> list[dict[str, Any]]:
    """Events of a log that is still written: the writer's thread has its own time, so wait for the first."""
    while not (events := site.events(name)):
        pass
    return events


async def test_our_own_backlog(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """With a backlog of N our own queue holds N + 1, and the next client gets the kernel's EAGAIN."""
    with site.serve(backlog=0):
        async with running(site.server(backlog=1)):
            first = site.connect()
            await trio.sleep(1)  # this one fills the upstream's queue
            waiting = [site.connect(), site.connect()]
            with endpoints.unix_socket() as late:
                assert endpoints.connect(late, site.listen) == errno.EAGAIN
            for client in (first, *waiting):
                client.close()


async def test_out_of_descriptors(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """At RLIMIT_NOFILE it is told once, nobody is lost, and accepting goes on when there is room again."""
    with site.serve() as listener:
        async with running(site.server()):
            await trio.sleep(1)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            client = site.connect()
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            await trio.sleep(10)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            with client, await accepted(listener) as server:
                await client.send(b"x")
                assert await server.recv(1) == b"x"
    [error] = site.events("proxy_error")
    assert (error["op"], error["errno"], error["message"]) == ("accept", "EMFILE", "Too many open files")
    assert "ulimit" in error["hint"]


async def test_stopping_lets_connections_finish(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Once stopped: nobody new comes, who waited in our queue is served, who is connected may finish."""
    with site.serve() as listener:
        server = site.server(grace_s=60)
        server.open()
        waiting = site.connect()
        async with trio.open_nursery() as nursery:
            server.stop()
            nursery.start_soon(server.run)
            with waiting, await accepted(listener) as upstream:
                await trio.sleep(30)
                with endpoints.unix_socket() as late:
                    assert endpoints.connect(late, site.listen) == errno.ENOENT
                await waiting.send(b"finished")
                assert await upstream.recv(10) == b"finished"
    assert [event["conn"] for event in site.events("close")] == [1]


async def test_the_grace_ends(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """After the grace time connections are ended, and told as ended by the proxy."""
    with site.serve() as listener:
        started = trio.current_time()
        async with running(site.server(grace_s=7)):
            client, server = site.connect(), await accepted(listener)
            await client.send(b"x")
            await read_exactly(server, 1)
        assert trio.current_time() - started == pytest.approx(7, abs=0.1)
        assert await read_all(client) == b""
        client.close()
        server.close()
    assert site.events("close")[0]["by"] == "proxy"


async def test_stopping_twice_ends_at_once(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """The second stop waits for nobody."""
    with site.serve() as listener:
        server = site.server(grace_s=1000)
        started = trio.current_time()
        async with running(server):
            client, upstream = site.connect(), await accepted(listener)
            server.stop()
            await trio.sleep(1)
        assert trio.current_time() - started < 10
        client.close()
        upstream.close()


async def test_tcp_on_both_sides(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """A TCP client reaches a TCP upstream."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = Tcp("127.0.0.1", listener.getsockname()[1])
        server = site.server(upstream, Tcp("127.0.0.1", 0))
        [ours] = server.open()
        assert isinstance(ours.endpoint, Tcp)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            client = trio.socket.socket()
            await client.connect(("127.0.0.1", ours.endpoint.port))
            with client, await accepted(listener) as other:
                await client.send(b"question")
                assert await other.recv(10) == b"question"
            server.stop()
    [opened] = site.events("open")
    assert "client" not in opened


async def test_a_tcp_upstream_that_refuses(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Nobody there, or a host that has no address: the client is closed and the event says why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with running(site.server(Tcp("127.0.0.1", port))):
        with site.connect() as client:
            assert await read_all(client) == b""
    assert site.events("upstream_error")[0]["errno"] == "ECONNREFUSED"


async def test_a_tcp_upstream_that_never_answers(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """Connecting by TCP ends at the timeout; a client in the meantime waits and others are served."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for _ in range(8):  # until its queue is full and the kernel drops what comes (tcp(7))
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(silent.getsockname())
        started = trio.current_time()
        async with running(site.server(Tcp("127.0.0.1", silent.getsockname()[1]), connect_timeout_s=3.0)):
            with site.connect() as client:
                assert await read_all(client) == b""
        assert trio.current_time() - started >= 3
    assert site.events("upstream_error")[0]["errno"] == "ETIMEDOUT"


async def test_abstract_names(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """From an abstract name to an abstract name."""
    here, there = (UnixAbstract(f"udsproxy-{os.getpid()}-{what}") for what in ("here", "there"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"\0" + there.name.encode())
        listener.listen()
        async with running(site.server(there, here)):
            with site.connect(here) as client, await accepted(listener) as server:
                await client.send(b"x")
                assert await server.recv(1) == b"x"


async def test_several_proxies(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """One process, two proxies: each counts its own connections, events say whose they are."""
    second = UnixPath(site.listen.path + "2")
    configs = [
        ProxyConfig(listen=listen, upstream=site.upstream, name=name)
        for listen, name in ((site.listen, "one"), (second, "two"))
    ]
    with site.serve() as listener:
        async with running(Server(configs, LogConfig(format="json", file=str(site.log)))):
            for to in (site.listen, second, second):
                with site.connect(to) as client, await accepted(listener) as server:
                    await client.send(b"x")
                    assert await server.recv(1) == b"x"
    assert sorted((e["proxy"], e["conn"]) for e in site.events("close")) == [("one", 1), ("two", 1), ("two", 2)]


def test_opening_fails_as_a_whole(site: Site) -> None:
    """Where one of several cannot listen, the others' files are gone again."""
    bad = UnixPath(os.path.join(site.listen.path, "under", "a", "file"))
    configs = [ProxyConfig(listen=listen, upstream=site.upstream, name="p") for listen in (site.listen, bad)]
    with pytest.raises(ListenError):
        Server(configs, LogConfig(format="json", file=str(site.log))).open()
    assert not os.path.exists(site.listen.path)


def test_a_log_that_cannot_be_written(site: Site) -> None:
    """Where the log cannot be opened nothing is listened on."""
    config = ProxyConfig(listen=site.listen, upstream=site.upstream, name="p")
    with pytest.raises(FileNotFoundError):
        Server([config], LogConfig(format="json", file="/nonexistent/log")).open()
    assert not os.path.exists(site.listen.path)


async def test_a_look_that_is_due_while_it_ends(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    """What an open connection asks for in the moment in which the last task of the accept loop has ended, and the
    loop itself has not, is left undone; nothing fails."""
    looks: list[RuntimeError | None] = []
    with site.serve():
        server = site.server()
        async with running(server):
            await server.started.wait()
            await trio.testing.wait_all_tasks_blocked()
            [loop] = server._loops

            assert loop._nursery is not None
            nursery: trio.Nursery = loop._nursery

            async def end_last() -> None:
                try:
                    await trio.sleep_forever()
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.sleep(0.01)

            class LookThen(trio.abc.Instrument):
                def task_exited(self, task: trio.lowlevel.Task) -> None:
                    if not nursery.child_tasks and not looks:
                        try:
                            loop._look_who_asks([1])
                            looks.append(None)
                        except RuntimeError as error:
                            looks.append(error)

            nursery.start_soon(end_last)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(instrument := LookThen())
    trio.lowlevel.remove_instrument(instrument)
    assert looks == [None]
