"""The tap: where the traffic's path hands over what it has already forwarded.

Rules:

* Handing over (`Observation.data`, `Tap.put`) is a call that appends to a queue; it never decodes, renders,
  writes or waits.
* The queue is bounded in bytes. What does not fit is not observed: the bytes are counted, the connection's
  decoder is told and stops guessing, a `Dropped` event says how much.
* The work (decoding, rendering) is done in small units, of microseconds mostly, by `Tap.work`, which the relay
  calls when traffic leaves it time. It reads no clock.
* Events of a connection come in the order `open`, `accepted`, answer, `request`, `close`. The name of the worker is
  asked for meanwhile: an answer does not wait for it, and `accepted` comes without it then.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from udsproxy.events import (
    Accepted,
    Close,
    Data,
    DecodeError,
    Direction,
    Dropped,
    Event,
    ProxyError,
    Request,
    Snapshot,
    Summary,
    UpstreamError,
    Worker,
    printable,
)
from udsproxy.protocols.budget import Budget, Ledger
from udsproxy.protocols.decoder import AcceptWait, DatagramDecoder, Decoder, Pending, RawDecoder, Scope
from udsproxy.protocols.registry import make_decoder
from udsproxy.protocols.screen import ClosedScreen, Screen, make_screens
from udsproxy.protocols.script_times import ByScript
from udsproxy.protocols.secrets import Masking

QUEUE_BYTES = 16 * 1024 * 1024
"""Traffic that waits to be decoded, at most."""

QUEUE_ITEMS = 100_000
"""Chunks and events that wait, at most: connections that are opened and closed faster than they are told of."""

BATCH_ITEMS = 256
"""What waits until there is time for it: it is cheaper to decode, and to write, in batches."""

SLICE_BYTES = 2048
"""Bytes decoded without a pause, unless they are known to be a body: dense with records, 2 KiB take 1 ms."""

_ITEM_BYTES = 200
"""What an item of the queue costs besides its data, about."""

_NEITHER: frozenset[Direction] = frozenset()


class Sink(Protocol):
    """Where events go. Neither call may wait."""

    name: str

    @property
    def total_dropped(self) -> int:
        """Events that it could not keep up with."""
        ...

    def emit(self, event: Event) -> Iterator[None] | None:
        """Take an event. Slow rendering comes back as an iterator, to be driven on in small steps."""
        ...

    def flush(self) -> None:
        """Nothing more to do for now: hand on what was batched."""
        ...


class Mark(msgspec.Struct, frozen=True):
    """A fault that applies: the number of the request, or None for the connection, and the rule's name."""

    request: int | None
    rule: str


class _Signal(enum.Enum):
    """An item of the queue that carries nothing."""

    ACCEPTED = 1
    """A worker has the connection, and it is known who does."""


