"""The table as text: an answer for a terminal, and the overview.

Rules: no line is wider than `WIDTH`, or than a narrower terminal, but for a word that is. What was pasted has been
through `printable`; in a command it is quoted for the shell. No command harms what is at that path, though it is
pasted in a hurry: a failure is reproduced on sockets of one's own.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from udsproxy.events import errno_message
from udsproxy.explain.errors import CALLS, ELSEWHERE, NOTES, TABLE, Call, Cause, Meaning, number_of
from udsproxy.explain.lines import Found
from udsproxy.explain.symptoms import SYMPTOMS, Symptom
from udsproxy.layout import fold, fold_command

WIDTH = 100
_PLACE = re.compile(r"\b(?:PATH|FILE)\b")
_QUOTED = re.compile(r"`[^`]*`")
_HARD_SPACE = "\xa0"
_COMMAND = "$ "
"""Stands before a command that is a line of its own; it is not printed."""
_HANG = 16
"""Of what is folded and no paragraph: the lines of the overview, behind the errno's name."""


class _Paragraph(NamedTuple):
    """Text to be filled; the indent of its first line, and of the others."""

    text: str
    first: str = ""
    rest: str = ""


_Part = str | _Paragraph


def answer(found: Found, width: int = WIDTH) -> str:
    """All that is known of it, in lines of that width."""
    return "\n".join(line for part in _answer(found) for line in _laid_out(part, width))


def _laid_out(part: _Part, width: int) -> list[str]:
    if isinstance(part, _Paragraph):
        return wrapped(part.text, part.first, part.rest, width)
    if part.startswith(_COMMAND):
        return f"    {fold_command(part.removeprefix(_COMMAND), width - 4, 4)}".split("\n")
    return fold(part, width, hang=_HANG).split("\n")


def _answer(found: Found) -> Iterator[_Part]:
    named = _Named(found)
    if found.symptom is not None:
        yield found.symptom.words
        yield from _about(found)
        yield from _full(found.symptom, named)
        return
    if found.errno is None:
        assert found.call is not None
        yield f"{found.call}()"
        yield from _about(found)
        yield from (_line(meaning) for meaning in TABLE if meaning.call == found.call)
        first = next(each.errno for each in TABLE if each.call == found.call)
        yield from ("", f"In full: udsproxy explain {found.call} {first}")
        return
    meanings = [each for each in TABLE if each.errno == found.errno]
    here = [each for each in meanings if each.call == found.call]
    if here:
        yield f"{found.call}(): {_title(found.errno)}"
        yield from _about(found)
        yield from _full(here[0], named)
        return
    yield _title(found.errno)
    yield from _about(found)
    if (note := NOTES.get((found.call, found.errno)) if found.call else None) is not None:
        yield _Paragraph(note)
        return
    if not meanings:
        yield _Paragraph(
            ELSEWHERE.get(found.errno, "None of these calls returns it on a Unix socket: " + ", ".join(CALLS) + ".")
        )
        return
    if found.call is not None:
        yield _Paragraph(f"{found.call}() does not return it on a Unix socket. What does:")
    yield from _of_each_call(meanings, named)


class _Named:
    """What stands in a text for PATH and FILE: what the line names, quoted for a shell."""

    def __init__(self, found: Found) -> None:
        names = {"PATH": found.path, "FILE": found.file}
        self._names = {place: shlex.quote(name) for place, name in names.items() if name is not None}
        self._kind = None if found.path is None else "abstract" if found.path.startswith("@") else "path"

    def possible(self, causes: Iterable[Cause]) -> list[Cause]:
        """Without those that this kind of address rules out."""
        return [cause for cause in causes if None in (cause.only, self._kind) or cause.only == self._kind]

    def put(self, text: str) -> str:
        return _PLACE.sub(lambda place: self._names.get(place[0], place[0]), text)


def _of_each_call(meanings: list[Meaning], named: _Named) -> Iterator[_Part]:
    """The first in full, as it is the most likely one, the others in short."""
    groups = list(grouped(meanings))
    for number, (calls, meaning) in enumerate(groups):
        yield ""
        yield f"{spelled(calls)}: {meaning.errno}"
        if number == 0:
            yield from _full(meaning, named)
        else:
            yield _Paragraph(meaning.means)
            for place, cause in enumerate(meaning.causes, 1):
                yield _Paragraph(cause.text, _place(place, meaning.causes), "    ")
    if len(groups) > 1:
        yield ""
        yield f"In full: udsproxy explain {groups[1][0][0]} {groups[1][1].errno}"


