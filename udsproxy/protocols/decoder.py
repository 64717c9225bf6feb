"""What a protocol's decoder is, and the two that decode nothing: raw, and the one that recognises.

Rules:

* A decoder sees a connection's bytes, both directions, each in order, and returns events. It reads no clock,
  does no I/O, and never raises on what a peer sent: a stream that turns wrong is one `DecodeError`, and that
  direction is raw from there.
* Any split of the bytes gives the same events, their times apart.
* Its memory is bounded, whatever it is fed, and what grows with what a peer sends is asked for in the `Ledger`
  of the process's one budget (budget.py): where that has no room, it is not kept, and what is told says so.
* Text of a peer is told as the `Masking` allows (secrets.py). The bytes themselves are shown by screen.py, which
  asks no decoder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from udsproxy.events import Direction, Event, Message, Snapshot, printable
from udsproxy.protocols.budget import Budget, Ledger
from udsproxy.protocols.secrets import Masking

_SHOWN = 200
"""Bytes of a datagram that its message shows."""


_AT_ONCE_NS = 1_000_000


class AcceptWait:
    """How long a connection was in the upstream's accept queue, as far as that is known: between two times, which
    come nearer to each other as more is seen."""

    __slots__ = ("_had_sent", "_held_until", "_least", "_most", "connected_at", "ended", "told")

    def __init__(self, connected_at: int, least: int = 0, most: int | None = None) -> None:
        """In ns; ``least`` and ``most`` count from ``connected_at``."""
        self.connected_at = connected_at
        self.ended = False
        """It is known when it ended, or nobody will know."""
        self.told = False
        """An event has told that the upstream accepted the connection."""
        self._least = least
        self._most = most
        self._held_until = 0
        self._had_sent = False

    def hold(self, until: int, *, had_sent: bool = False) -> None:
        """Until then the client was in our own queue, and nothing that it sent was read. ``had_sent``: there was
        something to be read by then."""
        self._held_until = until
        self._had_sent = had_sent

    def sent_at(self, read_at: int) -> int:
        """When the client sent what was read then, as far as we can tell: what was there when it was let in it had
        sent at once."""
        at_once = self._had_sent or read_at - self._held_until < _AT_ONCE_NS
        return self.connected_at if at_once else read_at

    def end(self, waited_at: int, seen_at: int | None) -> None:
        """At the one time it waited (where that is later than `connected_at`), at the other no longer."""
        self.ended = True
        self._least = max(self._least, waited_at - self.connected_at)
        if seen_at is not None:
            self._most = seen_at - self.connected_at

    @property
    def was_seen(self) -> bool:
        """The connection was seen to wait, or to have been accepted: that is worth an event."""
        return self._most is not None

    def known(self, answered_at: int | None) -> tuple[float, float] | None:
        """Seconds, and by how much that may be wrong. ``answered_at``: by then it was accepted. None: it may never
        have been."""
        most = self._most
        if answered_at is not None:
            most = min(most or sys.maxsize, max(0, answered_at - self.connected_at))
        if most is None:
            return None
        least = min(self._least, most)
        return (least + most) / 2e9, (most - least) / 2e9


class Scope(msgspec.Struct, frozen=True):
    """Which connection a decoder works for, and what is wanted of it."""

    proxy: str
    conn: int
    messages: bool = False
    """Make a `Message` of each unit (-v), not only the exchanges."""
    masking: Masking | None = None
    """What may be shown; None: everything."""
    ledger: Ledger = msgspec.field(default_factory=lambda: Ledger(Budget()))
    """What is kept is asked for here."""
    wait: AcceptWait | None = None
    """In the upstream's accept queue; None: it has none that could be seen."""


class Pending(msgspec.Struct, frozen=True):
    """An exchange that has begun and not ended. ``began_at``: ns."""

    request: int
    began_at: int
    method: str | None = None
    uri: str | None = None
    script: str | None = None


class Decoder(Protocol):
    """One connection's decoder."""

    @property
    def protocol(self) -> str | None:
        """``fastcgi``; None while, or where, it is not known."""
        ...

    @property
    def exchanges(self) -> int:
        """How many exchanges have been reported."""
        ...

    def feed(self, direction: Direction, at: int, data: bytes) -> Sequence[Event]:
        """Bytes that were read at ``at`` (ns)."""
        ...

    def ahead(self, direction: Direction) -> int:
        """So many bytes to come in this direction are known to be quick to decode, however many they are."""
        ...

    def lost(self, direction: Direction, at: int) -> Sequence[Event]:
        """The observer lost bytes here: stop guessing about this direction."""
        ...

    def mark(self, request: int | None, rule: str) -> None:
        """A fault applies from here on: to the open exchange of this number; None: to the connection."""
        ...

    def close(self, at: int, why: str) -> Sequence[Event]:
        """The connection ended; report what has not."""
        ...

    @property
    def answered_at(self) -> int | None:
        """When the server first sent something (ns)."""
        ...

    def begun(self, before: int) -> Sequence[tuple[int, int]]:
        """The exchanges that have begun before that time (ns) and not ended: when (ns), and which."""
        ...

    def pending(self, request: int) -> Pending | None:
        """What is known of one of these."""
        ...

    def snapshot(self, request: int, snapshot: Snapshot) -> None:
        """What the worker that has this exchange was seen to do."""
        ...


