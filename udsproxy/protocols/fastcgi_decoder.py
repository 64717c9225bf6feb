"""FastCGI, from the bytes of a connection to messages and exchanges. The wire format is in fastcgi.py.

Rules:

* Framing is per direction: `_walk` goes from record to record and hands their content on in the pieces in which it
  arrives; nothing waits for a record to be whole that need not. Bodies are counted, not kept.
* The tables `_FROM_CLIENT` and `_FROM_SERVER` say which types may travel which way; anything else turns that
  direction raw, with one `DecodeError`.
* An exchange begins with BEGIN_REQUEST and ends with END_REQUEST (spec 5.1, 5.5). Every exchange that began
  is reported once, ended or not. Records of a request id that is not open are skipped, as spec 3.3 asks.
* Kept per connection: at most `MAX_OPEN` exchanges, each with a bounded head, standard error and parameters.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from udsproxy.events import MASK, DecodeError, Direction, Event, Message, Request, Snapshot, printable
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.decoder import Pending, Scope

PROTOCOL = "fastcgi"

MAX_OPEN = 32
"""Open requests on one connection. FastCGI servers in use multiplex few or none."""
MAX_HEAD = 16 * 1024
"""Bytes of STDOUT in which the CGI headers must be; nginx's own limit is 4 or 8 KiB."""
MAX_STDERR = 8 * 1024
MAX_PARAMS_SHOWN = 64 * 1024
"""Bytes of parameters that a `Message` shows; the rest is counted."""
MAX_VALUES_SHOWN = 100
"""Pairs that a `Message` of GET_VALUES shows; three names are known (spec 4.1)."""
_PAIR_BYTES = 200
"""What a pair costs to keep besides its text, about."""
MAX_TEXT = 8 * 1024
"""Bytes kept of a URI, a script's name, a header."""

FIRST_SNAPSHOTS, LAST_SNAPSHOTS = 2, 3
"""Of an exchange that takes long, so many are kept."""

_ANY = -1
_FROM_CLIENT = {
    wire.BEGIN_REQUEST: wire.BEGIN_BODY.size,
    wire.ABORT_REQUEST: 0,
    wire.PARAMS: _ANY,
    wire.STDIN: _ANY,
    wire.DATA: _ANY,
    wire.GET_VALUES: _ANY,
}
"""Which types a client sends, and the size that their content must have."""
_FROM_SERVER = {
    wire.END_REQUEST: wire.END_BODY.size,
    wire.STDOUT: _ANY,
    wire.STDERR: _ANY,
    wire.GET_VALUES_RESULT: _ANY,
    wire.UNKNOWN_TYPE: 8,
}
_PLAIN_FROM_CLIENT = frozenset({wire.PARAMS, wire.STDIN, wire.DATA})
_PLAIN_FROM_SERVER = frozenset({wire.STDOUT, wire.STDERR})
"""Types that are right from there whatever their size, if they have a request id."""
_FIXED_FROM_CLIENT = {wire.BEGIN_REQUEST: wire.BEGIN_BODY.size, wire.ABORT_REQUEST: 0}
_FIXED_FROM_SERVER = {wire.END_REQUEST: wire.END_BODY.size}
"""Types that are right from there with this size, if they have a request id."""
_MANAGEMENT = frozenset({wire.GET_VALUES, wire.GET_VALUES_RESULT, wire.UNKNOWN_TYPE})
_UNDERSTOOD_WHOLE = _MANAGEMENT | {wire.BEGIN_REQUEST, wire.END_REQUEST}
_WANTED = frozenset({b"REQUEST_METHOD", b"REQUEST_URI", b"SCRIPT_NAME", b"SCRIPT_FILENAME", b"QUERY_STRING"})
_HEADER_LINE = re.compile(
    rb"^[ \t]*(status|content-type|location)[ \t]*:[ \t]*([^\r\n]*)", re.MULTILINE | re.IGNORECASE
)
"""The headers that mean something here (RFC 3875, section 6.3)."""


