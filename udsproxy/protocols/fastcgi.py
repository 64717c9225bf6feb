"""The FastCGI 1.0 wire format: numbers, encoding, name-value pairs.

Source: the FastCGI Specification 1.0 (Open Market, 1996); sections are cited as "spec 3.3".

Rules: bytes in, values out; no sockets, no clock, no events (fastcgi_decoder.py makes those). Encoders raise
ValueError for what the format cannot carry; `PairReader` never raises, whatever it is fed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

VERSION = 1
HEADER = struct.Struct(">BBHHBx")
"""version, type, request id, content length, padding length, reserved (spec 3.3)."""

MAX_CONTENT = 0xFFFF

# Types (spec 8). The first eight belong to a request; the others are management records with request id 0.
BEGIN_REQUEST = 1
ABORT_REQUEST = 2
END_REQUEST = 3
PARAMS = 4
STDIN = 5
STDOUT = 6
STDERR = 7
DATA = 8
GET_VALUES = 9
GET_VALUES_RESULT = 10
UNKNOWN_TYPE = 11
MANAGEMENT = frozenset({GET_VALUES, GET_VALUES_RESULT, UNKNOWN_TYPE})

TYPE_NAMES = {
    BEGIN_REQUEST: "BEGIN_REQUEST",
    ABORT_REQUEST: "ABORT_REQUEST",
    END_REQUEST: "END_REQUEST",
    PARAMS: "PARAMS",
    STDIN: "STDIN",
    STDOUT: "STDOUT",
    STDERR: "STDERR",
    DATA: "DATA",
    GET_VALUES: "GET_VALUES",
    GET_VALUES_RESULT: "GET_VALUES_RESULT",
    UNKNOWN_TYPE: "UNKNOWN_TYPE",
}

RESPONDER = 1
FILTER = 3
ROLE_NAMES = {RESPONDER: "RESPONDER", 2: "AUTHORIZER", FILTER: "FILTER"}

KEEP_CONN = 1
"""The flag of BEGIN_REQUEST: the server leaves the connection open after the response (spec 5.1)."""

REQUEST_COMPLETE = 0
OVERLOADED = 2
PROTOCOL_STATUS_NAMES = {
    REQUEST_COMPLETE: "REQUEST_COMPLETE",
    1: "CANT_MPX_CONN",
    OVERLOADED: "OVERLOADED",
    3: "UNKNOWN_ROLE",
}

BEGIN_BODY = struct.Struct(">HB5x")
"""role, flags (spec 5.1)."""
END_BODY = struct.Struct(">IB3x")
"""application status, protocol status (spec 5.5)."""


def encode_record(kind: int, request_id: int, content: bytes = b"", *, padding: int | None = None) -> bytes:
    """One record. ``padding`` None: to the next 8 bytes, as the specification advises (spec 3.3).

    Raises ValueError where content is longer than 65,535 bytes or a number does not fit its field.
    """
    if padding is None:
        padding = -len(content) % 8
    try:
        header = HEADER.pack(VERSION, kind, request_id, len(content), padding)
    except struct.error as error:
        raise ValueError(f"no FastCGI record can hold this: {error}") from None
    return header + content + bytes(padding)


def encode_stream(kind: int, request_id: int, content: bytes) -> bytes:
    """A whole stream: as many records as it takes, and the empty one that ends it (spec 3.3)."""
    starts = range(0, len(content), MAX_CONTENT)
    records = [encode_record(kind, request_id, content[i : i + MAX_CONTENT]) for i in starts]
    return b"".join([*records, encode_record(kind, request_id)])


def encode_begin(request_id: int, *, role: int = RESPONDER, flags: int = 0) -> bytes:
    """A BEGIN_REQUEST record (spec 5.1)."""
    return encode_record(BEGIN_REQUEST, request_id, BEGIN_BODY.pack(role, flags))


def encode_end(request_id: int, *, app_status: int = 0, protocol_status: int = REQUEST_COMPLETE) -> bytes:
    """An END_REQUEST record (spec 5.5)."""
    return encode_record(END_REQUEST, request_id, END_BODY.pack(app_status, protocol_status))


def encode_pairs(pairs: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> bytes:
    """Name-value pairs (spec 3.4)."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return b"".join(_encode_length(len(n)) + _encode_length(len(v)) + n + v for n, v in items)


