"""How wide a terminal is.

Rule: the width is read each time that it is needed, so that a resized terminal is followed without a signal
handler. It costs one ioctl (a quarter of a microsecond).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TextIO

Width = Callable[[], int | None]
"""Returns the width in cells; None: this is no terminal."""

MIN_WIDTH = 20
"""Narrower terminals are written to as if they were this wide."""
UNKNOWN_WIDTH = 80
"""Of a terminal that does not say (a serial line, ``script``): what every tool assumes."""


def width_reader(fd: int) -> Width:
    """Reads the width of the terminal behind a descriptor. COLUMNS overrides it, as it does for other programs."""
    told = os.environ.get("COLUMNS", "")
    asked = max(MIN_WIDTH, int(told)) if told.isascii() and told.isdigit() and int(told[:9]) else None

    def read() -> int | None:
        try:
            columns = os.get_terminal_size(fd).columns
        except OSError:
            return None
        return asked or max(MIN_WIDTH, columns or UNKNOWN_WIDTH)

    return read


def width_of(stream: TextIO | None) -> int | None:
    """The width of the terminal that a stream writes to; None: it is none."""
    try:
        if stream is None or not stream.isatty():
            return None
        return width_reader(stream.fileno())()
    except (OSError, ValueError):  # the stream has no descriptor, or was closed
        return None
