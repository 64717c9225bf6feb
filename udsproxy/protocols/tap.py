"""The tap: where the traffic's path hands over what it has already forwarded.

Rules:

* Handing over (`Observation.data`, `Tap.put`) is a call that appends to a queue; it never decodes, renders,
  writes or waits.
* The queue is bounded in bytes. What does not fit is not observed: the bytes are counted, the connection's
  decoder is told and stops guessing, a `Dropped` event says how much.
* The work (decoding, rendering) is done in units of some microseconds each by `Tap.work`, which the relay calls
  when traffic leaves it time. It reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from msgspec.structs import replace

from udsproxy.events import (
    Close,
    Data,
    DecodeError,
    Direction,
    Dropped,
    Event,
    Request,
    Summary,
    UpstreamError,
)
from udsproxy.protocols.decoder import Decoder, Scope
from udsproxy.protocols.registry import make_decoder

QUEUE_BYTES = 16 * 1024 * 1024
"""Traffic that waits to be decoded, at most."""

QUEUE_ITEMS = 100_000
"""Chunks and events that wait, at most: connections that are opened and closed faster than they are told of."""

BATCH_ITEMS = 256
"""What waits until there is time for it: it is cheaper to decode, and to write, in batches."""

_ITEM_BYTES = 200
"""What an item of the queue costs besides its data, about."""

_MASK_BYTE = b"*"
_NEITHER: frozenset[Direction] = frozenset()


class Sink(Protocol):
    """Where events go. Neither call may wait."""

    name: str
    total_dropped: int
    """Events that it could not keep up with."""

    def emit(self, event: Event) -> Iterator[None] | None:
        """Take an event. Slow rendering comes back as an iterator, to be driven on in small steps."""
        ...

    def flush(self) -> None:
        """Nothing more to do for now: hand on what was batched."""
        ...


class Observation:
    """One connection, as the tap sees it. Made by `Tap.observe`."""

    __slots__ = ("_blind", "_decoder", "_offsets", "_tap", "conn", "proxy")

    def __init__(self, tap: Tap, decoder: Decoder | None, proxy: str, conn: int) -> None:
        self._tap = tap
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
        cost = len(data) + _ITEM_BYTES
        if direction in self._blind or tap.held + cost > tap.limit:
            self._drop(direction, at, data)
            return
        tap.held += cost
        tap.queue.append((self, direction, at, data))

    def _drop(self, direction: Direction, at: int, data: bytes) -> None:
        self._tap.dropped += 1
        self._tap.dropped_bytes += len(data)
        self._tap.total_dropped += 1
        if direction not in self._blind:
            self._blind |= {direction}
            self._tap.append((self, direction, at, None))

    def close(self, event: Close, why: str) -> None:
        """The connection ended; ``why`` is what an exchange that has not ended is told to have ended by."""
        self._tap.append((self, "c2s", event.at, (event, why)))

    # --- called by the tap, in the queue's order ---

    def decode(self, direction: Direction, at: int, data: bytes, *, show: bool) -> Sequence[Event]:
        assert self._decoder is not None
        events = self._decoder.feed(direction, at, data)
        return [self._shown(direction, at, data), *events] if show else events

    def _shown(self, direction: Direction, at: int, data: bytes) -> Data:
        """The bytes of the last feed, as they may be shown."""
        assert self._decoder is not None
        for start, end in self._decoder.secret_spans:
            data = data[:start] + _MASK_BYTE * (end - start) + data[end:]
        offset = self._offsets.get(direction, 0)
        self._offsets[direction] = offset + len(data)
        return Data(at=at, proxy=self.proxy, conn=self.conn, direction=direction, offset=offset, data=data)

    def decode_gap(self, direction: Direction, at: int) -> Sequence[Event]:
        return self._decoder.lost(direction, at) if self._decoder else ()

    def decode_close(self, event: Close, why: str) -> Sequence[Event]:
        decoder = self._decoder
        if decoder is None:
            return (event,)
        last = replace(event, protocol=decoder.protocol, requests=decoder.exchanges)
        return [*decoder.close(event.at, why), last]


_Item = tuple[Observation | None, Direction, int, "bytes | tuple[Close, str] | Event | None"]


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
        secrets: frozenset[str] = frozenset(),
        limit: int = QUEUE_BYTES,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        """``name``: of the whole, for events that belong to no single proxy. ``decode``: for each proxy's name,
        what to decode its bytes as (`make_decoder`, or ``none``)."""
        self.queue: deque[_Item] = deque()
        self.held = 0
        self.limit = limit
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
        self._name = name
        self._sinks = sinks
        self._decode = decode
        self._verbosity = verbosity
        self._secrets = secrets
        self._steps: Iterator[None] | None = None

    @property
    def quiet(self) -> bool:
        """Nobody looks: events need not be made, but for those that count in the summary."""
        return not self._sinks

    @property
    def pressing(self) -> bool:
        """So much waits that it cannot wait for an idle moment."""
        return len(self.queue) >= BATCH_ITEMS or self.held >= self.limit // 4

    @property
    def pending(self) -> bool:
        return bool(self.queue) or self._steps is not None

    # --- the traffic's side ---

    def observe(self, proxy: str, conn: int) -> Observation:
        """The observation of a new connection."""
        choice = self._decode[proxy]
        decoder = None
        if self._sinks and choice != "none":
            scope = Scope(proxy, conn, self._verbosity >= 1, self._verbosity >= 2, self._secrets)
            decoder = make_decoder(choice, scope)
        return Observation(self, decoder, proxy, conn)

    def put(self, event: Event) -> None:
        """An event that is not decoded from bytes."""
        self.append((None, "c2s", event.at, event))
        self.wake()

    def append(self, item: _Item) -> None:
        """Queue an item that carries no bytes."""
        if not self._sinks:
            event = item[3][0] if isinstance(item[3], tuple) else item[3]
            assert isinstance(event, Event)
            self._tally(event)
        elif len(self.queue) >= QUEUE_ITEMS:
            self.dropped += 1
            self.total_dropped += 1
        else:
            self.queue.append(item)

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

    def finish(self, total_s: float, at: int) -> Summary:
        """Do all that waits, and say what was seen in all. Only for the end: it takes as long as it takes."""
        while self.pending:
            self.work(1000)
        dropped = self.total_dropped + sum(sink.total_dropped for sink in self._sinks)
        summary = Summary(at=at, proxy=self._name, total_s=total_s, dropped=dropped, **self.summary)
        self.put(summary)
        self.work(1000)
        return summary

    def _run(self) -> Iterator[None]:
        queue, show = self.queue, self._verbosity >= 2
        while queue:
            watched, direction, at, item = queue.popleft()
            events: Sequence[Event]
            if watched is None:
                assert isinstance(item, Event)
                events = (item,)
            elif isinstance(item, bytes):
                self.held -= len(item) + _ITEM_BYTES
                events = watched.decode(direction, at, item, show=show)
            elif isinstance(item, tuple):
                events = watched.decode_close(*item)
            else:
                assert item is None
                events = watched.decode_gap(direction, at)
            for event in events:
                self._tally(event)
                for sink in self._sinks:
                    slow = sink.emit(event)
                    if slow is not None:
                        yield from slow
            if self.dropped and self.held < self.limit // 2:
                self._report_dropped(at)
            yield None

    def _report_dropped(self, at: int) -> None:
        event = Dropped(at=at, proxy=self._name, observer="tap", count=self.dropped, nbytes=self.dropped_bytes)
        self.dropped = self.dropped_bytes = 0
        self.queue.append((None, "c2s", at, event))

    def _tally(self, event: Event) -> None:
        seen = self.summary
        if isinstance(event, Request):
            seen["requests"] += 1
            seen["incomplete"] += event.incomplete is not None
        elif isinstance(event, Close):
            seen["connections"] += 1
            seen["c2s_bytes"] += event.c2s_bytes
            seen["s2c_bytes"] += event.s2c_bytes
        elif isinstance(event, UpstreamError):
            seen["upstream_errors"] += 1
        elif isinstance(event, DecodeError):
            seen["decode_errors"] += 1