def _about(found: Found) -> Iterator[_Part]:
    """What the line has besides the error."""
    errno = None if found.symptom is None or found.errno is None else _title(found.errno)
    script = None if found.script is None else f"script {found.script}"
    parts = [part for part in (errno, found.file, found.path, script, found.request) if part is not None]
    if found.client is not None:
        parts.append(f"client {found.client}")
    if parts:
        yield _Paragraph("In this line: " + ", ".join(parts))
    if found.tcp is not None:
        yield _Paragraph(f"It is about TCP ({found.tcp}); what follows is true of Unix sockets.")


def _full(of: Meaning | Symptom, named: _Named) -> Iterator[_Part]:
    causes = named.possible(of.causes)
    yield _Paragraph(of.means)
    yield ""
    yield "Causes, most likely first:" if len(causes) > 1 else "Cause:"
    for number, cause in enumerate(causes, 1):
        yield _Paragraph(named.put(cause.text), _place(number, causes), "    ")
        yield _Paragraph(f"tell: {named.put(cause.check)}", "    ", "          ")
        if cause.do:
            yield _Paragraph(f"do:   {named.put(cause.do)}", "    ", "          ")
    if of.fault is not None:
        yield ""
        yield "Reproduce it, on sockets of your own (clients of $D/p meet it; Ctrl-C ends it):"
        yield _COMMAND + reproduce(of.fault)
    if of.see:
        yield f"See: {', '.join('docs/' + page for page in of.see)}"


def _place(number: int, causes: Sequence[Cause]) -> str:
    return f" {number}. " if len(causes) > 1 else "    "


def reproduce(fault: str) -> str:
    """One line for a shell: a server, and a proxy with the fault in front of it, in a new directory."""
    return f"D=$(mktemp -d); (udsproxy serve $D/s & udsproxy run $D/p $D/s --fault '{fault}')"


def _title(errno: str) -> str:
    number = number_of(errno)
    return f"{errno} ({number}, {errno_message(number)})"


def spelled(calls: Iterable[Call]) -> str:
    return ", ".join(f"{call}()" for call in calls)


def grouped(meanings: Iterable[Meaning]) -> Iterator[tuple[tuple[Call, ...], Meaning]]:
    """Those that say the same of several calls are one."""
    groups: dict[tuple[str, str, tuple[Cause, ...]], list[Meaning]] = {}
    for meaning in meanings:
        groups.setdefault((meaning.errno, meaning.means, meaning.causes), []).append(meaning)
    for group in groups.values():
        yield tuple(each.call for each in group), group[0]


def wrapped(text: str, first: str = "", rest: str = "", width: int = WIDTH) -> list[str]:
    """What stands in backticks stays on one line, to be copied, unless it is longer than that."""
    room = width - max(len(first), len(rest))
    kept = _QUOTED.sub(lambda said: said[0].replace(" ", _HARD_SPACE) if len(said[0]) <= room else said[0], text)
    lines = textwrap.wrap(
        kept, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )
    return [line.replace(_HARD_SPACE, " ") for line in lines]


# --- the overview ---


def overview(width: int = WIDTH) -> str:
    """Each call with its errnos, a line each."""
    lines = ["What an error on a Unix socket means."]
    groups = list(grouped(TABLE))
    for call in CALLS:
        lines += ["", f"{call}()"]
        lines += [_line(meaning) for calls, meaning in groups if calls == (call,)]
    lines += ["", "several calls"]
    lines += [
        f"{_line(meaning)} ({', '.join(calls) if len(calls) < len(CALLS) - 1 else 'all'})"
        for calls, meaning in groups
        if len(calls) > 1
    ]
    lines += ["", "logged without an errno", *(f"  {symptom.words}" for symptom in SYMPTOMS)]
    lines += ["", "In full: udsproxy explain connect EAGAIN; or paste a line of a log, in quotes."]
    return "\n".join(fold(line, width, hang=_HANG) for line in lines)


def _line(meaning: Meaning) -> str:
    return f"  {meaning.errno:<13} {meaning.short}"
