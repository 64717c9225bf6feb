"""The end of a log: what is newest in a file or a pipe, and what is written to it from then on.

Rules:

* Of each log the newest `MAX_READ` bytes are kept, and `MAX_LINES` lines, whatever its size; of a line `MAX_LINE`.
* A file that was moved away is read to its end, and the new one of that name is opened (logrotate); one that was
  truncated is read from its start.
* What was opened is checked, not its name: only files, pipes, sockets and terminals are read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections import deque
from collections.abc import Sequence

from udsproxy.cli.common import FAILED, USAGE, Failure
from udsproxy.events import errno_message, errno_name, printable

MAX_READ = 8 * 1024 * 1024
MAX_LINES = 100_000
MAX_LINE = 64 * 1024
_CHUNK = 256 * 1024
STANDARD_INPUT = "-"
_PATH = re.compile(r"\.{0,2}/\S*")
"""No line of a log is so."""
_NAME = re.compile(r"[\w@%+~.-]+(?:/[\w@%+~.-]+)+|[\w@%+~.-]+\.(?:log|err|txt)(?:[.-]\d+)?")
"""What can only be meant as a file's name, whether there is one or not."""
_WORD = re.compile(r"[\w@%+~./-]+")


class Log:
    """One file, or standard input."""

    def __init__(self, name: str) -> None:
        """Raises `Failure`: it cannot be opened, or is nothing to read lines from."""
        self.name = name
        self.is_cut = False
        """Only its newest part was read."""
        self.is_at_end = False
        """Nothing more can come: the pipe's writers have gone."""
        self._is_input = name == STANDARD_INPUT
        self._rest = b""
        self._fd = 0 if self._is_input else _open(name)

    def fileno(self) -> int:
        """To wait for."""
        return self._fd

    @property
    def is_file(self) -> bool:
        """A file is always readable, so it has to be looked at now and then."""
        return stat.S_ISREG(os.fstat(self._fd).st_mode)

    @property
    def written(self) -> float | None:
        """When a file was written last, in seconds since 1970."""
        return os.fstat(self._fd).st_mtime if self.is_file else None

    def newest(self) -> list[str]:
        """The newest lines; a pipe is read to its end. Raises `Failure`."""
        if self.is_file:
            start = os.lseek(self._fd, 0, os.SEEK_CUR)
            size = os.fstat(self._fd).st_size
            if size - start > MAX_READ:
                os.lseek(self._fd, size - MAX_READ, os.SEEK_SET)
                self.is_cut = True
        kept: deque[bytes] = deque()
        nbytes = 0
        while chunk := self._read():
            kept.append(chunk)
            nbytes += len(chunk)
            while nbytes - len(kept[0]) >= MAX_READ:
                nbytes -= len(kept.popleft())
                self.is_cut = True
        data = b"".join(kept)
        if self.is_cut:
            data = data.partition(b"\n")[2]
        lines = self._lines(data)
        self.is_cut |= len(lines) > MAX_LINES
        return lines[-MAX_LINES:]

    def more(self) -> list[str]:
        """The whole lines that came since. No file is waited for; a pipe has to be readable. Raises `Failure`."""
        if not self.is_file:
            chunk = self._read()
            self.is_at_end = not chunk
            return self._lines(chunk, whole=not chunk)
        with contextlib.suppress(OSError):
            if os.fstat(self._fd).st_size < os.lseek(self._fd, 0, os.SEEK_CUR):
                os.lseek(self._fd, 0, os.SEEK_SET)
        lines = self._lines(self._read(), whole=False)
        if not lines and self._is_replaced():
            return self._next_file()
        return lines

    def close(self) -> None:
        if not self._is_input:
            os.close(self._fd)

    def _lines(self, data: bytes, *, whole: bool = True) -> list[str]:
        data = self._rest + data
        self._rest = b""
        if not whole:
            data, _, rest = data.rpartition(b"\n")
            self._rest = rest[-MAX_LINE:]
        return [line[:MAX_LINE].decode("utf-8", "backslashreplace") for line in data.split(b"\n") if line]

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, _CHUNK)
        except OSError as error:
            name = "standard input" if self._is_input else printable(self.name)
            raise Failure(FAILED, f"cannot read {name}: {errno_message(error.errno or 0)}") from None

    def _is_replaced(self) -> bool:
        if self._is_input:
            return False
        try:
            return not os.path.samestat(os.fstat(self._fd), os.stat(self.name))
        except OSError:  # there is no new one yet
            return False

    def _next_file(self) -> list[str]:
        try:
            fd = _open(self.name)
        except Failure:  # it is made at this moment
            return []
        rest = self._lines(b"")
        os.close(self._fd)
        self._fd = fd
        return rest + self._lines(self._read(), whole=False)


def are_logs(words: Sequence[str]) -> bool:
    """Whether all are files, or paths."""
    return all(
        word == STANDARD_INPUT or _PATH.fullmatch(word) is not None or os.path.exists(word) for word in words
    )


def look_like_logs(words: Sequence[str]) -> bool:
    """Whether they can only be meant as the names of files, though not all of them exist."""
    if all(_NAME.fullmatch(word) is not None or are_logs([word]) for word in words):
        return True
    return any(map(os.path.isfile, words)) and all(_WORD.fullmatch(word) is not None for word in words)


def _open(name: str) -> int:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        if number == errno.ENXIO:
            line = f"{printable(name)} is a socket, and no log: see udsproxy doctor {printable(name)}"
            raise Failure(USAGE, line) from None
        why = f"{errno_message(number)} ({errno_name(number)})" if number else "it is no name of a file"
        raise Failure(FAILED, f"cannot open {printable(name)}: {why}") from None
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return fd
    os.close(fd)
    raise Failure(USAGE, f"cannot read lines from {printable(name)}: it is no file and no pipe")
