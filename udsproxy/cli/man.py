"""``udsproxy man``: man pages, made of what ``--help`` prints (man(7) has the macros).

Rule: what is text is escaped (`_escaped`), and no line of it begins with what roff would take for a request.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Annotated, Any

from cyclopts import App
from cyclopts.help import HelpEntry, HelpPanel
from rich.console import Console, ConsoleOptions

from udsproxy import __version__
from udsproxy.cli.arguments import OTHER, FileName, option
from udsproxy.cli.common import DONE, FAILED, USAGE, Failure
from udsproxy.cli.helping import Command, filled, find, usage_of
from udsproxy.cli.mistakes import commands_of
from udsproxy.cli.pages import PAGES
from udsproxy.cli.people import show

_SECTION = 1
_MAX_LINE = 70
"""Of the source."""
_EXIT_STATUS = (
    ("0", "Done."),
    ("1", "It failed while it ran."),
    ("2", "Wrong usage."),
    ("3", "Bad configuration."),
    ("4", "It could not listen, or take the place of a socket."),
)
_FILES = (
    ("/run/udsproxy/PID.control", "The control socket of a proxy that root runs."),
    ("$XDG_RUNTIME_DIR/udsproxy/PID.control", "That of a proxy that another user runs."),
    ("PATH.udsproxy", "The socket of the server, while udsproxy tap is in its place."),
)


class _Collected:
    """What cyclopts would print (a HelpFormatter)."""

    def __init__(self) -> None:
        self.description = ""
        self.panels: list[HelpPanel] = []

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        if panel.entries:
            self.panels.append(panel)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Ours is taken (`usage_of`)."""

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        self.description = filled(description)


def man(*command: Command, directory: Annotated[FileName | None, option(OTHER, "DIRECTORY")] = None) -> int:
    """Print a man page, or install all of them.

    Parameters
    ----------
    command
        The command that it is about; without it, udsproxy as a whole.
    directory
        Write the pages of all commands into this directory, which is made if it does not exist.
    """
    from udsproxy.cli import app

    if directory is None:
        show(page_of(app, command))
        return DONE
    if command:
        raise Failure(USAGE, "--directory is for all pages: leave out COMMAND")
    try:
        _write_all(app, directory)
    except OSError as error:
        raise Failure(FAILED, f"cannot write man pages to {directory}: {error.strerror}") from None
    return DONE


def _write_all(app: App, directory: str) -> None:
    """Each is a new file under its name, so that no link that is there is followed. Raises OSError."""
    os.makedirs(directory, exist_ok=True)
    at = os.open(directory, os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for command in ((), *commands_of(app)):
            _write(at, f"{_name(command)}.{_SECTION}", page_of(app, command) + "\n")
    finally:
        os.close(at)


def _write(at: int, name: str, text: str) -> None:
    """A file of that name in the directory, whole or not at all. Raises OSError."""
    new = f".{name}.{os.getpid()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=at)
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write(text)
            os.fchmod(fd, 0o644)
        os.replace(new, name, src_dir_fd=at, dst_dir_fd=at)
    except OSError:
        os.unlink(new, dir_fd=at)
        raise


def page_of(app: App, command: Sequence[str]) -> str:
    """The page of a command, as roff. Raises `Failure`: there is no such command."""
    find(app, command)
    collected = _Collected()
    app.help_formatter = collected
    app.help_print(list(command), console=Console(file=io.StringIO()))
    return "\n".join(_lines(app, tuple(command), collected))


def _lines(app: App, command: tuple[str, ...], found: _Collected) -> Iterator[str]:
    summary, _, more = found.description.partition("\n\n")
    yield f'.TH {_escaped(_name(command).upper())} {_SECTION} "" "udsproxy {__version__}" "User Commands"'
    yield from (".nh", ".ad l")
    yield from (".SH NAME", rf"{_escaped(_name(command))} \- {_escaped(summary.rstrip('.'))}", ".SH SYNOPSIS")
    for number, line in enumerate(usage_of(command)):
        yield from ([".br"] if number else []) + [_escaped(line)]
    yield from (".SH DESCRIPTION", *_paragraphs(more or summary))
    for panel in found.panels:
        yield f".SH {_quoted(str(panel.title).upper())}"
        for entry in panel.entries:
            yield from _entry(entry)
    yield ".SH EXAMPLES"
    for number, example in enumerate(PAGES[command].examples):
        yield from ([".PP"] if number else []) + [_escaped(example.does)]
        yield from (".PP", ".RS 4", ".nf", _escaped(example.line), ".fi", ".RE")
    yield from _list("EXIT STATUS", _EXIT_STATUS)
    yield from _list("FILES", _FILES)
    pages = sorted({(), *commands_of(app)} - {command})
    yield from (".SH SEE ALSO", ",\n".join(f".BR {_escaped(_name(each))} ({_SECTION})" for each in pages))


def _entry(entry: HelpEntry) -> Iterator[str]:
    yield ".TP"
    yield rf"\fB{_escaped(', '.join(entry.display_labels_with_metavar))}\fR"
    said = [filled(entry.description)]
    if entry.choices:
        said.append(f"Choices: {', '.join(entry.choices)}.")
    if entry.default is not None:
        said.append(f"Default: {entry.default}.")
    yield _text(" ".join(said))


def _list(title: str, rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f".SH {title}"
    for name, meaning in rows:
        yield from (".TP", rf"\fB{_escaped(name)}\fR", _text(meaning))


def _paragraphs(text: str) -> Iterator[str]:
    for number, each in enumerate(text.split("\n\n")):
        yield from ([".PP"] if number else []) + [_text(each)]


def _name(command: Sequence[str]) -> str:
    return "-".join(("udsproxy", *command))


def _text(paragraph: str) -> str:
    lines = wrap(paragraph, _MAX_LINE, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(_escaped, lines))


def _quoted(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Text of one line, as roff sets it: ASCII, with hyphens and quotes that can be copied."""
    special = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
    line = "".join(special.get(c, c if c.isascii() else f"\\[u{ord(c):04X}]") for c in text)
    return rf"\&{line}" if line.startswith(".") else line
