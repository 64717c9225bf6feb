r"""``--log socat``: what ``socat -v`` prints, so that its users and their scripts feel at home.

A line as ``> 2026/11/23 06:10:04.718335  length=12 from=0 to=11 conn=3``, then the bytes as text: newline and
tab as they are, ``\\``, ``\a``, ``\b``, ``\f``, ``\r``, ``\v`` escaped, any other byte that is not printable
ASCII a dot. Ours adds ``conn=``, so that clients can be told apart, and ends the text with a newline.
"""

from __future__ import annotations

from collections.abc import Iterator

from udsproxy.events import Data, Dropped, Event
from udsproxy.sinks.text import WallClock

_PIECE = 4096

_ESCAPES = {0x07: b"\\a", 0x08: b"\\b", 0x0B: b"\\v", 0x0C: b"\\f", 0x0D: b"\\r", 0x5C: b"\\\\"}
_AS_IT_IS = frozenset([*range(0x20, 0x7F), 0x09, 0x0A])
_TABLE = bytes(b if b in _AS_IT_IS or b in _ESCAPES else ord(".") for b in range(256))


class SocatRenderer:
    """See `udsproxy.sinks.sink.Renderer`."""

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock

    def render(self, event: Event) -> bytes | Iterator[bytes] | None:
        if isinstance(event, Data):
            return self._pieces(event)
        if isinstance(event, Dropped):
            return f"(dropped: {event.count} chunks, {event.nbytes or 0} bytes)\n".encode()
        return None

    def _pieces(self, event: Data) -> Iterator[bytes]:
        sign = ">" if event.direction == "c2s" else "<"
        first, last = event.offset, event.offset + len(event.data) - 1
        moment, length = self._clock.socat(event.at), len(event.data)
        yield f"{sign} {moment}  length={length} from={first} to={last} conn={event.conn}\n".encode()
        for start in range(0, len(event.data), _PIECE):
            piece = event.data[start : start + _PIECE].translate(_TABLE).replace(b"\\", _ESCAPES[0x5C])
            for byte, escape in _ESCAPES.items():
                if byte != 0x5C and byte in piece:
                    piece = piece.replace(bytes((byte,)), escape)
            yield piece
        if not event.data.endswith(b"\n"):
            yield b"\n"
