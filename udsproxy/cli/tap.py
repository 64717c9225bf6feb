"""``udsproxy tap``: in place of a live socket, until it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import signal
import stat
from typing import Annotated

import trio
from cyclopts import Parameter

from udsproxy.cli import people
from udsproxy.cli.arguments import ENDING, Duration, FileName, option
from udsproxy.cli.common import DONE, LISTENING, USAGE, Failure, duration_option, refuse_set_aside, require_proc
from udsproxy.cli.options import Options, chosen_seed
from udsproxy.cli.people import say
from udsproxy.cli.reader import until_unread
from udsproxy.cli.running import run_server
from udsproxy.config import ProxyConfig
from udsproxy.endpoints import Listener, ListenError, UnixPath
from udsproxy.events import printable
from udsproxy.inspection.taps import SUFFIX
from udsproxy.kernel.files import open_log
from udsproxy.proxy.server import Server
from udsproxy.proxy.socket_types import require_fit, type_of
from udsproxy.sinks import STANDARD_ERROR, STANDARD_OUTPUT
from udsproxy.takeover.guardian import Guardian, GuardianError
from udsproxy.takeover.listener import TakenOver
from udsproxy.takeover.place import Place
from udsproxy.takeover.restore import restore

_TIMED_OUT = 124
"""Exit status of a command that lasted longer than --for: timeout(1)'s."""
_CANNOT_RUN, _NOT_FOUND = 126, 127
"""Of one that is there and cannot be run, and of one that is not there: a shell's."""
_SAID_S = 0.1
"""How long a command waits for our line before its own output."""


def tap(
    path: Annotated[FileName, Parameter(name="PATH")],
    /,
    *,
    options: Options | None = None,
    for_: Annotated[Duration | None, option(ENDING, name="--for")] = None,
    grace: Annotated[Duration | None, option(ENDING)] = None,
    restore_: Annotated[bool, option(ENDING, name="--restore", show_default=False)] = False,
    command: Annotated[tuple[str, ...] | None, Parameter(parse=False)] = None,
) -> int:
    """Take the place of a live socket for a while and show what passes through it.

    Nothing has to be configured or restarted, and at the end everything is as it was. New connections are shown;
    those that are open already are not. While the tap runs, the server's own socket is at PATH.udsproxy; if
    udsproxy is killed, it is put back at PATH. Run it as root, so that the server sees the users of its clients
    and not that of udsproxy.

    With a command after --, the tap lasts as long as the command, and its exit status is the command's (124 if
    --for ended both). The command has standard output; the tap's lines go to standard error. Without a command,
    Ctrl-C ends the tap, and so does the end of its reader (| head, | less). Connections that are open at the end
    continue; a second Ctrl-C closes them. Ctrl-Z gives the path back until fg.

    Parameters
    ----------
    path
        The socket of a running server. An abstract one (@NAME) cannot be tapped.
    for_
        End the tap after this time, for example 60s or 5m.
    grace
        At the end, how long open connections may continue. Default: until they end.
    restore_
        Only put the server's socket back. This is needed if a tap and its guardian were both killed.
    command
        What stands after --, word by word; None: there is no --.
    """
    path = _require_path(path)
    require_proc()
    if restore_:
        if command is not None:
            raise Failure(USAGE, "--restore runs no command: leave out what follows --")
        return _restore(path)
    if command is not None:
        _require_command(command)
    options = options or Options()
    lasts_s = math.inf if for_ is None else duration_option("--for", for_)
    grace_s = math.inf if grace is None else duration_option("--grace", grace)
    try:
        place = Place(path)
    except ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    with contextlib.closing(place):
        return _tap_at(place, options, command, lasts_s, grace_s)


def _tap_at(place: Place, options: Options, command: tuple[str, ...] | None, lasts_s: float, grace_s: float) -> int:
    """The exit code. Raises `Failure`."""
    refuse_set_aside("tap", place.path)
    proxy = options.proxy(UnixPath(place.path), place.upstream)
    settings = options.settings(proxy, grace_s)
    guardians: list[Guardian] = []

    def take(proxy: ProxyConfig) -> Listener:
        place.require_socket()
        kind = type_of(UnixPath(f"/proc/self/fd/{place.names.directory.fd}/{place.names.name}"))
        if kind is not None:
            require_fit(proxy, proxy.faults, kind)  # before anything is touched
        log, file = (server.shown_on if settings.log.shown == "json" else None), settings.log.file
        if file is not None:
            log, file = open_log(file), os.path.abspath(file)
        try:
            guardian = Guardian(place.names, log=log, file=file, proxy=proxy.name, before_start=server.expect_child)
        except GuardianError as error:
            raise ListenError(f"cannot tap {place.path}: {error}") from None
        guardians.append(guardian)
        return TakenOver(place, guardian, backlog=proxy.backlog)

    server = Server(
        settings.proxies,
        settings.log,
        grace_s=grace_s,
        seed=chosen_seed(settings),
        listen=take,
        shown_on=STANDARD_ERROR if command else STANDARD_OUTPUT,
    )
    status: list[int] = []
    is_read = settings.log.shown != "none"

    async def meanwhile() -> None:
        say(printable(f"in place of {place.path}; " + ("Ctrl-C puts it back" if not command else "while it runs:")))
        with trio.move_on_after(lasts_s) as scope:
            if command:
                with trio.move_on_after(_SAID_S):
                    while people.held():
                        await trio.sleep(0.001)
                status.append(await _run_command(server, command))
            elif is_read:
                await until_unread(server.shown_on, lambda: server.is_unread)
            else:
                await trio.sleep_forever()
        if scope.cancelled_caught and command:
            status.append(_TIMED_OUT)

    try:
        code = run_server(server, settings, meanwhile=meanwhile, rests=True, may_be_unread=is_read)
    finally:
        for guardian in guardians:
            guardian.dismiss()
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
        raise Failure(LISTENING, f"cannot tap {text}: it is not a Unix socket; use udsproxy run LISTEN {text}")
    return path


def _restore(path: str) -> int:
    try:
        say(printable(restore(path.removesuffix(SUFFIX))))
    except ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    return DONE


def _require_command(command: tuple[str, ...]) -> None:
    """As execvp(3) looks for it. Raises `Failure`, before anything is touched."""
    if not command or not command[0]:
        raise Failure(USAGE, "a command is needed after --")
    name = command[0]
    places = [name] if "/" in name else [os.path.join(place, name) for place in os.get_exec_path()]
    number = errno.ENOENT
    for place in places:
        try:
            if stat.S_ISREG(os.stat(place).st_mode) and os.access(place, os.X_OK, effective_ids=True):
                return
            number = errno.EACCES
        except (OSError, ValueError) as error:
            if isinstance(error, PermissionError):
                number = errno.EACCES
    code = _NOT_FOUND if number == errno.ENOENT else _CANNOT_RUN
    raise Failure(code, f"cannot run {name}: {os.strerror(number)}; nothing was touched")


async def _run_command(server: Server, command: tuple[str, ...]) -> int:
    """Its exit status, as a shell counts. Raises `Failure`."""
    try:
        server.expect_child()
        process = await trio.lowlevel.open_process(list(command))
    except OSError as error:
        say(f"cannot run {command[0]}: {error.strerror}")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT_RUN
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
    assert process.returncode is not None
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