def encode_request(
    params: Mapping[bytes, bytes], body: bytes = b"", *, request_id: int = 1, flags: int = 0
) -> bytes:
    """All records of one request to a responder: BEGIN_REQUEST, PARAMS, STDIN."""
    return (
        encode_begin(request_id, flags=flags)
        + encode_stream(PARAMS, request_id, encode_pairs(params))
        + encode_stream(STDIN, request_id, body)
    )


class Record(NamedTuple):
    """One record, padding taken off."""

    kind: int
    request_id: int
    content: bytes


class RecordReader:
    """Whole records from a stream that may be cut anywhere, for who takes part in the protocol.

    (Who only watches counts bodies and keeps none: fastcgi_decoder.py.)
    """

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Record]:
        """The records that ``data`` completes. Raises ValueError where the stream is not FastCGI."""
        data = self._buffer + data if self._buffer else data
        records, pos = [], 0
        while len(data) - pos >= HEADER.size:
            version, kind, request_id, size, padding = HEADER.unpack_from(data, pos)
            if version != VERSION:
                raise ValueError(f"version {version} where FastCGI has {VERSION}")
            start = pos + HEADER.size
            if len(data) < start + size + padding:
                break
            records.append(Record(kind, request_id, data[start : start + size]))
            pos = start + size + padding
        self._buffer = data[pos:]
        return records


def _encode_length(length: int) -> bytes:
    """One byte up to 127, else four with the highest bit set (spec 3.4)."""
    if length > 0x7FFFFFFF:
        raise ValueError(f"a name or value of {length} bytes: FastCGI carries at most {0x7FFFFFFF}")
    return bytes((length,)) if length < 0x80 else (length | 0x80000000).to_bytes(4, "big")


_LONG = re.compile(rb"[\x80-\xff]")
"""What begins a length of four bytes, if it stands where a length does."""


def pick_pairs(data: bytes, pos: int, end: int, wanted: frozenset[bytes], found: dict[bytes, bytes]) -> int:
    """The whole pairs of ``data[pos:end]``, in haste: the values of wanted names go to ``found``.

    Returns where it stopped: at ``end``, or at a pair that is cut, or too long to be kept, which is `PairReader`'s
    work. Half the time of decoding a request goes here, so the loop does the least that finds the next pair: up to
    the next byte that could begin a long length it looks at no length's kind.
    """
    while pos < end:
        long = None if data[pos:end].isascii() else _LONG.search(data, pos, end)
        limit = (end if long is None else long.start()) - 1
        start = pos
        while pos < limit:
            start = pos
            value_at = pos + 2 + data[pos]
            pos = value_at + data[pos + 1]
            name = data[start + 2 : value_at]
            if name in wanted and pos <= end:
                found[name] = data[value_at:pos]
        if pos > end:
            return start
        if long is None:
            return pos
        if pos <= limit + 1:
            sizes = read_sizes(data, pos, end)
            if sizes is None:
                return pos
            at, name_size, value_size = sizes
            value_at = at + name_size
            after = value_at + value_size
            if after > end or after - pos > PairReader.MAX_KEPT:
                return pos
            name = data[at:value_at]
            if name in wanted:
                found[name] = data[value_at:after]
            pos = after
    return pos


