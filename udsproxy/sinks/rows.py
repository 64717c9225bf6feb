"""The console's table: a row for each exchange, under a heading.

Rules:

* `COLUMNS` says what there is, `NARROWER` what a narrow terminal does without. CONN, METHOD, STATUS and TOTAL are
  always there; so is the last column, which has any length: the URI, and what is noted of the exchange.
* On a terminal a row is a line: a long URI loses its middle. Notes that do not fit go to lines of their own, and so
  does a URI for which next to no room is left. Elsewhere a row is one line, however long, and whole.
* A row costs a few microseconds: what depends on the width alone is computed once for each width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from udsproxy.layout import cells, fold_line, padded, shortened

RED, GREEN, YELLOW, CYAN, DIM, BOLD = "31", "32", "33", "36", "2", "1"

COLUMNS = {
    "TIME": 12, "CONN": -6, "PROXY": 12, "METHOD": 7, "STATUS": 6, "TTFB": -8, "TOTAL": -8, "SENT": -9,
    "RECEIVED": -9,
}  # fmt: skip
"""Their widths; negative: aligned to the right. PROXY is there where there are several."""
NARROWER: tuple[tuple[int, dict[str, int]], ...] = (
    (100, {"SENT": 0, "RECEIVED": 0, "PROXY": 8}),
    (75, {"TTFB": 0}),
    (65, {"TIME": 8}),
    (60, {"TIME": 0}),
)
"""On a terminal of fewer cells than these: the columns that are narrower, or, with 0, left out."""
_LAST = "URI"
_GAP = "  "
_MIN_LAST = 12
"""Cells for the last column; with fewer, it goes to a line of its own."""
_MIN_URI = 24
"""What a URI is shortened to, so that a note has room beside it."""
_WIDE, _WIDE_INDENT, _NARROW_INDENT = 100, 20, 8
"""How far lines under a row are indented: in a wide terminal up to METHOD."""
_STYLES = {"TIME": DIM, "PROXY": CYAN}

Note = tuple[str, str]
"""Something to say of an exchange, and its colour; no colour: an empty string."""


def paint(text: str, *codes: str) -> str:
    """In colour (SGR)."""
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


class Cells(NamedTuple):
    """The text of each column, in the order of `COLUMNS`; STATUS may be painted."""

    time: str
    conn: str
    proxy: str
    method: str
    status: str
    ttfb: str
    total: str
    sent: str
    received: str


class Layout(NamedTuple):
    """What depends on the terminal's width."""

    width: int | None
    limit: int
    """Characters of a row that fits: the width, and the escapes."""
    heading: str
    template: str
    pick: Callable[[tuple[str, ...]], tuple[str, ...]]
    """Of all cells, those that the template takes."""
    start: str
    """The template of the start of any other line, of time, connection and proxy."""
    pick_start: Callable[[tuple[str, ...]], tuple[str, ...]]
    indent: str
    method_width: int
    proxy_width: int

    def begin(self, time: str, conn: str, proxy: str) -> str:
        """How every line begins."""
        return self.start % self.pick_start((time, conn, self._proxy(proxy)))

    def row(self, row: Cells, last: str, notes: Sequence[Note], *, color: bool) -> str:
        """One exchange."""
        if not row.method.isascii() or len(row.method) > self.method_width:
            row = row._replace(method=self._cut(row.method, self.method_width))
        if self.proxy_width:
            row = row._replace(proxy=self._proxy(row.proxy))
        begin = self.template % self.pick(row)
        if not notes:
            if self.width is None:
                return begin + last
            if len(begin) + len(last) <= self.limit and last.isascii() and begin.isascii():
                return begin + last
        return self._with_notes(begin, last, notes, color=color)

    def _with_notes(self, begin: str, last: str, notes: Sequence[Note], *, color: bool) -> str:
        texts = [paint(text, code) if color and code else text for text, code in notes]
        whole = begin + _GAP.join(text for text in (last, *texts) if text)
        if self.width is None or cells(whole) <= self.width:
            return whole
        room = self.width - cells(begin)
        beside = room - sum(cells(text) + len(_GAP) for text in texts)
        if last and beside >= _MIN_URI:
            return begin + _GAP.join((shortened(last, beside), *texts))
        if room >= _MIN_LAST:
            lines = [(begin + shortened(last, room)).rstrip()]
        else:
            lines = self._folded(begin.rstrip())
            lines += [self.indent + shortened(last, self.width - len(self.indent))] if last else []
        if texts:
            lines += self._folded(self.indent + _GAP.join(texts))
        return "\n".join(lines)

    def fold(self, text: str) -> str:
        """Lines that are no row, folded."""
        if self.width is None or (len(text) <= self.width and text.isascii()):
            return text
        return "\n".join(part for line in text.split("\n") for part in self._folded(line))

    def _folded(self, line: str) -> list[str]:
        assert self.width is not None
        return fold_line(line, self.width, len(self.indent) + 2 * line.startswith(self.indent))

    def _proxy(self, name: str) -> str:
        return name if name.isascii() and len(name) <= self.proxy_width else self._cut(name, self.proxy_width)

    def _cut(self, text: str, width: int) -> str:
        """Filled up to that width; on a terminal it is cut to it, too."""
        return padded(text if self.width is None else shortened(text, width), width)


@lru_cache(maxsize=8)
def layout(width: int | None, *, several: bool, color: bool) -> Layout:
    """The layout for a terminal of that width; None: for no terminal."""
    widths = {name: columns for name, columns in COLUMNS.items() if several or name != "PROXY"}
    for below, narrower in NARROWER:
        if width is not None and width < below:
            widths = {name: narrower.get(name, columns) for name, columns in widths.items()}
    widths = {name: columns for name, columns in widths.items() if columns}
    names = list(COLUMNS)
    start = [name for name in names[:3] if name in widths]
    heading = " ".join(f"%{-columns}s" % name for name, columns in widths.items()) + _GAP + _LAST
    cells_of = {name: _cell(name, columns, color) for name, columns in widths.items()}
    template = " ".join(cells_of.values()) + _GAP
    escapes = len(template) - cells(template) + color * len(paint("", RED))
    return Layout(
        width=width,
        limit=(width or 0) + escapes,
        heading=paint(heading, BOLD) if color else heading,
        template=template,
        pick=_picker([names.index(name) for name in widths]),
        start=" ".join(cells_of[name] for name in start),
        pick_start=_picker([names.index(name) for name in start]),
        indent=" " * (_WIDE_INDENT if width is None or width >= _WIDE else _NARROW_INDENT),
        method_width=abs(widths["METHOD"]),
        proxy_width=widths.get("PROXY", 0),
    )


def _cell(name: str, width: int, color: bool) -> str:
    """``%-12s``, in its colour. The time is cut to its column: that leaves out its fraction."""
    cell = f"%{-width}.{width}s" if name == "TIME" else f"%{-width}s"
    if name == "STATUS":
        cell = "%s"  # it comes painted, and as wide as its column
    return paint(cell, _STYLES[name]) if color and name in _STYLES else cell


def _picker(indices: list[int]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    if len(indices) == 1:
        return lambda row: (row[indices[0]],)
    return itemgetter(*indices)