class Observation:
    """One connection, as the tap sees it. Made by `Tap.observe`."""

    __slots__ = (
        "_blind", "_decoder", "_has_answer", "_is_stream", "_ledger", "_offsets", "_tap", "_wait", "_worker",
        "conn", "proxy", "screens",
    )  # fmt: skip

    def __init__(
        self,
        tap: Tap,
        decoder: Decoder | None,
        proxy: str,
        conn: int,
        wait: AcceptWait | None,
        ledger: Ledger,
        has_answer: Callable[[AcceptWait], bool],
        *,
        is_stream: bool = True,
    ) -> None:
        self._tap = tap
        self._has_answer = has_answer
        self._worker: Worker | None = None
        self._ledger = ledger
        self.screens: dict[Direction, Screen] = {}
        """Through which the bytes are shown, where they are."""
        self._wait = wait
        self._is_stream = is_stream
        self._decoder = decoder
        self._offsets: dict[Direction, int] = {}
        self._blind: frozenset[Direction] = _NEITHER
        """Directions of which bytes were lost."""
        self.proxy = proxy
        self.conn = conn

    @property
    def wants_data(self) -> bool:
        return self._decoder is not None

    def data(self, direction: Direction, at: int, data: bytes) -> None:
        """Bytes that were forwarded. ``at``: when they were read, ns."""
        tap = self._tap
        held = tap.held + len(data) + _ITEM_BYTES
        if held > tap.limit or (direction in self._blind and self._is_stream):
            self._drop(direction, at, data)
            return
        tap.held = held
        tap.queue.append((self, direction, at, data))

    def _drop(self, direction: Direction, at: int, data: bytes) -> None:
        self._tap.dropped += 1
        self._tap.dropped_bytes += len(data)
        self._tap.total_dropped += 1
        if direction not in self._blind:
            self._blind |= {direction}
            self._tap.append((self, direction, at, None))

    def mark(self, at: int, mark: Mark) -> None:
        """A fault applies from here on."""
        self._tap.append((self, "c2s", at, mark))

    def accepted(self, worker: Worker | None) -> None:
        """The upstream has accepted it; this worker has it, if that is known."""
        if self._wait is not None and not self._wait.told:
            self._worker = worker
            self._tap.append((self, "s2c", self._wait.connected_at, _Signal.ACCEPTED))
            self._tap.wake()

    def close(self, event: Close, why: str) -> None:
        """The connection ended; ``why`` is what an exchange that has not ended is told to have ended by."""
        self._tap.append((self, "c2s", event.at, (event, why)))

    # --- called by the tap, in the queue's order ---

    def decode(self, direction: Direction, at: int, data: bytes) -> Sequence[Event] | None:
        """The events of these bytes; None where they may be so many that it is work for `decode_slowly`."""
        decoder = self._decoder
        assert decoder is not None
        if len(data) > SLICE_BYTES and len(data) > decoder.ahead(direction):
            return None
        try:
            return decoder.feed(direction, at, data)
        except Exception as error:
            return (self.give_up(at, error),)

    def decode_slowly(self, direction: Direction, at: int, data: bytes) -> Iterator[Sequence[Event]]:
        """The events of these bytes, some at a time: a chunk can be dense with records."""
        decoder = self._decoder
        assert decoder is not None
        for piece in self._slices(decoder, direction, data):
            yield decoder.feed(direction, at, piece)

    def show(self, direction: Direction, at: int, data: bytes) -> Iterator[Sequence[Event]]:
        """`decode_slowly`, but first the bytes themselves, their secrets masked."""
        decoder = self._decoder
        assert decoder is not None
        shown, events, screen = [], [], self.screens[direction]
        for piece in self._slices(decoder, direction, data):
            shown.append(screen.feed(piece))
            events.append(decoder.feed(direction, at, piece))
            yield ()
        offset = self._offsets.get(direction, 0)
        self._offsets[direction] = offset + len(data)
        what = b"".join(shown)
        yield (Data(at=at, proxy=self.proxy, conn=self.conn, direction=direction, offset=offset, data=what),)
        yield from events

    @staticmethod
    def _slices(decoder: Decoder, direction: Direction, data: bytes) -> Iterator[bytes]:
        """Small pieces, but what the decoder knows to be plain in one."""
        start, size = 0, len(data)
        while start < size:
            end = start + max(SLICE_BYTES, decoder.ahead(direction))
            yield data if start == 0 and end >= size else data[start:end]
            start = end

    def decode_gap(self, direction: Direction, at: int) -> Sequence[Event]:
        if self.screens:
            self.screens[direction] = ClosedScreen()
        try:
            return self._decoder.lost(direction, at) if self._decoder else ()
        except Exception as error:
            return (self.give_up(at, error),)

    def decode_mark(self, at: int, mark: Mark) -> Sequence[Event]:
        try:
            if self._decoder is not None:
                self._decoder.mark(mark.request, mark.rule)
        except Exception as error:
            return (self.give_up(at, error),)
        return ()

    def waited(self) -> tuple[float, float] | None:
        """How long it was in the accept queue (s), and by how much that may be wrong."""
        if self._wait is None:
            return None
        return self._wait.known(None if self._decoder is None else self._decoder.answered_at)

    @property
    def may_be_accepted(self) -> bool:
        """Its `Accepted` has not been told, and may yet be."""
        return self._wait is not None and not self._wait.told

    def tell_accepted(self, *, asked: bool) -> Sequence[Event]:
        """Its `Accepted`, if that is due: the worker was ``asked`` for, or what comes next is told after it."""
        wait = self._wait
        if wait is None or wait.told or not (self._has_answer(wait) or asked):
            return ()
        known = self.waited()
        if known is None:
            return ()
        wait.told = True
        wait_s, error_s = known
        return (
            Accepted(
                at=wait.connected_at + int(wait_s * 1e9),
                proxy=self.proxy,
                conn=self.conn,
                accept_wait_s=wait_s,
                accept_error_s=error_s,
                worker=self._worker,
            ),
        )

    def begun(self, before: int) -> Sequence[tuple[int, int]]:
        """The exchanges that have begun before that time (ns) and not ended, as far as that is decoded: when, and
        which."""
        return () if self._decoder is None else self._decoder.begun(before)

    def pending(self, request: int) -> Pending | None:
        """What is known of one of these."""
        return None if self._decoder is None else self._decoder.pending(request)

    def snapshot(self, request: int, snapshot: Snapshot) -> None:
        """What holds one of these."""
        if self._decoder is not None:
            self._decoder.snapshot(request, snapshot)

    def decode_close(self, event: Close, why: str) -> Sequence[Event]:
        decoder = self._decoder
        left: Sequence[Event] = ()
        try:
            if decoder is not None:
                left = decoder.close(event.at, why)
        except Exception as error:
            left = (self.give_up(event.at, error),)
        self._ledger.close()
        waited_s, error_s = self.waited() or (None, None)  # (the decoder's close() may have found the answer)
        told = replace(
            event,
            accept_wait_s=waited_s,
            accept_error_s=error_s,
            protocol=None if decoder is None else decoder.protocol,
            requests=0 if decoder is None else decoder.exchanges,
        )
        accepted = self.tell_accepted(asked=False)
        if self._wait is not None:
            self._wait.told = True  # now or never
        return [*accepted, *left, told]

    def give_up(self, at: int, error: Exception) -> Event:
        """The decoder has a bug: from here on this connection is raw and hidden, and nothing else is touched."""
        self._decoder = RawDecoder()
        self.screens = {"c2s": ClosedScreen(), "s2c": ClosedScreen()}
        self._ledger.close()
        message = printable(f"{type(error).__name__}: {error}")
        return ProxyError(at=at, proxy=self.proxy, conn=self.conn, op="decode", errno="BUG", message=message)


