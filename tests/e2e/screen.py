"""A terminal of a known width, and what a program writes to it.

Rule: a line is what stands between two line feeds, without escapes. A carriage return begins it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.cells import cell_len

from tests.e2e.tools import LIMIT_S
from tests.stage import REPOSITORY


class Screen:
    """A program on a terminal; a context manager, whose end kills it."""

    def __init__(self, argv: Sequence[str], columns: int) -> None:
        self._main, other = pty.openpty()
        self._data = b""
        self.resize(columns)
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            argv, stdin=other, stdout=other, stderr=other, cwd=REPOSITORY, env={**environment, "TERM": "xterm"},
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(other)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._main)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._main, text.encode())

    @property
    def lines(self) -> list[str]:
        """All that was written so far, whole lines."""
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._data.decode("utf-8", "replace")).replace("\r\n", "\n")
        return [line.rpartition("\r")[2] for line in text.split("\n")[:-1]]

    def until(self, condition: Callable[[list[str]], bool], what: str) -> list[str]:
        """All lines, as soon as they fulfil a condition."""
        limit = time.monotonic() + LIMIT_S
        while not condition(self.lines):
            assert time.monotonic() < limit, f"waited in vain for {what}: {self.lines}"
            if not self._read():
                assert condition(self.lines), f"it ended without {what}: {self.lines}"
        return self.lines

    def end(self) -> list[str]:
        """All lines, when the program has ended."""
        limit = time.monotonic() + LIMIT_S
        while self._read():
            assert time.monotonic() < limit, f"it goes on: {self.lines}"
        self.process.wait(LIMIT_S)
        return self.lines

    def _read(self) -> bool:
        """Returns False at the end."""
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
            if select.select([self._main], [], [], 0.1)[0]:
                data = os.read(self._main, 65536)
                self._data += data
                return bool(data)
            return True
        return False


def _take_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def too_wide(lines: Sequence[str], columns: int) -> list[str]:
    """The lines that do not fit."""
    return [line for line in lines if cell_len(line) > columns]
