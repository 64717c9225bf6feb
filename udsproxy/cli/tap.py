"""``udsproxy tap``: in place of a live socket, until it is told to stop."""

from __future__ import annotations

import math
import os
import signal
from typing import Annotated

import trio
from cyclopts import Parameter

from udsproxy.cli.common import DONE, LISTENING, Failure, duration_option, refuse_set_aside
from udsproxy.cli.options import Options, chosen_seed, say
from udsproxy.cli.reader import until_unread
from udsproxy.cli.running import run_server
from udsproxy.config import ProxyConfig
from udsproxy.endpoints import Listener, ListenError, UnixPath
from udsproxy.events import printable
from udsproxy.inspection.taps import SUFFIX
from udsproxy.proxy.server import Server
from udsproxy.takeover.guardian import Guardian, GuardianError
from udsproxy.takeover.listener import Place, TakenOver, restore

_TIMED_OUT = 124
"""Exit status of a command that lasted longer than --for: timeout(1)'s."""


def tap(
    path: Annotated[str, Parameter(name="PATH")],
    /,
    *command: Annotated[str, Parameter(name="CMD", allow_leading_hyphen=True)],
    options: Options | None = None,
    for_: Annotated[str | None, Parameter(name="--for")] = None,
    grace: str | None = None,
    restore_: Annotated[bool, Parameter(name="--restore", negative="")] = False,
) -> int:
    """Take the place of the live socket at PATH, and show what flows; at the end all is as it was.

    Nothing is configured or restarted. Every new connection is shown, none that is open already.

    While it runs the server's own socket is at PATH.udsproxy; if udsproxy is killed it is put back at PATH.

    Ctrl-C ends it; connections that are open then go on until they end, or Ctrl-C is pressed again. Without a
    command it ends with whoever reads its output, too (| head, | less).

    Run it as root: the server then sees its clients' users, and not udsproxy's.

    Parameters
    ----------
    path
        The socket of a server that runs. (An abstract one, @NAME, cannot be tapped.)
    command
        After --: a command. The tap lasts as long as it runs, and has its exit status; where --for ends both, 124.
    for_
        How long the tap lasts (60s, 5m).
    grace
        How long open connections may go on at the end (5s); without it, as long as they like.
    restore_
        Do nothing but this: put the server's socket back, where a tap and its guardian were both killed.
    """
    path = _require_path(path)
    if restore_:
        return _restore(path)
    options = options or Options()
    lasts_s = math.inf if for_ is None else duration_option("--for", for_)
    grace_s = math.inf if grace is None else duration_option("--grace", grace)
    try:
        place = Place(path)
    except ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    refuse_set_aside("tap", place.path)
    proxy = options.proxy(UnixPath(place.path), place.upstream)
    settings = options.settings(proxy, grace_s)
    guardians: list[Guardian] = []

    def take(proxy: ProxyConfig) -> Listener:
        place.require_socket()
        as_json = options.log == "json"
        log = 1 if as_json else None
        if options.log_file is not None:
            log = os.open(options.log_file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            guardian = Guardian(
                place.names, log=log, as_json=as_json, proxy=proxy.name, before_start=server.expect_child
            )
        except GuardianError as error:
            raise ListenError(f"cannot tap {place.path}: {error}") from None
        guardians.append(guardian)
        return TakenOver(place, guardian, backlog=proxy.backlog)

    server = Server(settings.proxies, settings.log, grace_s=grace_s, seed=chosen_seed(settings), listen=take)
    status: list[int] = []
    is_read = settings.log.format != "none" and settings.log.file is None

    async def meanwhile() -> None:
        say(printable(f"in place of {place.path}; " + ("Ctrl-C puts it back" if not command else "while it runs:")))
        with trio.move_on_after(lasts_s) as scope:
            if command:
                status.append(await _run_command(server, command))
            elif is_read:
                await until_unread(lambda: server.is_unread)
            else:
                await trio.sleep_forever()
        if scope.cancelled_caught and command:
            status.append(_TIMED_OUT)

    try:
        code = run_server(server, settings, meanwhile=meanwhile, rests=True, may_be_unread=is_read)
    finally:
        for guardian in guardians:
            guardian.dismiss()
        place.close()
    return code or (status[0] if status else DONE)


def _require_path(text: str) -> str:
    """The path of ``PATH`` or ``unix:PATH``. Raises `Failure`: it is something that no file stands for."""
    path = text.removeprefix("unix:")
    if path.startswith("@"):
        raise Failure(
            LISTENING,
            f"cannot tap {text}: an abstract name cannot be exchanged; use udsproxy run unix:@OTHER unix:{path}, "
            "and have clients connect to @OTHER",
        )
    if text.startswith("tcp:"):
        raise Failure(LISTENING, f"cannot tap {text}: it is no Unix socket; use udsproxy run LISTEN {text}")
    return path


def _restore(path: str) -> int:
    try:
        say(printable(restore(path.removesuffix(SUFFIX))))
    except ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    return DONE


async def _run_command(server: Server, command: tuple[str, ...]) -> int:
    """Its exit status, as a shell counts. Raises `Failure`."""
    try:
        server.expect_child()
        process = await trio.lowlevel.open_process(list(command))
    except OSError as error:
        say(f"cannot run {printable(command[0])}: {error.strerror}")
        return 127
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
    assert process.returncode is not None
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
