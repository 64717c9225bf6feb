"""Where events go. Renderers are pure; sink.py batches what they render; writer.py has the thread that writes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import partial

from udsproxy.config import LogConfig
from udsproxy.kernel.files import open_log, reopen_log
from udsproxy.sinks.console import ConsoleRenderer
from udsproxy.sinks.json_lines import JsonRenderer
from udsproxy.sinks.sink import Renderer, TextSink
from udsproxy.sinks.socat import SocatRenderer
from udsproxy.sinks.text import WallClock
from udsproxy.sinks.writer import Writer
from udsproxy.terminal import width_reader


def make_sinks(log: LogConfig, *, several: bool = False) -> list[TextSink]:
    """The sinks that ``log`` asks for. Raises OSError where the log file cannot be opened."""
    if log.format == "none":
        return []
    reopen: Callable[[int], int | None] | None = None
    if log.file is not None:
        fd, reopen = open_log(log.file), partial(reopen_log, path=os.path.abspath(log.file))
    else:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "standard output is closed; choose a --log-file, or --log none")
        fd = sys.stdout.fileno()
    clock = WallClock()
    renderer: Renderer
    if log.format == "json":
        renderer = JsonRenderer(clock, hexdump=log.hexdump)
    elif log.format == "socat":
        renderer = SocatRenderer(clock)
    else:
        color = log.color == "always" or (log.color == "auto" and os.isatty(fd) and not os.environ.get("NO_COLOR"))
        renderer = ConsoleRenderer(
            clock,
            color=color,
            verbosity=log.verbosity,
            hexdump=log.hexdump,
            several=several,
            width=width_reader(fd) if os.isatty(fd) else None,
        )
    return [TextSink(log.format, renderer, Writer(fd, log.format, owned=log.file is not None, reopen=reopen))]
