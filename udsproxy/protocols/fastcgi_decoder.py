"""FastCGI, from the bytes of a connection to messages and exchanges. The wire format is in fastcgi.py.

Rules:

* Framing is per direction: `_Direction` walks records and hands their content on in the pieces in which it
  arrives; nothing waits for a record to be whole that need not. Bodies are counted, not kept.
* What a record means is decided in `FastCGIDecoder`: the tables `_FROM_CLIENT` and `_FROM_SERVER` say which
  types may travel which way; anything else turns that direction raw, with one `DecodeError`.
* An exchange begins with BEGIN_REQUEST and ends with END_REQUEST (spec 5.1, 5.5). Every exchange that began
  is reported once, ended or not. Records of a request id that is not open are skipped, as spec 3.3 asks.
* Kept per connection: at most `MAX_OPEN` exchanges, each with a bounded head, standard error and parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from udsproxy.events import MASK, DecodeError, Direction, Event, Message, Request, printable
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.decoder import Scope

PROTOCOL = "fastcgi"

MAX_OPEN = 128
"""Open requests on one connection. FastCGI servers in use multiplex few or none."""
MAX_HEAD = 16 * 1024
"""Bytes of STDOUT in which the CGI headers must end; nginx's own limit is 4 or 8 KiB."""
MAX_STDERR = 8 * 1024
MAX_PARAMS_SHOWN = 64 * 1024
"""Bytes of parameters that a `Message` shows; the rest is counted."""
MAX_TEXT = 8 * 1024
"""Bytes kept of a URI, a script's name, a header."""

_FROM_CLIENT = frozenset(
    {wire.BEGIN_REQUEST, wire.ABORT_REQUEST, wire.PARAMS, wire.STDIN, wire.DATA, wire.GET_VALUES}
)
_FROM_SERVER = frozenset({wire.END_REQUEST, wire.STDOUT, wire.STDERR, wire.GET_VALUES_RESULT, wire.UNKNOWN_TYPE})
_MANAGEMENT = frozenset({wire.GET_VALUES, wire.GET_VALUES_RESULT, wire.UNKNOWN_TYPE})
_FIXED_SIZE = {wire.BEGIN_REQUEST: 8, wire.END_REQUEST: 8, wire.UNKNOWN_TYPE: 8, wire.ABORT_REQUEST: 0}
_HEAD_END = re.compile(rb"\r?\n\r?\n")


def recognise(start: bytes) -> bool | None:
    """Do these first bytes of a client begin FastCGI? None: too few to tell.

    They do where they are the header of a BEGIN_REQUEST with a role that exists (spec 5.1), or of a
    GET_VALUES (spec 4.1).
    """
    header = start[:8]
    if header[:1] != b"\x01"[: len(header)]:
        return False
    if len(header) >= 2 and header[1] not in (wire.BEGIN_REQUEST, wire.GET_VALUES):
        return False
    if len(header) < 8:
        return None
    _, kind, request_id, size, _ = wire.HEADER.unpack(header)
    if kind == wire.GET_VALUES:
        return bool(request_id == 0)
    if request_id == 0 or size != wire.BEGIN_BODY.size:
        return False
    if len(start) < 10:
        return None
    return int.from_bytes(start[8:10], "big") in wire.ROLE_NAMES


@dataclass(slots=True)
class _Exchange:
    """What is known of one request and its response so far."""

    request_id: int
    began_at: int
    params: wire.PairReader
    found: dict[bytes, bytes] = field(default_factory=dict)
    shown: dict[str, str | int] = field(default_factory=dict)
    shown_bytes: int = 0
    params_bytes: int = 0
    head: bytes | None = b""
    """The start of STDOUT until its headers are complete; then None."""
    status: int | None = None
    content_type: str | None = None
    stderr: bytes = b""
    first_reply_at: int | None = None
    aborted: bool = False
    c2s_bytes: int = 0
    s2c_bytes: int = 0


@dataclass(slots=True)
class _Direction:
    """Where one direction stands in its stream of records."""

    direction: Direction
    allowed: frozenset[int]
    raw: bool = False
    offset: int = 0
    """Of the next byte to come."""
    header: bytes = b""
    """What has come of a header that is not whole."""
    header_at: int = 0
    kind: int = 0
    request_id: int = 0
    size: int = 0
    left: int = 0
    """Content still to come."""
    padding: int = 0
    """Padding still to come."""
    inside: bool = False
    """A header has been read and its record has not ended."""
    exchange: _Exchange | None = None
    content: bytes = b""
    """Of the record types that are understood as a whole."""


