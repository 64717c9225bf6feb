"""The thread that writes: the only place where output may wait.

Rules:

* `Writer.put` never waits. ``held`` says how much waits to be written; who puts keeps it bounded.
* What cannot be written (a full disk) is lost and counted in lines, and later writes are tried again. Of a line
  that could not be written whole nothing stays in a file. Where the reader has gone (EPIPE; EIO, where a terminal
  was closed) nothing is tried any more: ``dead`` is set.
* A file that was moved away (logrotate) or removed is made anew under its name; what was written before is not
  moved.
* Where the size of a file is limited it is rotated before a line that has no room, so that no line is cut. A line
  that is longer than a file may be is lost.
* The thread ends with the process, also where a write is stuck for good.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from collections import deque
from collections.abc import Callable, Iterable
from threading import Event, Thread

_GATHER_S = 0.01
"""How long the thread lets output gather before it writes: each time that it wakes costs the traffic a moment
(the interpreter runs one thread at a time), and no reader sees a hundredth of a second."""


_MAX_TURNS = 10
"""How often a file is rotated for one line: once, if nobody else writes to it."""


class Writer:
    """Writes to a descriptor, in order, in a thread of its own."""

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        owned: bool,
        reopen: Callable[[int], int | None] | None = None,
        rotate: Callable[[int], int] | None = None,
        limit: int = sys.maxsize,
    ) -> None:
        """``owned``: close the descriptor at the end. ``reopen``: returns another, where the file of this one is
        not at its place any more, or raises OSError. ``rotate``: returns another, of a new file, where this one has
        reached its ``limit`` (bytes), or raises OSError."""
        self.dead = False
        self.error: OSError | None = None
        """Why the last write failed; None once one has succeeded again."""
        self.lost_lines = 0
        """But for those that tell of others."""
        self.lost_counts = 0
        """What lines that are lost have told of."""
        self._fd = fd
        self._owned = owned
        self._reopen = reopen
        self._rotate = rotate
        self._limit = limit
        self._queue: deque[bytes] = deque()
        self._filled = Event()
        self._closing = Event()
        self._tellings: deque[tuple[int, int]] = deque()
        """Lines that tell of others that are missing: where they end (in all that was put), and of how many."""
        # Each counter has one writer: what was put is counted by the caller, what was written by the thread.
        self._put = 0
        self._written = 0
        self._torn = False
        """A line has begun that will not be completed."""
        self._thread = Thread(target=self._run, name=f"udsproxy-{name}", daemon=True)
        self._thread.start()

    @property
    def held(self) -> int:
        """Bytes that wait to be written."""
        return self._put - self._written

    @property
    def reader_has_gone(self) -> bool:
        """Nobody can read what is written: the other end of the pipe or socket was closed, or the terminal. That is
        looked at when asked for, so it is known also where nothing has been written since."""
        return self.dead or self._is_hung_up()

    def _is_hung_up(self) -> bool:
        if not self._thread.is_alive():
            return False  # the descriptor may be another's by now
        look = select.poll()
        look.register(self._fd, 0)
        try:
            return any(events & (select.POLLERR | select.POLLHUP) for _, events in look.poll(0))
        except OSError:
            return False

    def put(self, data: bytes, tellings: Iterable[tuple[int, int]] = ()) -> None:
        """Have whole lines written. ``tellings``: those of them that tell of others that are missing: where such
        a line ends, and of how many."""
        self._tellings += [(self._put + end, count) for end, count in tellings]
        self._put += len(data)
        self._queue.append(data)
        if not self._filled.is_set():
            self._filled.set()

    def close(self, timeout_s: float) -> bool:
        """Wait until all is written, but no longer than that. Returns whether it was."""
        self._closing.set()
        self._filled.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self._filled.wait()
            self._closing.wait(_GATHER_S)
            closing = self._closing.is_set()
            self._filled.clear()  # before the queue is emptied: what comes after that sets it again
            data = b"".join([self._queue.popleft() for _ in range(len(self._queue))])
            self._write(data)
            if closing:
                break
        if self._owned:
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        """Whole lines, in as many pieces as files are needed for them."""
        while data:
            piece = self._write_piece(data)
            self._written += piece
            data = data[piece:]

    def _write_piece(self, data: bytes) -> int:
        """What the file has room for. Returns how much of this is written, or lost."""
        if self.dead:
            self._count_lost(data, 0)
            return len(data)
        piece, left = data, len(data)
        try:
            self._follow()
            room = self._room_for(data)
            piece = data[: room or data.find(b"\n") + 1]
            left = len(piece)
            if not room:
                raise OSError(errno.EFBIG, "a line is longer than the file may be")
            view = memoryview(b"\n" * self._torn + piece)  # what was begun ends here
            left = len(view)
            while left:
                left -= self._write_some(view[-left:])
        except OSError as error:
            self.error = error
            self.dead = error.errno == errno.EPIPE or (error.errno == errno.EIO and self._is_hung_up())
        else:
            self.error = None
        written = max(0, len(piece) - left)
        self._count_lost(piece, written)
        if left <= len(piece):
            half = written - (piece.rfind(b"\n", 0, written) + 1)
            self._torn = left > 0 and half > 0 and not self._take_back(half)
        return len(piece)

    def _room_for(self, data: bytes) -> int:
        """How many bytes of these lines go into the file, as whole lines; where that is none it is rotated first.
        0: the first line is longer than any file may be. Raises OSError."""
        if self._rotate is None:
            return len(data)
        for _ in range(_MAX_TURNS):
            size = os.fstat(self._fd).st_size
            room = max(0, self._limit - size - self._torn)
            whole = len(data) if len(data) <= room else data.rfind(b"\n", 0, room) + 1
            if whole or not size:
                return whole
            fd = self._rotate(self._fd)
            os.close(self._fd)
            self._fd, self._torn = fd, False
        raise OSError(errno.EBUSY, "others fill the file as fast as it is rotated")

    def _count_lost(self, data: bytes, written: int) -> None:
        """Count what is missing where so many bytes of this were written."""
        lines, counts = data.count(b"\n", written), 0
        while self._tellings and self._tellings[0][0] <= self._written + len(data):
            end, count = self._tellings.popleft()
            if end > self._written + written:
                lines -= 1
                counts += count
        self.lost_lines += lines
        self.lost_counts += counts

    def _follow(self) -> None:
        """Go on where the file's name is. Raises OSError: it has been removed, and there can be no other."""
        if self._reopen is None:
            return
        try:
            fd = self._reopen(self._fd)
        except OSError:
            if not os.fstat(self._fd).st_nlink:
                raise
            fd = None  # somebody may want it under its new name
        if fd is not None:
            os.close(self._fd)
            self._fd, self._torn = fd, False

    def _take_back(self, nbytes: int) -> bool:
        """Remove what was written last. Returns whether that could be done: not where this is no file, or somebody
        else has written behind it."""
        with contextlib.suppress(OSError):
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if os.fstat(self._fd).st_size == end:
                os.ftruncate(self._fd, end - nbytes)
                os.lseek(self._fd, end - nbytes, os.SEEK_SET)
                return True
        return False

    def _write_some(self, view: memoryview) -> int:
        while True:
            try:
                return os.write(self._fd, view)
            except BlockingIOError:  # somebody made our standard output non-blocking
                select.select([], [self._fd], [])
