"""Answers what is asked, beside the traffic, for as long as it is not cancelled."""

from __future__ import annotations

import contextlib
import logging
import os

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_app

from udsproxy.control.api import make_app
from udsproxy.endpoints import Listener
from udsproxy.proxy.server import Server

_AGAIN_S = 0.1
"""How soon it begins anew, where it failed."""


async def serve(server: Server, listener: Listener) -> None:
    """Serve `udsproxy.control.api` on this socket."""
    await server.started.wait()
    logging.getLogger("trio.serve_listeners").disabled = True  # it would write tracebacks (EMFILE)
    app = make_app(server)
    while True:
        config = Config()
        config.bind = [f"fd://{os.dup(listener.sock.fileno())}"]
        config.errorlog = None
        config.accesslog = None
        config.read_timeout = 30
        # One answer, and it is closed. (A connection that is kept is kept for 5 s, also where its client has left.)
        config.keep_alive_max_requests = 0
        config.graceful_timeout = 0
        # A client that leaves in the middle of its request makes hypercorn end, in some versions: whoever else was
        # asking asks again.
        with contextlib.suppress(Exception):
            await serve_app(app, config, mode="asgi")  # type: ignore[arg-type]  # Starlette is ASGI
        await trio.sleep(_AGAIN_S)
