"""Every record that leaves the traffic's path.

Rules:

* An event is a frozen value: a name, when it happened, and what is known. What is not known is None, and
  then absent from every output.
* ``at`` is CLOCK_MONOTONIC in nanoseconds. Sinks turn it into RFC 3339 UTC. Durations are float seconds.
* Text that came from a peer has been through `printable` before it is in an event, and secrets are masked by
  then: a sink cannot leak either.
* The names of events and keys are an interface (docs/events.md): add, never rename.
"""

from __future__ import annotations

import errno as errno_names
import os
from typing import ClassVar, Literal

import msgspec

Direction = Literal["c2s", "s2c"]
"""Client to server, or server to client."""

Side = Literal["client", "upstream", "proxy", "fault"]
"""Who ended a connection."""

MASK = "***"
"""What stands where a secret was."""


def printable(data: bytes | str) -> str:
    """What a peer sent, as text that is safe on a terminal.

    UTF-8 stays readable. Bytes that are no UTF-8, control characters (C0, DEL, C1) and invisible formatting
    characters (bidirectional overrides among them) become ``\\xNN`` or ``\\uNNNN``.
    """
    text = data.decode("utf-8", "backslashreplace") if isinstance(data, bytes) else data
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def errno_name(number: int) -> str:
    """``ECONNREFUSED`` for 111."""
    return errno_names.errorcode.get(number, str(number))


def errno_message(number: int) -> str:
    """The kernel's words for an errno: ``Connection refused`` for 111."""
    return os.strerror(number)


def pid_text(pid: int, inner: int | None) -> str:
    """``812``; of a process in a container, where it is called 7: ``812 (7 in its container)``."""
    return str(pid) if inner is None else f"{pid} ({inner} in its container)"


