"""What is no incident, or not that of which it looks like: messages that want no answer, and connections of clients
that have been answered. Real servers.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from tests.e2e.proxy import StartProxy
from tests.e2e.tap import StartTap
from tests.e2e.test_tap_programs import Postgres
from tests.e2e.tools import connect, receive_all, receive_exactly, until
from tests.stage import Stage

# Answers each byte at once, and keeps what was answered open until its clients' end has been read, as uvicorn does.
# While it is blocked it reads nothing.
SERVER = """
import asyncio, os, sys, time

async def serve(reader, writer):
    while data := await reader.read(1):
        if data == b"b":
            while not os.path.exists(sys.argv[2]):
                time.sleep(0.01)
        writer.write(data)
    writer.close()

async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1], backlog=100)
    await server.serve_forever()

asyncio.run(main())
"""


def test_a_message_that_wants_no_answer(stage: Stage, start_tap: StartTap) -> None:
    """PostgreSQL closes the connection of a CancelRequest without an answer, as it should: nobody met an error."""
    os.chmod(stage.directory, 0o755)
    tap = start_tap(Postgres(stage).socket)
    with connect(tap.socket) as sock:
        sock.sendall(struct.pack("!4i", 16, 80877102, 12345, 67890))
        assert receive_all(sock) == b""
    [closed] = tap.wait_for("close", c2s_bytes=16)
    assert (closed["by"], closed["s2c_bytes"]) == ("upstream", 0)
    tap.stop()
    assert tap.events("incident") == []


def test_a_one_way_write(stage: Stage, start_proxy: StartProxy) -> None:
    """A client that writes and leaves, and a server that reads and closes: nobody met an error. Where the server
    resets the connection somebody did."""
    upstream = stage.path("server.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(upstream)
        listener.listen(100)
        proxy = start_proxy(stage.path("p.sock"), upstream)
        with connect(proxy.socket) as sock:
            sock.sendall(b"metric 1\n")
            server, _ = listener.accept()
            with server:
                assert receive_exactly(server, 9) == b"metric 1\n"
        proxy.wait_for("close", count=1)
        with connect(proxy.socket) as sock:
            sock.sendall(b"metric 2\n")
            server, _ = listener.accept()
            with server:
                receive_exactly(server, 9)
            assert receive_all(sock) == b""
        proxy.wait_for("close", count=2)
        assert proxy.events("incident") == []
        with connect(proxy.socket) as sock:
            server, _ = listener.accept()
            sock.sendall(b"metric 3\n")
            until(lambda: server.recv(1, socket.MSG_PEEK), "what is sent")
            server.close()
            over = proxy.wait_for("incident", phase="close")[0]
    assert over["errors"] == {"connection ended by ECONNRESET": 1}
    assert "clients met errors (1 × connection ended by ECONNRESET)" in over["what"]


def test_one_process_for_many_clients(stage: Stage, start_proxy: StartProxy, tmp_path: Path) -> None:
    """A server of one process holds the connections of ten clients that were answered and have left, and is busy
    with an eleventh while a twelfth waits: that is one worker of one, which works for nobody who has left."""
    upstream, go_on = stage.path("server.sock"), tmp_path / "go"
    argv = [sys.executable, "-c", SERVER, upstream, str(go_on)]
    stage.spawn("server", argv, stage.path("server.log"))
    stage.await_socket(upstream)
    proxy = start_proxy(stage.path("p.sock"), upstream)
    clients = []
    for _ in range(10):
        sock = connect(proxy.socket)
        clients.append(sock)
        sock.sendall(b"x")
        assert receive_exactly(sock, 1) == b"x"
    with connect(proxy.socket) as eleventh:
        eleventh.sendall(b"xb")
        assert receive_exactly(eleventh, 1) == b"x"
        for sock in clients:
            sock.close()
        with connect(proxy.socket):
            opened = proxy.wait_for("incident", phase="open")[0]
            go_on.touch()
            assert receive_exactly(eleventh, 1) == b"b"
    assert (opened["workers"], opened["busy"]) == (1, 1)
    assert "gone_running" not in opened
    assert "have left" not in opened["what"]
    for incident in proxy.events("incident"):
        assert sum(each["workers"] for each in incident.get("waiting_on", [])) <= incident["busy"]


def test_a_server_that_ends_while_nobody_comes(stage: Stage, start_tap: StartTap) -> None:
    """A tap tells that the server is gone; that is no incident, as no client met it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stage.path("server.sock"))
        listener.listen()
        tap = start_tap(stage.path("server.sock"))
    tap.wait_for("upstream_error", errno="ECONNREFUSED")
    tap.stop()
    assert tap.events("incident") == []


def test_a_client_of_a_server_that_is_gone(stage: Stage, start_proxy: StartProxy) -> None:
    """It meets an error, and that is an incident."""
    proxy = start_proxy(stage.path("p.sock"), stage.path("server.sock"))
    with connect(proxy.socket) as sock, suppress(ConnectionResetError):
        receive_all(sock)
    [incident] = proxy.wait_for("incident", phase="open")
    assert incident["errors"] == {"connect() ENOENT": 1}
