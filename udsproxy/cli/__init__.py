"""The command line: one module a command; parsing and exit codes, no logic.

Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 bad configuration, 4 could not listen or take over.
Every error is one line on standard error.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from cyclopts import App, CycloptsError

from udsproxy import config, endpoints
from udsproxy.endpoints import Endpoint

DONE, FAILED, USAGE, CONFIGURATION, LISTENING = range(5)

app = App(
    name="udsproxy",
    help="See, explain and reproduce what happens on a Unix domain socket.",
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
# By name, so that a command loads only what it needs; their first lines are said here for the same reason.
for _sort_key, (_command, _help) in enumerate(
    (
        ("run", "Between two sockets: listen on one, forward to the other, show what flows."),
        ("request", "Send FastCGI requests: one, or a load."),
        ("serve", "A small pre-forking FastCGI server, to have something to call."),
        ("demo", "A full accept queue, made and seen on this machine alone; takes a few seconds."),
    )
):
    app.command(f"udsproxy.cli.{_command}:{_command}", help=_help, sort_key=_sort_key)


class Failure(Exception):
    """Ends the command with this line and this exit code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def endpoint_argument(text: str) -> Endpoint:
    """An endpoint from the command line. Raises `Failure`."""
    try:
        return endpoints.parse(text)
    except endpoints.EndpointError as error:
        raise Failure(USAGE, str(error)) from None


def duration_option(option: str, text: str) -> float:
    """Seconds from an option of the command line. Raises `Failure`."""
    try:
        return config.parse_duration(text)
    except config.ConfigError as error:
        raise Failure(USAGE, f"{option}: {error}") from None


def size_option(option: str, text: str) -> int:
    """Bytes from an option of the command line. Raises `Failure`."""
    try:
        return config.parse_size(text)
    except config.ConfigError as error:
        raise Failure(USAGE, f"{option}: {error}") from None


def main() -> NoReturn:
    """The entry point ``udsproxy``."""
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _complain(f"{_one_line(str(error))} (see udsproxy --help)")
        sys.exit(USAGE)
    except Failure as failure:
        _complain(str(failure))
        sys.exit(failure.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else DONE)


def _complain(line: str) -> None:
    print(f"udsproxy: {line}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
