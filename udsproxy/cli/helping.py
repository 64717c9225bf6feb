"""``udsproxy help``, and what ``--help`` prints: the pages of cyclopts, their text filled, with our examples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from textwrap import fill, indent
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.help import DefaultFormatter, HelpPanel, InlineText
from rich.console import Console, ConsoleOptions
from rich.text import Text

from udsproxy.cli import completion
from udsproxy.cli.common import DONE, USAGE, Failure
from udsproxy.cli.mistakes import unknown_command
from udsproxy.cli.pages import PAGES
from udsproxy.cli.people import width
from udsproxy.layout import fold_command

_MAX_WIDTH = 100
"""Columns: longer lines are hard to read."""


class Formatter(DefaultFormatter):
    """Lines are as long as the terminal has room for, and not as they are in the source."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        entries = [each.copy(description=Text(filled(each.description))) for each in panel.entries]
        super().__call__(console, options, panel.copy(entries=entries))

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        paragraphs = [fill(each, console.width) for each in filled(description).split("\n\n")]
        super().render_description(console, options, Text("\n\n".join(paragraphs) + "\n"))


def filled(text: InlineText | Text | str | None) -> str:
    """Each paragraph as one line, with empty lines between them."""
    found = text.primary_renderable if isinstance(text, InlineText) else text
    plain = found.plain if isinstance(found, Text) else str(found or "")
    return "\n\n".join(" ".join(each.split()) for each in re.split(r"\n\s*\n", plain.strip()))


def usage_of(command: Sequence[str]) -> list[str]:
    """The ways in which a command is called, whole."""
    return [" ".join(filter(None, ("udsproxy", *command, each))) for each in PAGES[tuple(command)].usage]


def find(app: App, command: Sequence[str]) -> App:
    """What the help of a command is made of. Raises `Failure`: there is no such command."""
    known, apps, unknown = app.parse_commands(list(command))
    if unknown or tuple(known) not in PAGES:
        raise Failure(USAGE, f"{unknown_command(command[-1], tuple(known), app)} (see udsproxy --help)")
    for name in apps[-1]:
        apps[-1][name]  # it is imported, so that its help is known
    return apps[-1]


def command_of(app: App, words: Sequence[str]) -> Sequence[str]:
    """The command that a line with ``--help`` begins with: its arguments may stand before that. A word that should
    be a command and is none stays, so that it is refused."""
    known, apps, _ = app.parse_commands(list(words))
    has_commands = any(not name.startswith("-") for name in apps[-1])
    return words if has_commands else known


def print_help(app: App, command: Sequence[str]) -> None:
    """On standard output. Raises `Failure`: there is no such command."""
    found = find(app, command)
    found.usage = "Usage: " + "\n       ".join(usage_of(command))
    app.help_formatter = Formatter()
    console = Console(highlight=False)
    console.width = min(console.width, _MAX_WIDTH)
    app.help_print(list(command), console=console)
    console.print(Text("\nExamples:", style="bold"))
    for example in PAGES[tuple(command)].examples:
        console.print(Text(indent(fill(example.does, console.width - 2), "  ")), soft_wrap=True)
        console.print(Text(fold_command(example.line, width(), 8, "    ")), soft_wrap=True)  # to be copied


Command = Annotated[str, Parameter(name="COMMAND", completer=completion.commands)]


def help_(*command: Command) -> int:
    """Print the help of a command.

    Parameters
    ----------
    command
        The command, and the command of that; without it, all commands are listed.
    """
    from udsproxy.cli import app

    print_help(app, command)
    return DONE
