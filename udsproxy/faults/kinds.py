"""Every fault, its attributes, and where it acts.

A *gate* fault acts on our listening socket, before anybody is accepted, by the kernel's own mechanism: so connect()
gives the client the kernel's own errno. As there is no client yet, it cannot depend on one. A *connection* fault
acts on one connection, once it was accepted.

Rules: a kind is a frozen struct; its tag is its name; its first field is what stands after ``=`` in ``kind=value``.
Durations are seconds.
"""

from __future__ import annotations

import errno
from typing import ClassVar, get_args

import msgspec

from udsproxy.units import MAX_BACKLOG, ConfigError


class Kind(msgspec.Struct, frozen=True, tag=True):
    """What all faults have."""

    @property
    def kind(self) -> str:
        """Its name."""
        return str(self.__struct_config__.tag)


class Gate(Kind, frozen=True, tag=True):
    """Acts on the listening socket."""


class Backlog(Gate, frozen=True, tag="backlog"):
    """Our accept queue has this limit: ``length`` + 1 clients wait, the next gets EAGAIN."""

    length: int

    def __post_init__(self) -> None:
        if not 0 <= self.length <= MAX_BACKLOG:
            raise ConfigError(f"backlog {self.length}: a number from 0 to {MAX_BACKLOG} is needed")


class Workers(Gate, frozen=True, tag="workers"):
    """At most ``count`` connections are accepted at the same time: a pool of another size."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"workers {self.count}: 1 or more are needed; hold is for none")


class Eagain(Gate, frozen=True, tag="eagain"):
    """connect() fails with EAGAIN: always, or ``share`` of the time."""

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"eagain {self.share:g}: a share of the time is needed, more than 0 and at most 1")


class Shut(Gate, frozen=True, tag=True):
    """connect() fails with ``number``."""

    number: ClassVar[int]


class Refuse(Shut, frozen=True, tag="refuse"):
    """The socket's file is there, and nobody listens."""

    number: ClassVar[int] = errno.ECONNREFUSED


class Missing(Shut, frozen=True, tag="missing"):
    """There is no file."""

    number: ClassVar[int] = errno.ENOENT


class Deny(Shut, frozen=True, tag="deny"):
    """Nobody may use the socket's file (but root: for root nobody listens)."""

    number: ClassVar[int] = errno.EACCES


class Hold(Gate, frozen=True, tag="hold"):
    """Nobody is accepted: who comes waits in the queue, until that is full."""


class Connection(Kind, frozen=True, tag=True):
    """Acts on one connection."""


class Delay(Connection, frozen=True, tag=True):
    """A connection begins later."""

    delay_s: float

    def __post_init__(self) -> None:
        if self.delay_s < 0:
            raise ConfigError("a delay cannot be negative")


class AcceptDelay(Delay, frozen=True, tag="accept-delay"):
    """The accept loop rests before it goes on: who comes next waits in the queue."""


class ConnectDelay(Delay, frozen=True, tag="connect-delay"):
    """Accepted, but nothing passes for so long."""


class Close(Connection, frozen=True, tag="close"):
    """Accepted, and closed in order."""


class Reset(Connection, frozen=True, tag="reset"):
    """Accepted, and reset as soon as the client has sent something: close() with unread data makes the kernel
    report ECONNRESET (net/unix/af_unix.c, unix_release_sock)."""


AnyKind = Backlog | Workers | Eagain | Refuse | Missing | Deny | Hold | AcceptDelay | ConnectDelay | Close | Reset

KINDS: dict[str, type[Kind]] = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyKind)}
"""By name."""

ALIASES = {"down": "refuse", "reset_peer": "reset"}
"""Names of toxiproxy's that mean the same."""
