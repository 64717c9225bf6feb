"""Answers what is asked, beside the traffic, for as long as it is not cancelled."""

from __future__ import annotations

import logging
import os

from hypercorn.config import Config
from hypercorn.trio import serve as serve_app

from udsproxy.control.api import make_app
from udsproxy.endpoints import Listener
from udsproxy.proxy.server import Server


async def serve(server: Server, listener: Listener) -> None:
    """Serve `udsproxy.control.api` on this socket."""
    await server.started.wait()
    logging.getLogger("trio.serve_listeners").disabled = True  # it would write tracebacks (EMFILE)
    config = Config()
    config.bind = [f"fd://{os.dup(listener.sock.fileno())}"]
    config.errorlog = None
    config.accesslog = None
    config.read_timeout = 30
    config.graceful_timeout = 0
    await serve_app(make_app(server), config, mode="asgi")  # type: ignore[arg-type]  # Starlette is ASGI
