"""What follows from the facts: one thing that is wrong, or right."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

Level = Literal["problem", "warning", "note", "fine"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note", "fine")
"""``problem``: it goes wrong now, or at the next burst; ``warning``: it can; ``note``: good to know."""


When = Literal["now", "before", "later"]
WHEN: tuple[When, ...] = ("now", "before", "later")
"""``now``: it is so at this moment; ``before``: a log has it; ``later``: at a burst, a start or a reload."""


class Finding(msgspec.Struct, frozen=True):
    """Each part is a line of text; empty: there is nothing to say."""

    level: Level
    title: str
    why: str = ""
    do: str = ""
    check: str = ""
    """A command, for a shell; what to see there may follow, after three spaces."""
    when: When = "later"


def dated(when: When, found: Iterable[Finding]) -> Iterator[Finding]:
    """The same, of that time."""
    for each in found:
        yield msgspec.structs.replace(each, when=when)


def grep(words: str, files: Iterable[str], whose: str) -> str:
    """The command that looks for words in logs. ``whose``: ``nginx's``, for where none is known."""
    names = shlex.join(files)
    command = f"grep -F {shlex.quote(words)}"
    return f"{command} {names}" if names else f"{command} ERROR_LOG   ({whose} error_log, wherever it is)"


def plural(number: int, name: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number} {name}" + ("" if number == 1 else "s")
