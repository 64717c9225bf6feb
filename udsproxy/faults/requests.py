"""FastCGI requests, as faults need them: which bytes are whose, which rules apply to a request, and the faults that
act on its answer.

Rules:

* A request's first bytes, and what comes behind them, are held until its parameters are decoded, because only then
  it is known what applies; at most `MOST_HELD` bytes of a connection are, and only while there are such rules.
* An answer of ours begins where a record of the server's has ended.
* Bytes that are no FastCGI, or are more than we keep track of, pass as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from udsproxy.events import Direction, printable
from udsproxy.faults import kinds
from udsproxy.faults.line import CARGO_BYTES, Cargo, Exchange, Item, Line, discard
from udsproxy.faults.rules import Rule
from udsproxy.faults.stages import Ending, Stage
from udsproxy.protocols import fastcgi as wire

MOST_HELD = 1024 * 1024
"""Parameters are decoded up to here; a request that has more is met by no fault."""
MOST_OPEN = 64
"""Requests open at once on a connection; what goes beyond is met by no fault."""


class Piece:
    """What came of a record: the bytes, and what of them is content."""

    __slots__ = ("content", "data", "ends", "kind", "request_id", "size", "starts")

    def __init__(self, kind: int, request_id: int, size: int) -> None:
        self.kind = kind
        self.request_id = request_id
        self.size = size
        """The content's length, of the whole record."""
        self.data = b""
        self.content = b""
        self.starts = False
        self.ends = False


class Framer:
    """Where records begin and end in a stream that may be cut anywhere. A header is held until it is whole."""

    def __init__(self) -> None:
        self._header = b""
        self._kind = self._request_id = self._size = 0
        self._content_left = 0
        self._padding_left = 0
        self.lost = False
        """It is no FastCGI, or not any more."""

    def feed(self, data: bytes) -> tuple[list[Piece], bytes]:
        """The pieces of records in ``data``, and what is no FastCGI behind them."""
        pieces: list[Piece] = []
        pos = 0
        while not self.lost:
            if not (self._content_left or self._padding_left):
                taken = wire.HEADER.size - len(self._header)
                header = self._header + data[pos : pos + taken]
                if not _may_begin_header(header):
                    self.lost = True
                    break
                if len(header) < wire.HEADER.size:
                    self._header = header
                    return pieces, b""
                _, kind, request_id, size, padding = wire.HEADER.unpack(header)
                pos += taken
                self._header = b""
                self._kind, self._request_id, self._size = kind, request_id, size
                self._content_left, self._padding_left = size, padding
                piece = Piece(kind, request_id, size)
                piece.starts, start = True, pos
                piece.data = header
            elif pos < len(data):
                piece = Piece(self._kind, self._request_id, self._size)
                start = pos
            else:
                return pieces, b""
            piece.content = data[pos : pos + self._content_left]
            pos += len(piece.content)
            self._content_left -= len(piece.content)
            if not self._content_left:
                padding = min(self._padding_left, len(data) - pos)
                pos += padding
                self._padding_left -= padding
            piece.data += data[start:pos]
            piece.ends = not (self._content_left or self._padding_left)
            pieces.append(piece)
        rest, self._header = self._header + data[pos:], b""
        return pieces, rest

    @property
    def inside(self) -> bool:
        """A record has begun to pass, and not ended."""
        return bool(self._content_left or self._padding_left) and not self.lost

    def flush(self) -> bytes:
        """A header that will not come whole."""
        rest, self._header = self._header, b""
        return rest


def _may_begin_header(start: bytes) -> bool:
    """Is this the start of a header, as far as it goes? (What is none must not wait for the rest of one.)"""
    return start[:1] in (b"", bytes((wire.VERSION,))) and (len(start) < 2 or start[1] in wire.TYPE_NAMES)


