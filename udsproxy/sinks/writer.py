"""The thread that writes: the only place where output may wait.

Rules:

* `Writer.put` never waits. ``held`` says how much waits to be written; who puts keeps it bounded.
* What cannot be written (a full disk) is lost and counted in lines, and later writes are tried again. A reader
  that has gone (EPIPE) ends the writer: ``dead`` is set.
* The thread ends with the process, also where a write is stuck for good.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from threading import Event, Thread

_GATHER_S = 0.01
"""How long the thread lets output gather before it writes: each time that it wakes costs the traffic a moment
(the interpreter runs one thread at a time), and no reader sees a hundredth of a second."""


class Writer:
    """Writes to a descriptor, in order, in a thread of its own."""

    def __init__(self, fd: int, name: str, *, owned: bool) -> None:
        """``owned``: close the descriptor at the end."""
        self.dead = False
        self.error: OSError | None = None
        """Why the last write failed; None once one has succeeded again."""
        self.lost_lines = 0
        self._fd = fd
        self._owned = owned
        self._queue: deque[bytes] = deque()
        self._filled = Event()
        self._closing = Event()
        # Each counter has one writer: what was put is counted by the caller, what was written by the thread.
        self._put = 0
        self._written = 0
        self._torn = False
        self._thread = Thread(target=self._run, name=f"udsproxy-{name}", daemon=True)
        self._thread.start()

    @property
    def held(self) -> int:
        """Bytes that wait to be written."""
        return self._put - self._written

    def put(self, data: bytes) -> None:
        """Have whole lines written."""
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
            if self.dead:
                self.lost_lines += data.count(b"\n")
            elif data:
                self._write(data)
            self._written += len(data)
            if closing:
                break
        if self._owned:
            os.close(self._fd)

    def _write(self, data: bytes) -> None:
        view = memoryview(b"\n" + data if self._torn else data)
        try:
            while view:
                view = view[self._write_some(view) :]
        except OSError as error:
            self.error = error
            self.dead = error.errno == errno.EPIPE
            self.lost_lines += data[-len(view) :].count(b"\n")
            if len(view) < len(data):
                self._torn = data[-len(view) - 1 : -len(view)] != b"\n"
        else:
            self.error = None
            self._torn = False

    def _write_some(self, view: memoryview) -> int:
        while True:
            try:
                return os.write(self._fd, view)
            except BlockingIOError:  # somebody made our standard output non-blocking
                select.select([], [self._fd], [])
