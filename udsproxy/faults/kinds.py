"""Every fault, its attributes, and where it acts.

A *gate* fault acts on our listening socket, before anybody is accepted, by the kernel's own mechanism: so
connect() gives the client the kernel's own errno. As there is no client yet, it cannot depend on one. A *stream*
fault acts on the bytes of a connection, or of a request on it. A *FastCGI* fault acts on a request.

Rules: a kind is a frozen struct; its tag is its name; its first field is what stands after ``=`` in ``kind=value``.
Durations are seconds, sizes bytes.
"""

from __future__ import annotations

import errno
from http import HTTPStatus
from typing import Annotated, ClassVar, Literal, get_args

import msgspec

from udsproxy.units import MAX_BACKLOG, MAX_BYTES, MAX_SECONDS, ConfigError

Size = Annotated[int, "bytes"]
Way = Literal["c2s", "s2c", "both"]


class Kind(msgspec.Struct, frozen=True, tag=True, tag_field="kind", forbid_unknown_fields=True):
    """What all faults have."""

    def __post_init__(self) -> None:
        """Raises `ConfigError`."""
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            most = MAX_SECONDS if field.name.endswith("_s") else MAX_BYTES
            if isinstance(value, int | float) and not 0 <= value <= most:  # (NaN is not, either)
                raise ConfigError(f"{self.kind}: {value} cannot be meant; 0 to {most:g} can")

    @property
    def kind(self) -> str:
        """Its name."""
        return str(self.__struct_config__.tag)


class Gate(Kind, frozen=True, tag=True):
    """Acts on the listening socket."""


class Backlog(Gate, frozen=True, tag="backlog"):
    """Our accept queue has this backlog: one client more than that can wait, and the next one gets EAGAIN."""

    length: int

    def __post_init__(self) -> None:
        if not 0 <= self.length <= MAX_BACKLOG:
            raise ConfigError(f"backlog {self.length}: a number from 0 to {MAX_BACKLOG} is needed")


class Workers(Gate, frozen=True, tag="workers"):
    """At most this number of connections are open at the same time, as with a pool of this size."""

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_BACKLOG:
            raise ConfigError(f"workers {self.count}: 1 or more are needed; hold is for none")


class Eagain(Gate, frozen=True, tag="eagain"):
    """connect() fails with EAGAIN: always, or for this share of the time."""

    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"eagain {self.share:g}: a share of the time is needed, more than 0 and at most 1")


class Shut(Gate, frozen=True, tag=True):
    """connect() fails with ``number``."""

    number: ClassVar[int]


class Refuse(Shut, frozen=True, tag="refuse"):
    """connect() fails with ECONNREFUSED: the file of the socket exists, but nobody listens."""

    number: ClassVar[int] = errno.ECONNREFUSED


class Missing(Shut, frozen=True, tag="missing"):
    """connect() fails with ENOENT: there is no file."""

    number: ClassVar[int] = errno.ENOENT


class Deny(Shut, frozen=True, tag="deny"):
    """connect() fails with EACCES: nobody has the right to use the socket. (Root has it, and gets ECONNREFUSED.)"""

    number: ClassVar[int] = errno.EACCES


class Hold(Gate, frozen=True, tag="hold"):
    """No connection is accepted: clients wait in the queue until it is full."""


class AcceptDelay(Kind, frozen=True, tag="accept-delay"):
    """We wait for this time after each accept(), while the next client waits in the queue."""

    delay_s: float


# --- what acts on bytes ---


class Stream(Kind, frozen=True, tag=True):
    """Acts on bytes, or on the connection while they pass."""

    @property
    def ways(self) -> tuple[str, ...]:
        """The directions that it acts on."""
        return ("c2s", "s2c")


class ConnectDelay(Stream, frozen=True, tag="connect-delay"):
    """The connection is accepted, but nothing passes for this time."""

    delay_s: float


class Close(Stream, frozen=True, tag="close"):
    """The connection is closed in order, this time after it began."""

    after_s: float = 0.0

    @property
    def ways(self) -> tuple[str, ...]:
        return ("s2c",)


class Reset(Stream, frozen=True, tag="reset"):
    """The connection is reset, this time after the first bytes of the client. (Closing with unread data is what
    makes the kernel report ECONNRESET, see unix_release_sock() in net/unix/af_unix.c, and only the client can send
    that.)"""

    after_s: float = 0.0

    @property
    def ways(self) -> tuple[str, ...]:
        return ("c2s",)


class Directed(Stream, frozen=True, tag=True, kw_only=True):
    """Acts on what one side sends, or both do."""

    direction: Way = "s2c"

    @property
    def ways(self) -> tuple[str, ...]:
        return ("c2s", "s2c") if self.direction == "both" else (self.direction,)


Distribution = Literal["uniform", "normal", "pareto"]


class Latency(Directed, frozen=True, tag="latency"):
    """Everything arrives later by this time. With ``jitter`` the delay varies: uniform by up to ``jitter`` more or
    less, normal and pareto with ``jitter`` as the standard deviation, as in tc-netem(8). The order is kept."""

    delay_s: float
    jitter_s: float = 0.0
    distribution: Distribution = "uniform"


