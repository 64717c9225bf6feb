"""Answers what is asked, beside the traffic, for as long as it is not cancelled.

Rules: who is neither root nor our own user is not answered, whatever the rights of the file have become; but where
these were asked for by name (``--control PATH,mode=660``). There are `MAX_CONNECTIONS` at a time: one more ends the
oldest, so that those who connect and ask nothing keep nobody from asking. What goes wrong on a connection ends that
connection.
"""

from __future__ import annotations

import contextlib
import socket

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from udsproxy.control import peers
from udsproxy.control.api import make_app
from udsproxy.endpoints import Listener, UnixPath
from udsproxy.proxy.server import Server

MAX_CONNECTIONS = 64
"""Each takes a descriptor, which the traffic has one less of."""
_AGAIN_S = 0.1
"""How soon it accepts again, where that failed (EMFILE)."""
_READ_S = 30.0
"""How long a request may take to come."""


async def serve(server: Server, listener: Listener) -> None:
    """Serve `udsproxy.control.api` on this socket."""
    await server.started.wait()
    config = Config()
    config.errorlog = None
    config.accesslog = None
    config.read_timeout = int(_READ_S)
    # One answer, and it is closed. (A connection that is kept is kept for 5 s, also where its client has left.)
    config.keep_alive_max_requests = 0
    config.graceful_timeout = 0
    app, context = ASGIWrapper(make_app(server)), WorkerContext(None)  # type: ignore[arg-type]  # it is ASGI
    limiter = trio.CapacityLimiter(MAX_CONNECTIONS)
    connected: dict[socket.socket, trio.CancelScope] = {}

    async def answer(sock: socket.socket) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        with connected[sock], contextlib.suppress(Exception):
            await TCPServer(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]  # no TLS
        del connected[sock]
        sock.close()
        limiter.release_on_behalf_of(sock)

    async with trio.open_nursery() as nursery:
        try:
            while True:
                sock = await _accept(listener)
                if not _may_control(sock, listener):
                    sock.close()
                    continue
                if not limiter.available_tokens:
                    _end(*next(iter(connected.items())))
                await limiter.acquire_on_behalf_of(sock)
                connected[sock] = trio.CancelScope()
                nursery.start_soon(answer, sock)
        finally:
            for each in connected.items():
                _end(*each)


async def _accept(listener: Listener) -> socket.socket:
    """The next connection."""
    while True:
        await trio.lowlevel.wait_readable(listener.sock)
        try:
            sock, _ = listener.sock.accept()
        except BlockingIOError:
            continue
        except OSError:
            await trio.sleep(_AGAIN_S)
            continue
        sock.setblocking(False)
        return sock


def _end(sock: socket.socket, scope: trio.CancelScope) -> None:
    """(To cancel alone would not do: hypercorn lets nobody cancel what it sends, and nobody may read that.)"""
    scope.cancel()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _may_control(sock: socket.socket, listener: Listener) -> bool:
    endpoint = listener.endpoint
    if isinstance(endpoint, UnixPath) and (endpoint.mode or 0) & 0o077:
        return True
    with contextlib.suppress(OSError):
        return peers.is_trusted(peers.uid_of(sock))
    return False
