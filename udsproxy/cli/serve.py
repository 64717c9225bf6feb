"""``udsproxy serve``: a small pre-forking FastCGI server, to have something to call."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from udsproxy import endpoints
from udsproxy.cli.common import DONE, LISTENING, USAGE, Failure, duration_option, endpoint_argument, require_proc
from udsproxy.cli.people import show
from udsproxy.events import printable
from udsproxy.lab import responder


def serve(
    socket: Annotated[str, Parameter(name="SOCKET")],
    /,
    *,
    workers: int = 4,
    backlog: int | None = None,
    delay: str = "0s",
) -> int:
    """Serve FastCGI on SOCKET: each worker accepts one connection at a time, as php-fpm's do.

    The answer lists the request's parameters and the length and hash of its body.

    Parameters
    ----------
    socket
        Where to listen; takes mode=, owner= and group= after commas (mode 600 without them).
    workers
        How many worker processes.
    backlog
        The limit of the accept queue; without it, the system's. The kernel lets one more wait than this.
    delay
        How long each answer takes (250ms, 5s).
    """
    endpoint = endpoint_argument(socket)
    delay_s = duration_option("--delay", delay)
    if workers < 1:
        raise Failure(USAGE, f"--workers {workers}: at least 1 is needed")
    if backlog is not None and backlog < 0:
        raise Failure(USAGE, f"--backlog {backlog}: at least 0 is needed")
    require_proc()
    with responder.held_signals():
        try:
            listener = endpoints.Listener(endpoint, backlog=backlog)
        except endpoints.ListenError as error:
            raise Failure(LISTENING, str(error)) from None
        where = printable(str(listener.endpoint))
        show(f"serving FastCGI on {where}: {workers} workers, backlog {listener.backlog}")
        responder.serve(listener, workers=workers, delay_s=delay_s)
    return DONE
