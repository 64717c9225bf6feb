"""FastCGI requests, as faults need them: which bytes are whose, which rules apply to a request, and the faults that
act on its answer.

Rules:

* A request's first bytes are held until its parameters are decoded, because only then it is known what applies; at
  most `MOST_HELD` bytes of a connection are. Nothing else waits.
* Bytes that are no FastCGI, or are more than we keep track of, pass as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from udsproxy.events import Direction, printable
from udsproxy.faults import kinds
from udsproxy.faults.line import Cargo, Exchange, Item, Line
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
        self.keep_conn = False
        self.answer = b""
        """What we answer, in place of the upstream, if anything."""


class Requests:
    """The requests on one connection: splits what passes among them, and has the rules decided.

    ``choose(number, params)``: the rules that apply to the request of this number; it is asked once for each.
    """

    def __init__(
        self,
        c2s: Line,
        s2c: Line,
        wanted: frozenset[str],
        choose: Callable[[int, int, dict[str, str]], list[Rule]],
    ) -> None:
        """``wanted``: the parameters that are to be decoded. ``choose``: is asked with a request's number, its
        FastCGI id and these."""
        self._lines: dict[Direction, Line] = {"c2s": c2s, "s2c": s2c}
        self._framers: dict[Direction, Framer] = {"c2s": Framer(), "s2c": Framer()}
        self._wanted = frozenset(name.encode() for name in wanted)
        self._choose = choose
        self._open: dict[int, _Open] = {}
        self._count = 0
        self._undecided = 0
        self._held: list[tuple[Item, Exchange | None, bool]] = []
        """What waits for a decision."""
        self.held = 0
        """Bytes of that."""

    def feed(self, direction: Direction, at: int, data: bytes) -> None:
        """Bytes come."""
        pieces, rest = self._framers[direction].feed(data)
        take = self._take_c2s if direction == "c2s" else self._take_s2c
        for piece in pieces:
            take(at, piece)
        if rest:
            if direction == "c2s":
                self._decide_all(at)
            self._lines[direction].feed(at, rest)

    def cargo(self, direction: Direction, at: int, item: Cargo) -> None:
        """What is no bytes comes."""
        self._pass(direction, at, item)

    def end(self, direction: Direction, at: int) -> None:
        """The end of a direction comes."""
        line = self._lines[direction]
        rest = self._framers[direction].flush()
        if direction == "c2s":
            self._decide_all(at)
        if rest:
            line.feed(at, rest)
        line.end(at)

    def close(self) -> None:
        """What waits will not arrive."""
        for item, _, _ in self._held:
            if not isinstance(item, bytes | Ending):
                item.discard()
        self._held, self.held = [], 0

    # --- from the client ---

    def _take_c2s(self, at: int, piece: Piece) -> None:
        opened = self._open.get(piece.request_id)
        if piece.kind == wire.BEGIN_REQUEST and piece.starts:
            opened = self._begin(at, piece.request_id)
        if opened is None:
            if not self._undecided:
                self._release(at)
            self._pass("c2s", at, piece.data, starts=piece.starts)
            return
        if piece.kind == wire.BEGIN_REQUEST and piece.ends and len(piece.content) == wire.BEGIN_BODY.size:
            opened.keep_conn = bool(wire.BEGIN_BODY.unpack(piece.content)[1] & wire.KEEP_CONN)
        reader = opened.reader
        if reader is not None and piece.kind == wire.PARAMS:
            for name, value in reader.feed(piece.content):
                opened.params[name.decode()] = printable(value)
        self._held.append((piece.data, opened.exchange, piece.starts))
        self.held += len(piece.data)
        params_end = piece.ends and piece.kind == wire.PARAMS and not piece.size
        if reader is not None and (params_end or piece.kind not in (wire.BEGIN_REQUEST, wire.PARAMS)):
            self._decide(at, piece.request_id, opened)
        if self.held > MOST_HELD:
            self._decide_all(at)
        elif not self._undecided:
            self._release(at)
        if piece.ends and opened.exchange.answered and piece.kind == wire.STDIN and not piece.size:
            self._answer(at, piece.request_id, opened)

    def _begin(self, at: int, request_id: int) -> _Open | None:
        if (old := self._open.pop(request_id, None)) is not None:
            self._undecided -= old.reader is not None
            old.exchange.done = True
        if not request_id or len(self._open) >= MOST_OPEN:
            return None
        self._count += 1
        opened = self._open[request_id] = _Open(Exchange(self._count), self._wanted)
        self._undecided += 1
        return opened

    def _pass(self, direction: Direction, at: int, item: Item, *, starts: bool = False) -> None:
        """What is of no request that we know."""
        if direction == "c2s" and self._held:
            self._held.append((item, None, starts))
            self.held += len(item) if isinstance(item, bytes) else 0
        else:
            self._lines[direction].feed(at, item, starts=starts)

    def _decide_all(self, at: int) -> None:
        """There will be no more to know, or we do not wait for it."""
        for opened in self._open.values():
            opened.reader = None
        self._undecided = 0
        self._release(at)

    def _decide(self, at: int, request_id: int, opened: _Open) -> None:
        opened.reader = None
        self._undecided -= 1
        rules = self._choose(opened.exchange.number, request_id, opened.params)
        opened.exchange.rules = frozenset(rule.name for rule in rules)
        for rule in rules:
            if isinstance(rule.fault, kinds.Overloaded):
                opened.answer = wire.encode_end(request_id, protocol_status=wire.OVERLOADED)
            elif isinstance(rule.fault, kinds.Status):
                opened.answer = _page(request_id, rule.fault.status)
        opened.exchange.answered = bool(opened.answer)
        for line in self._lines.values():
            line.meet(at, opened.exchange)

    def _release(self, at: int) -> None:
        held, self._held, self.held = self._held, [], 0
        for item, exchange, starts in held:
            if exchange is None or not exchange.answered:
                self._lines["c2s"].feed(at, item, exchange, starts=starts)

    def _answer(self, at: int, request_id: int, opened: _Open) -> None:
        line = self._lines["s2c"]
        line.feed(at, opened.answer, opened.exchange, starts=True)
        if not opened.keep_conn:
            line.feed(at, Ending.CLOSE, opened.exchange)
        del self._open[request_id]

    # --- from the server ---

    def _take_s2c(self, at: int, piece: Piece) -> None:
        opened = self._open.get(piece.request_id)
        exchange = opened.exchange if opened is not None else None
        self._lines["s2c"].feed(at, piece.data, exchange, starts=piece.starts)
        if exchange is not None and piece.kind == wire.END_REQUEST and piece.ends:
            del self._open[piece.request_id]
            exchange.done = True


def _page(request_id: int, status: int) -> bytes:
    phrase = HTTPStatus(status).phrase
    head = f"Status: {status} {phrase}\r\nContent-Type: text/plain\r\n\r\n"
    return wire.encode_stream(wire.STDOUT, request_id, f"{head}{status} {phrase}\n".encode()) + wire.encode_end(
        request_id
    )


# --- what happens to an answer ---


class _Answer(Stage):
    """Changes the answer's first record, or puts something before it."""

    def __init__(self) -> None:
        self._first = True

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[tuple[int, Any]]:
        if self._first and starts:
            self._first = False
            data = self.change(data)
        yield at, data

    def change(self, data: bytes) -> bytes:
        """``data``, which begins with the header of the answer's first record, as it is to be."""
        raise NotImplementedError


