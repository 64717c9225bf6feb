"""FastCGI, from the bytes of a connection to messages and exchanges. The wire format is in fastcgi.py.

Rules:

* Framing is per direction: `_walk` goes from record to record and hands their content on in the pieces in which it
  arrives; nothing waits for a record to be whole that need not. Bodies are counted, not kept.
* The tables `_FROM_CLIENT` and `_FROM_SERVER` say which types may travel which way; anything else turns that
  direction raw, with one `DecodeError`.
* An exchange begins with BEGIN_REQUEST and ends with END_REQUEST (spec 5.1, 5.5). Every exchange that began
  is reported once, ended or not. Records of a request id that is not open are skipped, as spec 3.3 asks.
* Kept per connection: at most `MAX_OPEN` exchanges, each with a bounded head, standard error and parameters; of all
  connections no more than the process's budget: what has no room there is dropped, and the exchange says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from udsproxy.events import MASK, DecodeError, Direction, Event, Message, Request, Snapshot, printable
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.cgi_head import CGIHead
from udsproxy.protocols.decoder import Pending, Scope
from udsproxy.protocols.fastcgi_screen import MAX_TRUSTED_PADDING
from udsproxy.protocols.secrets import Masking

PROTOCOL = "fastcgi"

MAX_OPEN = 32
"""Open requests on one connection. FastCGI servers in use multiplex few or none."""
MAX_STDERR = 8 * 1024
MAX_PARAMS_SHOWN = 64 * 1024
"""Bytes of parameters that a `Message` shows; the rest is counted."""
MAX_VALUES_SHOWN = 100
"""Pairs that a `Message` of GET_VALUES shows; three names are known (spec 4.1)."""
_PAIR_BYTES = 200
"""What a pair costs to keep besides its text, about."""
MAX_TEXT = 8 * 1024
"""Bytes kept of a URI, a script's name, a header."""
MAX_MANAGEMENT = 4 * 1024
"""Bytes kept of a record that is understood whole."""
_DECODER_BYTES = 6 * 1024
"""What a connection costs without anything in it, about; so the exchange, the reader of pairs, the snapshot."""
_EXCHANGE_BYTES, _READER_BYTES, _SNAPSHOT_BYTES = 1024, 256, 2048
_ALLOWANCE = 2 * 1024
"""What an exchange may keep without being asked how much it is: most keep less."""

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
    wire.GET_VALUES_RESULT: _ANY,
    wire.UNKNOWN_TYPE: 8,
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
_FIRST = (b"", *(bytes([kind]) for kind in (wire.BEGIN_REQUEST, *sorted(wire.MANAGEMENT))))
"""The second byte of what a client may begin with."""
_UNDERSTOOD_WHOLE = wire.MANAGEMENT | {wire.BEGIN_REQUEST, wire.END_REQUEST}
_WANTED = frozenset({b"REQUEST_METHOD", b"REQUEST_URI", b"SCRIPT_NAME", b"SCRIPT_FILENAME", b"QUERY_STRING"})


def recognise(start: bytes) -> bool | None:
    """Do these first bytes of a client begin FastCGI? None: too few to tell.

    They do where they are the header of a BEGIN_REQUEST with a role that exists (spec 5.1), or of a management
    record (spec 4.1): a server answers a type that it does not understand with UNKNOWN_TYPE (spec 4.2).
    """
    if len(start) < wire.HEADER.size:
        return None if start[:1] in (b"", b"\x01") and start[1:2] in _FIRST else False
    version, kind, request_id, size, _ = wire.HEADER.unpack_from(start)
    if version != wire.VERSION:
        return False
    if kind != wire.BEGIN_REQUEST:
        return kind in wire.MANAGEMENT and not request_id and _FROM_CLIENT[kind] in (_ANY, size)
    if request_id == 0 or size != wire.BEGIN_BODY.size:
        return False
    if len(start) < wire.HEADER.size + 2:
        return None
    return (start[8] << 8 | start[9]) in wire.ROLE_NAMES


