"""The command line: one module a command; parsing and exit codes, no logic.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 bad configuration, 4 could not listen or take over.
Every error is one line on standard error.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from cyclopts import App, CycloptsError

from udsproxy.cli import mistakes, people
from udsproxy.cli.common import DONE, USAGE, Failure
from udsproxy.cli.demo import demo
from udsproxy.cli.doctor import doctor
from udsproxy.cli.explain import explain
from udsproxy.cli.fault import fault
from udsproxy.cli.request import request
from udsproxy.cli.run import run
from udsproxy.cli.serve import serve
from udsproxy.cli.state import state
from udsproxy.cli.tap import USAGE_LINE, tap

_INTERRUPTED = 130
"""What a shell shows of a command that SIGINT has ended."""

app = App(
    name="udsproxy",
    help="See, explain and reproduce what happens on a Unix domain socket.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
_COMMANDS: tuple[Callable[..., int], ...] = (run, tap, state, doctor, explain, request, serve, demo)
for _sort_key, _command in enumerate(_COMMANDS):
    app.command(_command, sort_key=_sort_key, usage=USAGE_LINE if _command is tap else None)
fault.sort_key = 5
app.command(fault)


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
    if "command" in unparsed:
        bound.arguments["command"] = None if after is None else tuple(after)
    code = command(*bound.args, **bound.kwargs)
    return code if isinstance(code, int) else DONE
