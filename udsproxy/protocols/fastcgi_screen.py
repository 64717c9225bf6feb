"""A client's FastCGI bytes as they may be shown: as many as there were, `*` in the place of what may be a secret.

Rules:

* Whether a byte is shown is decided by the bytes before it and itself, never by those behind it or by where a read
  ended: the same is shown however the stream is cut.
* A byte is shown where it is known to be no secret (secrets.py). The length and the name of a pair are known to be
  that behind a pair that was understood, and no further than a name that is known goes on.
* Nothing is believed of a record that cannot be where it is. From a wrong version, an unknown type, a reserved byte
  that is set or PARAMS that end inside a pair on, nothing is shown any more. What goes on inside a pair does so in
  the very next record, and only where no other request's PARAMS are under way: a record that is lost, or has
  another's number, must not put a secret where a public value was expected.
* Bodies, where they are to be shown, are so up to CONTENT_LENGTH, and not past what looks like the next record.
"""

from __future__ import annotations

import re

from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.budget import Ledger
from udsproxy.protocols.secrets import Kind, Masking

MAX_REQUESTS = 32
MAX_VALUE = 4096
"""Bytes of a value that are shown; the rest is masked."""
MAX_TRUSTED_PADDING = 7
"""What pads to the next 8 bytes. More may hide a record."""
_MAX_NAME = 256
_REQUEST_BYTES = 700
"""What a request costs to know, about."""

_TYPES = wire.MANAGEMENT | {wire.BEGIN_REQUEST, wire.ABORT_REQUEST, wire.PARAMS, wire.STDIN, wire.DATA}
_VALUES = frozenset({wire.GET_VALUES, wire.GET_VALUES_RESULT})
_SIZES = {wire.BEGIN_REQUEST: wire.BEGIN_BODY.size, wire.ABORT_REQUEST: 0, wire.UNKNOWN_TYPE: 8}
_BEGIN_BODY = ({0}, {1, 2, 3}, {0, 1}, {0}, {0}, {0}, {0}, {0})
_NO_NAME = re.compile(rb"[^A-Za-z0-9_.:-]")
_RECORD = re.compile(rb"\x01[\x01\x02\x04\x05\x08-\x0b]")
"""What a record begins with, in a body that claims to go on."""


def cover(out: bytearray, start: int, stop: int) -> None:
    """Mask ``out[start:stop]``."""
    if start < stop:
        out[start:stop] = b"*" * (stop - start)


class PairScreen:
    """The name-value pairs of one stream of PARAMS."""

    __slots__ = ("_in_value", "_kind", "_ledger", "_left", "_masking", "_name", "_sizes", "_value", "_value_size",
                 "content_length", "lost", "sure")  # fmt: skip

    def __init__(self, masking: Masking, ledger: Ledger, *, sure: bool) -> None:
        self._masking = masking
        self._ledger = ledger
        self.sure = sure
        """The next bytes are known to be no part of a secret: they are lengths and a name."""
        self.lost = False
        """This is no longer understood."""
        self.content_length: int | None = None
        self._sizes = self._value = b""
        self._name: bytes | None = None
        """None: its length is not known yet."""
        self._left = self._value_size = 0
        self._kind: Kind | None = None
        self._in_value = False

    @property
    def is_partial(self) -> bool:
        """It stands inside a pair."""
        return bool(self._sizes) or self._name is not None

    @property
    def is_public(self) -> bool:
        """The next byte may be shown, as far as is known."""
        return not self.lost and (self.sure if self._name is None or not self._in_value else self._kind is not None)

    def feed(self, out: bytearray, pos: int, stop: int) -> None:
        """Mask what must be of ``out[pos:stop]``."""
        while pos < stop:
            if self.lost:
                cover(out, pos, stop)
                return
            if self._name is None:
                self._take_size(out, pos)
                pos += 1
                continue
            end = min(stop, pos + self._left)
            self._left -= end - pos
            (self._take_value if self._in_value else self._take_name)(out, pos, end)
            pos = end

    def _take_size(self, out: bytearray, pos: int) -> None:
        self._sizes += out[pos : pos + 1]
        if not self.sure:
            cover(out, pos, pos + 1)
        sizes = wire.read_sizes(self._sizes, 0, len(self._sizes))
        if sizes is None:
            return
        _, self._left, self._value_size = sizes
        self._sizes, self._name = b"", b""
        self.lost = self._left == 0

    def _take_name(self, out: bytearray, pos: int, end: int) -> None:
        piece = bytes(out[pos:end])
        wrong = _NO_NAME.search(piece)
        if wrong is not None:
            self.lost = True
            piece = piece[: wrong.start()]
        assert self._name is not None
        shown = pos
        while self.sure and shown - pos < len(piece):
            self.sure = self._masking.may_begin(self._name + piece[: shown - pos + 1])
            shown += self.sure
        cover(out, shown, end)
        if len(self._name) <= _MAX_NAME:
            self._name += piece
        if self._left == 0 and not self.lost:
            self._kind = self._masking.kind(self._name)
            self.sure = self._kind is not None
            self._in_value, self._left = True, self._value_size
            if self._left == 0:
                self._end_value()

    def _take_value(self, out: bytearray, pos: int, end: int) -> None:
        if self._kind is None:
            cover(out, pos, end)
        else:
            before = len(self._value)
            kept = min(end - pos, MAX_VALUE - before)
            if kept > 0 and self._ledger.take(kept):
                self._value += out[pos : pos + kept]
                for first, last in self._masking.hidden(self._kind, self._value):
                    cover(out, max(pos, pos + first - before), pos + last - before)
            else:
                kept = 0
            if kept < end - pos:
                cover(out, pos + kept, end)
                self._let_go()
                self._kind, self.sure = None, False
        if self._left == 0:
            self._end_value()

    def _end_value(self) -> None:
        if self._kind is not None:
            self.sure = self._masking.broken_at(self._value) is None
            if self._name == b"CONTENT_LENGTH":
                is_number = self.sure and self._value.isdigit() and len(self._value) < 16
                self.content_length = int(self._value) if is_number and self.content_length is None else -1
        self._let_go()
        self._name, self._kind, self._in_value = None, None, False

    def _let_go(self) -> None:
        self._ledger.give(len(self._value))
        self._value = b""

    def close(self) -> None:
        """Keep nothing any more, and understand nothing."""
        self._let_go()
        self.lost = True


