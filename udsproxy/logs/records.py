"""The lines of a log, as records: what several lines say of one event is one.

Rules:

* Sans I/O, and bounded: of a record that never ends, `MAX_LINES` lines and `MAX_CHARACTERS` are taken.
* nginx writes a script's text as it is. Its lines are one record, whatever they say: up to the line that holds
  nginx's own end, or up to a line that begins with a program's time stamp in the form of that program.
* A text that holds nginx's end, or a whole record of nginx, byte for byte, cannot be told from nginx's own.
* In a log with time stamps, the words of nginx's log without one belong to somebody's text.
* php-fpm writes a line for each line of a worker's text. Those that follow the beginning of a PHP message, of the
  same worker and at the same time, say nothing that has not been said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta

from udsproxy.logs.line import LogLine
from udsproxy.logs.reading import read
from udsproxy.logs.wrapping import unwrap

MAX_LINES = 1100
"""nginx cuts a record at 2048 bytes; an empty line is not counted."""
MAX_CHARACTERS = 16 * 1024
_MAY_BE_CUT = 1900
"""A record of this length may have lost its end. (What is around its lines was stripped.)"""
_MAX_WORKERS = 1000
_SAME_TIME = timedelta(seconds=1)
"""php-fpm writes whole seconds."""
_STDERR = "FastCGI sent in stderr: "
_END = re.compile(r"\"(?: while [a-zA-Z ]{1,60})?, client: [^,\s]{1,100}, server: ")
_ALONE = "nginx: ["
"""What nginx writes to its standard error has no time."""
_NO_LEVEL = ("", "access")
"""Programs whose lines have a time and no level: a script's text often has such lines."""
_BEGIN = re.compile(r"(?:NOTICE|WARNING|ERROR|ALERT|DEBUG): |PHP message: ")
_WORKER = re.compile(r"\[pool [^\]\s]{1,100}\] child (\d{1,10}) said into std(?:err|out): ")


class Records:
    """Of one log."""

    def __init__(self, today: date | None = None, *, is_cut: bool = False) -> None:
        """``is_cut``: the first line may be of a record that began before it."""
        self._today = today
        self._open: list[str] = []
        """The lines of nginx's record that has not ended yet."""
        self._length = 0
        """Their bytes."""
        self._layers = 0
        """What stands around each of them (`udsproxy.logs.wrapping`)."""
        self._has_times = is_cut
        """A line began with its time, or one that is not there may have."""
        self._workers: dict[str, datetime | None] = {}
        """Of php-fpm's workers that have begun a message: when they last wrote a line of it."""

    def read(self, lines: Iterable[str]) -> Iterator[LogLine]:
        """Those that are complete. Without any line: also one that nginx may have cut, as no more of it came."""
        is_empty = True
        for line in lines:
            is_empty = False
            yield from self._line(line)
        if is_empty and self._length >= _MAY_BE_CUT:
            yield from self._end()

    def all(self, lines: Iterable[str]) -> Iterator[LogLine]:
        """Those of a log that is read to its end."""
        yield from self.read(lines)
        yield from self._end()

    def _line(self, line: str) -> Iterator[LogLine]:
        if self._open:
            inner = unwrap(line, self._today, self._layers).text.strip()
            if not self._begins(inner):
                self._add(inner)
                is_full = len(self._open) >= MAX_LINES or self._length >= MAX_CHARACTERS
                if is_full or _END.search(inner) is not None:
                    yield from self._end()
                return
            yield from self._end()
        said = read(line, self._today)
        wrapped = unwrap(line, self._today)
        self._has_times |= said.at is not None
        if said.program == "nginx" and said.at is None and self._has_times and not wrapped.text.startswith(_ALONE):
            return
        if said.program == "nginx" and said.said.startswith(_STDERR) and _END.search(wrapped.text) is None:
            self._layers = wrapped.layers
            self._add(wrapped.text)
            return
        yield from self._said(said)

    def _add(self, line: str) -> None:
        self._open.append(line[:MAX_CHARACTERS])
        self._length += len(line.encode("utf-8", "surrogatepass")) + 1

    def _begins(self, line: str) -> bool:
        """Whether it is of another record."""
        said = read(line, self._today, layers=0)
        return said.at is not None and said.program not in _NO_LEVEL

    def _end(self) -> Iterator[LogLine]:
        if self._open:
            lines, self._open, self._length = self._open, [], 0
            yield from self._said(read("\n".join(lines), self._today, layers=0))

    def _said(self, line: LogLine) -> Iterator[LogLine]:
        worker = _WORKER.match(line.said)
        if worker is not None and self._is_more(worker[1], line):
            return
        yield line

    def _is_more(self, worker: str, line: LogLine) -> bool:
        """Whether a worker's line belongs to the message that it has begun."""
        if _BEGIN.match(line.text or "") is not None:
            if len(self._workers) >= _MAX_WORKERS:
                self._workers.clear()
            self._workers[worker] = line.at
            return False
        if worker not in self._workers:
            return False
        if _apart(self._workers[worker], line.at):
            del self._workers[worker]
            return False
        self._workers[worker] = line.at
        return True


def _apart(first: datetime | None, second: datetime | None) -> bool:
    if first is None or second is None or (first.tzinfo is None) != (second.tzinfo is None):
        return False
    return abs(second - first) > _SAME_TIME
