"""What is wrong with a command line, in one line that names what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from cyclopts import App, CycloptsError, UnknownCommandError, UnknownOptionError, UnusedCliTokensError

from udsproxy.events import printable

_MAX_SHOWN = 60
_LIKE = 0.5
_LIKE_OPTION = 0.6
"""How much what was meant resembles what was written, at least (difflib). There are few commands to be meant."""


class UnknownOption(Exception):
    """A command that takes any text has found an option in it that it does not know."""

    def __init__(self, written: str, command: tuple[str, ...]) -> None:
        super().__init__(written)
        self.written = written
        self.command_chain = command


def line_of(error: CycloptsError | UnknownOption, app: App) -> str:
    """The whole line."""
    command = tuple(error.command_chain or ())
    if isinstance(error, UnknownOption):
        line = unknown_option(error.written, command, app)
    elif isinstance(error, UnknownOptionError):
        line = unknown_option(error.token.keyword or error.token.value, command, app)
    elif isinstance(error, UnknownCommandError):
        written = (error.unused_tokens or [""])[0]
        is_option = written.startswith("-")
        line = unknown_option(written, command, app) if is_option else unknown_command(written, command, app)
    elif isinstance(error, UnusedCliTokensError):
        line = f"{shown((error.unused_tokens or [''])[0])} is one argument too many"
        if command == ("tap",):
            line += "; a command stands after --"
    else:
        line = printable(" ".join(str(error).split()))
    return f"{line} (see {' '.join(('udsproxy', *command))} --help)"


def unknown_option(written: str, command: tuple[str, ...], app: App) -> str:
    """``--logg``: the nearest option that this command has, or the commands that have it."""
    name = written.partition("=")[0]
    own = options_of(app, command)
    others = [chain for chain in commands_of(app) if chain != command and name in options_of(app, chain)]
    line = f"unknown option {shown(name)}"
    if others and name not in ("--help", "-h", "--version"):
        has = " and ".join([", ".join(" ".join(each) for each in others[:-1])] if others[1:] else [])
        last = " ".join(others[-1])
        return f"{line}; udsproxy {f'{has} and {last} have' if has else f'{last} has'} it"
    if not name.startswith("--"):
        return line
    return line + _nearest(name[2:], (each[2:] for each in own if each.startswith("--")), _LIKE_OPTION, "--")


def options_of(app: App, command: tuple[str, ...]) -> list[str]:
    """The options that a command has, under all their names."""
    found = app
    for name in command:
        found = found[name]
    names = [name for name in found if name.startswith("-")]
    if found.default_command is not None:
        arguments = found.assemble_argument_collection()
        names += [name for each in arguments if each.parse for name in each.names if name.startswith("-")]
    return names


def commands_of(app: App, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All commands: ``("tap",)``, ``("fault", "list")``."""
    for name in app:
        if not name.startswith("-"):
            yield (*above, name)
            yield from commands_of(app[name], (*above, name))


def unknown_command(written: str, command: tuple[str, ...], app: App) -> str:
    """``tab``: the nearest command that ``command`` has, or all of them."""
    found = app
    for name in command:
        found = found[name]
    names = [name for name in found if not name.startswith("-")]
    others = f": there are {', '.join(names)}" if names else f": udsproxy {' '.join(command)} has none"
    return f"unknown command {shown(written)}" + (_nearest(written, names) or others)


def _nearest(written: str, names: Iterable[str], like: float = _LIKE, before: str = "") -> str:
    found = difflib.get_close_matches(written, list(names), n=1, cutoff=like)
    return f"; did you mean {before}{found[0]}?" if found else ""


def shown(text: str) -> str:
    """Of what was typed, as much as a line has room for."""
    safe = printable(text)
    return safe if len(safe) <= _MAX_SHOWN else safe[: _MAX_SHOWN - 3] + "..."
