"""What nginx's variables may be, as far as its configuration says it with constants: ``set``, ``map``, ``geo``,
``split_clients``.

A name with variables in it is expanded to all that it can be. A part that nobody knows from the files (a request's
host, a capture of a regular expression) stays unknown, and matches anything. Rule: pure, and bounded.
"""

from __future__ import annotations

import re

from udsproxy.doctor.nginx_syntax import Directive

Pieces = tuple[str | None, ...]
"""Text, and what is not known (None)."""

_VARIABLE = re.compile(r"\$(?:\{(\w{1,100})\}|(\w{1,100}))")
_MAX_NAMES = 1_000
_MAX_VALUES = 1_000
"""Of one variable; and of one name with variables."""
_MAX_STEPS = 200_000
"""Of all names together."""
_MAX_USED = 4
"""How often one variable is put in: it may stand in its own value."""
_MAX_LENGTH = 500
_TABLES = ("map", "geo", "split_clients")
_NO_VALUES = ("hostnames", "volatile", "include", "proxy", "proxy_recursive", "delete", "ranges")


class Values:
    """Of the variables of one nginx. (Where a value is set does not matter: it can be that one.)"""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}
        self._steps = 0

    def add(self, each: Directive) -> None:
        """A directive that may say what a variable is."""
        if each.name == "set" and len(each.args) == 2:
            self._add(each.args[0], each.args[1])
        elif each.name in _TABLES and each.block is not None and each.args:
            for line in each.block:
                if len(line.args) == 1 and line.name not in _NO_VALUES:
                    self._add(each.args[-1], line.args[0])

    def _add(self, name: str, value: str) -> None:
        name = name.lstrip("$").lower()
        if name in self._values or len(self._values) < _MAX_NAMES:
            values = self._values.setdefault(name, [])
            if len(values) < _MAX_VALUES and value not in values:
                values.append(value)

    def expand(self, text: str) -> list[Pieces]:
        """All that it can be, each once."""
        found: dict[Pieces, None] = {}
        open_ends: list[tuple[Pieces, str, tuple[str, ...]]] = [((), text, ())]
        """What is known from the left, the rest, and the variables whose values are in it."""
        while self._steps < _MAX_STEPS and len(found) < _MAX_VALUES:
            if not open_ends:
                return list(found)
            self._steps += 1
            known, rest, used = open_ends.pop()
            variable = _VARIABLE.search(rest)
            if variable is None or len(rest) > _MAX_LENGTH:
                found[_joined((*known, rest if variable is None else None))] = None
                continue
            name = (variable[1] or variable[2]).lower()
            known, rest = _joined((*known, rest[: variable.start()])), rest[variable.end() :]
            if name not in self._values or used.count(name) > _MAX_USED:
                open_ends.append((_joined((*known, None)), rest, used))
            else:
                values = self._values[name]
                open_ends += [(known, value + rest, (*used, name)) for value in reversed(values)]
        return [*found, (None,)]


def _joined(pieces: Pieces) -> Pieces:
    """Without empty texts, and neighbours as one."""
    found: list[str | None] = []
    for each in pieces:
        if each == "" or (each is None and found and found[-1] is None):
            continue
        last = found[-1] if found else None
        if each is not None and last is not None:
            found[-1] = last + each
        else:
            found.append(each)
    return tuple(found)


def text_of(pieces: Pieces) -> str | None:
    """None: some of it is not known."""
    return "".join(each for each in pieces if each is not None) if None not in pieces else None


def may_be(pieces: Pieces, text: str) -> bool:
    """Whether what is not known can be such that all together is this text."""
    pieces = _joined(pieces)
    if None not in pieces:
        return text_of(pieces) == text
    first, last = pieces[0] or "", pieces[-1] or ""  # (there are two pieces at least, or one that is not known)
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for each in pieces[1:-1]:
        if each is None:
            continue
        found = text.find(each, at, end)
        if found < 0:
            return False
        at = found + len(each)
    return True
