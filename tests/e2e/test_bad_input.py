"""Peers that send what no program should, or too much, or nothing, or do not read; and very many of them.

Rule: whatever one client does, the others get right answers, and the proxy's memory stays bounded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest
import trio

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.site import DOWNLOAD_BYTES, start_php_fpm, write_scripts
from tests.e2e.tools import (
    UDSPROXY,
    SocketServer,
    ask,
    cgi_params,
    connect,
    echoes,
    page_of,
    peak_memory,
    receive_all,
    until,
    with_output,
)
from tests.stage import Stage
from udsproxy.protocols import fastcgi as wire

MEMORY = 48 * 1024 * 1024
"""What the proxy may need more than at its start: its queues are bounded at 16 MiB (tap) and 4 MiB (log)."""

FLOOD = 128 * 1024 * 1024
"""Much more than that."""


class Others:
    """Clients that behave: they ask php-fpm for pages all the time, and check them. A context manager."""

    def __init__(self, stage: Stage, proxy: Proxy) -> None:
        self._root, self._socket = stage.path("www"), proxy.socket
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor()
        self.answers = 0

    def __enter__(self) -> Self:
        self._done = [self._pool.submit(self._ask, number) for number in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()
        for each in self._done:
            each.result()

    def _ask(self, client: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            params = cgi_params(f"/hello.php?id={client}-{count}", root=self._root)
            assert ask(self._socket, params) == f"hello {client}-{count}\n".encode()
            self.answers += 1

    def wait_for_answers(self, count: int) -> None:
        """Return when so many more were answered."""
        wanted = self.answers + count
        until(lambda: self.answers >= wanted or any(each.done() for each in self._done), "answers to other clients")
        assert self.answers >= wanted, "another client got no right answer"


@pytest.fixture
def before_php_fpm(stage: Stage, start_proxy: StartProxy) -> Proxy:
    """A proxy before php-fpm, and pages for it."""
    write_scripts(stage)
    start_php_fpm(stage, stage.path("php.sock"))
    return start_proxy(stage.path("p.sock"), stage.path("php.sock"))


def garbage() -> Iterator[bytes]:
    """Random bytes, plain and where FastCGI would stand."""
    source = random.Random(4711)
    begin = wire.encode_begin(1)
    params = wire.encode_stream(wire.PARAMS, 1, wire.encode_pairs({b"REQUEST_METHOD": b"GET"}))
    for number in range(120):
        junk = source.randbytes(source.choice([1, 7, 8, 9, 100, 5000, 70000]))
        yield (b"", begin, begin + params, b"\x01\x01\x00\x01", begin[:8])[number % 5] + junk


def test_random_bytes_harm_nobody_else(stage: Stage, before_php_fpm: Proxy) -> None:
    """Connections full of garbage end without a trace but their events; meanwhile all others are served."""
    proxy = before_php_fpm
    idle = proxy.descriptors
    with Others(stage, proxy) as others:
        for data in garbage():
            with connect(proxy.socket) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                receive_all(sock)
        others.wait_for_answers(10)
    until(lambda: proxy.descriptors <= idle, "all connections to be closed")
    until(lambda: len(proxy.events("close")) == len(proxy.events("open")), "as many ends as beginnings")
    assert proxy.events("decode_error")
    assert {"direction", "offset", "reason"} <= proxy.events("decode_error")[0].keys()


def test_a_parameter_that_claims_2_gib(stage: Stage, start_proxy: StartProxy) -> None:
    """A parameter that says it is 2 GiB long, and goes on for as long as it is let, does not fill the memory."""
    start = wire.encode_begin(1)
    start += wire.encode_record(wire.PARAMS, 1, b"\x0e\xff\xff\xff\xffREQUEST_METHOD" + bytes(60000))
    assert_bounded(stage, start_proxy, start, wire.encode_record(wire.PARAMS, 1, b"x" * wire.MAX_CONTENT))


def test_a_body_that_never_ends(stage: Stage, start_proxy: StartProxy) -> None:
    """Records of the greatest length, one after the other and no end, do not fill the memory."""
    start = wire.encode_request({b"REQUEST_METHOD": b"POST"})[:-8]  # less the end of STDIN
    assert_bounded(stage, start_proxy, start, wire.encode_record(wire.STDIN, 1, b"x" * wire.MAX_CONTENT))


def test_management_records_that_never_end(stage: Stage, start_proxy: StartProxy) -> None:
    """GET_VALUES of the greatest length, full of names that claim 2 GiB, one after the other, do not fill the
    memory either."""
    record = wire.encode_record(wire.GET_VALUES, 0, b"\xff\xff\xff\xff" * 16383)
    assert_bounded(stage, start_proxy, record, record)


def assert_bounded(stage: Stage, start_proxy: StartProxy, start: bytes, again: bytes) -> None:
    """Send ``start`` and then ``again`` on and on: all of it comes through, memory stays bounded, others go on."""
    upstream = EchoOrCount(stage.path("up.sock"))
    with upstream:
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), "-v")
        assert echoes(proxy.socket)
        before = peak_memory(proxy.pid)
        sent = 0
        with connect(proxy.socket) as sock:
            sock.sendall(start)
            while sent < FLOOD:
                sock.sendall(again)
                sent += len(again)
            assert echoes(proxy.socket)
        (event,) = proxy.wait_for("close", conn=2)
        assert event["c2s_bytes"] == len(start) + sent
        assert event["by"] == "client"
        assert upstream.counted == len(start) + sent
        assert peak_memory(proxy.pid) - before < MEMORY


class EchoOrCount(SocketServer):
    """Counts and forgets FastCGI, echoes everything else."""

    def __init__(self, path: str) -> None:
        super().__init__(path, self._answer_first)
        self.counted = 0

    def _answer_first(self, connection: socket.socket) -> None:
        data = connection.recv(1 << 20)
        if not data.startswith(b"\x01"):
            connection.sendall(data)
            return
        while data:
            self.counted += len(data)
            data = connection.recv(1 << 20)


def test_a_body_of_single_bytes(stage: Stage, start_proxy: StartProxy) -> None:
    """100,000 records of one byte each arrive as the body that they are, and are counted to the byte."""
    output = stage.path("serve.out")
    stage.spawn("udsproxy serve", [*UDSPROXY, "serve", stage.path("up.sock")], output)
    stage.await_socket(stage.path("up.sock"))
    proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
    body = random.Random(4711).randbytes(100_000)
    request = wire.encode_request({b"REQUEST_METHOD": b"POST", b"REQUEST_URI": b"/bytes"})[:-8]
    request += b"".join(wire.encode_record(wire.STDIN, 1, bytes((byte,)), padding=0) for byte in body)
    request += wire.encode_record(wire.STDIN, 1)
    with connect(proxy.socket) as sock:
        sock.sendall(request)
        page = page_of(receive_all(sock)).decode()
    assert f"body: {len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}\n" in page
    (event,) = proxy.wait_for("request", uri="/bytes")
    assert event["c2s_bytes"] == len(request)
    assert event["status"] == 200


def test_a_client_that_says_nothing(stage: Stage, before_php_fpm: Proxy) -> None:
    """A client that connects and stays silent costs nobody else anything, and its end is told as what it was."""
    with connect(before_php_fpm.socket), Others(stage, before_php_fpm) as others:
        (silent,) = before_php_fpm.wait_for("open", conn=1)
        assert silent["client"]["pid"] == os.getpid()
        others.wait_for_answers(100)
        assert not before_php_fpm.events("close", conn=1)
    (event,) = before_php_fpm.wait_for("close", conn=1)
    assert (event["by"], event["c2s_bytes"], event["s2c_bytes"]) == ("client", 0, 0)


def test_a_client_that_does_not_read(stage: Stage, before_php_fpm: Proxy) -> None:
    """An answer of 50 MiB that its client does not read waits in php-fpm and not in the proxy; others are served
    meanwhile; and when the client reads at last, all of it is there."""
    with Others(stage, before_php_fpm) as others, connect(before_php_fpm.socket) as sock:
        others.wait_for_answers(10)
        before = peak_memory(before_php_fpm.pid)
        sock.sendall(wire.encode_request(cgi_params("/download.php", root=stage.path("www"))))
        others.wait_for_answers(200)
        assert peak_memory(before_php_fpm.pid) - before < MEMORY / 4
        page = page_of(receive_all(sock))
    expected = b"".join(hashlib.sha256(str(number).encode()).digest() * 2048 for number in range(800))
    assert hashlib.sha256(page).digest() == hashlib.sha256(expected).digest()


def test_bulk_is_observed_beside_other_traffic(stage: Stage, before_php_fpm: Proxy) -> None:
    """Answers of 50 MiB, held back at first and then taken at full speed, are decoded to their end while the proxy
    has other requests all the time: looking at bulk costs less than moving it, so nothing needs to be dropped."""
    uris = [f"/download.php?{number}" for number in range(8)]
    with Others(stage, before_php_fpm) as others:
        for uri in uris:
            with connect(before_php_fpm.socket) as sock:
                sock.sendall(wire.encode_request(cgi_params(uri, root=stage.path("www"))))
                others.wait_for_answers(50)
                assert len(receive_all(sock)) > DOWNLOAD_BYTES
    assert before_php_fpm.stop() == 0
    assert before_php_fpm.events("dropped") == []
    told = {event["uri"]: event for event in before_php_fpm.events("request")}
    assert [uri for uri in uris if "incomplete" in told[uri] or told[uri]["s2c_bytes"] < DOWNLOAD_BYTES] == []


HOSTILE = {
    b"REQUEST_URI": b'/\x1b]0;title\x07\x1b[2J\r\n{"event":"fake"}\n\xe2\x80\xae\xff\xc2\x9b31m',
    b"REQUEST_METHOD": b"GET\x00\x1b[A",
    b"\x1b[31mNAME": b"\x1b[5mvalue",
}


@pytest.mark.parametrize("log", ["console", "json"])
def test_nothing_that_a_peer_sends_reaches_the_log_as_it_is(
    stage: Stage, start_proxy: StartProxy, log: str
) -> None:
    """Control characters, line ends, invalid UTF-8 and text direction marks in a request are escaped in the log: it
    cannot be forged, and it cannot drive a terminal."""
    with SocketServer(stage.path("up.sock"), lambda sock: sock.recv(65536)):
        options = ["--log", log, "-vv", "--color", "never", "--show-secrets"]
        wrap = with_output(stage.path("log"))
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), log=options, wrap=wrap)
        until(lambda: os.path.exists(proxy.socket), "the proxy to listen")
        with connect(proxy.socket) as sock:
            sock.sendall(wire.encode_request(HOSTILE))
            receive_all(sock)
        assert proxy.stop() == 0
    with open(stage.path("log"), "rb") as file:
        text = file.read().decode("utf-8")
    assert "title" in text
    assert [line for line in text.split("\n") if not line.isprintable()] == []
    assert not any(line.startswith('{"event":"fake"') for line in text.split("\n"))


# --- very many ---

MANY = 2000


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process may have enough of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 3 * MANY, (
        f"the hard limit on open files is {hard} (ulimit -Hn)"
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3 * MANY), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_two_thousand_connections_at_once(
    stage: Stage, start_proxy: StartProxy, many_descriptors: None
) -> None:
    """With 2,000 connections open at the same time each client gets the answer to what it sent and to nothing else,
    and at the end none is left."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stage.path("up.sock"))
        listener.listen(MANY)
        listener.setblocking(False)
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        idle = proxy.descriptors
        async with trio.open_nursery() as serving:
            serving.start_soon(
                trio.serve_listeners, _echo_stream, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
            )
            clients = [await _open_client(proxy.socket) for _ in range(MANY)]
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(clients):
                    nursery.start_soon(_check_echo, client, b"%d!" % number)
            assert proxy.descriptors >= idle + 2 * MANY
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(clients):
                    nursery.start_soon(_check_echo, client, b"%d," % number * (number % 1000))
            for client in clients:
                await client.aclose()
            with trio.fail_after(30):
                while proxy.descriptors > idle:
                    await trio.sleep(0.01)
            serving.cancel_scope.cancel()
    assert len(proxy.wait_for("close", count=MANY)) == MANY


async def _echo_stream(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def _open_client(path: str) -> trio.SocketStream:
    """A connection, as soon as there is room in the queue."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    while failed := sock.connect_ex(path):
        assert failed == errno.EAGAIN
        await trio.sleep(0.001)
    await trio.lowlevel.checkpoint()
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def _check_echo(client: trio.SocketStream, message: bytes) -> None:
    await client.send_all(message)
    received = b""
    while len(received) < len(message):
        data = await client.receive_some()
        assert data, "the connection ended"
        received += data
    assert received == message
