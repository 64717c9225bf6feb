"""Where events go. Renderers are pure; sink.py batches what they render; writer.py has the thread that writes.

Rule: there are two outputs at most, what is shown and the file. Each has its own renderer, bound and thread, so
that neither waits for the other.
"""

from __future__ import annotations

import errno
import os
import sys
from functools import partial

from udsproxy.config import LogConfig
from udsproxy.kernel.files import open_log, reopen_log
from udsproxy.kernel.rotation import require_rotatable, rotate
from udsproxy.sinks.console import ConsoleRenderer
from udsproxy.sinks.json_lines import JsonRenderer
from udsproxy.sinks.sink import Renderer, TextSink
from udsproxy.sinks.socat import SocatRenderer
from udsproxy.sinks.text import WallClock
from udsproxy.sinks.writer import Writer
from udsproxy.terminal import width_reader

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2


def make_sinks(log: LogConfig, *, several: bool = False, fd: int = STANDARD_OUTPUT) -> list[TextSink]:
    """The sinks that ``log`` asks for. ``several``: there are several proxies. ``fd``: where to show what is shown.

    Raises OSError where the log file cannot be opened, or that descriptor is closed.
    """
    sinks = []
    if log.shown != "none":
        if (sys.stdout if fd == STANDARD_OUTPUT else sys.stderr) is None:
            raise OSError(errno.EBADF, "the stream for what is shown is closed; choose --log none")
        renderer = _renderer(log, fd, several=several)
        sinks.append(TextSink(log.shown, renderer, Writer(fd, log.shown, owned=False), is_shown=True))
    if log.file is not None:
        sinks.append(TextSink("json", _json(log), _file_writer(log, log.file)))
    return sinks


def _file_writer(log: LogConfig, given: str) -> Writer:
    """Raises OSError."""
    fd, path = open_log(given, by_name=log.size is not None), os.path.abspath(given)
    if log.size is None:
        return Writer(fd, "json", owned=True, reopen=partial(reopen_log, path=path))
    try:
        require_rotatable(fd, path, log.keep)
    except BaseException:
        os.close(fd)
        raise
    return Writer(
        fd,
        "json",
        owned=True,
        reopen=partial(reopen_log, path=path),
        rotate=partial(rotate, path=path, keep=log.keep),
        limit=log.size,
    )


def _renderer(log: LogConfig, fd: int, *, several: bool) -> Renderer:
    if log.shown == "json":
        return _json(log)
    clock = WallClock()
    if log.shown == "socat":
        return SocatRenderer(clock)
    return ConsoleRenderer(
        clock,
        color=_is_colored(log, fd),
        verbosity=log.verbosity,
        hexdump=log.hexdump,
        several=several,
        width=width_reader(fd) if os.isatty(fd) else None,
    )


def _json(log: LogConfig) -> JsonRenderer:
    return JsonRenderer(WallClock(), verbosity=log.verbosity, hexdump=log.hexdump)


def _is_colored(log: LogConfig, fd: int) -> bool:
    return log.color == "always" or (log.color == "auto" and os.isatty(fd) and not os.environ.get("NO_COLOR"))