class Client(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who connected: SO_PEERCRED (unix(7)), and the name of that process where /proc tells it."""

    pid: int
    uid: int
    gid: int
    comm: str | None = None
    inner_pid: int | None = None
    """What it is called in its own pid namespace, where that is not ours (a container)."""


class Worker(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process of the server."""

    pid: int
    comm: str | None = None
    inner_pid: int | None = None
    """As of `Client`."""


What = Literal[
    "cpu", "accept", "socket", "file", "pipe", "lock", "sleep", "child", "thread", "disk", "stopped", "ended",
    "unknown",
]  # fmt: skip
"""What a process waits for: a connection to accept, a socket, a file, a pipe, a lock on a file, time, a child,
another thread or process (a futex), the disk; or it runs (``cpu``), or is stopped, or has ended."""


class Doing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process was seen to do."""

    what: What
    call: str | None = None
    """The system call in which it waits."""
    on: str | None = None
    """``tcp 10.0.0.5:3306``, ``unix /run/x.sock``, a path."""
    who: str | None = None
    """The process behind that: ``mysqld (pid 9)``; of a lock, who holds it."""
    local: str | None = None
    """Of a TCP or UDP connection, the address of its own end: ``10.0.0.1:41234``."""
    for_s: float | None = None
    """So long at least: it was seen in the same wait before."""
    wchan: str | None = None
    """The kernel function in which it waits."""
    stack: tuple[str, ...] | None = None
    """The kernel's stack, innermost first."""
    threads: int | None = None
    """So many has the process; what is told is of the main one. None: no others."""

    @property
    def text(self) -> str:
        """``poll() on tcp 10.0.0.1:41234 → 10.0.0.5:3306 (mysqld, pid 9)``."""
        kind, space, remote = (self.on or "").partition(" ")
        what = f"{kind} {self.local} → {remote}" if self.local and space else self.on
        call = f"{self.call}()" if self.call else _WITHOUT_CALL[self.what]
        on = f" on {what}" if what else ""
        who = f" ({'held by ' if self.what == 'lock' else ''}{self.who})" if self.who else ""
        where = f" in {self.wchan}" if self.wchan and not (self.call or self.what == "cpu") else ""
        return call + on + who + where


_WITHOUT_CALL: dict[What, str] = {
    "cpu": "running on CPU",
    "accept": "waiting for a connection",
    "socket": "waiting on a socket",
    "file": "waiting on a file",
    "pipe": "waiting on a pipe",
    "lock": "waiting for a lock",
    "sleep": "sleeping",
    "child": "waiting for a child",
    "thread": "waiting for a thread",
    "disk": "waiting in the kernel, for the disk mostly",
    "stopped": "stopped",
    "ended": "ended",
    "unknown": "waiting",
}


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What all events have. ``conn`` is the connection's number, counted from 1 in each proxy.

    Only what may be unknown has a default, None, and that is left out of encodings.
    """

    name: ClassVar[str]

    at: int
    """First of all fields (the JSON sink counts on it)."""
    proxy: str
    conn: int | None = None


class Listening(Event, frozen=True, kw_only=True):
    """The proxy listens; from now on clients can connect."""

    name: ClassVar[str] = "listening"

    listen: str
    upstream: str
    type: str | None = None
    """``seqpacket`` or ``datagram``; None: a stream."""
    backlog: int
    mode: str | None = None
    owner: str | None = None


class Open(Event, frozen=True, kw_only=True):
    """A client's connection was accepted and ours to the upstream made."""

    name: ClassVar[str] = "open"

    client: Client | None = None
    connect_s: float | None = None


class Accepted(Event, frozen=True, kw_only=True):
    """The upstream took the connection out of its accept queue, ``accept_wait_s`` after connect(), give or take
    ``accept_error_s``. ``worker``: the process that did, where we may see it."""

    name: ClassVar[str] = "accepted"

    accept_wait_s: float
    accept_error_s: float
    worker: Worker | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What held an exchange, ``at_s`` after it began: of a connection's first, after connect()."""

    at_s: float
    queued: bool = False
    """Nobody has accepted its connection."""
    accept_wait_s: float | None = None
    """So much of that time its connection was in the accept queue, before somebody did. None: none of it, or it is
    not known."""
    worker: Worker | None = None
    doing: Doing | None = None

    @property
    def text(self) -> str:
        """``php-fpm, pid 7: poll() on tcp 10.0.0.5:3306 (mysqld, pid 9)``."""
        if self.queued:
            return "in the queue, not yet accepted"
        who = "its worker cannot be seen"
        if self.worker is not None:
            who = f"{self.worker.comm or '?'}, pid {pid_text(self.worker.pid, self.worker.inner_pid)}"
        return who if self.doing is None else f"{who}: {self.doing.text}"


class Slow(Event, frozen=True, kw_only=True):
    """An exchange takes long: what holds it. Comes again, at times that grow."""

    name: ClassVar[str] = "slow"

    request: int | None = None
    """None: its client is in the queue, and nothing that it sent has been read."""
    method: str | None = None
    uri: str | None = None
    script: str | None = None
    snapshot: Snapshot


class Request(Event, frozen=True, kw_only=True):
    """One exchange: a request and its response, ended or not.

    The byte counts are bytes on the wire that belong to this request, record headers and padding included.
    ``incomplete`` says why an exchange has no proper end.
    """

    name: ClassVar[str] = "request"

    protocol: str
    request: int
    method: str | None = None
    uri: str | None = None
    script: str | None = None
    status: int | None = None
    content_type: str | None = None
    app_status: int | None = None
    protocol_status: str | None = None
    stderr: str | None = None
    c2s_bytes: int
    s2c_bytes: int
    accept_wait_s: float | None = None
    """How long its connection was in the upstream's accept queue; of the connection's first. It is a part of
    ``ttfb_s`` and ``total_s``, as far as the request had been sent by then."""
    accept_error_s: float | None = None
    """By how much that may be wrong."""
    ttfb_s: float | None = None
    transfer_s: float | None = None
    """From the first byte of the answer to its end."""
    total_s: float
    slow: tuple[Snapshot, ...] | None = None
    """What held it: the first and the last times that this was looked at."""
    faults: tuple[str, ...] | None = None
    """The rules that applied to it, or to all of its connection."""
    incomplete: str | None = None
    unseen: str | None = None
    """What could not be kept of it, and why."""


class Message(Event, frozen=True, kw_only=True):
    """One decoded unit of a protocol. ``nbytes`` is its content's length."""

    name: ClassVar[str] = "message"

    direction: Direction
    protocol: str
    kind: str
    nbytes: int
    fields: dict[str, str | int]


class Data(Event, frozen=True, kw_only=True):
    """Bytes as they were read from one side, secrets masked. ``offset`` counts from the direction's start."""

    name: ClassVar[str] = "data"

    direction: Direction
    offset: int
    data: bytes


class Close(Event, frozen=True, kw_only=True):
    """A connection's end: who ended it, and how many bytes were read from each side."""

    name: ClassVar[str] = "close"

    by: Side
    errno: str | None = None
    c2s_bytes: int
    s2c_bytes: int
    total_s: float
    faults: tuple[str, ...] | None = None
    """The rules that applied to it, or to requests on it."""
    accept_wait_s: float | None = None
    accept_error_s: float | None = None
    protocol: str | None = None
    requests: int


class UpstreamError(Event, frozen=True, kw_only=True):
    """The upstream could not be reached; ``message`` is in the kernel's words."""

    name: ClassVar[str] = "upstream_error"

    op: str
    errno: str
    message: str
    queue: int | None = None
    backlog: int | None = None


class Queue(Event, frozen=True, kw_only=True):
    """The upstream's accept queue, those who wait in ours for it included, has become full (``queue`` is more than
    ``backlog``: the next client gets EAGAIN), or no longer is. ``active``: clients besides these: whom the server
    has accepted, and who are still connected."""

    name: ClassVar[str] = "queue"

    queue: int
    backlog: int
    active: int


def is_long_wait(wait_s: float, of_s: float) -> bool:
    """Is it worth telling that so much of so long was in the queue?"""
    return wait_s >= max(0.005, of_s / 100)


class InFlight(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An exchange that has not ended."""

    conn: int
    request: int
    method: str | None = None
    uri: str | None = None
    script: str | None = None
    age_s: float
    accept_wait_s: float | None = None
    """As of `Snapshot`."""


class Load(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exchanges of one script that have not ended."""

    script: str
    count: int
    oldest_s: float
    accept_wait_s: float | None = None
    """As of `Snapshot`, of the oldest."""


class WaitingOn(msgspec.Struct, frozen=True):
    """What workers were seen to do, and how many of them."""

    doing: str
    workers: int


class Level(msgspec.Struct, frozen=True, omit_defaults=True):
    """The queue at one moment, ``at_s`` after the incident's beginning. ``limit``: so many may wait."""

    at_s: float
    queue: int
    limit: int | None = None
    busy: int | None = None
    workers: int | None = None


class Incident(Event, frozen=True, kw_only=True):
    """The upstream's queue was full, or not empty for long, or clients met errors: once when that begins, once when
    it is over. ``what`` says it in a sentence, which names no clock time."""

    name: ClassVar[str] = "incident"

    what: str
    phase: Literal["open", "close"]
    since: str
    """RFC 3339, UTC."""
    total_s: float | None = None
    queue: int | None = None
    """The most that waited."""
    backlog: int | None = None
    active: int
    """Connections that are open, or were when it was over."""
    busy: int | None = None
    workers: int | None = None
    refused: int | None = None
    """connect() calls of clients that got EAGAIN; None: the kernel does not tell us."""
    nginx: dict[str, int] | None = None
    """How many connect() nginx says have failed, by error number; None: none, or its log is not read."""
    errors: dict[str, int] | None = None
    """What else clients met, and how often."""
    gone_waiting: int | None = None
    """Clients that have left and whose connections are still in the queue."""
    gone_running: int | None = None
    """Workers that still run the request of a client that has left."""
    began_with: InFlight | None = None
    """The oldest exchange when it began."""
    slowest: InFlight | None = None
    """The oldest that was seen."""
    in_flight: tuple[Load, ...] | None = None
    waiting_on: tuple[WaitingOn, ...] | None = None
    """Most first; the average of all looks. They are ``busy`` in all, or fewer."""
    levels: tuple[Level, ...] | None = None
    unseen: str | None = None
    """What could not be told, and why."""


class Fault(Event, frozen=True, kw_only=True):
    """A fault that was asked for: what it did to a connection, or that it is in force, or no longer."""

    name: ClassVar[str] = "fault"

    rule: str
    kind: str
    detail: str


class ProxyError(Event, frozen=True, kw_only=True):
    """Something of our own failed (descriptors or memory ran out, say); ``hint`` says what to do."""

    name: ClassVar[str] = "proxy_error"

    op: str
    errno: str
    message: str
    hint: str | None = None


class DecodeError(Event, frozen=True, kw_only=True):
    """One direction is not, or no longer, what it was decoded as. From ``offset`` on it is raw."""

    name: ClassVar[str] = "decode_error"

    direction: Direction
    protocol: str
    offset: int
    reason: str


class Dropped(Event, frozen=True, kw_only=True):
    """An observer could not keep up: so many units, and bytes of traffic where known, were not observed."""

    name: ClassVar[str] = "dropped"

    observer: str
    count: int
    nbytes: int | None = None


class ScriptTimes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How long the requests of one script took. Percentiles are exact for up to 64 requests, else
    within 5 %."""

    script: str | None = None
    """None: all others."""
    proxy: str | None = None
    """Where there are several."""
    count: int
    errors: int
    """Requests that have no proper end, or whose status is 500 or more."""
    total_sum_s: float
    total_p50_s: float
    total_p95_s: float
    total_p99_s: float
    total_max_s: float
    queue_p50_s: float | None = None
    """Of the waits in the upstream's accept queue that are known."""
    queue_p95_s: float | None = None
    queue_p99_s: float | None = None
    partial: bool | None = None
    """Some of its requests may be among the others: there are too many scripts."""


class Summary(Event, frozen=True, kw_only=True):
    """What was seen, from start to end."""

    name: ClassVar[str] = "summary"

    connections: int
    requests: int
    incomplete: int
    upstream_errors: int
    decode_errors: int
    dropped: int
    c2s_bytes: int
    s2c_bytes: int
    total_s: float
    scripts: tuple[ScriptTimes, ...] | None = None
    """Those that took most time in all, ten at most."""
    others: ScriptTimes | None = None
    """All other scripts."""
