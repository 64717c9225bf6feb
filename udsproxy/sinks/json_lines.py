"""``--log json``: one JSON object a line, by structlog. The keys are those of docs/events.md.

Rules: a key whose value is not known is absent. Text from peers was made printable before it came here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import msgspec
import structlog

from udsproxy.events import Data, Event, Message
from udsproxy.sinks.text import WallClock, hexdump_lines

_encode = msgspec.json.Encoder().encode


class _Line:
    """The end of structlog's chain: keeps the line for whoever renders."""

    def __init__(self) -> None:
        self.line = b""

    def info(self, line: bytes) -> None:
        self.line = line


class _ToJson:
    """structlog's one processor: ``ts`` and ``event``, then the event's own keys but for ``at``, its first."""

    def __init__(self, clock: WallClock) -> None:
        self._rfc3339 = clock.rfc3339

    def __call__(self, _logger: object, _method: str, entry: MutableMapping[str, Any]) -> bytes:
        event: Event = entry["event"]
        keys = _encode(entry.get("record") or event)
        start = f'{{"ts":"{self._rfc3339(event.at)}","event":"{event.name}"'
        return start.encode() + keys[keys.index(b",") :] + b"\n"


class JsonRenderer:
    """See `udsproxy.sinks.sink.Renderer`."""

    def __init__(self, clock: WallClock, *, hexdump: int, verbosity: int = 2) -> None:
        """``verbosity``: below 2 there are no bytes, below 1 no messages (another output may want them)."""
        self._hexdump = hexdump
        self._hidden = frozenset((Data, Message)[: 2 - min(verbosity, 2)])
        self._kept = _Line()
        logger = structlog.wrap_logger(self._kept, processors=[_ToJson(clock)], wrapper_class=structlog.BoundLogger)
        self._log: Callable[..., object] = logger.bind().info

    def render(self, event: Event) -> bytes | Iterator[bytes] | None:
        if event.__class__ in self._hidden:
            return None
        if isinstance(event, Data):
            return self._render_data(event)
        self._log(event)
        return self._kept.line

    def _render_data(self, event: Data) -> Iterator[bytes]:
        """Line by line, because a hexdump takes long; the whole comes at the end, as one line of JSON."""
        lines = []
        for line in hexdump_lines(event.data, self._hexdump):
            lines.append(line)
            yield b""
        record = {
            "at": event.at,
            "proxy": event.proxy,
            "conn": event.conn,
            "direction": event.direction,
            "offset": event.offset,
            "nbytes": len(event.data),
            "text": "\n".join(lines),
        }
        self._log(event, record=record)
        yield self._kept.line