class _Open:
    """A request that has not ended."""

    def __init__(self, exchange: Exchange, wanted: frozenset[bytes]) -> None:
        self.exchange = exchange
        self.reader: wire.PairReader | None = wire.PairReader(wanted)
        """None: it is decided what applies."""
        self.params: dict[str, str] = {}
        self.role = wire.RESPONDER
        self.keep_conn = False
        self.answer: list[bytes] = []
        """The records that we answer, in place of the upstream, if any."""


class Requests:
    """The requests on one connection: splits what passes among them, and has the rules decided."""

    def __init__(
        self,
        c2s: Line,
        s2c: Line,
        wanted: frozenset[str],
        choose: Callable[[int, int, dict[str, str]], list[Rule]],
    ) -> None:
        """``wanted``: the parameters that are to be decoded. ``choose``: the rules that apply to a request; is
        asked once for each, with its number, its FastCGI id and these parameters."""
        self._lines: dict[Direction, Line] = {"c2s": c2s, "s2c": s2c}
        self._framers: dict[Direction, Framer] = {"c2s": Framer(), "s2c": Framer()}
        self._wanted = frozenset(name.encode() for name in wanted)
        self._choose = choose
        self._asking: dict[int, _Open] = {}
        """By id: what the client's records belong to."""
        self._asked: dict[int, deque[_Open]] = {}
        """By id: what the server's records belong to, the first first."""
        self._number = 0
        self._held: list[tuple[Item, _Open | None, bool]] = []
        """What waits for a decision."""
        self._late: list[tuple[int, _Open]] = []
        """Answers of ours, and their ids, that wait until a record of the server's has passed."""
        self.held = 0
        """Bytes that wait for a decision."""
        self._asks = True
        """There are rules to be asked of each request."""

    def feed(self, direction: Direction, at: int, data: bytes) -> None:
        """Bytes come."""
        framer = self._framers[direction]
        pieces, rest = framer.feed(data)
        take = self._take_c2s if direction == "c2s" else self._take_s2c
        for piece in pieces:
            take(at, piece)
        if rest:
            if direction == "c2s":
                self._decide_all(at)
            self._lines[direction].feed(at, rest)
        if direction == "s2c" and self._late and not framer.inside:
            for request_id, opened in self._late:
                self._send_answer(at, request_id, opened)
            self._late = []

    def cargo(self, direction: Direction, at: int, item: Cargo) -> None:
        """What is no bytes comes."""
        if direction == "c2s" and self._held:
            self._hold(at, item, None, starts=False)
        else:
            self._lines[direction].feed(at, item)

    def end(self, direction: Direction, at: int) -> None:
        """The end of a direction comes."""
        line = self._lines[direction]
        if direction == "c2s":
            self._decide_all(at)
        if rest := self._framers[direction].flush():
            line.feed(at, rest)
        line.end(at)

    def let_go(self, at: int) -> None:
        """No rule is to be asked of requests any more: what waits for that goes on, and nothing will."""
        self._asks = False
        self._decide_all(at)

    def leave(self, at: int) -> bool:
        """After `let_go`, pass on the headers that are not whole; nothing is to be fed here any more. Returns
        whether that may be: it may not while there is a request that we answer."""
        if self._late or any(opened.exchange.answered for opened in self._asking.values()):
            return False
        for direction, line in self._lines.items():
            if rest := self._framers[direction].flush():
                line.feed(at, rest)
        return True

    def close(self) -> None:
        """What waits will not arrive."""
        for item, _, _ in self._held:
            discard(item)
        self._held, self.held = [], 0

    # --- from the client ---

    def _take_c2s(self, at: int, piece: Piece) -> None:
        if piece.kind == wire.BEGIN_REQUEST and piece.starts:
            self._begin(piece.request_id)
        opened = self._asking.get(piece.request_id)
        self._hold(at, piece.data, opened, starts=piece.starts)
        if opened is None:
            return
        kind, ends = piece.kind, piece.ends
        if kind == wire.BEGIN_REQUEST:
            if ends and len(piece.content) == wire.BEGIN_BODY.size:
                opened.role, flags = wire.BEGIN_BODY.unpack(piece.content)
                opened.keep_conn = bool(flags & wire.KEEP_CONN)
            return
        params_end = kind == wire.PARAMS and ends and not piece.size
        if opened.reader is not None:
            if kind == wire.PARAMS:
                for name, value in opened.reader.feed(piece.content):
                    opened.params[name.decode()] = printable(value)
            if params_end or kind != wire.PARAMS:
                self._decide(at, piece.request_id, opened)
        if opened.answer and (
            (kind == wire.ABORT_REQUEST and ends)
            or (params_end and opened.role not in _LAST_STREAM)
            or (kind == _LAST_STREAM.get(opened.role) and ends and not piece.size)
        ):
            self._answer(at, piece.request_id, opened)

    def _begin(self, request_id: int) -> None:
        self._asking.pop(request_id, None)
        if not self._asks:
            return
        if len(self._asking) >= MOST_OPEN:
            # What we have answered is kept only for records of it that come late.
            self._asking = {key: each for key, each in self._asking.items() if not each.exchange.done}
        if request_id and len(self._asking) + sum(map(len, self._asked.values())) < MOST_OPEN:
            self._number += 1
            self._asking[request_id] = _Open(Exchange(self._number), self._wanted)

    def _hold(self, at: int, item: Item, opened: _Open | None, *, starts: bool) -> None:
        """Pass it on, or behind what is not decided."""
        self._held.append((item, opened, starts))
        self.held += len(item) if isinstance(item, bytes) else CARGO_BYTES
        if self.held > MOST_HELD:
            self._decide_all(at)
        elif not self._undecided:
            self._release(at)

    @property
    def _undecided(self) -> bool:
        return any(opened.reader is not None for opened in self._asking.values())

    def _decide_all(self, at: int) -> None:
        """There will be no more to know, or we do not wait for it."""
        for request_id, opened in self._asking.items():
            if opened.reader is not None:
                opened.reader = None
                self._asked.setdefault(request_id, deque()).append(opened)
        self._release(at)

    def _decide(self, at: int, request_id: int, opened: _Open) -> None:
        opened.reader = None
        rules = self._choose(opened.exchange.number, request_id, opened.params)
        opened.exchange.rules = frozenset(rule.name for rule in rules)
        for rule in rules:
            if isinstance(rule.fault, kinds.Overloaded):
                opened.answer = [wire.encode_end(request_id, protocol_status=wire.OVERLOADED)]
            elif isinstance(rule.fault, kinds.Status):
                opened.answer = _page(request_id, rule.fault.status)
        if opened.answer:
            opened.exchange.answered = True
        else:
            self._asked.setdefault(request_id, deque()).append(opened)
        for line in self._lines.values():
            line.meet(at, opened.exchange)
        if not self._undecided:
            self._release(at)

    def _release(self, at: int) -> None:
        held, self._held, self.held = self._held, [], 0
        line = self._lines["c2s"]
        for item, opened, starts in held:
            exchange = None if opened is None else opened.exchange
            if exchange is None or not exchange.answered:
                line.feed(at, item, exchange, starts=starts)
            else:
                discard(item)

    def _answer(self, at: int, request_id: int, opened: _Open) -> None:
        if opened.exchange.done:
            return
        opened.exchange.done = True
        if self._framers["s2c"].inside:
            self._late.append((request_id, opened))
        else:
            self._send_answer(at, request_id, opened)

    def _send_answer(self, at: int, request_id: int, opened: _Open) -> None:
        line = self._lines["s2c"]
        for record in opened.answer:
            line.feed(at, record, opened.exchange, starts=True)
        if not opened.keep_conn:
            line.feed(at, Ending.CLOSE, opened.exchange)

    # --- from the server ---

    def _take_s2c(self, at: int, piece: Piece) -> None:
        asked = self._asked.get(piece.request_id)
        exchange = asked[0].exchange if asked else None
        self._lines["s2c"].feed(at, piece.data, exchange, starts=piece.starts)
        if asked and piece.kind == wire.END_REQUEST and piece.ends:
            opened = asked.popleft()
            opened.exchange.done = True
            if not asked:
                del self._asked[piece.request_id]
            if self._asking.get(piece.request_id) is opened:
                del self._asking[piece.request_id]