def read_sizes(data: bytes, pos: int, end: int) -> tuple[int, int, int] | None:
    """Where the name begins of the pair at ``pos``, its length and the value's; None: not all of that is there."""
    sizes, at = [], pos
    for _ in range(2):
        if at >= end:
            return None
        size = data[at]
        at += 1
        if size & 0x80:
            at += 3
            if at > end:
                return None
            size = int.from_bytes(data[at - 4 : at], "big") & 0x7FFFFFFF
        sizes.append(size)
    return at, sizes[0], sizes[1]


class PairReader:
    """Name-value pairs (spec 3.4) from a stream that may be cut anywhere.

    Of a pair longer than `MAX_KEPT` bytes, whatever length it claims, the head is kept and the rest counted:
    its value comes out short. ``partial`` is true while the stream stands inside a pair.
    """

    MAX_KEPT = 16 * 1024

    _buffer = b""
    """The start of a pair that is not whole."""
    _need = 2
    """How long ``_buffer`` must be before parsing it can come further."""
    _skip = 0
    """How much of a pair longer than `MAX_KEPT` is still to come."""
    _long_pair: tuple[bytes, bytes] | None = None

    def __init__(self, wanted: frozenset[bytes] | None = None) -> None:
        """``wanted``: the names whose pairs are returned; None: all."""
        self._wanted = wanted

    @property
    def partial(self) -> bool:
        return bool(self._buffer) or self._skip > 0

    @property
    def kept(self) -> int:
        """Bytes that it keeps."""
        long = self._long_pair
        return len(self._buffer) + (len(long[0]) + len(long[1]) if long is not None else 0)

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The wanted pairs that ``data`` completes, in order."""
        if self._buffer or self._skip:
            return self._feed_on(data)
        pairs: list[tuple[bytes, bytes]] = []
        used = self._parse(data, pairs, 0)
        if used < len(data):
            self._buffer = data[used:]
        return pairs

    def _feed_on(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """`feed` where the stream stands inside a pair."""
        pairs: list[tuple[bytes, bytes]] = []
        skipped = min(self._skip, len(data))
        if skipped:
            self._skip -= skipped
            if self._skip:
                return pairs
            self._end_long_pair(pairs)
        data = self._buffer + data[skipped:]
        if len(data) < self._need:
            self._buffer = data
        else:
            self._buffer = data[self._parse(data, pairs, 0) :]
        return pairs

    def _end_long_pair(self, pairs: list[tuple[bytes, bytes]]) -> None:
        assert self._long_pair is not None
        self._append(pairs, *self._long_pair)
        self._long_pair = None

    def _append(self, pairs: list[tuple[bytes, bytes]], name: bytes, value: bytes) -> None:
        if self._wanted is None or name in self._wanted:
            pairs.append((name, value))

    def _parse(self, data: bytes, pairs: list[tuple[bytes, bytes]], pos: int) -> int:
        """Append the whole pairs of ``data`` from ``pos`` on and return how much of it is used then."""
        size = len(data)
        while size - pos >= 2:
            name_size, value_size, at = data[pos], data[pos + 1], pos + 2
            if name_size & 0x80:
                at = pos + 4
                name_size = int.from_bytes(data[pos:at], "big") & 0x7FFFFFFF
                if at >= size:
                    self._need = 5
                    return pos
                value_size = data[at]
                at += 1
            if value_size & 0x80:
                at += 3
                if at > size:
                    self._need = at - pos
                    return pos
                value_size = int.from_bytes(data[at - 4 : at], "big") & 0x7FFFFFFF
            value_at = at + name_size
            end = value_at + value_size
            if end > size or end - pos > self.MAX_KEPT:
                kept = min(end, pos + self.MAX_KEPT)
                if size < kept:
                    self._need = kept - pos
                    return pos
                self._long_pair = data[at : min(value_at, kept)], data[value_at:kept]
                self._skip = max(0, end - size)
                if self._skip:
                    self._need = 2
                    return size
                self._end_long_pair(pairs)
            else:
                self._append(pairs, data[at:value_at], data[value_at:end])
            pos = end
        self._need = 2
        return pos
