"""A summary of logs as text: the table, and the newest lines in order of time.

Rule: the width is an argument, as in `udsproxy.layout`. What stands in the lines has been through `printable`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime

from udsproxy.explain.lines import Found
from udsproxy.explain.summary import Run, Tally, top
from udsproxy.layout import fold, shortened

_MAX_SCRIPTS = 5
_MAX_SCRIPT = 60
"""Cells of a script's name."""
_MAX_TEXTS = 3
_MAX_FILES = 3
_MAX_TEXT = 160
"""Cells of what a script wrote."""
_BELOW = " " * 7
"""Before what stands below a row: under FIRST, so that there is room on a narrow terminal."""


def title(found: Found, files: Collection[str] = ()) -> str:
    """``connect(): EAGAIN, /run/php/p.sock``. ``files``: those that the lines name."""
    if found.symptom is not None:
        what = found.symptom.named(found.failed, next(iter(files)) if len(files) == 1 else None)
        what += "" if found.errno is None else f": {found.errno}"
    else:
        what = ": ".join(part for part in (f"{found.call}()" if found.call else None, found.errno) if part)
    return ", ".join(part for part in (what, found.path or found.tcp) if part)


def table(tallies: Iterable[Tally], width: int | None) -> list[str]:
    """A row for each error, and below it when it was worst, and for which scripts."""
    rows = list(tallies)
    clock = _Clock(at for each in rows for at in (each.first, each.last))
    lines = [f"COUNT  {'FIRST':<{clock.cells}}  {'LAST':<{clock.cells}}  ERROR"]
    for row in rows:
        head = f"{row.count:>5}  {clock.text(row.first)}  {clock.text(row.last)}  "
        lines.append(fold(head + title(row.example, row.files), width, len(_BELOW)))
        below = ", ".join(_below(row, clock))
        if below:
            lines.append(fold(_BELOW + below, width, 0))
        lines += [fold(_BELOW + text, width) for text in _texts(row)]
    return lines


def _below(row: Tally, clock: _Clock) -> Iterator[str]:
    if row.busiest is not None and row.busiest_count > 1 and row.busiest_count < row.count:
        yield f"{row.busiest_count} of them in the minute of {clock.minute(row.busiest)}"
    yield from _top(row.scripts, "script")


def _texts(row: Tally) -> Iterator[str]:
    yield from _top({f'"{text}"': count for text, count in row.texts.items()}, "text", _MAX_TEXTS, _MAX_TEXT)
    if len(row.files) > 1:
        yield from _top(row.files, "file", _MAX_FILES, _MAX_TEXT)


def _top(counts: dict[str, int], name: str, number: int = _MAX_SCRIPTS, room: int = _MAX_SCRIPT) -> Iterator[str]:
    """The most frequent ones."""
    for each, count in top(counts, number):
        yield f"{shortened(each, room)} ({count})"
    if (others := len(counts) - number) > 0:
        yield f"and {others} other {name}{'s' if others > 1 else ''}"


def in_order(runs: Iterable[Run], width: int | None) -> list[str]:
    """The newest events, oldest first."""
    rows = list(runs)
    clock = _Clock(at for each in rows for at in (each.first, each.last))
    return [_run(row, clock, width) for row in rows]


def event(run: Run, width: int | None) -> str:
    """A run as it is shown while a log is followed."""
    return _run(run, _Clock(()), width)


def _run(row: Run, clock: _Clock, width: int | None) -> str:
    count = "" if row.count == 1 else f"{row.count} x "
    program = f"{row.example.program}: " if row.example.program else ""
    parts = [f"{clock.text(row.first)}  {program}{count}{title(row.example, [row.example.file or 'FILE'])}"]
    if [*row.scripts.values()] == [row.count]:
        parts += [shortened(script, _MAX_SCRIPT) for script in row.scripts]
    else:
        parts += _top(row.scripts, "script")
    parts += [f'"{shortened(text, _MAX_TEXT)}"' for text in row.example.texts[:1]]
    if row.last is not None and row.last != row.first:
        parts.append(f"the last at {clock.text(row.last)}")
    said = ", ".join(parts)
    return fold(said, width, clock.cells + 2)


class _Clock:
    """How times are written: with their date where they are of several days."""

    def __init__(self, times: Iterable[datetime | None]) -> None:
        days = {at.date() for at in times if at is not None}
        self._form = "%Y-%m-%d %H:%M:%S" if len(days) > 1 else "%H:%M:%S"
        self.cells = 19 if len(days) > 1 else 8

    def text(self, at: datetime | None) -> str:
        return "-".ljust(self.cells) if at is None else at.strftime(self._form)

    def minute(self, at: datetime) -> str:
        return at.strftime(self._form.removesuffix(":%S"))