class _Exchange:
    """What is known of one request and its response so far."""

    __slots__ = (
        "aborted", "began_at", "broken", "c2s_bytes", "content_type", "expected_at", "faults", "fed",
        "first_reply_at", "found", "has_params", "head", "hidden", "kept", "obscure", "params_bytes",
        "reader", "request_id", "s2c_bytes", "shown", "shown_bytes", "snapshots", "status", "stderr",
        "unseen",
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
        """Parameters whose names are known, and their values as far as these may be told."""
        self.hidden: list[str] = []
        """Names of parameters of which only the name may be told."""
        self.has_params = False
        """They have ended."""
        self.broken = self.obscure = False
        """Their records are not understood: nothing is taken from what is still to come; or their pairs are not: no
        more is shown."""
        self.expected_at = 0
        """Where the record begins that goes on with a pair."""
        self.head: CGIHead | None = CGIHead()
        """Reads the start of STDOUT until its headers are complete; then None."""
        self.status: int | None = None
        self.content_type: str | None = None
        self.stderr = b""
        self.faults: tuple[str, ...] = ()
        self.snapshots: tuple[Snapshot, ...] = ()
        self.fed = 0
        """Bytes that have come of what is kept, or some of it."""
        self.kept = 0
        """Bytes of the process's budget that this takes."""
        self.unseen: str | None = None
        """What could not be kept, and why."""

    def size(self) -> int:
        """Bytes that are kept, about."""
        nbytes = (
            (0 if self.head is None else self.head.kept) + len(self.stderr) + sum(map(len, self.found.values()))
        )
        if self.reader is not None:
            nbytes += _READER_BYTES + self.reader.kept
        if self.shown_bytes:
            nbytes += 4 * min(self.shown_bytes, MAX_PARAMS_SHOWN)  # as text, escaped or with four bytes a character
        return _EXCHANGE_BYTES + max(_ALLOWANCE, nbytes) + _SNAPSHOT_BYTES * len(self.snapshots)

    def show(self, name: bytes, value: bytes, masking: Masking | None) -> None:
        """Have a message tell of this parameter."""
        if masking is None:
            self.shown[printable(name)] = printable(value)
        elif self.obscure:
            return
        elif not masking.is_plausible(name, value):
            # What was read before may have been no names.
            self.obscure = True
            for each in self.hidden:
                self.shown.pop(each, None)
        else:
            told = masking.name_text(name)
            self.shown[told] = masking.text(name, value)
            if masking.kind(name) is None:
                self.hidden.append(told)

    def drop(self) -> None:
        """Keep no more than that it is there."""
        self.unseen = "parameters and headers were not kept: the memory for what is observed is full"
        self.found, self.shown, self.hidden = {}, {}, []
        self.head, self.stderr, self.snapshots = None, b"", ()
        self.broken, self.reader, self.shown_bytes = True, None, 0


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
        self.answered_at: int | None = None
        """Of the first exchange."""
        self._scope = scope
        self._messages = scope.messages
        self._masking = scope.masking
        self._ledger = scope.ledger
        self._strays = False
        """There were PARAMS of no request that is open."""
        self._has_begun = False
        scope.ledger.take(_DECODER_BYTES)
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
        if stream.header and not stream.raw:
            data = self._walk_on(stream, at, data)
        elif not stream.raw:
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
        if exchange is not None and exchange.unseen is None:
            kept = exchange.snapshots
            exchange.snapshots = (*kept[:FIRST_SNAPSHOTS], *kept[FIRST_SNAPSHOTS:][1 - LAST_SNAPSHOTS :], snapshot)
            self._settle(exchange)

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
                    self._turn_raw(stream, at, pos, wrong)
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
            if kind == wire.PARAMS:
                self._begin_params(exchange, stream.offset + pos, length, padding)
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
                    self._turn_raw(stream, at, end, wrong)
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
                self._turn_raw(stream, at, end, wrong)
                return len(data)
        return end

    def _wrong(self, stream: _Stream, version: int, kind: int, request_id: int, size: int) -> str | None:
        """Why such a record cannot come from this side; None where it can."""
        if version != wire.VERSION:
            if stream.direction == "c2s" and self._has_begun and self._masking is not None:
                return "no version of FastCGI"  # (what stands there may be a secret's)
            return f"version {version} where FastCGI has {wire.VERSION}"
        name = wire.TYPE_NAMES.get(kind)
        if name is None:
            # A type that we do not know is legal: the server answers UNKNOWN_TYPE or skips it (spec 4.2).
            return None if stream.direction == "c2s" else f"type {kind}, which no server sends"
        if kind not in stream.allowed:
            return f"{name} from the {'client' if stream.direction == 'c2s' else 'server'}"
        if (request_id == 0) != (kind in wire.MANAGEMENT):
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
        if not self._ledger.take(_EXCHANGE_BYTES + _ALLOWANCE):
            return "another request began, and the memory for what is observed is full"
        if not self._has_begun and self._scope.wait is not None:
            at = self._scope.wait.sent_at(at)  # (one clock: from the client's connect())
        exchange = self._open[request_id] = _Exchange(request_id, at)
        exchange.kept = _EXCHANGE_BYTES + _ALLOWANCE
        self._has_begun = True
        return None

    def _content(
        self, stream: _Stream, kind: int, exchange: _Exchange | None, data: bytes, start: int, stop: int
    ) -> None:
        """Content of a record of this kind, as much as came: ``data[start:stop]``."""
        if kind in _UNDERSTOOD_WHOLE:
            if len(stream.content) < MAX_MANAGEMENT:
                stream.content = (stream.content + data[start:stop])[:MAX_MANAGEMENT]
        elif exchange is None or exchange.unseen is not None:
            return
        elif kind == wire.PARAMS:
            exchange.params_bytes += stop - start
            if not exchange.broken:
                self._take_params(exchange, data, start, stop)
                self._note(exchange, stop - start)
        elif kind == wire.STDOUT:
            if exchange.head is not None:
                self._take_head(exchange, exchange.head, data[start:stop])
                self._note(exchange, stop - start)
        elif kind == wire.STDERR and len(exchange.stderr) < MAX_STDERR:
            exchange.stderr = (exchange.stderr + data[start:stop])[:MAX_STDERR]
            self._note(exchange, stop - start)

    def _note(self, exchange: _Exchange, nbytes: int) -> None:
        """So many bytes more came of what is kept, or some of it is."""
        exchange.fed += nbytes
        if exchange.fed > _ALLOWANCE or self._messages:
            self._settle(exchange)

    def _settle(self, exchange: _Exchange) -> None:
        """Ask for what has come to be kept; where there is no room, let it go."""
        size = exchange.size()
        if size > exchange.kept and not self._ledger.take(size - exchange.kept):
            exchange.drop()
            size = exchange.size()
        if size < exchange.kept:
            self._ledger.give(exchange.kept - size)
        exchange.kept = size

    def _begin_params(self, exchange: _Exchange | None, begins_at: int, size: int, padding: int) -> None:
        """A record of PARAMS begins. One that goes on with a pair must follow the last at once, and none may have
        been meant for another request: what is not so is no longer understood."""
        if exchange is None:
            self._strays = True
            return
        if not size:
            return
        reader = exchange.reader
        if exchange.has_params:
            exchange.broken = True
        elif (
            reader is not None
            and reader.partial
            and (begins_at != exchange.expected_at or self._is_mixed(exchange))
        ):
            exchange.broken, exchange.reader = True, None
        trusted = padding <= MAX_TRUSTED_PADDING
        exchange.expected_at = begins_at + wire.HEADER.size + size + padding if trusted else -1

    def _is_mixed(self, exchange: _Exchange) -> bool:
        """A record may belong to another request than it says."""
        return self._strays or any(not each.has_params for each in self._open.values() if each is not exchange)

    def _take_params(self, exchange: _Exchange, data: bytes, start: int, stop: int) -> None:
        if exchange.reader is None and not self._messages:
            begin = start
            start = wire.pick_pairs(data, start, stop, _WANTED, exchange.found)
            if start - begin > MAX_TEXT:
                exchange.found = {name: value[:MAX_TEXT] for name, value in exchange.found.items()}
            if start == stop:
                return
        reader = exchange.reader
        if reader is None:
            reader = exchange.reader = wire.PairReader(None if self._messages else _WANTED)
        for name, value in reader.feed(data[start:stop]):
            if name in _WANTED:
                exchange.found[name] = value[:MAX_TEXT]
            if self._messages:
                exchange.shown_bytes += _PAIR_BYTES + len(name) + len(value)
                if exchange.shown_bytes <= MAX_PARAMS_SHOWN:
                    exchange.show(name, value, self._masking)

    @staticmethod
    def _take_head(exchange: _Exchange, head: CGIHead, piece: bytes) -> None:
        if head.feed(piece):
            exchange.head = None
        exchange.status = head.status
        if head.content_type is not None:
            exchange.content_type = printable(head.content_type[:MAX_TEXT])

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
                exchange.has_params = True
                exchange.reader = None
                self._note(exchange, 0)
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
            fields |= dict(self._visible(name, value) for name, value in pairs)
        elif kind == wire.UNKNOWN_TYPE:
            fields["type"] = content[0]
        elif kind not in wire.TYPE_NAMES:
            fields["type"] = kind
        return fields

    def _message_of_params(self, stream: _Stream, at: int, exchange: _Exchange) -> None:
        """PARAMS are one message per request, however many records they came in."""
        fields: dict[str, str | int] = {"request": exchange.request_id, **exchange.shown}
        if exchange.unseen is not None:
            fields["(not shown)"] = exchange.unseen
        elif exchange.obscure or exchange.broken:
            fields["(not shown)"] = "parameters that are not understood"
        elif exchange.shown_bytes > MAX_PARAMS_SHOWN:
            fields["(not shown)"] = f"parameters past {MAX_PARAMS_SHOWN} bytes"
        self._message(stream, wire.PARAMS, at, fields, exchange.params_bytes)
        exchange.shown, exchange.hidden, exchange.shown_bytes = {}, [], 0

    def _visible(self, name: bytes, value: bytes) -> tuple[str, str]:
        """A pair of a management record as it may be shown."""
        masking = self._masking
        if masking is None:
            return printable(name), printable(value)
        return (MASK if masking.kind(name) is None else printable(name)), masking.text(name, value)

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
        self._ledger.give(exchange.kept)
        exchange.kept = 0
        script, uri = self._script_and_uri(exchange)
        first = exchange.first_reply_at
        waited_s = error_s = None
        began = exchange.began_at
        if self.exchanges == 1 and self._scope.wait is not None:
            self.answered_at = first
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
                unseen=exchange.unseen,
            )
        )

    def _script_and_uri(self, exchange: _Exchange) -> tuple[str | None, str | None]:
        script = self._found(exchange, b"SCRIPT_NAME") or self._found(exchange, b"SCRIPT_FILENAME")
        uri = self._found(exchange, b"REQUEST_URI")
        if uri is None and script is not None:
            query = self._found(exchange, b"QUERY_STRING")
            uri = f"{script}?{query}" if query else script
        return script, uri

    def _found(self, exchange: _Exchange, name: bytes) -> str | None:
        value = exchange.found.get(name)
        if value is None:
            return None
        value = value[:MAX_TEXT]
        return printable(value) if self._masking is None else self._masking.text(name, value)

    # --- turning wrong ---

    def _turn_raw(self, stream: _Stream, at: int, pos: int, reason: str) -> None:
        """From there on this is no FastCGI."""
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