class Bandwidth(Directed, frozen=True, tag="bandwidth"):
    """At most this number of bytes pass per second."""

    rate: Size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate < 1:
            raise ConfigError("bandwidth 0: at least 1B is needed; stall is for nothing at all")


class Slicer(Directed, frozen=True, tag="slicer"):
    """Bytes arrive in pieces of this size, give or take ``variation``, and ``delay`` apart."""

    size: Size
    variation: Size = 0
    delay_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size - self.variation < 1:
            raise ConfigError("slicer: a piece has at least one byte; size must be more than variation")


class Limit(Directed, frozen=True, tag="limit"):
    """After this number of bytes, what ``then`` says happens."""

    nbytes: Size
    then: Literal["close", "reset", "half-close", "stall"] = "close"


class Stall(Directed, frozen=True, tag="stall"):
    """From the first bytes on nothing passes for this time, and then what ``then`` says happens. Without a time,
    nothing passes any more."""

    delay_s: float | None = None
    then: Literal["pass", "close", "reset"] = "pass"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delay_s == 0:
            raise ConfigError("stall: more than 0s is needed; without a time it is for good")
        if self.delay_s is None and self.then != "pass":
            raise ConfigError(f"stall: when is it to {self.then}? write stall=5s,then={self.then}")


class Corrupt(Directed, frozen=True, tag="corrupt"):
    """This share of the bytes is changed."""

    share: float = 0.01

    def __post_init__(self) -> None:
        if not 1e-12 <= self.share <= 1:
            raise ConfigError(f"corrupt {self.share:g}: a share of the bytes is needed, more than 0 and at most 1")


class SlowClose(Directed, frozen=True, tag="slow-close"):
    """The end of the connection arrives later by this time."""

    delay_s: float


class HalfClose(Directed, frozen=True, tag="half-close"):
    """One direction ends, this time after its first bytes, although its sender has not ended it. What it sends
    after that is lost; the other direction goes on."""

    after_s: float = 0.0


# --- what acts on FastCGI ---


class FastCGI(Kind, frozen=True, tag=True):
    """Acts on a request, where the bytes are FastCGI."""


class Overloaded(FastCGI, frozen=True, tag="fcgi-overloaded"):
    """The request is answered with END_REQUEST and FCGI_OVERLOADED (spec 5.5). The upstream does not see it."""


class Status(FastCGI, frozen=True, tag="fcgi-status"):
    """The request is answered with this status. The upstream does not see it."""

    status: int

    def __post_init__(self) -> None:
        if self.status not in {each.value for each in HTTPStatus if each >= 200}:
            raise ConfigError(f"fcgi-status {self.status}: it is not an HTTP status (503 is one)")


class Stderr(FastCGI, frozen=True, tag="fcgi-stderr"):
    """The answer begins with this text in STDERR records (spec 5.3)."""

    text: str

    def __post_init__(self) -> None:
        if not self.text or len(self.text) > MAX_TEXT:
            raise ConfigError(f"fcgi-stderr: a text is needed, of at most {MAX_TEXT} characters")


class Truncate(FastCGI, frozen=True, tag="fcgi-truncate"):
    """The connection is closed in the place of the answer's END_REQUEST (spec 5.5). With ``nbytes`` STDOUT ends
    early, too: before the record that would exceed that number (spec 3.3)."""

    nbytes: Size | None = None


class Version(FastCGI, frozen=True, tag="fcgi-version"):
    """The answer's first record has this version in its header (spec 3.3)."""

    version: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.version <= 255 or self.version == 1:
            raise ConfigError(f"fcgi-version {self.version}: 0 to 255 are needed, and 1 is the right one")


class Type(FastCGI, frozen=True, tag="fcgi-type"):
    """The answer's first record has this type (spec 8). Default: 3, END_REQUEST."""

    type: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.type <= 255:
            raise ConfigError(f"fcgi-type {self.type}: 0 to 255 are needed")


class HeaderTooBig(FastCGI, frozen=True, tag="fcgi-header-too-big"):
    """The answer begins with a CGI header of this length."""

    size: Size = 65536

    def __post_init__(self) -> None:
        if not 16 <= self.size <= MAX_TEXT:
            raise ConfigError(f"fcgi-header-too-big {self.size}: 16 to {MAX_TEXT} bytes are needed")


MAX_TEXT = 1024 * 1024
"""What we put into an answer at most."""

AnyGate = Backlog | Workers | Eagain | Refuse | Missing | Deny | Hold
AnyStream = (
    ConnectDelay | Close | Reset | Latency | Bandwidth | Slicer | Limit | Stall | Corrupt | SlowClose | HalfClose
)
AnyFastCGI = Overloaded | Status | Stderr | Truncate | Version | Type | HeaderTooBig
AnyKind = AnyGate | AcceptDelay | AnyStream | AnyFastCGI

KINDS: dict[str, type[Kind]] = {str(kind.__struct_config__.tag): kind for kind in get_args(AnyKind)}
"""By name."""