_WANTED = frozenset({b"REQUEST_METHOD", b"REQUEST_URI", b"SCRIPT_NAME", b"SCRIPT_FILENAME", b"QUERY_STRING"})
_WHOLE = frozenset(
    {wire.BEGIN_REQUEST, wire.END_REQUEST, wire.GET_VALUES, wire.GET_VALUES_RESULT, wire.UNKNOWN_TYPE}
)


class _Wrong(Exception):
    """This direction is not FastCGI any more; the argument says why. Never leaves this module."""


class FastCGIDecoder:
    """See `udsproxy.protocols.decoder.Decoder`."""

    def __init__(self, scope: Scope) -> None:
        self.protocol: str | None = PROTOCOL
        self.exchanges = 0
        self.secret_spans: list[tuple[int, int]] = []
        self._scope = scope
        self._secrets = frozenset(name.encode() for name in scope.secrets)
        self._span_secrets = self._secrets if scope.spans and scope.secrets else None
        self._client = _Direction("c2s", _FROM_CLIENT)
        self._server = _Direction("s2c", _FROM_SERVER)
        self._open: dict[int, _Exchange] = {}
        self._events: list[Event] = []

    # --- what the tap calls ---

    def feed(self, direction: Direction, at: int, data: bytes) -> Sequence[Event]:
        stream = self._client if direction == "c2s" else self._server
        if self._span_secrets is not None:
            self.secret_spans = []
        if stream.raw:
            self._hide_all(direction, 0, data)
            stream.offset += len(data)
            return ()
        self._events = []
        self._walk(stream, at, data)
        stream.offset += len(data)
        return self._events

    def lost(self, direction: Direction, at: int) -> Sequence[Event]:
        stream = self._client if direction == "c2s" else self._server
        if stream.raw:
            return ()
        self._events = []
        self._turn_raw(stream, at, stream.offset, "bytes were not observed here (the observer could not keep up)")
        return self._events

    def close(self, at: int, why: str) -> Sequence[Event]:
        self._events = []
        if self._server.raw:
            why = "the response could not be decoded"
        for exchange in self._open.values():
            self._report(exchange, at, incomplete="abort" if exchange.aborted else why)
        self._open.clear()
        return self._events

    # --- framing ---

    def _walk(self, stream: _Direction, at: int, data: bytes) -> None:
        pos, size = 0, len(data)
        while pos < size:
            if not stream.inside:
                start = pos
                if stream.header or size - pos < 8:
                    if not stream.header:
                        stream.header_at = at
                    taken = 8 - len(stream.header)
                    stream.header += data[pos : pos + taken]
                    pos = min(pos + taken, size)
                    if len(stream.header) < 8:
                        return
                    version, kind, request_id, length, padding = wire.HEADER.unpack(stream.header)
                    start = pos - 8
                    stream.header = b""
                else:
                    version, kind, request_id, length, padding = wire.HEADER.unpack_from(data, pos)
                    stream.header_at = at
                    pos += 8
                try:
                    if version != wire.VERSION:
                        raise _Wrong(f"version {version} where FastCGI has {wire.VERSION}")
                    self._begin_record(stream, kind, request_id, length, padding)
                except _Wrong as wrong:
                    self._turn_raw(stream, at, stream.offset + start, str(wrong))
                    self._hide_all(stream.direction, max(start, 0), data)
                    return
            if stream.left:
                end = min(pos + stream.left, size)
                stream.left -= end - pos
                self._content(stream, data, pos, end)
                pos = end
            if stream.padding and stream.left == 0 and pos < size:
                taken = min(stream.padding, size - pos)
                stream.padding -= taken
                pos += taken
                self._count(stream, taken)
            if stream.left == 0 and stream.padding == 0:
                stream.inside = False
                try:
                    self._end_record(stream, at)
                except _Wrong as wrong:
                    self._turn_raw(stream, at, stream.offset + pos, str(wrong))
                    self._hide_all(stream.direction, pos, data)
                    return

    def _begin_record(self, stream: _Direction, kind: int, request_id: int, size: int, padding: int) -> None:
        self._check_record(stream, kind, request_id, size)
        stream.kind = kind
        stream.request_id = request_id
        stream.size = stream.left = size
        stream.padding = padding
        stream.inside = True
        stream.content = b""
        if kind == wire.BEGIN_REQUEST:
            if request_id in self._open:
                self._report(self._open.pop(request_id), stream.header_at, incomplete="its id was begun again")
            if len(self._open) >= MAX_OPEN:
                raise _Wrong(f"more than {MAX_OPEN} requests open at once")
            exchange = _Exchange(request_id, stream.header_at, wire.PairReader(self._span_secrets))
            self._open[request_id] = exchange
        stream.exchange = self._open.get(request_id) if request_id else None
        if stream.exchange is not None:
            if stream.direction == "s2c" and stream.exchange.first_reply_at is None:
                stream.exchange.first_reply_at = stream.header_at
            self._count(stream, 8)

    @staticmethod
    def _check_record(stream: _Direction, kind: int, request_id: int, size: int) -> None:
        """Raises `_Wrong` where this record cannot come from this side."""
        name = wire.TYPE_NAMES.get(kind)
        if name is None:
            # A type that we do not know is legal: the server answers UNKNOWN_TYPE or skips it (spec 4.2).
            if stream.direction == "s2c":
                raise _Wrong(f"type {kind}, which no server sends")
            return
        if kind not in stream.allowed:
            raise _Wrong(f"{name} from the {'client' if stream.direction == 'c2s' else 'server'}")
        if (request_id == 0) != (kind in _MANAGEMENT):
            raise _Wrong(f"{name} with request id {request_id}")
        if _FIXED_SIZE.get(kind, size) != size:
            raise _Wrong(f"{name} of {size} bytes, not {_FIXED_SIZE[kind]}")

    def _count(self, stream: _Direction, nbytes: int) -> None:
        if stream.exchange is not None:
            if stream.direction == "c2s":
                stream.exchange.c2s_bytes += nbytes
            else:
                stream.exchange.s2c_bytes += nbytes

    # --- meaning ---

    def _content(self, stream: _Direction, data: bytes, start: int, end: int) -> None:
        """Content of the current record, as much as came: ``data[start:end]``."""
        kind, exchange = stream.kind, stream.exchange
        if kind in _WHOLE:
            stream.content += data[start:end]
        if exchange is None:
            if kind == wire.PARAMS:
                self._hide_all("c2s", start, data[:end])  # of no open request: cannot be read, so is not shown
            return
        self._count(stream, end - start)
        if kind == wire.PARAMS:
            self._take_params(exchange, data[start:end])
            if self._span_secrets is not None:
                self.secret_spans += [(start + a, start + b) for a, b in exchange.params.secret_spans]
        elif kind == wire.STDOUT:
            if exchange.head is not None:
                self._take_head(exchange, data[start:end])
        elif kind == wire.STDERR and len(exchange.stderr) < MAX_STDERR:
            exchange.stderr = (exchange.stderr + data[start:end])[:MAX_STDERR]

    def _take_params(self, exchange: _Exchange, piece: bytes) -> None:
        exchange.params_bytes += len(piece)
        for name, value in exchange.params.feed(piece):
            if name in _WANTED:
                exchange.found[name] = value[:MAX_TEXT]
            if self._scope.messages:
                exchange.shown_bytes += len(name) + len(value)
                if exchange.shown_bytes <= MAX_PARAMS_SHOWN:
                    secret = name.upper() in self._secrets
                    exchange.shown[printable(name)] = MASK if secret else printable(value)

    @staticmethod
    def _take_head(exchange: _Exchange, piece: bytes) -> None:
        """CGI headers, up to the empty line (RFC 3875, section 6.2)."""
        head = exchange.head + piece if exchange.head else piece
        ended = _HEAD_END.search(head, max(0, len(head) - len(piece) - 3))  # it may begin in the last piece
        if ended is None:
            # Past the limit they are no headers that a server would read; status stays unknown.
            exchange.head = None if len(head) > MAX_HEAD else head
            return
        exchange.head = None
        location = False
        if ended.start() > MAX_HEAD:
            return
        for line in head[: ended.start()].splitlines():
            name, _, value = line.partition(b":")
            name = name.strip().lower()
            if name == b"status":
                code = value.split(maxsplit=1)[:1]
                if code and code[0].isdigit() and len(code[0]) == 3:
                    exchange.status = int(code[0])
            elif name == b"content-type":
                exchange.content_type = printable(value.strip()[:MAX_TEXT])
            elif name == b"location":
                location = True
        if exchange.status is None:
            exchange.status = 302 if location else 200

    def _end_record(self, stream: _Direction, at: int) -> None:
        kind, exchange = stream.kind, stream.exchange
        stream.exchange = None
        if kind == wire.ABORT_REQUEST and exchange is not None:
            exchange.aborted = True
        if kind == wire.PARAMS and stream.size == 0 and exchange is not None:
            if exchange.params.partial:
                raise _Wrong("PARAMS ended inside a name-value pair")
            if self._scope.messages:
                fields: dict[str, str | int] = {"request": exchange.request_id, **exchange.shown}
                if exchange.shown_bytes > MAX_PARAMS_SHOWN:
                    fields["(not shown)"] = f"parameters past {MAX_PARAMS_SHOWN} bytes"
                self._message(stream, at, fields, nbytes=exchange.params_bytes)
                exchange.shown = {}
        elif self._scope.messages and kind != wire.PARAMS:
            self._message(stream, at, self._fields(stream))
        if kind == wire.END_REQUEST and exchange is not None and self._open.get(stream.request_id) is exchange:
            app_status, protocol_status = wire.END_BODY.unpack(stream.content)
            del self._open[stream.request_id]
            self._report(
                exchange,
                at,
                app_status=app_status,
                protocol_status=wire.PROTOCOL_STATUS_NAMES.get(protocol_status, str(protocol_status)),
                incomplete="abort" if exchange.aborted else None,
            )
        stream.content = b""

    def _fields(self, stream: _Direction) -> dict[str, str | int]:
        """What a message of this record says besides its kind and size."""
        fields: dict[str, str | int] = {"request": stream.request_id} if stream.request_id else {}
        content = stream.content
        if stream.kind == wire.BEGIN_REQUEST:
            role, flags = wire.BEGIN_BODY.unpack(content)
            fields["role"] = wire.ROLE_NAMES.get(role, str(role))
            fields["keep_conn"] = "yes" if flags & wire.KEEP_CONN else "no"
        elif stream.kind == wire.END_REQUEST:
            app_status, protocol_status = wire.END_BODY.unpack(content)
            fields["app_status"] = app_status
            fields["protocol_status"] = wire.PROTOCOL_STATUS_NAMES.get(protocol_status, str(protocol_status))
        elif stream.kind in (wire.GET_VALUES, wire.GET_VALUES_RESULT):
            fields |= {printable(n): printable(v) for n, v in wire.PairReader().feed(content)}
        elif stream.kind == wire.UNKNOWN_TYPE:
            fields["type"] = content[0]
        elif stream.kind not in wire.TYPE_NAMES:
            fields["type"] = stream.kind
        return fields

    def _message(
        self, stream: _Direction, at: int, fields: dict[str, str | int], nbytes: int | None = None
    ) -> None:
        self._events.append(
            Message(
                at=at,
                proxy=self._scope.proxy,
                conn=self._scope.conn,
                direction=stream.direction,
                protocol=PROTOCOL,
                kind=wire.TYPE_NAMES.get(stream.kind, "UNKNOWN"),
                nbytes=stream.size if nbytes is None else nbytes,
                fields=fields,
            )
        )

    def _report(
        self,
        exchange: _Exchange,
        at: int,
        *,
        app_status: int | None = None,
        protocol_status: str | None = None,
        incomplete: str | None = None,
    ) -> None:
        self.exchanges += 1
        found = exchange.found
        method = found.get(b"REQUEST_METHOD")
        script = found.get(b"SCRIPT_NAME") or found.get(b"SCRIPT_FILENAME")
        uri = found.get(b"REQUEST_URI")
        if uri is None and script is not None:
            query = found.get(b"QUERY_STRING")
            uri = script + b"?" + query if query else script
        first = exchange.first_reply_at
        self._events.append(
            Request(
                at=at,
                proxy=self._scope.proxy,
                conn=self._scope.conn,
                protocol=PROTOCOL,
                request=exchange.request_id,
                method=None if method is None else printable(method),
                uri=None if uri is None else printable(uri),
                script=None if script is None else printable(script),
                status=exchange.status,
                content_type=exchange.content_type,
                app_status=app_status,
                protocol_status=protocol_status,
                stderr=printable(exchange.stderr) if exchange.stderr else None,
                c2s_bytes=exchange.c2s_bytes,
                s2c_bytes=exchange.s2c_bytes,
                ttfb_s=None if first is None else (first - exchange.began_at) / 1e9,
                total_s=(at - exchange.began_at) / 1e9,
                incomplete=incomplete,
            )
        )

    # --- turning wrong ---

    def _turn_raw(self, stream: _Direction, at: int, offset: int, reason: str) -> None:
        stream.raw = True
        stream.exchange = None
        self._events.append(
            DecodeError(
                at=at,
                proxy=self._scope.proxy,
                conn=self._scope.conn,
                direction=stream.direction,
                protocol=PROTOCOL,
                offset=offset,
                reason=reason,
            )
        )

    def _hide_all(self, direction: Direction, start: int, data: bytes) -> None:
        """Parameters that can no longer be told from secrets count as secret."""
        if self._span_secrets is not None and direction == "c2s" and start < len(data):
            self.secret_spans.append((start, len(data)))
