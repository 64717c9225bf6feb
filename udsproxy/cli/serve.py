"""``udsproxy serve``: a small pre-forking FastCGI server, to have something to call."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from udsproxy import endpoints
from udsproxy.cli.arguments import OTHER, Duration, FileName, option
from udsproxy.cli.common import DONE, LISTENING, USAGE, Failure, duration_option, endpoint_argument, require_proc
from udsproxy.cli.people import tell
from udsproxy.events import printable
from udsproxy.lab import responder


def serve(
    socket: Annotated[FileName, Parameter(name="SOCKET")],
    /,
    *,
    workers: Annotated[int, option(OTHER, "N")] = 4,
    backlog: Annotated[int | None, option(OTHER, "N")] = None,
    delay: Annotated[Duration, option(OTHER)] = "0s",
) -> int:
    """Run a small FastCGI server, to have something to call.

    Its workers accept one connection at a time, as php-fpm's do. The answer lists the parameters of the request,
    and the length and the hash of its body.

    Parameters
    ----------
    socket
        Where to listen. Its mode is 600; append mode=, owner= or group= after a comma to set them.
    workers
        The number of worker processes.
    backlog
        The backlog of the socket; one client more than this can wait. Default: the system's limit.
    delay
        How long each answer takes.
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
        tell(f"serving FastCGI on {where}: {workers} workers, backlog {listener.backlog}")
        responder.serve(listener, workers=workers, delay_s=delay_s)
    return DONE
