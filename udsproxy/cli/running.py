"""A server that runs until it is told to stop: signals, the control socket, the exit code."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import trio
from msgspec.structs import replace

from udsproxy import endpoints
from udsproxy.cli import people
from udsproxy.cli.common import CONFIGURATION, DONE, FAILED, LISTENING, USAGE, Failure, endpoint_argument
from udsproxy.cli.people import say
from udsproxy.cli.reader import is_unread
from udsproxy.config import Config
from udsproxy.control import place, serving
from udsproxy.endpoints import Listener, Pinned, UnixAbstract, UnixPath
from udsproxy.events import Summary, printable
from udsproxy.inspection import abilities
from udsproxy.kernel.files import who_may_replace
from udsproxy.kernel.own_processes import forbid_dumps
from udsproxy.proxy.server import Server
from udsproxy.sinks import STANDARD_OUTPUT
from udsproxy.sinks.console import summary_text
from udsproxy.sinks.script_table import script_table
from udsproxy.terminal import width_of
from udsproxy.units import ConfigError

_WRITTEN_S = 0.5
"""How long being stopped waits for a terminal that takes nothing."""


def run_server(
    server: Server,
    settings: Config,
    reload: Callable[[], None] | None = None,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
    *,
    rests: bool = False,
    may_be_unread: bool = False,
) -> int:
    """Run it until a signal, or until ``meanwhile`` (begun when it accepts) has ended. Returns the exit code.

    ``reload``: what SIGHUP does; without it, that stops too. ``rests``: on SIGTSTP (Ctrl-Z) it gives back what it
    has taken over before it is stopped, and takes it again afterwards. ``may_be_unread``: that nobody reads
    what is shown any more is no failure, and nothing is said of it. Raises `Failure`.
    """
    heeded = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *([signal.SIGTSTP] if rests else [])]
    log = settings.log
    if log.shown != "none" and server.shown_on == STANDARD_OUTPUT and people.output_is_closed():
        raise Failure(FAILED, "standard output is closed; choose --log none (--log-file goes with it)")
    people.never_wait()
    forbid_dumps()
    if settings.log.file is not None and (who := who_may_replace(settings.log.file)) is not None:
        say(printable(f"{who}, who can put another file in the place of {settings.log.file}"))
    unseen = abilities.lines_of(_watched_servers(settings))  # (it takes a moment: before the traffic waits for us)
    try:
        summary = trio.run(_run_until_told, server, settings, heeded, unseen, reload, meanwhile)
    except endpoints.ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    except ConfigError as error:
        raise Failure(USAGE if reload is None else CONFIGURATION, str(error)) from None
    except OSError as error:
        what = f"write the log to {error.filename}" if error.filename else "write the log or start"
        raise Failure(FAILED, f"cannot {what}: {error.strerror}") from None
    if may_be_unread and (server.is_unread or is_unread(server.shown_on)):
        return DONE
    if log.shown != "console":
        say(summary_text(summary))
        if sys.stderr.isatty():  # where nobody looks (a service's journal) it would be too much
            for row in script_table(summary, width_of(sys.stderr)):
                people.note(row)
    for line in server.failures:
        say(line)
    return FAILED if server.failures else DONE


async def _run_until_told(
    server: Server,
    settings: Config,
    heeded: list[signal.Signals],
    unseen: list[str],
    reload: Callable[[], None] | None,
    meanwhile: Callable[[], Awaitable[None]] | None,
) -> Summary:
    # Signals first: from the moment that there is a socket file, none may end us without removing it.
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(*heeded))
        controlled, no_control = _open_control(settings.control)
        if controlled is not None:
            stack.callback(controlled.close)
        listeners = server.open()
        notes = [note for listener in listeners for note in listener.notes]
        for line in (*unseen, *no_control, *notes):
            say(printable(line))

        def stop() -> None:
            server.stop()
            if controlled is not None:
                controlled.remove_file()  # who looks for a proxy that runs shall not find one that ends

        async def wait_for_meanwhile() -> None:
            assert meanwhile is not None
            await server.started.wait()
            await meanwhile()
            if not server.stopping:  # else open connections have their time
                stop()

        async def tell_of_rest() -> None:
            await server.left.wait()
            if (still := len(server.open_connections())) and math.isinf(settings.grace_s):
                which = "1 open connection goes on" if still == 1 else f"{still} open connections go on"
                say(f"no new connections are taken; {which}; Ctrl-C closes {'it' if still == 1 else 'them'}")

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


def _watched_servers(settings: Config) -> list[str | bytes]:
    """Those whose workers would be shown. (Of a tap, at the path that it takes over.)"""
    if settings.log.shown == "none" and settings.log.file is None:
        return []
    found: list[str | bytes] = []
    for proxy in settings.proxies:
        server = proxy.listen if isinstance(proxy.upstream, Pinned) else proxy.upstream
        if proxy.is_watched and isinstance(server, UnixPath):
            found.append(server.path)
        elif proxy.is_watched and isinstance(server, UnixAbstract):
            found.append(os.fsencode(server.name))
    return found


def _open_control(control: str) -> tuple[Listener | None, list[str]]:
    """Listen for who controls us. Returns a line, too, where that cannot be, and nobody asked for it. Raises
    `endpoints.ListenError`, `Failure`."""
    if control == "none":
        return None, []
    if control == "auto":
        try:
            return Listener(place.default_endpoint(), backlog=place.MAX_QUEUE), []
        except (endpoints.ListenError, OSError) as error:
            return None, [
                f"udsproxy fault cannot find this proxy ({error}); choose a control socket with --control PATH"
            ]
    endpoint = endpoint_argument(control)
    if not isinstance(endpoint, UnixPath):
        raise Failure(USAGE, f"--control {control}: a path is needed")
    return Listener(replace(endpoint, mode=endpoint.mode or 0o600), backlog=place.MAX_QUEUE), []


async def _heed(
    signals: AsyncIterator[int], server: Server, stop: Callable[[], None], reload: Callable[[], None] | None
) -> None:
    async for number in signals:
        if number == signal.SIGHUP and reload is not None:
            await server.started.wait()
            reload()
        elif number == signal.SIGTSTP:
            await server.started.wait()
            await _be_stopped(server)
        elif number != signal.SIGHUP or not server.stopping:  # of one hang-up both the kernel and a shell tell
            stop()


async def _be_stopped(server: Server) -> None:
    """Be stopped as the terminal wants it, with the paths given back; returns when we run again."""
    try:
        await server.rest()
        say("stopped: the server has its path back until this runs again (fg, or kill -CONT)")
    except OSError as error:
        say(f"stopped, and the path could not be given back: {error.strerror}; the guardian tries again")
    with trio.move_on_after(_WRITTEN_S):  # a stopped process writes nothing, and a thread writes that line
        while people.held():
            await trio.sleep(0.001)
    caught = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    try:
        os.kill(os.getpid(), signal.SIGTSTP)  # (the kernel does not stop who has no shell to go on by)
    finally:
        signal.signal(signal.SIGTSTP, caught)
        server.resume()