class _Before(_Answer):
    """Records come before the answer."""

    def __init__(self, kind: int, content: bytes) -> None:
        super().__init__()
        self._kind = kind
        self._content = content

    def change(self, data: bytes) -> bytes:
        request_id = wire.HEADER.unpack_from(data)[2]
        starts = range(0, len(self._content), wire.MAX_CONTENT)
        pieces = (self._content[start : start + wire.MAX_CONTENT] for start in starts)
        return b"".join(wire.encode_record(self._kind, request_id, piece) for piece in pieces) + data


class _Header(_Answer):
    """A field of the first record's header is another."""

    def __init__(self, offset: int, value: int) -> None:
        super().__init__()
        self._offset = offset
        self._value = value

    def change(self, data: bytes) -> bytes:
        return data[: self._offset] + bytes((self._value,)) + data[self._offset + 1 :]


class _Truncate(Stage):
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
            return _Before(wire.STDERR, fault.text.encode())
        case kinds.HeaderTooBig():
            name = b"X-Filler: "
            return _Before(wire.STDOUT, name + b"x" * (fault.size - len(name) - 2) + b"\r\n")
        case kinds.Version():
            return _Header(0, fault.version)
        case kinds.Type():
            return _Header(1, fault.type)
        case kinds.Truncate():
            return _Truncate(fault)
        case kinds.Overloaded() | kinds.Status():
            return Stage()  # answered before anything is asked of the server
