"""``--log json``: one JSON object a line, by structlog. The keys are those of docs/events.md.

Rules: a key whose value is not known is absent. Every line is ASCII-safe for a terminal: peers' text was made
printable before it came here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import msgspec
import structlog

from udsproxy.events import Client, Data, Event
from udsproxy.sinks.text import WallClock, hexdump_lines

_encode = msgspec.json.Encoder().encode


class _Line:
    """The end of structlog's chain: keeps the line for whoever renders."""

    def __init__(self) -> None:
        self.line = b""

    def info(self, line: bytes) -> None:
        self.line = line


def _render(_logger: object, _method: str, event: MutableMapping[str, Any]) -> bytes:
    return _encode(event) + b"\n"


class JsonRenderer:
    """See `udsproxy.sinks.sink.Renderer`."""

    def __init__(self, clock: WallClock, *, hexdump: int) -> None:
        self._clock = clock
        self._hexdump = hexdump
        self._kept = _Line()
        self._log: Callable[..., object] = (
            structlog.wrap_logger(
                self._kept,
                processors=[_render],
                wrapper_class=structlog.BoundLogger,
                cache_logger_on_first_use=True,
            )
            .bind()
            .info
        )

    def render(self, event: Event) -> bytes | Iterator[bytes] | None:
        keys = self._keys(event)
        if isinstance(event, Data):
            return self._render_data(event, keys)
        return self._line(event.name, keys)

    def _line(self, name: str, keys: dict[str, Any]) -> bytes:
        self._log(name, **keys)
        return self._kept.line

    def _keys(self, event: Event) -> dict[str, Any]:
        keys: dict[str, Any] = {"ts": self._clock.rfc3339(event.at)}
        for key in event.__struct_fields__:
            value = getattr(event, key)
            if value is None or key in ("at", "data"):
                continue
            keys[key] = _client(value) if isinstance(value, Client) else value
        return keys

    def _render_data(self, event: Data, keys: dict[str, Any]) -> Iterator[bytes]:
        """Line by line, because a hexdump takes long; the whole comes at the end, as one line of JSON."""
        lines = []
        for line in hexdump_lines(event.data, self._hexdump):
            lines.append(line)
            yield b""
        yield self._line(event.name, {**keys, "nbytes": len(event.data), "text": "\n".join(lines)})


def _client(client: Client) -> dict[str, Any]:
    return {key: value for key, value in client._asdict().items() if value is not None}
