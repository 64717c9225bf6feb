"""Tables and lines for people: they fit the terminal, and what is left out is what was declared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from udsproxy.cli.tables import Table, folded
from udsproxy.events import printable

TABLE = Table(
    head=("QUEUE", "OWNER", "HELD BY", "SOCKET"),
    right=frozenset(("QUEUE",)),
    gives_way=({"OWNER": 0}, {"HELD BY": 12}),
    indent="  ",
    names_last=True,
)
CELLS = st.one_of(st.text("ab/.-", max_size=50), st.text("日本e\u0301", max_size=20), st.text(max_size=20)).map(
    printable
)
ROWS = st.lists(st.tuples(st.integers(0, 9999).map(str), CELLS, CELLS, CELLS), max_size=6)


def lines(rows: list[tuple[str, ...]], width: int | None) -> list[str]:
    return [line.plain for line in TABLE.lines(rows, width, head_style="bold")]


@given(ROWS, st.integers(60, 200))
def test_a_table_fits(rows: list[tuple[str, ...]], width: int) -> None:
    """Whatever its cells hold, no line is wider than the terminal."""
    assert all(cell_len(line) <= width for line in lines(rows, width))


@given(ROWS)
def test_elsewhere_a_row_is_a_line(rows: list[tuple[str, ...]]) -> None:
    """Where there is no terminal nothing is left out or folded."""
    head, *others = lines(rows, None)
    assert head.split() == ["QUEUE", "OWNER", "HELD", "BY", "SOCKET"]
    assert len(others) == len(rows)
    assert all(cell.strip() in line for row, line in zip(rows, others, strict=True) for cell in row)


@pytest.mark.parametrize(
    ("width", "names"),
    [(100, ["QUEUE", "OWNER", "HELD", "BY", "SOCKET"]), (70, ["QUEUE", "HELD", "BY", "SOCKET"])],
)
def test_columns_give_way(width: int, names: list[str]) -> None:
    """A narrow terminal has fewer columns; the name in the last one loses its middle, its note is kept."""
    name = "/run/php/" + "x" * 60 + "/php8.2-fpm.sock"
    head, row, *more = lines([("0", "www-data:www-data", "33 php-fpm8.2", f"{name}  (a tap's)")], width)
    assert head.split() == names
    assert row.index("/run/php") == head.index("SOCKET")
    assert "…" in row
    assert "fpm.sock" in row
    assert "(a tap's)" in " ".join([row, *more])


def test_the_last_column_is_folded_beside_the_others() -> None:
    """What a process does may take several lines; they are indented to its column."""
    table = Table(head=("PID", "NOW"), right=frozenset(("PID",)))
    head, *more = [line.plain for line in table.lines([("812", "word " * 20)], 60, head_style="dim")]
    assert head == "PID  NOW"
    assert len(more) == 2
    assert more[1].startswith("     word word")


def test_markup_is_text() -> None:
    """A name like [red] is shown as it is."""
    [line] = folded(TABLE.lines([("0", "", "", "[red]/a[/red]")], 80)[0], 80)
    assert line.plain.endswith("[red]/a[/red]")
