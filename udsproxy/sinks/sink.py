"""What all sinks share: rendering in small steps, batches, a bounded hand-over to the writer's thread.

Rules:

* Rendering is pure and done by the tap's worker, in steps; only writing waits, and that is the thread's.
* Past `HELD_BYTES` events are dropped, before they are rendered, and counted. As soon as there is room again a
  `Dropped` event stands where they would have been; one that cannot be written is told again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from udsproxy.events import Data, Dropped, Event
from udsproxy.sinks.writer import Writer

HELD_BYTES = 4 * 1024 * 1024
"""Rendered output that waits to be written, at most."""

_BATCH_BYTES = 64 * 1024


class Renderer(Protocol):
    """Turns events into lines."""

    def render(self, event: Event) -> bytes | Iterator[bytes] | None:
        """Whole lines; None: nothing to show. What takes long comes as an iterator of pieces."""
        ...


class TextSink:
    """A renderer and a writer. See `udsproxy.protocols.tap.Sink`."""

    def __init__(
        self, name: str, renderer: Renderer, writer: Writer, *, limit: int = HELD_BYTES, is_shown: bool = False
    ) -> None:
        """``is_shown``: it is what people see, and not the file."""
        self.name = name
        self.is_shown = is_shown
        self._renderer = renderer
        self._writer = writer
        self._limit = limit
        self._batch: list[bytes] = []
        self._batched = 0
        self._tellings: list[tuple[int, int]] = []
        """The `Dropped` in the batch: where each ends, and its count."""
        self._dropped = 0
        self._dropped_bytes = 0
        self._told = 0
        self._bug: str | None = None
        self._stalled = 0

    def emit(self, event: Event) -> Iterator[None] | None:
        if (not self._batch or self._writer.dead) and not self._has_room(event):  # looked at once for each batch
            return None
        try:
            rendered = self._renderer.render(event)
        except Exception as error:
            self._give_up(error)
            return None
        if isinstance(rendered, bytes):
            self._add(rendered)
            return None
        return None if rendered is None else self._add_slowly(rendered)

    def flush(self) -> None:
        if self._batch:
            self._writer.put(b"".join(self._batch), self._tellings)
            self._batch.clear()
            self._tellings.clear()
            self._batched = 0

    def _has_room(self, event: Event) -> bool:
        """Is there room for another batch? Else this event is dropped; before the next stands a `Dropped`."""
        if self._writer.held > self._limit or self._writer.dead:
            self._dropped += 1
            if isinstance(event, Data):
                self._dropped_bytes += len(event.data)
            return False
        # While writing fails the telling would be lost too.
        if self._untold and self._writer.error is None:
            self._tell_dropped(event)
        return True

    def close(self, timeout_s: float) -> None:
        """Write what is left, but wait no longer than that."""
        self.flush()
        if not self._writer.close(timeout_s):
            self._stalled = self._writer.held

    @property
    def reader_has_gone(self) -> bool:
        """Nobody can read this any more, now or ever (`udsproxy.sinks.writer.Writer.reader_has_gone`)."""
        return self._writer.reader_has_gone

    @property
    def total_dropped(self) -> int:
        """Events that were not written."""
        return self._dropped + self._writer.lost_lines

    @property
    def _untold(self) -> int:
        """Of these, how many no `Dropped` has told of that was written, or may be yet."""
        return self.total_dropped + self._writer.lost_counts - self._told

    @property
    def failure(self) -> str | None:
        """Why output is not, or not all, where it should be; None: it is."""
        error = self._writer.error
        if error is not None:
            return f"{self.name}: {error.strerror}; {self.total_dropped} events were not written"
        if self._stalled:
            return f"{self.name}: nobody reads it, the last {self._stalled} bytes were not written"
        return None if self._bug is None else f"{self.name}: {self._bug} (a bug of udsproxy)"

    def _tell_dropped(self, event: Event) -> None:
        count = self._untold
        self._told += count
        told = Dropped(
            at=event.at,
            proxy=event.proxy,
            observer=self.name,
            count=count,
            nbytes=self._dropped_bytes or None,
        )
        self._dropped_bytes = 0
        try:
            rendered = self._renderer.render(told)
        except Exception as error:
            self._give_up(error)
            return
        if isinstance(rendered, bytes):
            self._tellings.append((self._batched + len(rendered), count))
            self._add(rendered)

    def _add(self, line: bytes) -> None:
        self._batch.append(line)
        self._batched += len(line)
        if self._batched >= _BATCH_BYTES:
            self.flush()

    def _add_slowly(self, pieces: Iterator[bytes]) -> Iterator[None]:
        try:
            for piece in pieces:
                self._add(piece)
                yield
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """A renderer's bug costs the event and nothing else."""
        self._bug = f"{type(error).__name__}: {error}"
        self._dropped += 1
        self.flush()  # so that it is told before the next event