class _Request:
    """What is known of a request that was begun."""

    __slots__ = ("body_left", "expected_at", "has_params", "last", "pairs")

    def __init__(self, pairs: PairScreen) -> None:
        self.pairs = pairs
        self.has_params = False
        """Its PARAMS have ended."""
        self.expected_at = 0
        """Where the next record must begin that goes on with a pair."""
        self.body_left = 0
        """So much of its body may be shown."""
        self.last = b""
        """The last byte of the body."""


class FastCGIScreen:
    """All that a client sends on one connection. See the rules above."""

    def __init__(self, masking: Masking, ledger: Ledger) -> None:
        self._masking = masking
        self._ledger = ledger
        self._lost = False
        self._strays = False
        """There were PARAMS of no request that we know."""
        self._offset = 0
        """Of the next byte to come."""
        self._header = b""
        self._left = self._padding = 0
        """To come of the record in hand."""
        self._pads_with_zeros = True
        self._kind = self._done = 0
        self._request: _Request | None = None
        self._values: PairScreen | None = None
        """The pairs of GET_VALUES, or of its answer."""
        self._requests: dict[int, _Request] = {}

    def feed(self, data: bytes) -> bytes:
        """These bytes, as they may be shown."""
        out, pos, size = bytearray(data), 0, len(data)
        while pos < size:
            start = pos
            if self._lost:
                cover(out, pos, size)
                pos = size
            elif self._left:
                pos = min(size, pos + self._left)
                self._left -= pos - start
                self._content(out, start, pos)
            elif self._padding:
                pos = min(size, pos + self._padding)
                self._padding -= pos - start
                self._pad(out, start, pos)
            else:
                pos += 1
                self._take_header(out, start)
            self._offset += pos - start
        return bytes(out)

    # --- headers ---

    def _take_header(self, out: bytearray, pos: int) -> None:
        """One more byte of a header; mask it where it cannot be one."""
        header = self._header = self._header + out[pos : pos + 1]
        at, byte = len(header) - 1, header[-1]
        kind = header[1] if at else 0
        if at == 0:
            self._lost = byte != wire.VERSION
        elif at == 1:
            self._lost = byte not in _TYPES
        elif at in (2, 3):
            self._take_id(out, pos, kind, header)
        elif at in (4, 5):
            size = _SIZES.get(kind)
            self._lost = size is not None and byte != size.to_bytes(2, "big")[at - 4]
        elif at == 7:
            self._lost = byte != 0
        if self._lost or (byte != 0 and at in (4, 5, 6) and not self._is_before_public(kind, header)):
            cover(out, pos, pos + 1)
        if at == 7 and not self._lost:
            self._begin_record(*wire.HEADER.unpack(header)[1:])
            self._header = b""

    def _take_id(self, out: bytearray, pos: int, kind: int, header: bytes) -> None:
        """Only numbers that are open are shown, and of those that are new the small ones."""
        at = len(header) - 1
        if kind == wire.BEGIN_REQUEST or kind in wire.MANAGEMENT:
            number = int.from_bytes(header[2:4], "big")
            self._lost = at == 3 and (number == 0) != (kind in wire.MANAGEMENT)
            is_known = header[2] == 0
        else:
            is_known = any(each.to_bytes(2, "big")[: at - 1] == header[2:] for each in self._requests)
        if not is_known:
            cover(out, pos, pos + 1)

    def _is_before_public(self, kind: int, header: bytes) -> bool:
        """What a record of this kind begins with may be shown: so may those bytes of its header that can be any,
        also where others are missing."""
        request = self._requests.get(int.from_bytes(header[2:4], "big"))
        if kind == wire.PARAMS:
            return request is not None and not request.has_params and request.pairs.is_public
        return kind == wire.BEGIN_REQUEST or (kind == wire.STDIN and self._masking.shows_bodies)

    def _begin_record(self, kind: int, number: int, size: int, padding: int) -> None:
        self._kind, self._left, self._padding, self._done = kind, size, padding, 0
        self._pads_with_zeros = True
        if kind == wire.BEGIN_REQUEST:
            self._forget(number)
            if len(self._requests) >= MAX_REQUESTS:
                self._forget(next(iter(self._requests)))
            if self._ledger.take(_REQUEST_BYTES):
                pairs = PairScreen(self._masking, self._ledger, sure=not self._is_mixed(None))
                self._requests[number] = _Request(pairs)
        self._request = self._requests.get(number)
        if kind in _VALUES:
            self._values = PairScreen(self._masking, self._ledger, sure=not self._is_mixed(None))
        elif kind == wire.PARAMS:
            self._begin_params(self._request, size, padding)

    def _forget(self, number: int) -> None:
        request = self._requests.pop(number, None)
        if request is not None:
            request.pairs.close()
            self._ledger.give(_REQUEST_BYTES)

    def _begin_params(self, request: _Request | None, size: int, padding: int) -> None:
        if request is None or request.has_params:
            self._strays = True
            self._request = None
        elif size == 0:
            self._lost = request.pairs.is_partial and not request.pairs.lost
            request.has_params = True
            request.body_left = max(0, request.pairs.content_length or 0)
        else:
            begins_at = self._offset - wire.HEADER.size + 1
            if self._is_mixed(request) or request.expected_at not in (0, begins_at):
                request.pairs.sure = False
                request.pairs.lost |= request.pairs.is_partial
            trusted = padding <= MAX_TRUSTED_PADDING
            request.expected_at = begins_at + wire.HEADER.size + size + padding if trusted else -1

    def _is_mixed(self, request: _Request | None) -> bool:
        """A record may belong to another request than it says."""
        others = (each for each in self._requests.values() if each is not request and not each.has_params)
        return self._strays or any(others)

    # --- what is in them ---

    def _content(self, out: bytearray, start: int, stop: int) -> None:
        request = self._request
        if self._kind == wire.PARAMS and request is not None:
            request.pairs.feed(out, start, stop)
        elif self._kind in _VALUES and self._values is not None:
            self._values.feed(out, start, stop)
        elif self._kind == wire.STDIN and request is not None and request.has_params and self._masking.shows_bodies:
            self._body(request, out, start, stop)
        elif self._kind == wire.BEGIN_REQUEST:
            for pos in range(start, stop):
                if self._done < len(_BEGIN_BODY) and out[pos] in _BEGIN_BODY[self._done]:
                    self._done += 1
                else:
                    self._done = len(_BEGIN_BODY)
                    cover(out, pos, pos + 1)
        else:
            cover(out, start, stop)

    @staticmethod
    def _body(request: _Request, out: bytearray, start: int, stop: int) -> None:
        shown = min(stop, start + request.body_left)
        early = request.last
        record = _RECORD.search(early + out[start:shown])
        if record is not None:
            shown = start + record.end() - len(early) - 1
            request.body_left = 0
        else:
            request.body_left -= shown - start
        request.last = bytes(out[stop - 1 : stop])
        cover(out, shown, stop)

    def _pad(self, out: bytearray, start: int, stop: int) -> None:
        """Padding is zeros, or is not shown."""
        if self._pads_with_zeros:
            rest = bytes(out[start:stop]).lstrip(b"\0")
            self._pads_with_zeros = not rest
            start = stop - len(rest)
        cover(out, start, stop)
