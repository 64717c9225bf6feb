"""nginx's error log, followed for what clients of one socket met: how often connect() failed there, and with what.

Rules: it begins at the log's end. What another has made of the name since is opened anew (rotation), what was cut
starts over. The file is read in a thread, a bounded piece at a time, and its lines a few at a time between other
work; a log that grows faster than that for long is caught up with by leaving lines out, which is known then. Who
reads may be cancelled at any time: what was not given out by then the next `read` gives out. Nothing here raises
while it is followed: a log that cannot be read has nothing to say until it can be.

A line's time is whole seconds of nginx's local time, taken to be ours.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from functools import lru_cache

import trio

from udsproxy.endpoints import Endpoint, UnixAbstract, UnixPath
from udsproxy.kernel.files import open_to_follow
from udsproxy.logs.nginx_error import MAX_LINE, NginxError, parse_line

_MAX_PIECE = 256 * 1024
_MAX_BEHIND = 16 * 1024 * 1024
_FEW = 10
"""Lines between which other work has its turn: they take some 100 µs."""
_OLD_S = 60.0
"""What was written before is of another day (a log that was copied)."""
_SIGN = b"connect() to unix:"


class LogReader:
    """The lines that are added to a file. Blocking: for a thread."""

    def __init__(self, path: str) -> None:
        """Raises OSError: it cannot be read."""
        self._path = path
        self._fd: int | None = open_to_follow(path)
        self._at = os.fstat(self._fd).st_size
        self._rest = b""
        self.left_out = False
        """Lines were, because too much was added at once."""

    def read(self) -> list[bytes]:
        """Whole lines, of one piece; none where nothing was added."""
        with contextlib.suppress(OSError):
            lines = self._piece()
            if not lines and self._is_another():
                self._reopen()
                lines = self._piece()
            return lines
        return []

    def _piece(self) -> list[bytes]:
        if self._fd is None:
            return []
        size = os.fstat(self._fd).st_size
        if size < self._at:
            self._at, self._rest = 0, b""
        if size - self._at > _MAX_BEHIND:
            self._at, self._rest, self.left_out = size - _MAX_PIECE, b"", True
        data = os.pread(self._fd, _MAX_PIECE, self._at)
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[:MAX_LINE]
        return lines

    def _is_another(self) -> bool:
        if self._fd is None:
            return True
        try:
            return not os.path.samestat(os.fstat(self._fd), os.stat(self._path))
        except FileNotFoundError:
            return False  # moved away, and not made anew yet: nginx still writes to it

    def _reopen(self) -> None:
        """Raises OSError."""
        fd = open_to_follow(self._path)
        self.close()
        self._fd, self._at, self._rest = fd, 0, b""

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class NginxLog:
    """Of one proxy."""

    def __init__(self, path: str, listen: Endpoint) -> None:
        """``listen``: where nginx connects. Raises OSError: the log cannot be read."""
        self._reader = LogReader(path)
        self._listen = listen
        self._lock = trio.Lock()
        self._closed = False
        self._lines: deque[bytes] = deque()
        """Read, and not given out yet."""

    async def read(self) -> AsyncIterator[tuple[int, int, int]]:
        """What was added: an error number, how often, and when about (CLOCK_MONOTONIC, ns: not later than now)."""
        async with self._lock:
            while not self._closed:
                if not self._lines:
                    try:
                        lines = await trio.to_thread.run_sync(self._reader.read)
                    except RuntimeError:  # (there is no thread to be had)
                        return
                    if not lines:
                        return
                    self._lines.extend(line for line in lines if _SIGN in line)
                for found in self._failures():
                    yield found
                await trio.lowlevel.checkpoint()

    def take_left_out(self) -> bool:
        """Were lines left out since this was last called?"""
        was, self._reader.left_out = self._reader.left_out, False
        return was

    def _failures(self) -> list[tuple[int, int, int]]:
        """Of the next few lines."""
        counts: Counter[tuple[int, float]] = Counter()
        for _ in range(min(_FEW, len(self._lines))):
            found = failure_of(self._lines.popleft(), self._listen)
            if found is not None:
                counts[found] += 1
        now, wall = time.monotonic_ns(), time.time()
        return [
            (number, count, now - int(max(0.0, wall - second - 1) * 1e9))
            for (number, second), count in counts.items()
            if wall - second < _OLD_S
        ]

    def close(self) -> None:
        """It is read no more."""
        self._closed = True
        self._reader.close()


def failure_of(line: bytes, listen: Endpoint) -> tuple[int, float] | None:
    """A connect() to this socket that failed: the error number, and the second (of the Unix time) in which it did.
    None: the line says something else."""
    record: NginxError | None = parse_line(line.decode("utf-8", "backslashreplace"))
    if record is None or record.call != "connect" or record.errno is None or record.path is None or record.stderr:
        return None
    if not is_at(record.path, listen):
        return None
    return record.errno, time.time() // 1 if record.at is None else record.at.timestamp()


def is_at(path: str, listen: Endpoint) -> bool:
    """Is what nginx calls so where we listen? (Links on the way count: /var/run is /run.)"""
    if isinstance(listen, UnixAbstract):
        return path == f"@{listen.name}"
    return isinstance(listen, UnixPath) and (path == listen.path or _real(path) == _real(listen.path))


@lru_cache(100)
def _real(path: str) -> str:
    """(Not where the last part leads: that is what is tapped.)"""
    directory, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(directory), name)
