"""What the commands share: exit codes, the failure that ends one, and arguments of more than one command."""

from __future__ import annotations

import os

from udsproxy import endpoints, units
from udsproxy.endpoints import Endpoint
from udsproxy.inspection.taps import SUFFIX

DONE, FAILED, USAGE, CONFIGURATION, LISTENING = range(5)


class Failure(Exception):
    """Ends the command with this line and this exit code."""

    def __init__(self, code: int, line: str) -> None:
        super().__init__(line)
        self.code = code


def require_proc() -> None:
    """Sockets are reached by /proc/self/fd, limits are read there. Raises `Failure`, before anything is touched."""
    if not os.path.exists("/proc/self/fd"):
        raise Failure(FAILED, "/proc is not mounted here, and this needs it: mount -t proc proc /proc")


def endpoint_argument(text: str) -> Endpoint:
    """An endpoint from the command line. Raises `Failure`."""
    try:
        return endpoints.parse(text)
    except endpoints.EndpointError as error:
        raise Failure(USAGE, str(error)) from None


def address_argument(text: str) -> str:
    """The path, or ``@NAME``, of a socket that is looked at. Raises `Failure`."""
    try:
        return endpoints.address_of(text)
    except endpoints.EndpointError as error:
        raise Failure(USAGE, str(error)) from None


def refuse_set_aside(what: str, path: str) -> None:
    """Raises `Failure` where a path is named as one at which a tap puts a server's socket: that comes and goes with
    the tap."""
    tapped = path.removesuffix(SUFFIX)
    if path != tapped:
        raise Failure(
            LISTENING,
            f"cannot {what} {path}: names that end in {SUFFIX} belong to sockets that a tap has put aside; use "
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
