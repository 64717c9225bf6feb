"""A proxy as a whole, in the test's own process: its sockets, its log, clients and an upstream that the test is."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from udsproxy import endpoints
from udsproxy.config import LogConfig, ProxyConfig
from udsproxy.endpoints import Endpoint, UnixAbstract, UnixPath
from udsproxy.proxy.server import Server


class Site:
    """A directory with the proxy's socket, the upstream's, and the log."""

    def __init__(self, directory: Path) -> None:
        self.listen = UnixPath(str(directory / "proxy"))
        self.upstream = UnixPath(str(directory / "up"))
        self.log = directory / "log"
        self._told = 0

    def serve(self, backlog: int = 100) -> socket.socket:
        """Listen as the upstream; what is accepted is blocking."""
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.upstream.path)
        listener.bind(self.upstream.path)
        listener.listen(backlog)
        return listener

    def connect(self, to: UnixPath | UnixAbstract | None = None) -> trio.socket.SocketType:
        sock = endpoints.unix_socket()
        number = endpoints.connect(sock, to or self.listen)
        assert number == 0, errno.errorcode[number]
        return trio.socket.from_stdlib_socket(sock)

    def try_to_connect(self) -> int:
        """The errno of connect(), or 0."""
        with endpoints.unix_socket() as sock:
            return endpoints.connect(sock, self.listen)

    def server(self, upstream: Endpoint | None = None, listen: Endpoint | None = None, **options: Any) -> Server:
        of_server = {key: options.pop(key) for key in ("grace_s", "seed") if key in options}
        config = ProxyConfig(listen=listen or self.listen, upstream=upstream or self.upstream, name="p", **options)
        return Server([config], LogConfig(format="json", file=str(self.log)), **of_server)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [event for event in events if name in (None, event["event"])]


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[None]:
    """The server runs within; at the end it is stopped, and has written its log."""
    server.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        yield
        server.stop()


async def accepted(listener: socket.socket) -> trio.socket.SocketType:
    await trio.lowlevel.wait_readable(listener.fileno())
    return trio.socket.from_stdlib_socket(listener.accept()[0])
