"""The lines of a log, as records: what several lines say of one event is one.

Rules:

* Sans I/O, and bounded: of a record that never ends, `MAX_LINES` lines are taken.
* nginx writes a script's text as it is. The line that begins it, and those that follow up to the one that ends with
  nginx's own words (or up to the next record), are one record.
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

MAX_LINES = 200
_MAX_WORKERS = 1000
_SAME_TIME = timedelta(seconds=1)
"""php-fpm writes whole seconds."""
_STDERR = "FastCGI sent in stderr: "
_END = re.compile(r"\" while [a-zA-Z ]{1,60}, client: [^,\s]{1,100}, server: ")
_BEGIN = re.compile(r"(?:NOTICE|WARNING|ERROR|ALERT|DEBUG): |PHP message: ")
_WORKER = re.compile(r"\bchild (\d{1,10}) said into std(?:err|out): ")


class Records:
    """Of one log."""

    def __init__(self, today: date | None = None) -> None:
        self._today = today
        self._open: list[str] = []
        """The lines of nginx's record that has not ended yet."""
        self._workers: dict[str, datetime | None] = {}
        """Of php-fpm's workers that have begun a message: when they last wrote a line of it."""

    def read(self, lines: Iterable[str]) -> Iterator[LogLine]:
        """Those that are complete. Without any line: the one that was held, as no more of it has come."""
        is_empty = True
        for line in lines:
            is_empty = False
            yield from self._line(line)
        if is_empty:
            yield from self._end()

    def all(self, lines: Iterable[str]) -> Iterator[LogLine]:
        """Those of a log that is read to its end."""
        yield from self.read(lines)
        yield from self._end()

    def _line(self, line: str) -> Iterator[LogLine]:
        if self._open:
            inner = unwrap(line, self._today).text
            if not self._begins(inner):
                self._open.append(inner.strip())
                if _END.search(inner) is not None or len(self._open) >= MAX_LINES:
                    yield from self._end()
                return
            yield from self._end()
        if _STDERR in line and _END.search(line) is None:
            self._open = [unwrap(line, self._today).text]
            return
        yield from self._said(read(line, self._today))

    def _begins(self, line: str) -> bool:
        """Whether it is of another record."""
        said = read(line, self._today)
        return said.at is not None or bool(said.program)

    def _end(self) -> Iterator[LogLine]:
        if self._open:
            lines, self._open = self._open, []
            yield from self._said(read("\n".join(lines), self._today))

    def _said(self, line: LogLine) -> Iterator[LogLine]:
        worker = _WORKER.search(line.said)
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
