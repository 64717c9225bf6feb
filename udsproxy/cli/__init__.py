"""The command line: one module per command; parsing and exit codes, no logic.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 bad configuration, 4 could not listen or take over.
Every error is one line on standard error. A command's module is imported when the command is called.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from cyclopts import App, CycloptsError, Group

from udsproxy import __version__
from udsproxy.cli import mistakes, people
from udsproxy.cli.common import DONE, USAGE, Failure

_INTERRUPTED = 130
"""What a shell shows of a command that SIGINT has ended."""

_SEE = Group.create_ordered("See and explain")
_REPRODUCE = Group.create_ordered("Reproduce")
_HELP = Group.create_ordered("Help")

app = App(
    name="udsproxy",
    help="See, explain and reproduce what happens on a Unix domain socket.",
    help_format="plaintext",
    version=__version__,
    version_flags=["--version", "-V"],
    suppress_keyboard_interrupt=False,
    group_commands=_HELP,
)
app["--help"].help = "Show this help."
app["--version"].help = "Print the version."
_COMMANDS = {
    "tap": _SEE,
    "run": _SEE,
    "state": _SEE,
    "doctor": _SEE,
    "explain": _SEE,
    "fault": _REPRODUCE,
    "request": _REPRODUCE,
    "serve": _REPRODUCE,
    "demo": _REPRODUCE,
    "help": _HELP,
    "man": _HELP,
    "completion": _HELP,
}
_ELSEWHERE = {"help": "helping:help_"}
for _sort_key, (_name, _group) in enumerate(_COMMANDS.items()):
    _where = f"udsproxy.cli.{_ELSEWHERE.get(_name, f'{_name}:{_name}')}"
    app.command(_where, name=_name, sort_key=_sort_key, group=_group)


def main() -> NoReturn:
    """Run the command, and exit."""
    people.prepare()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # some commands have something to tidy up
        code = _run(sys.argv[1:])
    except (CycloptsError, mistakes.UnknownOption) as error:
        people.say(mistakes.line_of(error, app))
        code = USAGE
    except Failure as failure:
        people.say(str(failure))
        code = failure.code
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BaseExceptionGroup as group:  # out of a nursery
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        code = _INTERRUPTED
    code = people.finish(code)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the interpreter's end takes a moment, too
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Raises `Failure`, CycloptsError."""
    after: list[str] | None = None
    if words[:1] == ["tap"] and "--" in words:
        # What follows is a command, and nothing of it ours; what comes before is ours, and no command.
        there = words.index("--")
        words, after = words[:there], words[there + 1 :]
    command, bound, unparsed = app.parse_args(words, exit_on_error=False, print_error=False)
    if command == app.help_print:
        from udsproxy.cli.helping import command_of, print_help

        print_help(app, command_of(app, bound.arguments["tokens"]))
        return DONE if set(words).intersection(app.help_flags) else USAGE  # no command: there is nothing to do
    if "command" in unparsed:
        bound.arguments["command"] = None if after is None else tuple(after)
    code = command(*bound.args, **bound.kwargs)
    return code if isinstance(code, int) else DONE
