"""The form of nginx's configuration: words, directives, blocks, includes (ngx_conf_file.c).

Words may be quoted, ``;`` ends a directive, ``{ }`` encloses others, ``#`` begins a comment, a file is included
where it is named. A relative include begins in the directory of the main file.

Rules: whatever the files are, nothing here raises; what is read and what is looked at is bounded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import msgspec

from udsproxy.doctor.facts import Refused
from udsproxy.doctor.reading import MAX_DEPTH, Reader, shown

_WORD = re.compile(
    r"""\s+ | \#[^\n]* | (?P<mark>[;{}])
    | "(?P<double>(?:\\.|[^"\\])*)(?:"|\\?\Z) | '(?P<single>(?:\\.|[^'\\])*)(?:'|\\?\Z)
    | (?P<bare>(?:\\.|\$\{|\$|[^\s;{\\$])+) | (?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_LUA = re.compile(
    r"""(?P<brace>[{}]) | (?:--)?\[(?P<level>=*)\[.*?(?:\](?P=level)\]|\Z) | --[^\n]*
    | "(?:\\.|[^"\\\n])*"? | '(?:\\.|[^'\\\n])*'?""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\([\"'\\])")
MAX_NESTED = 64
MAX_DIRECTIVES = 200_000
_MAX_INCLUDED = 100_000
"""Of these, directives that come out of an include: the rest is for the blocks."""
_MAX_REFUSED = 32


class Directive(msgspec.Struct, frozen=True):
    """``name args...;``, or with a block."""

    name: str
    args: tuple[str, ...]
    line: int
    block: tuple[Directive, ...] | None = None


def parse(text: str) -> tuple[Directive, ...]:
    """A file's directives. What is malformed is taken as far as it goes."""
    level: list[Directive] = []
    above: list[tuple[list[Directive], tuple[str, ...], int]] = []
    words: list[str] = []
    too_deep = began = 0

    def end(block: tuple[Directive, ...] | None) -> None:
        if words:
            level.append(Directive(words[0], tuple(words[1:]), began, block))
            words.clear()

    for word, is_mark, line in _words(text):
        if not is_mark:
            if not words:
                began = line
            words.append(word)
        elif word == ";":
            end(None)
        elif word == "{":
            if len(above) >= MAX_NESTED:
                too_deep += 1
            else:
                above.append((level, tuple(words), began))
                level = []
            words.clear()
        else:
            end(None)
            if too_deep:
                too_deep -= 1
            elif above:
                block = tuple(level)
                level, (*head,), began = above.pop()
                words.extend(head)
                end(block)
    end(None)
    while above:
        block = tuple(level)
        level, (*head,), began = above.pop()
        words.extend(head)
        end(block)
    return tuple(level)


def _words(text: str) -> Iterator[tuple[str, bool, int]]:
    """(word, is it a ``;``, ``{`` or ``}``, the line it begins in)."""
    line, counted, at = 1, 0, 0
    name = ""
    while found := _WORD.match(text, at):
        kind, at = found.lastgroup, found.end()
        if kind is None:
            continue
        line += text.count("\n", counted, found.start())
        counted = found.start()
        word = found[kind] if kind == "bare" else _ESCAPE.sub(r"\1", found[kind])
        yield word, kind == "mark", line
        if kind == "mark" and word == "{" and name.endswith("_by_lua_block"):
            at = _end_of_lua(text, at)
        name = "" if kind == "mark" else name or word


def _end_of_lua(text: str, at: int) -> int:
    """Where the brace is that closes a block of Lua, which has quotes and braces of its own (lua-nginx-module)."""
    depth = 1
    while found := _LUA.search(text, at):
        if found["brace"]:
            depth += 1 if found["brace"] == "{" else -1
            if not depth:
                return found.start()
        at = found.end()
    return len(text)


class Configuration:
    """The directives of a file and of all that it includes, in order."""

    def __init__(self, reader: Reader, file: str) -> None:
        self._reader = reader
        self.file = file
        self.refused: list[Refused] = []
        """For which nginx would not start, nor reload. Complete when all directives were asked for."""
        self._directory = os.path.dirname(file)
        self._parsed: dict[str, tuple[Directive, ...]] = {}
        self._looked_at = 0
        self._included = 0

    def directives(
        self, block: tuple[Directive, ...] | None = None, file: str | None = None, above: tuple[str, ...] = ()
    ) -> Iterator[tuple[Directive, str]]:
        """Those of a block (without one, of the file), each with the file that it stands in."""
        file = file or self.file
        for each in self._in_file(file) if block is None else block:
            self._looked_at += 1
            self._included += bool(above)
            if self._looked_at > MAX_DIRECTIVES or (above and self._included > _MAX_INCLUDED):
                self._reader.note(f"{shown(self.file)}: more than {MAX_DIRECTIVES} directives")
                return
            if each.name != "include" or len(each.args) != 1:
                yield each, file
            elif len(above) >= MAX_DEPTH:
                self.note_depth(file)
            else:
                for path in self._reader.matching(each.args[0], self._directory):
                    yield from self.directives(None, path, (*above, path))
                    self._check(path, f"{shown(file)}:{each.line}")

    def _check(self, path: str, at: str) -> None:
        why = self._reader.missing(path)
        refused = None if why is None else Refused("nginx", shown(path), at, why)
        if refused is not None and refused not in self.refused and len(self.refused) < _MAX_REFUSED:
            self.refused.append(refused)

    def note_depth(self, file: str) -> None:
        self._reader.note(f"{shown(file)}: includes that go round, or too deep")

    def _in_file(self, file: str) -> tuple[Directive, ...]:
        if file not in self._parsed:
            self._parsed[file] = parse(self._reader.read(file) or "")
        return self._parsed[file]