_LAST_STREAM = {wire.RESPONDER: wire.STDIN, wire.FILTER: wire.DATA}
"""What a request of a role ends with; of any other, it is PARAMS (spec 6)."""


def _page(request_id: int, status: int) -> list[bytes]:
    phrase = HTTPStatus(status).phrase
    head = f"Status: {status} {phrase}\r\nContent-Type: text/plain\r\n\r\n"
    return [
        wire.encode_record(wire.STDOUT, request_id, f"{head}{status} {phrase}\n".encode()),
        wire.encode_record(wire.STDOUT, request_id),
        wire.encode_end(request_id),
    ]


# --- what happens to an answer ---


class _Before(Stage):
    """Records come before the answer."""

    makes_records = True

    def __init__(self, kind: int, contents: Callable[[], Iterator[bytes]]) -> None:
        """``contents``: of the records, one after the other."""
        self._kind = kind
        self._contents = contents
        self._first = True

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[tuple[int, Any]]:
        if self._first and starts:
            self._first = False
            request_id = wire.HEADER.unpack_from(data)[2]
            for content in self._contents():
                yield at, wire.encode_record(self._kind, request_id, content)
        yield at, data


def _text(text: str) -> Iterator[bytes]:
    """In contents of records."""
    content = text.encode()
    for start in range(0, len(content), wire.MAX_CONTENT):
        yield content[start : start + wire.MAX_CONTENT]


