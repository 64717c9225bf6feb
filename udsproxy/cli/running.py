"""A server that runs until it is told to stop: signals, the control socket, the exit code."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import trio
from msgspec.structs import replace

from udsproxy import endpoints
from udsproxy.cli.common import CONFIGURATION, DONE, FAILED, LISTENING, USAGE, Failure, endpoint_argument
from udsproxy.cli.options import say
from udsproxy.config import Config
from udsproxy.control import place, serving
from udsproxy.endpoints import Listener, UnixPath
from udsproxy.events import Summary, printable
from udsproxy.kernel.files import who_may_replace
from udsproxy.kernel.own_processes import forbid_dumps
from udsproxy.proxy.server import Server
from udsproxy.sinks.console import summary_text
from udsproxy.units import ConfigError


def run_server(
    server: Server,
    settings: Config,
    reload: Callable[[], None] | None = None,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run it until a signal, or until ``meanwhile`` (begun when it accepts) has ended. Returns the exit code.

    ``reload``: what SIGHUP does; without it, that stops too. Raises `Failure`.
    """
    forbid_dumps()
    if settings.log.file is not None and (who := who_may_replace(settings.log.file)) is not None:
        say(printable(f"{who}, who can put another file in the place of {settings.log.file}"))
    try:
        summary = trio.run(_run_until_told, server, settings, reload, meanwhile)
    except endpoints.ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    except ConfigError as error:
        raise Failure(USAGE if reload is None else CONFIGURATION, str(error)) from None
    except OSError as error:
        what = f"write the log to {error.filename}" if error.filename else "write the log or start"
        raise Failure(FAILED, f"cannot {what}: {error.strerror}") from None
    if settings.log.format != "console" or settings.log.file is not None:
        say(summary_text(summary))
    for line in server.failures:
        say(line)
    return FAILED if server.failures else DONE


async def _run_until_told(
    server: Server,
    settings: Config,
    reload: Callable[[], None] | None,
    meanwhile: Callable[[], Awaitable[None]] | None,
) -> Summary:
    # Signals first: from the moment that there is a socket file, none may end us without removing it.
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        controlled = _open_control(settings.control)
        if controlled is not None:
            stack.callback(controlled.close)
        for listener in server.open():
            if listener.note:
                say(printable(listener.note))

        def stop() -> None:
            server.stop()
            if controlled is not None:
                controlled.remove_file()  # who looks for a proxy that runs shall not find one that ends

        async def wait_for_meanwhile() -> None:
            assert meanwhile is not None
            await server.started.wait()
            await meanwhile()
            stop()

        async def tell_of_rest() -> None:
            await server.left.wait()
            if (still := len(server.open_connections())) and math.isinf(settings.grace_s):
                say(f"nobody new comes; {still} open connection{'s' * (still > 1)} go on; Ctrl-C ends them")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell_of_rest)
            nursery.start_soon(_heed, signals, server, stop, reload)
            if controlled is not None:
                nursery.start_soon(serving.serve, server, controlled)
            if meanwhile is not None:
                nursery.start_soon(wait_for_meanwhile)
            summary = await server.run()
            nursery.cancel_scope.cancel()
    return summary


def _open_control(control: str) -> Listener | None:
    """Listen for who controls us. Raises `endpoints.ListenError`, `Failure`."""
    if control == "none":
        return None
    if control == "auto":
        try:
            return Listener(place.default_endpoint(), backlog=place.MAX_QUEUE)
        except (endpoints.ListenError, OSError) as error:
            # This user has no place for it, and nobody asked for one by name.
            why = printable(str(error))
            say(f"udsproxy fault will not find this proxy ({why}); --control PATH is a place for it")
            return None
    endpoint = endpoint_argument(control)
    if not isinstance(endpoint, UnixPath):
        raise Failure(USAGE, f"--control {control}: a path is needed")
    return Listener(replace(endpoint, mode=endpoint.mode or 0o600), backlog=place.MAX_QUEUE)


async def _heed(
    signals: AsyncIterator[int], server: Server, stop: Callable[[], None], reload: Callable[[], None] | None
) -> None:
    async for number in signals:
        if number == signal.SIGHUP and reload is not None:
            await server.started.wait()
            reload()
        else:
            stop()
