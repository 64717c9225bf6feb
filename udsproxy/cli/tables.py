"""Styled lines and tables for people, which fit the terminal.

Rules: a table's last column has any length, and is folded beside the others. The others are as wide as their widest
cell; on a narrow terminal some give way (`udsproxy.layout.fitting`). Names come from anybody: no markup is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.text import Text

from udsproxy.layout import cells, fitting, fold_parts, padded, shortened

_GAP = "  "
_MIN_LAST = 24
"""Cells of the last column, where it is folded beside the others. With fewer it goes on below them."""


def folded(line: Text, width: int | None, indent: int | None = None) -> list[Text]:
    """One line, folded. ``indent``: of all parts but the first; without it, a little more than the line's own."""
    if width is None or cells(line.plain) <= width:
        return [line]
    if indent is None:
        indent = len(line.plain) - len(line.plain.lstrip(" ")) + 2
    if width - indent < _MIN_LAST:
        indent = width // 6
    parts = fold_parts(line.plain, width, indent)
    return [Text(" " * part.indent) + line[part.start : part.end] for part in parts]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a table is like, whatever its rows are."""

    head: tuple[str, ...]
    right: frozenset[str] = frozenset()
    """Columns that are aligned to the right."""
    gives_way: tuple[Mapping[str, int], ...] = ()
    """See `udsproxy.layout.fitting`."""
    indent: str = ""
    names_last: bool = False
    """The last column is a name, and perhaps, after two spaces, a note. On a terminal a name that is too long loses
    its middle."""

    def lines(
        self,
        rows: Iterable[Sequence[str]],
        width: int | None,
        *,
        head_style: str | None = None,
        styles: Sequence[str] = (),
    ) -> list[Text]:
        """The head, if it has a style, and each row, in its style; a row that was folded is several lines."""
        table = [*([] if head_style is None else [self.head]), *rows]
        if not table:
            return []
        widths = {name: max(cells(row[column]) for row in table) for column, name in enumerate(self.head[:-1])}
        if width is not None:
            last = min(_MIN_LAST + 6, max(cells(row[-1]) for row in table))
            given = {name: columns + len(_GAP) for name, columns in widths.items()}
            steps = [{name: to and to + len(_GAP) for name, to in step.items()} for step in self.gives_way]
            kept = fitting(given, width - len(self.indent) - last, steps)
            widths = {name: columns - len(_GAP) for name, columns in kept.items()}
        lines: list[Text] = []
        painted = [*([] if head_style is None else [head_style]), *styles]
        for row, style in zip_longest(table, painted, fillvalue=""):
            begin = self.indent + "".join(
                padded(shortened(row[self.head.index(name)], columns), columns, right=name in self.right) + _GAP
                for name, columns in widths.items()
            )
            last_cell = row[-1]
            if width is not None and self.names_last:
                name, gap, note = last_cell.partition(_GAP)
                last_cell = shortened(name, max(1, width - cells(begin))) + gap + note
            lines += folded(Text((begin + last_cell).rstrip(), style=style), width, cells(begin))
        return lines
