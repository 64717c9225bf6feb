"""Clients that hold what they can: connections that are half open, bytes one at a time, every request number at
once, parameters without an end.

Rule: those who behave are served meanwhile, no descriptor is left at the end, and memory is bounded. An environment
variable (UDSPROXY_HALF_OPEN, UDSPROXY_LORIS) raises how many there are.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.tools import LIMIT_S, SocketServer, connect, echoes, peak_memory, receive_all, until
from tests.stage import Stage
from udsproxy.protocols import fastcgi as wire

HALF_OPEN = int(os.environ.get("UDSPROXY_HALF_OPEN", "300"))
LORIS = int(os.environ.get("UDSPROXY_LORIS", "100"))
PARAMS = int(os.environ.get("UDSPROXY_PARAMS_MIB", "32")) * 1024 * 1024
MEMORY = 64 * 1024 * 1024
EACH = 12 * 1024
"""Memory of a connection on which nothing, or little, happens."""


class Sink(SocketServer):
    """Reads whatever is FastCGI, and echoes all else."""

    def __init__(self, path: str) -> None:
        super().__init__(path, self._answer_first)
        self.read = 0

    def _answer_first(self, connection: socket.socket) -> None:
        data = connection.recv(1 << 20)
        if not data.startswith(b"\x01"):
            connection.sendall(data)
            return
        while data:
            self.read += len(data)
            data = connection.recv(1 << 20)


def patient(path: str) -> socket.socket:
    """A connection, as soon as the queue has room."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(LIMIT_S), 0))
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


@pytest.fixture(autouse=True)
def _descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3 * HALF_OPEN + 1000)), hard))


def test_connections_that_are_half_open(stage: Stage, start_proxy: StartProxy) -> None:
    """Clients that have ended their side, of a server that does not end its own, and clients that say nothing: held
    as they would be without us, each little memory; all go when they go."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(stage.path("up"))
        listener.listen(100)
        listener.settimeout(LIMIT_S)
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        idle, before = proxy.descriptors, peak_memory(proxy.pid)
        clients, servers = [], []
        for number in range(HALF_OPEN):
            client = patient(proxy.socket)
            clients.append(stack.enter_context(client))
            servers.append(stack.enter_context(listener.accept()[0]))
            if number % 2:
                client.shutdown(socket.SHUT_WR)
        assert proxy.descriptors >= idle + 2 * HALF_OPEN
        with patient(proxy.socket) as good:
            good.sendall(b"hello")
            server, _ = listener.accept()
            with server:
                assert server.recv(10) == b"hello"
                server.sendall(b"world")
            assert good.recv(10) == b"world"
        # A half that is open is open: what the server says after the client's end arrives.
        servers[1].settimeout(LIMIT_S)
        assert servers[1].recv(10) == b""
        servers[1].sendall(b"late")
        assert clients[1].recv(10) == b"late"
        assert peak_memory(proxy.pid) - before < MEMORY // 4 + EACH * HALF_OPEN
        print(f"{HALF_OPEN} half open: {(peak_memory(proxy.pid) - before) / HALF_OPEN / 1024:.1f} KiB each")
        for each in (*clients, *servers):
            each.close()
        until(lambda: proxy.descriptors <= idle, "the descriptors to be closed")


def test_bytes_one_at_a_time(stage: Stage, start_proxy: StartProxy) -> None:
    """A request that comes a byte at a time, on many connections at once, is passed on so, and understood."""
    request = wire.encode_request({b"REQUEST_URI": b"/loris", b"REQUEST_METHOD": b"GET"})
    with Sink(stage.path("up")) as sink, contextlib.ExitStack() as stack:
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        idle, before = proxy.descriptors, peak_memory(proxy.pid)
        clients = [stack.enter_context(patient(proxy.socket)) for _ in range(LORIS)]
        for at in range(len(request)):
            for client in clients:
                client.sendall(request[at : at + 1])
            if at % 25 == 0:
                with patient(proxy.socket) as other:  # (the queue may be full of the clients above)
                    other.sendall(b"x")
                    assert other.recv(1) == b"x"
        until(lambda: sink.read == LORIS * len(request), "all bytes to arrive")
        assert peak_memory(proxy.pid) - before < MEMORY + LORIS * EACH
        for client in clients:
            client.close()
        proxy.wait_for("request", uri="/loris", count=LORIS)
        until(lambda: proxy.descriptors <= idle, "the descriptors to be closed")


def test_all_request_numbers_at_once(stage: Stage, start_proxy: StartProxy) -> None:
    """65,535 requests are begun on a connection and none is ended: all arrives, and others are served."""
    with Sink(stage.path("up")) as sink:
        proxy = start_proxy(stage.path("p"), stage.path("up"), "-v")
        assert echoes(proxy.socket)
        before, sent = peak_memory(proxy.pid), 0
        with connect(proxy.socket) as sock:
            for start in range(1, 65536, 1000):
                numbers = range(start, min(start + 1000, 65536))
                data = b"".join(wire.encode_begin(number) for number in numbers)
                data += b"".join(
                    wire.encode_record(wire.PARAMS, number, b"\x0b\x02REQUEST_URI/x") for number in numbers
                )
                sock.sendall(data)
                sent += len(data)
            until(lambda: sink.read == sent, "all of it to arrive")
            assert echoes(proxy.socket)
            assert peak_memory(proxy.pid) - before < MEMORY
        (event,) = proxy.wait_for("close", c2s_bytes=sent)
        assert event["by"] == "client"


def test_parameters_that_never_end(stage: Stage, start_proxy: StartProxy) -> None:
    """Good ones, one after the other without an end, on four connections: all arrive, and others are served."""
    pair = wire.encode_pairs({b"HTTP_COOKIE": b"x" * 1000})
    record = wire.encode_record(wire.PARAMS, 1, pair * 60)
    with Sink(stage.path("up")) as sink, contextlib.ExitStack() as stack:
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        assert echoes(proxy.socket)
        before, sent = peak_memory(proxy.pid), 0
        clients = [stack.enter_context(connect(proxy.socket)) for _ in range(4)]
        for client in clients:
            client.sendall(wire.encode_begin(1))
            sent += len(wire.encode_begin(1))
        while sent < PARAMS:
            for client in clients:
                client.sendall(record)
                sent += len(record)
            if sent // len(record) % 200 == 0:
                assert echoes(proxy.socket)
        until(lambda: sink.read == sent, "all of it to arrive")
        assert echoes(proxy.socket)
        assert peak_memory(proxy.pid) - before < MEMORY
        for client in clients:
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b""
