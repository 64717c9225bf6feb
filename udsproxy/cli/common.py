"""What the commands share: exit codes, the failure that ends one, and arguments of more than one command."""

from __future__ import annotations

from udsproxy import endpoints, units
from udsproxy.endpoints import Endpoint
from udsproxy.inspection.taps import SUFFIX

DONE, FAILED, USAGE, CONFIGURATION, LISTENING = range(5)


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


def refuse_set_aside(what: str, path: str) -> None:
    """Raises `Failure` where a path is named as one at which a tap puts a server's socket: that comes and goes with
    the tap."""
    tapped = path.removesuffix(SUFFIX)
    if path != tapped:
        raise Failure(
            LISTENING,
            f"cannot {what} {path}: a name that ends in {SUFFIX} is of a socket that a tap has put aside; take "
            f"{tapped} itself, or another name (if no tap runs: udsproxy tap --restore {tapped})",
        )


def duration_option(option: str, text: str) -> float:
    """Seconds from an option of the command line. Raises `Failure`."""
    try:
        return units.parse_duration(text)
    except units.ConfigError as error:
        raise Failure(USAGE, f"{option}: {error}") from None


def size_option(option: str, text: str) -> int:
    """Bytes from an option of the command line. Raises `Failure`."""
    try:
        return units.parse_size(text)
    except units.ConfigError as error:
        raise Failure(USAGE, f"{option}: {error}") from None
