"""How text is folded and shortened: laws that hold for any text and any width."""

from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from udsproxy.events import printable
from udsproxy.layout import cells, fitting, fold, fold_command, fold_line, padded, shortened

WIDTHS = st.integers(20, 200)
WORDS = st.one_of(
    st.text("abc/.-", max_size=30),
    st.text("日本語e\u0301\u0300\ufe0f❤é×", max_size=30),
    st.text(max_size=20).map(printable),
    st.text("x", min_size=50, max_size=300),
)
LINES = st.builds(
    lambda lead, words: " " * lead + " ".join(words), st.integers(0, 30), st.lists(WORDS, min_size=1, max_size=30)
)
PAINTED = LINES.map(lambda line: "".join(f"\x1b[1;31m{part}\x1b[0m" for part in re.split("( )", line)))


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


@given(LINES | PAINTED, WIDTHS, st.integers(0, 10))
def test_a_folded_line_fits_and_loses_nothing_but_spaces(line: str, width: int, hang: int) -> None:
    """No part is wider than the terminal, and all characters but spaces are there, in order."""
    folded = fold(line, width, hang)
    assert all(cell_len(plain(part)) <= width for part in folded.split("\n"))
    assert re.sub("[ \n]", "", folded) == line.replace(" ", "")


@given(LINES, WIDTHS)
def test_words_are_whole(line: str, width: int) -> None:
    """A word that is not longer than a line is not split."""
    words = [word for part in fold_line(line, width, 4) for word in part.split()]
    for word in line.split():
        if cell_len(word) <= width:
            assert word in words


@given(LINES, st.integers(1, 10))
def test_what_fits_is_as_it_was(line: str, room: int) -> None:
    """A line that fits is not touched; nor is any where there is no terminal."""
    assert fold(line, cell_len(line) + room) == line
    assert fold(line, None) == line
    assert shortened(line, None) == line


@given(WORDS, st.integers(0, 60))
def test_what_is_shortened_fits(text: str, room: int) -> None:
    """What is too long loses its middle; its beginning and its end, as long as each other, are kept."""
    short = shortened(text, room)
    assert cell_len(short) <= max(room, 0)
    if cell_len(text) <= room:
        assert short == text
    elif room:
        head, tail = short.split("…")[0], short.rpartition("…")[2]
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head) + len(tail) < len(text)


def test_a_path_keeps_its_ends() -> None:
    """What says most of a path: where it begins, and the file."""
    assert shortened("/var/www/shop/releases/2026/public/index.php", 20) == "/var/www/…/index.php"
    assert shortened("日本語日本語", 6) == "日…語"
    assert shortened("abcdefe\u0301", 3) == "a…e\u0301"


def test_wide_and_combining_characters_count_by_their_cells() -> None:
    """A CJK character takes two cells, a combining one none, and so does colour."""
    assert cells("日本") == 4
    assert cells("e\u0301") == 1
    assert cells("\x1b[1;31mred\x1b[0m") == 3
    assert padded("日本", 6) == "日本  "
    assert padded("日本", 6, right=True) == "  日本"
    assert fold("日本語 日本語 日本語", 13, 2) == "日本語 日本語\n  日本語"


SHELL_WORDS = st.one_of(
    st.text("abc/.-$(){}&;|=", min_size=1, max_size=30),
    st.builds(lambda inner: f"'{inner}'", st.text('ab $\\"#', max_size=40)),
    st.builds(lambda inner: f'x="{inner}"', st.text("ab $'#", max_size=40)),
)


@given(st.lists(SHELL_WORDS, min_size=1, max_size=12), WIDTHS)
def test_a_folded_command_means_the_same(words: list[str], width: int) -> None:
    """A shell that is given all of its lines reads the same words. Only quotes make a line wider than the
    terminal."""
    command = " ".join(words)
    folded = fold_command(command, width, 4, "  ")
    assert shlex.split(folded.replace("\\\n", "")) == shlex.split(command)
    for line in folded.split("\n"):
        assert cell_len(line) <= width or "'" in line or '"' in line


def test_a_long_word_of_a_command_can_be_copied() -> None:
    """A word that is longer than a line goes on at the left of the next one: a shell joins them."""
    assert fold_command("cat /a/long/path/of/a/socket.sock -l", 20, 4, "  ") == (
        "  cat \\\n    /a/long/path/of\\\n/a/socket.sock -l"
    )


@pytest.mark.parametrize(
    "command",
    [
        "make # a comment that is long enough",
        "echo 'it is open and long",
        "ps -o pid,args: the ages of the workers",
    ],
)
def test_what_is_no_plain_command_is_text(command: str) -> None:
    """A backslash at the end of a comment, or inside quotes, would not continue the line; in a text it is odd."""
    assert fold_command(command, 20, 4) == "\n".join(fold_line(command, 20, 4))


def test_a_long_word_is_indented_less() -> None:
    """Rather than be split: a path that fits a line is whole, so that it can be copied."""
    assert fold_line("accept() on unix /run/php/php8.2-fpm.sock now", 30, 15) == [
        "accept() on unix", "      /run/php/php8.2-fpm.sock", "               now"
    ]  # fmt: skip


def test_a_number_keeps_its_unit() -> None:
    """A fold is before a number, not between it and its unit."""
    assert fold("it was there for 3.07 s or more", 21, 0) == "it was there for\n3.07 s or more"
    assert fold("the answer had 1.2 KiB", 19, 0) == "the answer had\n1.2 KiB"
    assert fold("of 3 steps, the first", 5, 0).startswith("of 3\nsteps")


def test_columns_give_way_in_their_order() -> None:
    """Columns become narrower or are left out until the others fit, and no further."""
    widths = {"A": 10, "B": 10, "C": 10}
    steps = [{"B": 0}, {"A": 4}, {"A": 0}]
    assert fitting(widths, None, steps) == widths
    assert fitting(widths, 30, steps) == widths
    assert fitting(widths, 29, steps) == {"A": 10, "C": 10}
    assert fitting(widths, 19, steps) == {"A": 4, "C": 10}
    assert fitting(widths, 1, steps) == {"C": 10}