def recognise(start: bytes) -> bool | None:
    """Do these first bytes of a client begin FastCGI? None: too few to tell.

    They do where they are the header of a BEGIN_REQUEST with a role that exists (spec 5.1), or of a
    GET_VALUES (spec 4.1).
    """
    if len(start) < wire.HEADER.size:
        right = start[:1] in (b"", b"\x01") and start[1:2] in (b"", b"\x01", b"\x09")
        return None if right else False
    version, kind, request_id, size, _ = wire.HEADER.unpack_from(start)
    if version != wire.VERSION:
        return False
    if kind != wire.BEGIN_REQUEST:
        return bool(kind == wire.GET_VALUES and request_id == 0)
    if request_id == 0 or size != wire.BEGIN_BODY.size:
        return False
    if len(start) < wire.HEADER.size + 2:
        return None
    return (start[8] << 8 | start[9]) in wire.ROLE_NAMES


class _Exchange:
    """What is known of one request and its response so far."""

    __slots__ = (
        "aborted", "began_at", "c2s_bytes", "content_type", "faults", "first_reply_at", "found", "head",
        "params_bytes", "reader", "request_id", "s2c_bytes", "shown", "shown_bytes", "snapshots", "status",
        "stderr",
    )  # fmt: skip

    def __init__(self, request_id: int, began_at: int) -> None:
        self.request_id = request_id
        self.began_at = began_at
        self.first_reply_at: int | None = None
        self.aborted = False
        self.c2s_bytes = self.s2c_bytes = 0
        self.found: dict[bytes, bytes] = {}
        """Parameters that an exchange is told by."""
        self.reader: wire.PairReader | None = None
        """For parameters that need care: pairs that are cut, very long, or to be shown."""
        self.params_bytes = self.shown_bytes = 0
        self.shown: dict[str, str | int] = {}
        self.head: bytes | None = b""
        """The start of STDOUT until its headers are complete; then None."""
        self.status: int | None = None
        self.content_type: str | None = None
        self.stderr = b""
        self.faults: tuple[str, ...] = ()
        self.snapshots: tuple[Snapshot, ...] = ()


class _Stream:
    """Where one direction stands."""

    __slots__ = (
        "allowed", "content", "direction", "exchange", "fixed", "header", "header_at", "inside", "kind", "left",
        "offset", "padding", "plain", "raw", "request_id", "size",
    )  # fmt: skip

    def __init__(
        self, direction: Direction, allowed: dict[int, int], plain: frozenset[int], fixed: dict[int, int]
    ) -> None:
        self.direction = direction
        self.allowed = allowed
        self.plain = plain
        self.fixed = fixed
        self.raw = False
        self.offset = 0
        """Of the next byte to come."""
        self.header = b""
        """What has come of a header that is not whole."""
        self.header_at = 0
        self.content = b""
        """Of a record that is understood whole, what has come."""
        self.inside = False
        """There is a record in hand, of which so much is to come: content, padding."""
        self.left = self.padding = 0
        self.kind = self.request_id = self.size = 0
        self.exchange: _Exchange | None = None


