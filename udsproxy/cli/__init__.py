"""The command line: one module a command; parsing and exit codes, no logic.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 bad configuration, 4 could not listen or take over.
Every error is one line on standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from cyclopts import App, CycloptsError

from udsproxy.cli.common import DONE, FAILED, USAGE, Failure
from udsproxy.cli.demo import demo
from udsproxy.cli.doctor import doctor
from udsproxy.cli.explain import explain
from udsproxy.cli.fault import fault
from udsproxy.cli.request import request
from udsproxy.cli.run import run
from udsproxy.cli.serve import serve
from udsproxy.cli.state import state
from udsproxy.cli.tap import tap
from udsproxy.events import printable

app = App(
    name="udsproxy",
    help="See, explain and reproduce what happens on a Unix domain socket.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
_COMMANDS: tuple[Callable[..., int], ...] = (run, tap, state, doctor, explain, request, serve, demo)
for _sort_key, _command in enumerate(_COMMANDS):
    app.command(_command, sort_key=_sort_key)
fault.sort_key = 5
app.command(fault)


def main() -> NoReturn:
    """Run the command, and exit."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # some commands have something to tidy up
        code = _run()
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the interpreter's end takes a moment, too
    sys.exit(code)


def _run() -> int:
    """The exit code."""
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _complain(f"{_one_line(str(error))} (see udsproxy --help)")
        return USAGE
    except Failure as failure:
        _complain(str(failure))
        return failure.code
    except BrokenPipeError:
        # What is left in the buffer would be written once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    return code if isinstance(code, int) else DONE


def _complain(line: str) -> None:
    print(f"udsproxy: {printable(line)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