def _header_of(size: int) -> Iterator[bytes]:
    """A CGI header of so many bytes, in contents of records."""
    name = b"X-Filler: "
    left = size - len(name) - 2
    yield name
    while left > 0:
        yield b"x" * min(left, _FILLER)
        left -= _FILLER
    yield b"\r\n"


_FILLER = 0x8000


class _Header(Stage):
    """A field of the first record's header is another."""

    makes_records = True

    def __init__(self, offset: int, value: int) -> None:
        self._offset = offset
        self._value = value
        self._first = True

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[tuple[int, Any]]:
        if self._first and starts:
            self._first = False
            data = data[: self._offset] + bytes((self._value,)) + data[self._offset + 1 :]
        yield at, data


class _Truncate(Stage):
    makes_records = True

    def __init__(self, fault: kinds.Truncate) -> None:
        self._left = fault.nbytes

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[tuple[int, Any]]:
        if starts:
            _, kind, request_id, size, _ = wire.HEADER.unpack_from(data)
            if kind == wire.END_REQUEST:
                yield at, Ending.CLOSE
                return
            if kind == wire.STDOUT and self._left is not None:
                self._left -= size
                if self._left < 0:
                    yield at, wire.encode_record(wire.STDOUT, request_id)
                    yield at, Ending.CLOSE
                    return
        yield at, data


def make_answer_stage(fault: kinds.AnyFastCGI) -> Stage:
    """The stage of a fault for what the server sends."""
    match fault:
        case kinds.Stderr():
            return _Before(wire.STDERR, partial(_text, fault.text))
        case kinds.HeaderTooBig():
            return _Before(wire.STDOUT, partial(_header_of, fault.size))
        case kinds.Version():
            return _Header(0, fault.version)
        case kinds.Type():
            return _Header(1, fault.type)
        case kinds.Truncate():
            return _Truncate(fault)
        case kinds.Overloaded() | kinds.Status():
            return Stage()  # answered before anything is asked of the server