class FastCGIDecoder:
    """See `udsproxy.protocols.decoder.Decoder`."""

    def __init__(self, scope: Scope) -> None:
        self.protocol: str | None = PROTOCOL
        self.exchanges = 0
        self.secret_spans: list[tuple[int, int]] = []
        self.answered_at: int | None = None
        """Of the first exchange."""
        self._scope = scope
        self._messages = scope.messages
        self._secrets = scope.secrets
        self._span_secrets = scope.secrets if scope.spans and scope.secrets else None
        self._careful = scope.messages or self._span_secrets is not None
        """Parameters are to be shown or masked, not only some to be known."""
        self._client = _Stream("c2s", _FROM_CLIENT, _PLAIN_FROM_CLIENT, _FIXED_FROM_CLIENT)
        self._server = _Stream("s2c", _FROM_SERVER, _PLAIN_FROM_SERVER, _FIXED_FROM_SERVER)
        self._open: dict[int, _Exchange] = {}
        self._faults: tuple[str, ...] = ()
        """The rules that apply to all of the connection."""
        self._events: list[Event] = []

    # --- what the tap calls ---

    def feed(self, direction: Direction, at: int, data: bytes) -> Sequence[Event]:
        stream = self._client if direction == "c2s" else self._server
        events = self._events = []
        if self._span_secrets is not None:
            self.secret_spans = []
        if stream.raw:
            self._hide(stream, 0, data)
        elif stream.header:
            data = self._walk_on(stream, at, data)
        else:
            self._walk(stream, at, at, data)
        stream.offset += len(data)
        return events

    def ahead(self, direction: Direction) -> int:
        stream = self._client if direction == "c2s" else self._server
        if stream.raw:
            return sys.maxsize
        return 0 if stream.kind == wire.PARAMS else stream.left + stream.padding

    def lost(self, direction: Direction, at: int) -> Sequence[Event]:
        stream = self._client if direction == "c2s" else self._server
        self._events = []
        if not stream.raw:
            reason = "bytes were not observed here (the observer could not keep up)"
            self._turn_raw(stream, at, 0, reason)
        return self._events

    def mark(self, request: int | None, rule: str) -> None:
        if request is None:
            self._faults += (rule,)
        elif (exchange := self._open.get(request)) is not None:
            exchange.faults += (rule,)

    def begun(self, before: int) -> Sequence[tuple[int, int]]:
        if not self._open:
            return ()
        return [(each.began_at, each.request_id) for each in self._open.values() if each.began_at < before]

    def pending(self, request: int) -> Pending | None:
        exchange = self._open.get(request)
        if exchange is None:
            return None
        script, uri = self._script_and_uri(exchange)
        return Pending(request, exchange.began_at, self._found(exchange, b"REQUEST_METHOD"), uri, script)

    def snapshot(self, request: int, snapshot: Snapshot) -> None:
        exchange = self._open.get(request)
        if exchange is not None:
            kept = exchange.snapshots
            exchange.snapshots = (*kept[:FIRST_SNAPSHOTS], *kept[FIRST_SNAPSHOTS:][1 - LAST_SNAPSHOTS :], snapshot)

    def close(self, at: int, why: str) -> Sequence[Event]:
        self._events = []
        if self._server.raw:
            why = "the response could not be decoded"
        for exchange in self._open.values():
            self._report(exchange, at, incomplete="abort" if exchange.aborted else why)
        self._open.clear()
        return self._events

    # --- framing ---

    def _walk_on(self, stream: _Stream, at: int, data: bytes) -> bytes:
        """`_walk` where a header was cut: as if what had come of it came now. Returns what was walked then."""
        early, stream.header = stream.header, b""
        data = early + data
        stream.offset -= len(early)
        self._walk(stream, at, stream.header_at, data)
        if self.secret_spans:
            back = len(early)
            self.secret_spans = [(max(0, first - back), last - back) for first, last in self.secret_spans]
        return data

    def _walk(self, stream: _Stream, at: int, header_at: int, data: bytes) -> None:
        """Every record of ``data``. ``header_at``: when the first byte of the first header came."""
        pos, size, messages = 0, len(data), self._messages
        if stream.inside:
            pos = self._continue_record(stream, at, data)
        unpack, opened, plain, fixed = wire.HEADER.unpack_from, self._open, stream.plain, stream.fixed
        while size - pos >= 8:
            version, kind, request_id, length, padding = unpack(data, pos)
            if version == wire.VERSION and request_id and kind in plain:
                common = True
            else:
                common, wrong = False, None
                if version != wire.VERSION or not request_id or fixed.get(kind) != length:
                    wrong = self._wrong(stream, version, kind, request_id, length)
                if wrong is None and kind == wire.BEGIN_REQUEST:
                    wrong = self._begin(request_id, header_at)
                if wrong is not None:
                    self._turn_raw(stream, at, pos, wrong, data)
                    return
            start = pos + 8
            stop = start + length
            end = stop + padding
            exchange = opened.get(request_id)
            if exchange is not None:
                if stream.direction == "c2s":
                    exchange.c2s_bytes += end - pos
                else:
                    exchange.s2c_bytes += end - pos
                    if exchange.first_reply_at is None:
                        exchange.first_reply_at = header_at
            if end > size:
                self._cut_record(stream, kind, request_id, length, exchange, end - size, padding)
                if start < size:
                    self._content(stream, kind, exchange, data, start, min(stop, size))
                return
            if length and kind != wire.STDIN:
                self._content(stream, kind, exchange, data, start, stop)
            if not common or messages or (length == 0 and kind == wire.PARAMS):
                wrong = self._end_record(stream, kind, request_id, length, exchange, at)
                if wrong is not None:
                    self._turn_raw(stream, at, end, wrong, data)
                    return
            pos, header_at = end, at
        if pos < size:
            stream.header, stream.header_at = data[pos:], header_at

    @staticmethod
    def _cut_record(
        stream: _Stream,
        kind: int,
        request_id: int,
        size: int,
        exchange: _Exchange | None,
        missing: int,
        padding: int,
    ) -> None:
        """Of this record so many bytes are still to come. They were counted, but have not been seen."""
        stream.inside = True
        stream.kind, stream.request_id, stream.size, stream.exchange = kind, request_id, size, exchange
        stream.padding = min(padding, missing)
        stream.left = missing - stream.padding
        if exchange is not None:
            if stream.direction == "c2s":
                exchange.c2s_bytes -= missing
            else:
                exchange.s2c_bytes -= missing

    def _continue_record(self, stream: _Stream, at: int, data: bytes) -> int:
        """Take what ``data`` has of a record that was cut. Returns where the rest begins."""
        stop, exchange = min(stream.left, len(data)), stream.exchange
        if stop:
            stream.left -= stop
            self._content(stream, stream.kind, exchange, data, 0, stop)
        end = stop
        if stream.left == 0:
            end += min(stream.padding, len(data) - stop)
            stream.padding -= end - stop
        if exchange is not None:
            if stream.direction == "c2s":
                exchange.c2s_bytes += end
            else:
                exchange.s2c_bytes += end
        if stream.left == stream.padding == 0:
            stream.inside, stream.exchange = False, None
            wrong = self._end_record(stream, stream.kind, stream.request_id, stream.size, exchange, at)
            if wrong is not None:
                self._turn_raw(stream, at, end, wrong, data)
                return len(data)
        return end

    @staticmethod
    def _wrong(stream: _Stream, version: int, kind: int, request_id: int, size: int) -> str | None:
        """Why such a record cannot come from this side; None where it can."""
        if version != wire.VERSION:
            return f"version {version} where FastCGI has {wire.VERSION}"
        name = wire.TYPE_NAMES.get(kind)
        if name is None:
            # A type that we do not know is legal: the server answers UNKNOWN_TYPE or skips it (spec 4.2).
            return None if stream.direction == "c2s" else f"type {kind}, which no server sends"
        if kind not in stream.allowed:
            return f"{name} from the {'client' if stream.direction == 'c2s' else 'server'}"
        if (request_id == 0) != (kind in _MANAGEMENT):
            return f"{name} with request id {request_id}"
        if stream.allowed[kind] not in (_ANY, size):
            return f"{name} of {size} bytes, not {stream.allowed[kind]}"
        return None

    # --- meaning ---

    def _begin(self, request_id: int, at: int) -> str | None:
        """A request begins. Returns why it cannot."""
        if request_id in self._open:
            self._report(self._open.pop(request_id), at, incomplete="its id was begun again")
        if len(self._open) >= MAX_OPEN:
            return f"more than {MAX_OPEN} requests open at once"
        self._open[request_id] = _Exchange(request_id, at)
        return None

    def _content(
        self, stream: _Stream, kind: int, exchange: _Exchange | None, data: bytes, start: int, stop: int
    ) -> None:
        """Content of a record of this kind, as much as came: ``data[start:stop]``."""
        if kind in _UNDERSTOOD_WHOLE:
            stream.content += data[start:stop]
        elif exchange is None:
            if kind == wire.PARAMS:
                self._hide(stream, start, data[:stop])  # of no open request: cannot be read, so is not shown
        elif kind == wire.PARAMS:
            if exchange.reader is None and not self._careful:
                start = wire.pick_pairs(data, start, stop, _WANTED, exchange.found)
            if start < stop:
                self._take_params(exchange, data, start, stop)
        elif kind == wire.STDOUT:
            if exchange.head is not None:
                self._take_head(exchange, data[start:stop])
        elif kind == wire.STDERR and len(exchange.stderr) < MAX_STDERR:
            exchange.stderr = (exchange.stderr + data[start:stop])[:MAX_STDERR]

    def _take_params(self, exchange: _Exchange, data: bytes, start: int, stop: int) -> None:
        reader = exchange.reader
        if reader is None:
            reader = wire.PairReader(None if self._messages else _WANTED, secrets=self._span_secrets)
            exchange.reader = reader
        exchange.params_bytes += stop - start
        for name, value in reader.feed(data[start:stop]):
            if name in _WANTED:
                exchange.found[name] = value
            if self._messages:
                exchange.shown_bytes += _PAIR_BYTES + len(name) + len(value)
                if exchange.shown_bytes <= MAX_PARAMS_SHOWN:
                    exchange.shown[printable(name)] = self._visible(name, value)
        if self._span_secrets is not None:
            self.secret_spans += [(start + first, start + last) for first, last in reader.secret_spans]

    def _visible(self, name: bytes, value: bytes) -> str:
        """A parameter's value as it may be shown."""
        return MASK if name.upper() in self._secrets else printable(value)

    @staticmethod
    def _take_head(exchange: _Exchange, piece: bytes) -> None:
        """CGI headers, up to the empty line (RFC 3875, section 6.2)."""
        head = exchange.head + piece if exchange.head else piece
        since = max(0, len(head) - len(piece) - 2)  # it may begin in the last piece
        lf, crlf = head.find(b"\n\n", since), head.find(b"\n\r\n", since)
        end = lf if crlf < 0 or 0 <= lf < crlf else crlf
        if end < 0:
            # Past the limit they are no headers that a server would read; status stays unknown.
            exchange.head = None if len(head) > MAX_HEAD + 2 else head
            return
        exchange.head = None
        if end > MAX_HEAD:
            return
        status = 200
        for name, value in _HEADER_LINE.findall(head, 0, end):
            kind = name.lower()
            if kind == b"status":
                code = value[:3]
                exchange.status = int(code) if len(code) == 3 and code.isdigit() else None
            elif kind == b"content-type":
                exchange.content_type = printable(value[:MAX_TEXT].rstrip())
            else:
                status = 302
        if exchange.status is None:
            exchange.status = status

    def _end_record(
        self, stream: _Stream, kind: int, request_id: int, size: int, exchange: _Exchange | None, at: int
    ) -> str | None:
        """A record is complete. Returns why the stream is wrong, if it is."""
        if kind == wire.PARAMS:
            if size == 0 and exchange is not None:
                if exchange.reader is not None and exchange.reader.partial:
                    return "PARAMS ended inside a name-value pair"
                if self._messages:
                    self._message_of_params(stream, at, exchange)
            return None
        if self._messages:
            self._message(stream, kind, at, self._fields(kind, request_id, stream.content), size)
        if kind == wire.END_REQUEST and exchange is not None and self._open.get(request_id) is exchange:
            app_status, protocol_status = wire.END_BODY.unpack(stream.content)
            del self._open[request_id]
            self._report(
                exchange,
                at,
                app_status=app_status,
                protocol_status=wire.PROTOCOL_STATUS_NAMES.get(protocol_status, str(protocol_status)),
                incomplete="abort" if exchange.aborted else None,
            )
        elif kind == wire.ABORT_REQUEST and exchange is not None:
            exchange.aborted = True
        if stream.content:
            stream.content = b""
        return None

    def _fields(self, kind: int, request_id: int, content: bytes) -> dict[str, str | int]:
        """What a message of this record says besides its kind and size."""
        fields: dict[str, str | int] = {"request": request_id} if request_id else {}
        if kind == wire.BEGIN_REQUEST:
            role, flags = wire.BEGIN_BODY.unpack(content)
            fields["role"] = wire.ROLE_NAMES.get(role, str(role))
            fields["keep_conn"] = "yes" if flags & wire.KEEP_CONN else "no"
        elif kind == wire.END_REQUEST:
            app_status, protocol_status = wire.END_BODY.unpack(content)
            fields["app_status"] = app_status
            fields["protocol_status"] = wire.PROTOCOL_STATUS_NAMES.get(protocol_status, str(protocol_status))
        elif kind in (wire.GET_VALUES, wire.GET_VALUES_RESULT):
            pairs = wire.PairReader().feed(content)[:MAX_VALUES_SHOWN]
            fields |= {printable(name): self._visible(name, value) for name, value in pairs}
        elif kind == wire.UNKNOWN_TYPE:
            fields["type"] = content[0]
        elif kind not in wire.TYPE_NAMES:
            fields["type"] = kind
        return fields

    def _message_of_params(self, stream: _Stream, at: int, exchange: _Exchange) -> None:
        """PARAMS are one message per request, however many records they came in."""
        fields: dict[str, str | int] = {"request": exchange.request_id, **exchange.shown}
        if exchange.shown_bytes > MAX_PARAMS_SHOWN:
            fields["(not shown)"] = f"parameters past {MAX_PARAMS_SHOWN} bytes"
        self._message(stream, wire.PARAMS, at, fields, exchange.params_bytes)
        exchange.shown = {}

    def _message(self, stream: _Stream, kind: int, at: int, fields: dict[str, str | int], nbytes: int) -> None:
        self._events.append(
            Message(
                at=at,
                proxy=self._scope.proxy,
                conn=self._scope.conn,
                direction=stream.direction,
                protocol=PROTOCOL,
                kind=wire.TYPE_NAMES.get(kind, "UNKNOWN"),
                nbytes=nbytes,
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
        script, uri = self._script_and_uri(exchange)
        first = exchange.first_reply_at
        waited_s = error_s = None
        began = exchange.began_at
        if self.exchanges == 1 and self._scope.wait is not None:
            self.answered_at = first
            began = self._scope.wait.sent_at(began)
            known = self._scope.wait.known(first)
            if known is not None:
                waited_s, error_s = known
        self._events.append(
            Request(
                at=at,
                proxy=self._scope.proxy,
                conn=self._scope.conn,
                protocol=PROTOCOL,
                request=exchange.request_id,
                method=self._found(exchange, b"REQUEST_METHOD"),
                uri=uri,
                script=script,
                status=exchange.status,
                content_type=exchange.content_type,
                app_status=app_status,
                protocol_status=protocol_status,
                stderr=printable(exchange.stderr) if exchange.stderr else None,
                c2s_bytes=exchange.c2s_bytes,
                s2c_bytes=exchange.s2c_bytes,
                accept_wait_s=waited_s,
                accept_error_s=error_s,
                ttfb_s=None if first is None else (first - began) / 1e9,
                transfer_s=None if first is None else (at - first) / 1e9,
                total_s=(at - began) / 1e9,
                slow=exchange.snapshots or None,
                faults=(*self._faults, *exchange.faults) or None,
                incomplete=incomplete,
            )
        )

    def _script_and_uri(self, exchange: _Exchange) -> tuple[str | None, str | None]:
        script = self._found(exchange, b"SCRIPT_NAME") or self._found(exchange, b"SCRIPT_FILENAME")
        uri = self._found(exchange, b"REQUEST_URI")
        if uri is None and script is not None:
            query = self._found(exchange, b"QUERY_STRING")
            uri = f"{script}?{query}" if query else script
        elif uri is not None and b"QUERY_STRING" in self._secrets and "?" in uri:
            uri = f"{uri.partition('?')[0]}?{MASK}"
        return script, uri

    def _found(self, exchange: _Exchange, name: bytes) -> str | None:
        value = exchange.found.get(name)
        if value is None:
            return None
        return MASK if name in self._secrets else printable(value[:MAX_TEXT])

    # --- turning wrong ---

    def _turn_raw(self, stream: _Stream, at: int, pos: int, reason: str, data: bytes = b"") -> None:
        """From ``data[pos]`` on this is no FastCGI."""
        self._hide(stream, pos, data)
        stream.raw = True
        stream.exchange = None
        self._events.append(
            DecodeError(
                at=at,
                proxy=self._scope.proxy,
                conn=self._scope.conn,
                direction=stream.direction,
                protocol=PROTOCOL,
                offset=stream.offset + pos,
                reason=reason,
            )
        )

    def _hide(self, stream: _Stream, start: int, data: bytes) -> None:
        """Parameters that can no longer be told from secrets count as secret."""
        if self._span_secrets is not None and stream.direction == "c2s" and start < len(data):
            self.secret_spans.append((start, len(data)))