class RawDecoder:
    """Bytes with no meaning that we know: nothing to report."""

    def __init__(self) -> None:
        self.protocol: str | None = None
        self.exchanges = 0
        self.answered_at: int | None = None

    def feed(self, direction: Direction, at: int, data: bytes) -> Sequence[Event]:
        if self.answered_at is None and direction == "s2c":
            self.answered_at = at
        return ()

    def ahead(self, direction: Direction) -> int:
        return sys.maxsize

    def lost(self, direction: Direction, at: int) -> Sequence[Event]:
        return ()

    def mark(self, request: int | None, rule: str) -> None:
        """There are no exchanges that could tell of it."""

    def close(self, at: int, why: str) -> Sequence[Event]:
        return ()

    def begun(self, before: int) -> Sequence[tuple[int, int]]:
        return ()

    def pending(self, request: int) -> Pending | None:
        return None

    def snapshot(self, request: int, snapshot: Snapshot) -> None:
        """As above."""


class DatagramDecoder(RawDecoder):
    """Each chunk of bytes is a message."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    def feed(self, direction: Direction, at: int, data: bytes) -> Sequence[Event]:
        scope = self._scope
        if not scope.messages:
            return ()
        text = printable(data[:_SHOWN]) + ("..." if len(data) > _SHOWN else "")
        return (
            Message(
                at=at,
                proxy=scope.proxy,
                conn=scope.conn,
                direction=direction,
                protocol="datagram",
                kind="DATAGRAM",
                nbytes=len(data),
                fields={"text": text},
            ),
        )


class ProtocolEntry(msgspec.Struct, frozen=True):
    """A protocol that the registry knows."""

    name: str
    recognise: Callable[[bytes], bool | None]
    """The first bytes that the client sent: is it this? None: more bytes are needed to tell."""
    decoder: Callable[[Scope], Decoder]


class AutoDecoder:
    """Recognises the protocol by the first bytes of the client, else raw.

    Until it knows, it keeps the bytes, which are no more than a protocol's ``recognise`` asks for. A server
    that speaks first speaks none of the protocols that are recognised so.
    """

    def __init__(self, scope: Scope, candidates: Sequence[ProtocolEntry]) -> None:
        self._scope = scope
        self._candidates = candidates
        self._first: list[tuple[int, bytes]] = []
        self._marks: list[tuple[int | None, str]] = []
        self._decoder: Decoder | None = None

    @property
    def protocol(self) -> str | None:
        return self._decoder.protocol if self._decoder else None

    @property
    def exchanges(self) -> int:
        return self._decoder.exchanges if self._decoder else 0

    def feed(self, direction: Direction, at: int, data: bytes) -> Sequence[Event]:
        if self._decoder is not None:
            return self._decoder.feed(direction, at, data)
        if direction == "s2c":
            self._decoder = RawDecoder()
            return self._decoder.feed(direction, at, data)
        start = b"".join([data for _, data in self._first]) + data if self._first else data
        undecided = False
        for candidate in self._candidates:
            verdict = candidate.recognise(start)
            if verdict:
                decoder = self._decoder = candidate.decoder(self._scope)
                for mark in self._marks:
                    decoder.mark(*mark)
                if not self._first:
                    return decoder.feed(direction, at, data)
                self._first.append((at, data))
                return [event for at, data in self._first for event in decoder.feed(direction, at, data)]
            undecided = undecided or verdict is None
        if undecided:
            self._first.append((at, data))
        else:
            self._decoder = RawDecoder()
        return ()

    def ahead(self, direction: Direction) -> int:
        return self._decoder.ahead(direction) if self._decoder else 0

    def lost(self, direction: Direction, at: int) -> Sequence[Event]:
        if self._decoder is None:
            self._decoder = RawDecoder()
        return self._decoder.lost(direction, at)

    def mark(self, request: int | None, rule: str) -> None:
        if self._decoder is None:
            self._marks.append((request, rule))
        else:
            self._decoder.mark(request, rule)

    def close(self, at: int, why: str) -> Sequence[Event]:
        return self._decoder.close(at, why) if self._decoder else ()

    @property
    def answered_at(self) -> int | None:
        return self._decoder.answered_at if self._decoder else None

    def begun(self, before: int) -> Sequence[tuple[int, int]]:
        return self._decoder.begun(before) if self._decoder else ()

    def pending(self, request: int) -> Pending | None:
        return self._decoder.pending(request) if self._decoder else None

    def snapshot(self, request: int, snapshot: Snapshot) -> None:
        if self._decoder is not None:
            self._decoder.snapshot(request, snapshot)
