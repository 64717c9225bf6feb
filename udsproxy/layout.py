"""How text is laid out for people: how many cells it takes, where a line is folded, what is left out of a name.

Rules:

* The width is an argument. None means that the text does not go to a terminal: then nothing is folded and nothing
  is left out, so that it can be searched.
* Widths are counted in cells: a CJK character takes two, a combining one none, an SGR escape (colour) none.
* A fold loses nothing but the spaces where it is. A word is split only where it is longer than a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_SGR = re.compile(r"\x1b\[[\d;]*m")
_SHELL_WORD = re.compile(r"(?:'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.|[^\s'\"\\])+")
_EMOJI_STYLE = "\ufe0f"
"""Makes the character before it two cells wide."""
_QUOTE = re.compile(r"['\"\\]")
_CONTINUED = " \\"
_UNIT = re.compile(r"\d (?:[mµ]?s|[KMGT]iB|B)\b")
"""What is not parted: a number and its unit."""


def cells(text: str) -> int:
    """The width of one line."""
    if "\x1b" in text:
        text = _SGR.sub("", text)
    return len(text) if text.isascii() else _cell_len(text)


def _cell_len(text: str) -> int:
    # Imported late: most of what is written is ASCII, and some of our processes shall stay small.
    from rich.cells import cell_len

    return cell_len(text)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Filled up with spaces to that width."""
    fill = " " * (width - cells(text))
    return fill + text if right else text + fill


# --- leaving out ---


def shortened(text: str, room: int | None) -> str:
    """What is too long loses its middle: ``/var/www/…/index.php``. The text has no escapes."""
    if room is None or cells(text) <= room:
        return text
    if room < 1:
        return ""
    tail = room // 2
    return text[: _fits(text, 0, room - 1 - tail)] + "…" + text[_fits_at_end(text, tail) :]


def _fits(text: str, start: int, room: int) -> int:
    """Where the part that begins at ``start`` and takes at most that many cells ends."""
    if text.isascii() and "\x1b" not in text:
        return min(start + room, len(text))
    end, last = start, ""
    while end < len(text):
        if text[end] == "\x1b" and (escape := _SGR.match(text, end)):
            end = escape.end()
            continue
        char = text[end]
        if char == _EMOJI_STYLE:
            room, last = room - (_cell_len(last + char) - _cell_len(last)), ""
        elif taken := _char_cells(char):
            room, last = room - taken, char
        if room < 0:
            break
        end += 1
    return end


def _fits_at_end(text: str, room: int) -> int:
    """Where the part begins that takes at most that many cells and goes to the end."""
    if text.isascii():
        return len(text) - room
    start = len(text)
    while start > 0 and (room := room - _char_cells(text[start - 1])) >= 0:
        start -= 1
    while start < len(text) and not _char_cells(text[start]):
        start += 1  # it belongs to a character that is left out
    return start


def _char_cells(char: str) -> int:
    """At least what it takes among others."""
    return 1 if char.isascii() or char == _EMOJI_STYLE else _cell_len(char)


# --- folding ---


def fold(text: str, width: int | None, hang: int = 2) -> str:
    """The text, each of its lines folded. ``hang``: how much further than the line itself its continuation is
    indented."""
    if width is None or (len(text) <= width and text.isascii()):
        return text
    lines = []
    for line in text.split("\n"):
        own = len(line) - len(line.lstrip(" "))
        lines += fold_line(line, width, min(own + hang, width // 3))  # what follows shall not be a narrow column
    return "\n".join(lines)


def fold_line(line: str, width: int | None, indent: int) -> list[str]:
    """One line, folded; all parts but the first are indented."""
    if width is None:
        return [line]
    return [" " * part.indent + line[part.start : part.end] for part in fold_parts(line, width, indent)]


class FoldedPart(NamedTuple):
    """A part of a folded line: where it begins and ends in that, and how far it is indented."""

    start: int
    end: int
    indent: int


def fold_parts(line: str, width: int, indent: int) -> list[FoldedPart]:
    """The parts of a folded line. All but the first are indented; one that begins with a word that would not fit
    then is indented less."""
    parts = []
    start, here = 0, 0
    words = len(line) - len(line.lstrip(" "))
    while (limit := _fits(line, start, max(1, width - here))) < len(line):
        end = line.rfind(" ", words, limit + 1)
        if end > 0 and _UNIT.match(line, end - 1):
            before = line.rfind(" ", words, end)
            end = before if before > 0 else end
        if end < 0 and start < words and line[start] == " ":
            start = words  # rather no indentation than a word that is split
            continue
        if end < 0:
            end = max(limit, start + 1)  # a word that is longer than the line
        parts.append(FoldedPart(start, _without_spaces_at_end(line, start, end), here))
        start = end
        while start < len(line) and line[start] == " ":
            start += 1
        words, here = start + 1, _indent_at(line, start, width, indent)
    if start < len(line) or not parts:
        parts.append(FoldedPart(start, len(line), here))
    return parts


def _indent_at(line: str, start: int, width: int, indent: int) -> int:
    end = line.find(" ", start)
    word = line[start : len(line) if end < 0 else end]
    if len(word) > 4 * width or (taken := cells(word)) > width:
        return indent  # it is split in any case
    return min(indent, width - taken)


def _without_spaces_at_end(line: str, start: int, end: int) -> int:
    while end > start and line[end - 1] == " ":
        end -= 1
    return end


def fold_command(command: str, width: int | None, indent: int, first: str = "") -> str:
    r"""A command for a shell, folded so that it can be copied: each line but the last ends with a backslash.

    ``first``: what stands before it, ``indent``: before the lines after that. A fold is between words, never inside
    quotes. A word that is longer than a line is folded, too: then the next line begins at the left. What is not
    plainly a command (there is a comment, an open quote, or a comma or a colon after a word) is folded as text.
    """
    if width is None or cells(first + command) <= width:
        return first + command
    words = _SHELL_WORD.findall(command)
    if " ".join(words) != command or any(word[0] == "#" or word[-1] in ",:" for word in words[:-1]):
        return "\n".join(fold_line(first + command, width, indent))
    lines = [first]
    room = width - len(_CONTINUED)
    for number, word in enumerate(words):
        gap = "" if not number else " "
        if number and cells(lines[-1] + gap + word) > room:
            lines[-1] += _CONTINUED
            lines.append(" " * indent)
            gap = ""
        lines[-1] += gap + word
        while cells(lines[-1]) > room and not _QUOTE.search(word):
            end = _fits(lines[-1], 0, width - 1)
            lines[-1:] = [lines[-1][:end] + "\\", lines[-1][end:]]
    return "\n".join(lines)


# --- columns ---


def fitting(widths: Mapping[str, int], room: int | None, gives_way: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The columns that fit into that many cells. ``gives_way``: the steps that are taken until they do. Each names
    columns that become narrower, and their new width; 0 leaves a column out."""
    kept = dict(widths)
    for narrower in gives_way:
        if room is None or sum(kept.values()) <= room:
            break
        kept = {name: min(width, narrower.get(name, width)) for name, width in kept.items()}
        kept = {name: width for name, width in kept.items() if width}
    return kept
