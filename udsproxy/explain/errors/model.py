"""What an entry of the table of errors is."""

from __future__ import annotations

import errno as numbers
from typing import Literal, get_args

import msgspec

from udsproxy.events import errno_message

Call = Literal["connect", "accept", "send", "recv", "bind", "listen"]
CALLS: tuple[Call, ...] = get_args(Call)


class Cause(msgspec.Struct, frozen=True):
    """One cause; ``check``: how to tell that it is this one; ``do``: what to do about it.

    ``only``: it can be the cause only for a socket with a path, or only for one with an abstract name. ``errno``:
    only where the line has this one.
    """

    text: str
    check: str
    do: str = ""
    only: Literal["path", "abstract"] | None = None
    errno: str | None = None


class Meaning(msgspec.Struct, frozen=True):
    """What ``errno`` means when ``call`` returns it on a Unix socket.

    ``fault`` is what reproduces it (docs/faults.md has the spelling), ``see`` pages of docs/, ``unprovoked`` why no
    test provokes it.
    """

    call: Call
    errno: str
    means: str
    causes: tuple[Cause, ...]
    fault: str | None = None
    see: tuple[str, ...] = ()
    unprovoked: str = ""

    @property
    def number(self) -> int:
        """11 for EAGAIN."""
        return number_of(self.errno)

    @property
    def words(self) -> str:
        """The kernel's: ``Resource temporarily unavailable`` for EAGAIN."""
        return errno_message(self.number)

    @property
    def short(self) -> str:
        """The first sentence."""
        return self.means.split(". ")[0].removesuffix(".") + "."


def number_of(name: str) -> int:
    """11 for EAGAIN. Raises `KeyError` where Linux has no such errno."""
    try:
        return int(getattr(numbers, name))
    except (AttributeError, ValueError):
        raise KeyError(name) from None
