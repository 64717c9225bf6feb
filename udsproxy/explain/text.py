"""The table as text: an answer for a terminal, and the overview.

Rules: an answer is paragraphs and commands, and `lay_out` makes lines of them that fit a terminal. A command stays
on one line if it fits, and can be copied in any case. What was pasted has been through `printable`; in a command it
is quoted for the shell. No command harms what is at that path, though it is pasted in a hurry: a failure is
reproduced on sockets of one's own.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from udsproxy.events import errno_message
from udsproxy.explain.errors import CALLS, ELSEWHERE, NOTES, TABLE, Call, Cause, Meaning, number_of
from udsproxy.explain.lines import Found
from udsproxy.explain.symptoms import SYMPTOMS, Symptom
from udsproxy.layout import cells, fold_command, fold_line

MAX_WIDTH = 100
"""Lines that are longer are hard to read, on however wide a terminal."""
_PLACE = re.compile(r"\b(?:PATH|FILE)\b")
_QUOTED = re.compile(r"([^\s`]*`[^`]*`[^\s`]*)")
_HARD_SPACE = "\xa0"


class Paragraph(NamedTuple):
    """Text that is folded, and how its first line and the others begin."""

    text: str
    first: str = ""
    rest: str = ""


class Command(NamedTuple):
    """A line for a shell."""

    text: str
    indent: str


Part = str | Paragraph | Command
"""A part of an answer; a plain string is a paragraph without an indent."""


def lay_out(parts: Iterable[Part], width: int | None) -> str:
    """Lines for a terminal of that width; None: for none, where each part is one line."""
    return "\n".join(line for part in parts for line in _lines(part, width))


def _lines(part: Part, width: int | None) -> Iterator[str]:
    if isinstance(part, Command):
        yield fold_command(part.text, width, len(part.indent) + 4, part.indent)
        return
    text, first, rest = part if isinstance(part, Paragraph) else Paragraph(part)
    if width is None:
        yield first + text
        return
    room, begun = width - len(rest), first
    for number, piece in enumerate(_QUOTED.split(text)):
        if not number % 2:
            begun += piece
        elif cells(piece) <= room:
            begun += piece.replace(" ", _HARD_SPACE)  # it stays on one line, to be copied
        else:
            if begun.strip():
                yield from _folded(begun.rstrip(" "), width, rest)
            yield fold_command(piece, width, len(rest) + 4, rest)
            begun = rest
    if begun.strip() or not text:
        yield from _folded(begun.rstrip(" "), width, rest)


def _folded(line: str, width: int, rest: str) -> list[str]:
    return [part.replace(_HARD_SPACE, " ") for part in fold_line(line, width, len(rest))]


def answer(found: Found, width: int | None = None, line: str = "this line") -> str:
    """All that is known of it, for a terminal of that width; None: for none. ``line`` is what it stands in."""
    return lay_out(_answer(found, line), width and min(width, MAX_WIDTH))


def brief(found: Found, width: int | None = None) -> str:
    """What it means and its causes, without how to tell them, and where all of it is. ``width``: as of `answer`."""
    return lay_out(_brief(found), width and min(width, MAX_WIDTH))


def _brief(found: Found) -> Iterator[Part]:
    named = _Named(found)
    meanings = [each for each in TABLE if each.errno == found.errno]
    of = found.symptom or next((each for each in meanings if each.call == found.call), None)
    if found.symptom is not None:
        yield found.symptom.named(found.failed, found.file)
    elif found.errno is not None:
        yield f"{found.call}(): {_title(found.errno)}" if of is not None else _title(found.errno)
    elif found.call is not None:
        yield f"{found.call}()"
    if of is not None:
        yield Paragraph(of.means)
        causes = named.possible(of.causes)
        for place, cause in enumerate(causes, 1):
            yield Paragraph(named.put(cause.text), _place(place, causes), "    ")
    yield Command(f"In full: {command(found)}", "")


def command(found: Found) -> str:
    """What explains it in full, whatever its line was."""
    if found.symptom is not None:
        return f"udsproxy explain {shlex.quote(found.symptom.words)}"
    return " ".join(word for word in ("udsproxy explain", found.call, found.errno) if word is not None)


def _answer(found: Found, line: str) -> Iterator[Part]:
    named = _Named(found)
    if found.symptom is not None:
        yield found.symptom.named(found.failed, found.file)
        yield from _about(found, line)
        yield from _full(found.symptom, named)
        return
    if found.errno is None:
        assert found.call is not None
        yield f"{found.call}()"
        yield from _about(found, line)
        yield from (_line(meaning) for meaning in TABLE if meaning.call == found.call)
        first = next(each.errno for each in TABLE if each.call == found.call)
        yield from ("", f"In full: udsproxy explain {found.call} {first}")
        return
    meanings = [each for each in TABLE if each.errno == found.errno]
    here = [each for each in meanings if each.call == found.call]
    if here:
        yield f"{found.call}(): {_title(found.errno)}"
        yield from _about(found, line)
        yield from _full(here[0], named)
        return
    yield _title(found.errno)
    yield from _about(found, line)
    if (note := NOTES.get((found.call, found.errno)) if found.call else None) is not None:
        yield Paragraph(note)
        return
    if not meanings:
        yield Paragraph(
            ELSEWHERE.get(found.errno, "None of these calls returns it on a Unix socket: " + ", ".join(CALLS) + ".")
        )
        return
    if found.call is not None:
        yield Paragraph(f"{found.call}() does not return it on a Unix socket. What does:")
    yield from _of_each_call(meanings, named)


class _Named:
    """What stands in a text for PATH and FILE: what the line names, quoted for a shell."""

    def __init__(self, found: Found) -> None:
        names = {"PATH": found.path, "FILE": found.file}
        self._names = {place: shlex.quote(name) for place, name in names.items() if name is not None}
        self._errno = found.errno
        self._kind = None if found.path is None else "abstract" if found.path.startswith("@") else "path"

    def possible(self, causes: Iterable[Cause]) -> list[Cause]:
        """Without those that the kind of address, or the errno, rules out; all where none would be left."""
        left = [
            cause
            for cause in causes
            if (None in (cause.only, self._kind) or cause.only == self._kind)
            and (None in (cause.errno, self._errno) or cause.errno == self._errno)
        ]
        return left or list(causes)

    def put(self, text: str) -> str:
        return _PLACE.sub(lambda place: self._names.get(place[0], place[0]), text)


def _of_each_call(meanings: list[Meaning], named: _Named) -> Iterator[Part]:
    """The first in full, as it is the most likely one, the others in short."""
    groups = list(grouped(meanings))
    for number, (calls, meaning) in enumerate(groups):
        yield ""
        yield f"{spelled(calls)}: {meaning.errno}"
        if number == 0:
            yield from _full(meaning, named)
        else:
            yield Paragraph(meaning.means)
            for place, cause in enumerate(meaning.causes, 1):
                yield Paragraph(cause.text, _place(place, meaning.causes), "    ")
    if len(groups) > 1:
        yield ""
        yield f"In full: udsproxy explain {groups[1][0][0]} {groups[1][1].errno}"


def _about(found: Found, line: str) -> Iterator[Part]:
    """What the line has besides the error."""
    errno = None if found.symptom is None or found.errno is None else _title(found.errno)
    script = None if found.script is None else f"script {found.script}"
    texts = [f'"{text}"' for text in found.texts]
    parts = [part for part in (errno, found.file, found.path, script, found.request, *texts) if part is not None]
    if found.client is not None:
        parts.append(f"client {found.client}")
    if parts:
        yield Paragraph(f"In {line}: " + ", ".join(parts))
    if found.tcp is not None:
        yield Paragraph(f"It is about TCP ({found.tcp}); what follows is true of Unix sockets.")


def _full(of: Meaning | Symptom, named: _Named) -> Iterator[Part]:
    causes = named.possible(of.causes)
    yield Paragraph(of.means)
    yield ""
    yield "Causes, most likely first:" if len(causes) > 1 else "Cause:"
    for number, cause in enumerate(causes, 1):
        yield Paragraph(named.put(cause.text), _place(number, causes), "    ")
        yield Paragraph(f"tell: {named.put(cause.check)}", "    ", "          ")
        if cause.do:
            yield Paragraph(f"do:   {named.put(cause.do)}", "    ", "          ")
    if of.fault is not None:
        yield ""
        yield Paragraph(
            "Reproduce it, on sockets of your own. After 2 s a client connects; others may connect to the path "
            "that the proxy prints. Ctrl-C ends all of it:"
        )
        yield Command(reproduce(of.fault), "    ")
    if of.see:
        yield f"See: {', '.join('docs/' + page for page in of.see)}"


def _place(number: int, causes: Sequence[Cause]) -> str:
    return f" {number}. " if len(causes) > 1 else "    "


def reproduce(fault: str) -> str:
    """One line for a shell: in a new directory a server, a proxy with the fault in front of it, and a client that
    meets it; nothing of it is left behind."""
    server, client = ("--delay 1s ", "-n 10 -c 10 ") if fault.startswith("workers") else ("", "")
    return (
        f"D=$(mktemp -d); (udsproxy serve {server}$D/s & (sleep 2; udsproxy request {client}$D/p) & "
        f"udsproxy run $D/p $D/s --fault '{fault}'; wait; rm -r $D)"
    )


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


# --- the overview ---


def overview(width: int | None = None) -> str:
    """Each call with its errnos, a line each. ``width``: as of `answer`."""
    lines: list[Part] = ["What an error on a Unix socket means."]
    groups = list(grouped(TABLE))
    for call in CALLS:
        lines += ["", f"{call}()"]
        lines += [_line(meaning) for calls, meaning in groups if calls == (call,)]
    lines += ["", "several calls"]
    lines += [
        _line(meaning, f" ({', '.join(calls) if len(calls) < len(CALLS) - 1 else 'all'})")
        for calls, meaning in groups
        if len(calls) > 1
    ]
    lines += ["", "logged without an errno", *(Paragraph(symptom.words, "  ", "    ") for symptom in SYMPTOMS)]
    lines += ["", "In full: udsproxy explain connect EAGAIN; or paste a line of a log, in quotes."]
    return lay_out(lines, width and min(width, MAX_WIDTH))


def _line(meaning: Meaning, calls: str = "") -> Paragraph:
    return Paragraph(meaning.short + calls, f"  {meaning.errno:<13} ", " " * 16)