_What = bytes | tuple[Close, str] | Event | Mark | _Signal | None
"""Bytes that were forwarded; a connection's end; an event; a fault; None: bytes were lost here."""
_Item = tuple[Observation | None, Direction, int, _What]


def _follows(direction: Direction, events: Sequence[Event]) -> bool:
    """Whether these are told after the upstream has accepted the connection."""
    return direction == "s2c" or any(isinstance(event, Request) for event in events)


class Tap:
    """The queue between the traffic and everything that looks at it.

    ``verbosity``: 0 exchanges, 1 messages, 2 bytes. ``wake`` is called when there is work where there was none.
    """

    def __init__(
        self,
        sinks: list[Sink],
        *,
        name: str,
        decode: dict[str, str],
        verbosity: int = 0,
        masking: Masking | None,
        limit: int = QUEUE_BYTES,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """``name``: of the whole, for events that belong to no single proxy. ``decode``: for each proxy's name,
        what to decode its bytes as (`make_decoder`, or ``none``). ``masking``: what may be shown; None:
        everything."""
        self.queue: deque[_Item] = deque()
        self.held = 0
        self.limit = limit
        self._much = limit // 4
        self.dropped = 0
        self.dropped_bytes = 0
        self.total_dropped = 0
        self.wake = wake
        self.summary = dict.fromkeys(
            (
                "connections",
                "requests",
                "incomplete",
                "upstream_errors",
                "decode_errors",
                "c2s_bytes",
                "s2c_bytes",
            ),
            0,
        )
        self._scripts = ByScript(several=len(decode) > 1)
        self._name = name
        self._sinks = sinks
        self.quiet = not sinks
        """Nobody looks: events need not be made, but for those that count in the summary."""
        self._choices = decode
        self._verbosity = verbosity
        self._showing = verbosity >= 2
        self._tallies: dict[type[Event], Callable[[Any], None]] = {
            Request: self._count_request,
            Close: self._count_close,
            UpstreamError: partial(self._count, "upstream_errors"),
            DecodeError: partial(self._count, "decode_errors"),
        }
        self.watchers: dict[str, Callable[[Event], None]] = {}
        """Of each proxy that is watched: is told of each `Request` and each `Close`, in their order."""
        self._masking = masking
        self.budget = Budget()
        """Of what is kept of all connections."""
        self._steps: Iterator[None] | None = None

    def urgency(self) -> int:
        """0: there is nothing to do; 1: there is; 2: so much waits that it cannot wait for an idle moment."""
        waiting = len(self.queue)
        if not waiting:
            return 0 if self._steps is None else 1
        return 2 if waiting >= BATCH_ITEMS or self.held >= self._much else 1

    # --- the traffic's side ---

    def observe(
        self,
        proxy: str,
        conn: int,
        wait: AcceptWait | None = None,
        has_answer: Callable[[AcceptWait], bool] = lambda _: False,
        *,
        is_stream: bool = True,
    ) -> Observation:
        """The observation of a new connection. ``has_answer``: is called where an answer of a connection whose
        ``wait`` was not told is decoded: is it worth telling? ``is_stream``: else each chunk of its bytes is a
        datagram."""
        choice = self._choices[proxy]
        if choice == "none" and self._verbosity >= 2:
            choice = "raw"  # the bytes themselves are asked for
        decoder, ledger = None, Ledger(self.budget)
        if self._sinks and choice != "none":
            scope = Scope(proxy, conn, self._verbosity >= 1, self._masking, ledger, wait)
            decoder = make_decoder(choice, scope) if is_stream else DatagramDecoder(scope)
        seen = Observation(self, decoder, proxy, conn, wait, ledger, has_answer, is_stream=is_stream)
        if decoder is not None and self._showing:
            seen.screens = make_screens(self._masking if is_stream else None, ledger)
        return seen

    def put(self, event: Event) -> None:
        """An event that is not decoded from bytes."""
        self.append((None, "c2s", event.at, event))
        self.wake()

    def append(self, item: _Item) -> None:
        """Queue an item that carries no bytes."""
        if not self._sinks:
            event = item[3][0] if isinstance(item[3], tuple) else item[3]
            if event.__class__ in self._tallies:
                self._tallies[event.__class__](event)
        elif len(self.queue) >= QUEUE_ITEMS:
            self.dropped += 1
            self.total_dropped += 1
        else:
            self.queue.append(item)

    def count_connection(self, c2s_bytes: int, s2c_bytes: int) -> None:
        """A connection ended."""
        seen = self.summary
        seen["connections"] += 1
        seen["c2s_bytes"] += c2s_bytes
        seen["s2c_bytes"] += s2c_bytes

    # --- the observers' side ---

    def work(self, units: int) -> bool:
        """Do at most so many small units of what waits. Returns whether anything is left."""
        steps = self._steps if self._steps is not None else self._run()
        for _ in range(units):
            try:
                next(steps)
            except StopIteration:
                self._steps = None
                for sink in self._sinks:
                    sink.flush()
                return False
        self._steps = steps
        return True

    def so_far(self, total_s: float, at: int) -> Summary:
        """What was seen until now."""
        dropped = self.total_dropped + sum(sink.total_dropped for sink in self._sinks)
        scripts, others = self._scripts.told()
        return Summary(
            at=at,
            proxy=self._name,
            total_s=total_s,
            dropped=dropped,
            scripts=scripts,
            others=others,
            **self.summary,
        )

    def finish(self, total_s: float, at: int) -> Summary:
        """Say what was seen in all. What still waits is dropped and counted."""
        self.total_dropped += len(self.queue)
        self.queue.clear()
        self._steps = None
        summary = self.so_far(total_s, at)
        self.put(summary)
        while self.work(1000):
            pass
        return summary

    def _run(self) -> Iterator[None]:
        queue, sinks, tallies, showing = self.queue, self._sinks, self._tallies, self._showing
        parts: Iterable[Sequence[Event]]  # of what an item means, each small work
        while queue:
            watched, direction, at, item = queue.popleft()
            if isinstance(item, bytes):
                assert watched is not None
                self.held -= len(item) + _ITEM_BYTES
                some = None if showing else watched.decode(direction, at, item)
                parts = self._decode_slowly(watched, direction, at, item) if some is None else (some,)
            elif watched is None:
                assert isinstance(item, Event)
                parts = ((item,),)
            elif isinstance(item, tuple):
                parts = (watched.decode_close(*item),)
            elif isinstance(item, Mark):
                parts = (watched.decode_mark(at, item),)
            elif isinstance(item, _Signal):
                parts = (watched.tell_accepted(asked=True),)
            else:
                parts = (watched.decode_gap(direction, at),)
            for events in parts:
                if events and watched is not None and watched.may_be_accepted and _follows(direction, events):
                    events = [*watched.tell_accepted(asked=False), *events]
                for event in events:
                    tally = tallies.get(event.__class__)
                    if tally is not None:
                        tally(event)
                    for sink in sinks:
                        slow = sink.emit(event)
                        if slow is not None:
                            yield from slow
                yield None
            if self.dropped and self.held < self.limit // 2:
                self._report_dropped(at)

    def _decode_slowly(
        self, watched: Observation, direction: Direction, at: int, data: bytes
    ) -> Iterator[Sequence[Event]]:
        try:
            yield from (watched.show if self._showing else watched.decode_slowly)(direction, at, data)
        except Exception as error:
            yield (watched.give_up(at, error),)

    def _report_dropped(self, at: int) -> None:
        event = Dropped(at=at, proxy=self._name, observer="tap", count=self.dropped, nbytes=self.dropped_bytes)
        self.dropped = self.dropped_bytes = 0
        self.queue.append((None, "c2s", at, event))

    def _count_request(self, event: Request) -> None:
        self.summary["requests"] += 1
        self._scripts.add(event)
        if event.incomplete is not None:
            self.summary["incomplete"] += 1
        self._tell_watcher(event)

    def _count_close(self, event: Close) -> None:
        self.count_connection(event.c2s_bytes, event.s2c_bytes)
        self._tell_watcher(event)

    def _tell_watcher(self, event: Event) -> None:
        if (watcher := self.watchers.get(event.proxy)) is not None:
            watcher(event)

    def _count(self, what: str, _event: Event) -> None:
        self.summary[what] += 1
