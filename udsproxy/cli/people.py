"""What udsproxy writes for people: lines on standard error, and what its commands print.

Rules:

* Nothing here raises, whatever became of the terminal, the pipe or the disk: what cannot be written is lost. Of
  standard output that is kept, and is the exit code at the end (`finish`).
* `prepare` comes first of all: where descriptor 0, 1 or 2 is closed, whatever is opened next would get its number,
  and with it lines that are not meant for it.
* On a terminal no line is wider than it: `say`, `note` and `tell` fold. `show` does not, as a program may read it.
  Where there is no terminal nothing is folded.
* While traffic flows (`never_wait`) nothing here waits either: a thread writes, and past `MAX_HELD` lines are lost.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from udsproxy.cli.common import FAILED, Failure
from udsproxy.events import errno_message, errno_name, printable
from udsproxy.layout import fold
from udsproxy.sinks.writer import Writer
from udsproxy.terminal import width_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

MAX_HELD = 256 * 1024
"""Lines that wait to be written, in bytes, while nothing here may wait."""
_LAST_WRITES_S = 1.0
"""How long the end waits for standard error that is stalled."""
_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2


class _Descriptor(io.RawIOBase):
    """A descriptor to write to. What cannot be written is lost; ``error`` says why."""

    def __init__(self, number: int, *, closed: bool) -> None:
        super().__init__()
        self.was_closed = closed
        self.error: OSError | None = None
        self._number = number
        self._is_terminal = os.isatty(number)  # as it began: one that was closed is to be found out by writing
        self._writer: Writer | None = None
        self._stalled = False

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return self._is_terminal

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        whole = bytes(data)
        if self._writer is not None:
            if self.held <= MAX_HELD:
                self._writer.put(whole)
        elif self.was_closed:
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
        elif self.error is None and not self._stalled:
            self.error = _write(self._number, whole)
        return len(whole)

    @property
    def held(self) -> int:
        return 0 if self._writer is None else self._writer.held

    def never_wait(self) -> None:
        """From now on a thread writes."""
        if self._writer is None:
            self._writer = Writer(self._number, "people", owned=False)

    def wait(self, limit_s: float) -> None:
        """Have written what the thread still holds, and write without it again."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._stalled = not writer.close(limit_s)


def _write(number: int, data: bytes) -> OSError | None:
    """All of it. Returns why that could not be done."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(number, view) :]
        except BlockingIOError:  # somebody made it non-blocking
            select.select([], [number], [])
        except OSError as error:
            return error
    return None


class _Streams:
    """What stands for the standard streams of this process; None: `prepare` was not called (a test)."""

    output: _Descriptor | None = None
    errors: _Descriptor | None = None


def prepare() -> None:
    """To be called before anything is opened, or printed."""
    closed = {number for number in range(3) if not _is_open(number)}
    for number in sorted(closed):
        _fill(number)
    _Streams.output = _Descriptor(_STANDARD_OUTPUT, closed=_STANDARD_OUTPUT in closed)
    _Streams.errors = _Descriptor(_STANDARD_ERROR, closed=_STANDARD_ERROR in closed)
    sys.stdout = _as_text(_Streams.output, sys.stdout)
    sys.stderr = _as_text(_Streams.errors, sys.stderr)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _fill(number: int) -> None:
    """Have something stand there, for us and for the processes that we start."""
    try:
        opened = os.open(os.devnull, os.O_RDWR)
    except OSError:  # a root directory that has none; this can be neither read nor written
        opened = os.open("/", os.O_PATH)
    if opened == number:
        os.set_inheritable(opened, True)
    else:
        os.dup2(opened, number, inheritable=True)
        os.close(opened)


def _as_text(raw: _Descriptor, like: TextIO | None) -> TextIO:
    """Names have what an encoding may lack: it is shown escaped then."""
    encoding = "utf-8" if like is None else like.encoding
    by_line = raw.isatty() or raw.fileno() == _STANDARD_ERROR
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", newline="\n", line_buffering=by_line
    )


def say(line: str) -> None:
    """A line on standard error, to the person who runs us."""
    name = "udsproxy: "
    note(f"{name}{printable(line)}", hang=len(name))


def note(text: str, hang: int = 2) -> None:
    """Text on standard error, and a line's end. ``hang``: see `fold`."""
    terminal = width_of(sys.stderr)
    begin = "" if terminal is None else "\r"  # after a Ctrl-C, of which the terminal has written ^C
    _put(f"{begin}{fold(text, terminal, hang)}\n", sys.stderr)


def tell(text: str, hang: int = 2) -> None:
    """Text for a person on standard output, as `show` does."""
    show(fold(text, width(), hang))


def show(text: str) -> None:
    """Text on standard output, as it is, and a line's end; it is there when this returns."""
    _put(f"{text}\n", sys.stdout)


def width() -> int | None:
    """The width of the terminal that standard output is; None: it is none."""
    return width_of(sys.stdout)


def _put(text: str, stream: TextIO | None) -> None:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):  # (none comes from ours)
            stream.write(text)
            stream.flush()


def never_wait() -> None:
    """From now on lines on standard error keep nobody waiting: traffic begins."""
    if _Streams.errors is not None:
        _Streams.errors.never_wait()
        atexit.register(_Streams.errors.wait, _LAST_WRITES_S)


def held() -> int:
    """Bytes of lines on standard error that are not written yet."""
    return 0 if _Streams.errors is None else _Streams.errors.held


def output_is_closed() -> bool:
    """Standard output was closed when this process began."""
    return _Streams.output is not None and _Streams.output.was_closed


def output_is_lost() -> bool:
    """Something that was printed could not be written, so that more of it is of no use."""
    return _Streams.output is not None and _Streams.output.error is not None


def read_input() -> bytes:
    """Standard input, to its end. Raises `Failure`."""
    if sys.stdin is None:
        raise Failure(FAILED, "cannot read standard input: it is closed")
    try:
        return sys.stdin.buffer.read() or b""
    except OSError as error:
        raise Failure(FAILED, f"cannot read standard input: {error.strerror}") from None


def finish(code: int) -> int:
    """The end: write what is left. Returns the exit code, which says so where what was printed is not all written.

    (A reader that has gone, as ``head`` does, knows: that takes no line.)
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    error = None if _Streams.output is None else _Streams.output.error
    if error is not None:
        number = error.errno or errno.EIO
        if number != errno.EPIPE:
            why = f"{errno_message(number)} ({errno_name(number)})"
            say("standard output is closed" if output_is_closed() else f"cannot write to standard output: {why}")
        code = code or FAILED
    if _Streams.errors is not None:
        try:
            _Streams.errors.wait(_LAST_WRITES_S)
        except KeyboardInterrupt:
            code = code or 130
    return code
