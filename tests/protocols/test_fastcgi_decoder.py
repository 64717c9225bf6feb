"""FastCGI decoded: messages, exchanges, and streams that turn wrong."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.protocols.strategies import client_streams, cut, server_streams
from udsproxy.events import DecodeError, Direction, Event, Message, Request
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.decoder import Scope
from udsproxy.protocols.fastcgi_decoder import MAX_OPEN, FastCGIDecoder, recognise
from udsproxy.protocols.secrets import Masking

MASKING = Masking(show=["A", "B"])
PARAMS = {
    b"REQUEST_METHOD": b"GET",
    b"REQUEST_URI": b"/a.php?b=1",
    b"SCRIPT_NAME": b"/a.php",
    b"HTTP_COOKIE": b"s=1",
}
REPLY = wire.encode_record(
    wire.STDOUT, 1, b"Status: 201 Made\r\nContent-Type: text/css\r\n\r\nbody"
) + wire.encode_end(1)

Pieces = Iterable[tuple[Direction, bytes]]
sizes = st.lists(st.integers(1, 40), max_size=40)


def decoder(**wanted: bool) -> FastCGIDecoder:
    return FastCGIDecoder(Scope("p", 7, wanted.get("messages", True), MASKING))


def decode(pieces: Pieces, made: FastCGIDecoder | None = None, *, close: str = "client left") -> list[Event]:
    """All events, timestamps taken out (they are what may differ)."""
    made = made or decoder()
    events = [event for direction, data in pieces for event in made.feed(direction, 1, data)]
    return [*events, *made.close(1, close)]


def exchanges(events: Iterable[Event]) -> list[Request]:
    return [event for event in events if isinstance(event, Request)]


def errors(events: Iterable[Event]) -> list[DecodeError]:
    return [event for event in events if isinstance(event, DecodeError)]


def request(params: dict[bytes, bytes] = PARAMS, body: bytes = b"", request_id: int = 1, flags: int = 0) -> bytes:
    return wire.encode_request(params, body, request_id=request_id, flags=flags)


# --- laws ---


@given(client_streams(), server_streams(), sizes, sizes, st.booleans())
def test_any_split_gives_the_same_events(
    client: bytes, server: bytes, one: list[int], two: list[int], messages: bool
) -> None:
    """However the bytes of each direction are cut, the messages, exchanges and errors are the same."""
    whole = decode([("c2s", client), ("s2c", server)], decoder(messages=messages))
    split: list[tuple[Direction, bytes]] = [("c2s", piece) for piece in cut(client, one)]
    split += [("s2c", piece) for piece in cut(server, two)]
    assert decode(split, decoder(messages=messages)) == whole


@given(client_streams(), server_streams(), st.booleans())
def test_byte_by_byte(client: bytes, server: bytes, messages: bool) -> None:
    """The finest split of all gives the same events too."""
    single: list[tuple[Direction, bytes]] = [("c2s", client[i : i + 1]) for i in range(len(client))]
    single += [("s2c", server[i : i + 1]) for i in range(len(server))]
    whole = decode([("c2s", client), ("s2c", server)], decoder(messages=messages))
    assert decode(single, decoder(messages=messages)) == whole
    if not messages:
        assert [each for each in decode(single) if isinstance(each, Request | DecodeError)] == whole


@given(st.lists(st.tuples(st.sampled_from(["c2s", "s2c"]), st.binary(max_size=60)), max_size=20), st.booleans())
def test_never_raises(pieces: list[tuple[Direction, bytes]], begun: bool) -> None:
    """Whatever is sent, in whatever order, decoding gives events and at most one error a direction."""
    made = decoder()
    start: list[tuple[Direction, bytes]] = [("c2s", wire.encode_begin(1))] if begun else []
    found = errors(decode([*start, *pieces], made))
    assert len(found) == len({error.direction for error in found})


@given(client_streams(), st.integers(0, 2**31), st.integers(0, 255))
def test_a_flipped_byte_never_raises(client: bytes, where: int, value: int) -> None:
    """FastCGI with one byte wrong decodes to events, and to at most one error."""
    where %= len(client)
    wrong = client[:where] + bytes((value,)) + client[where + 1 :]
    assert len(errors(decode([("c2s", wrong)]))) <= 1


@given(client_streams(), server_streams(), sizes)
def test_every_exchange_is_reported_once(client: bytes, server: bytes, at: list[int]) -> None:
    """As many exchanges are reported as requests began."""
    events = decode([("c2s", client), *(("s2c", piece) for piece in cut(server, at))])
    began = [e for e in events if isinstance(e, Message) and e.kind == "BEGIN_REQUEST"]
    assert len(exchanges(events)) == len(began)


@given(client_streams(), sizes)
def test_messages_or_not_the_exchanges_are_the_same(client: bytes, at: list[int]) -> None:
    """What is asked to be shown changes nothing of what is decoded."""
    pieces: list[tuple[Direction, bytes]] = [("c2s", piece) for piece in cut(client, at)]
    with_messages, without = decode(pieces), decode(pieces, decoder(messages=False))
    assert exchanges(without) == exchanges(with_messages)
    assert errors(without) == errors(with_messages)


# --- exchanges ---


def test_one_exchange() -> None:
    """From PARAMS: method, URI, script; from STDOUT: status and type; sizes and times of the whole."""
    made, question = decoder(messages=False), request(body=b"x=1")
    assert made.feed("c2s", 1_000_000_000, question) == []
    assert made.feed("s2c", 1_250_000_000, REPLY[:20]) == []
    [event] = made.feed("s2c", 1_500_000_000, REPLY[20:])
    assert event == Request(
        at=1_500_000_000,
        proxy="p",
        conn=7,
        protocol="fastcgi",
        request=1,
        method="GET",
        uri="/a.php?b=1",
        script="/a.php",
        status=201,
        content_type="text/css",
        app_status=0,
        protocol_status="REQUEST_COMPLETE",
        c2s_bytes=len(question),
        s2c_bytes=len(REPLY),
        ttfb_s=0.25,
        transfer_s=0.25,
        total_s=0.5,
    )


def test_the_status_is_that_of_the_head() -> None:
    """Of a head in several records; absent where the exchange ended before it did."""
    for head, status in (
        (b"Content-Type: a/b\r\nStatus: 404 Not Found\r\n\r\nbody", 404),
        (b"Status: 404\r\n", None),
    ):
        reply = b"".join(wire.encode_record(wire.STDOUT, 1, bytes([byte])) for byte in head) + wire.encode_end(1)
        [exchange] = exchanges(decode([("c2s", request()), ("s2c", reply)]))
        assert exchange.status == status


def test_stderr_is_text_for_people() -> None:
    """STDERR of an exchange is kept, joined and made printable, up to a limit."""
    texts = [b"PHP message: a\x1b[31m", b" b\n", b"x" * 20_000]
    reply = b"".join(wire.encode_record(wire.STDERR, 1, text) for text in texts) + REPLY
    [exchange] = exchanges(decode([("c2s", request()), ("s2c", reply)]))
    assert exchange.stderr is not None
    assert exchange.stderr.startswith(r"PHP message: a\x1b[31m b\nxxx")
    assert len(exchange.stderr) < 9_000


def test_sequential_requests_on_a_kept_connection() -> None:
    """With KEEP_CONN the same id comes again; each is an exchange of its own."""
    made = decoder()
    events: list[Event] = []
    for number in range(3):
        params = {**PARAMS, b"REQUEST_URI": b"/%d" % number}
        events += made.feed("c2s", 1, request(params, flags=wire.KEEP_CONN))
        events += made.feed("s2c", 1, REPLY)
    assert [each.uri for each in exchanges(events)] == ["/0", "/1", "/2"]
    assert {each.incomplete for each in exchanges(events)} == {None}


def test_multiplexed_requests() -> None:
    """Requests whose records are mixed are told apart by their ids, also when they end out of order."""
    first, second = ({**PARAMS, b"REQUEST_URI": uri} for uri in (b"/first", b"/second"))
    one = wire.RecordReader().feed(request(first, b"1" * 100, 1))
    two = wire.RecordReader().feed(request(second, b"2" * 100, 2))
    mixed = b"".join(wire.encode_record(*record) for couple in zip(one, two, strict=True) for record in couple)
    out = [wire.encode_stream(wire.STDOUT, i, b"Status: 20%d\r\n\r\n" % i) for i in (1, 2)]
    replies = out[1] + out[0] + wire.encode_end(2) + wire.encode_end(1)
    found = exchanges(decode([("c2s", mixed), ("s2c", replies)]))
    assert [(each.request, each.uri, each.status) for each in found] == [(2, "/second", 202), (1, "/first", 201)]


def test_overloaded() -> None:
    """A server that refuses says why in END_REQUEST (spec 5.5)."""
    reply = wire.encode_end(1, app_status=3, protocol_status=2)
    [exchange] = exchanges(decode([("c2s", request()), ("s2c", reply)]))
    assert (exchange.app_status, exchange.protocol_status, exchange.status) == (3, "OVERLOADED", None)


def test_aborted() -> None:
    """ABORT_REQUEST makes an exchange incomplete, whether the server still ends it or not."""
    abort = wire.encode_record(wire.ABORT_REQUEST, 1)
    ended = exchanges(decode([("c2s", request() + abort), ("s2c", REPLY)]))
    left = exchanges(decode([("c2s", request() + abort)]))
    assert [each.incomplete for each in ended + left] == ["abort", "abort"]


def test_not_ended() -> None:
    """An exchange that is open when the connection ends is reported with why, and with what was seen of it."""
    events = decode([("c2s", request()), ("s2c", REPLY[:-16])], close="upstream closed")
    [exchange] = exchanges(events)
    assert (exchange.incomplete, exchange.status, exchange.uri) == ("upstream closed", 201, "/a.php?b=1")
    assert exchange.s2c_bytes == len(REPLY) - 16


def test_an_id_begun_again() -> None:
    """A client that begins an open id again has given up the first: that is reported as incomplete."""
    events = decode([("c2s", wire.encode_begin(1) + request()), ("s2c", REPLY)])
    assert [each.incomplete for each in exchanges(events)] == ["its id was begun again", None]
    assert not errors(events)


def test_records_of_no_open_request_are_skipped() -> None:
    """Late STDIN, or an answer to nothing, is legal and belongs to no exchange (spec 3.3)."""
    events = decode([("c2s", request() + wire.encode_stream(wire.STDIN, 9, b"late")), ("s2c", REPLY + REPLY)])
    assert len(exchanges(events)) == 1
    assert not errors(events)


def test_management_pairs_with_no_request() -> None:
    """GET_VALUES and its result, and unknown types, are messages and nothing else."""
    asked = wire.encode_record(wire.GET_VALUES, 0, wire.encode_pairs({b"FCGI_MAX_CONNS": b""}))
    told = wire.encode_record(wire.GET_VALUES_RESULT, 0, wire.encode_pairs({b"FCGI_MAX_CONNS": b"5"}))
    unknown = wire.encode_record(wire.UNKNOWN_TYPE, 0, bytes((42,)) + bytes(7))
    pieces: list[tuple[Direction, bytes]] = [("c2s", asked + wire.encode_record(42, 0)), ("s2c", told + unknown)]
    events = decode(pieces)
    assert [(e.kind, e.fields) for e in events if isinstance(e, Message)] == [
        ("GET_VALUES", {"FCGI_MAX_CONNS": ""}),
        ("UNKNOWN", {"type": 42}),
        ("GET_VALUES_RESULT", {"FCGI_MAX_CONNS": "5"}),
        ("UNKNOWN_TYPE", {"type": 42}),
    ]
    assert len(events) == 4


# --- messages ---


def test_params_are_one_message_across_records() -> None:
    """A pair that crosses records is whole in the one message of its request; secrets are masked there."""
    content = wire.encode_pairs(PARAMS)
    parts = b"".join(wire.encode_record(wire.PARAMS, 1, content[i : i + 5]) for i in range(0, len(content), 5))
    events = decode([("c2s", wire.encode_begin(1) + parts + wire.encode_record(wire.PARAMS, 1))])
    [message] = [e for e in events if isinstance(e, Message) and e.kind == "PARAMS"]
    assert message.nbytes == len(content)
    assert message.fields == {
        "request": 1,
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/a.php?b=1",
        "SCRIPT_NAME": "/a.php",
        "HTTP_COOKIE": "***",
    }


def test_messages_of_a_request() -> None:
    """Each record is a message with its kind and size; BEGIN and END say what they carry."""
    events = decode([("c2s", request(body=b"x=1", flags=wire.KEEP_CONN)), ("s2c", REPLY)])
    kinds = [(e.direction, e.kind, e.nbytes) for e in events if isinstance(e, Message)]
    assert kinds == [
        ("c2s", "BEGIN_REQUEST", 8),
        ("c2s", "PARAMS", len(wire.encode_pairs(PARAMS))),
        ("c2s", "STDIN", 3),
        ("c2s", "STDIN", 0),
        ("s2c", "STDOUT", 48),
        ("s2c", "END_REQUEST", 8),
    ]
    begin, end = events[0], [e for e in events if isinstance(e, Message)][-1]
    assert isinstance(begin, Message)
    assert begin.fields == {"request": 1, "role": "RESPONDER", "keep_conn": "yes"}
    assert end.fields == {"request": 1, "app_status": 0, "protocol_status": "REQUEST_COMPLETE"}


def test_secrets_are_masked_in_the_exchange() -> None:
    """A parameter that is to be masked is masked where it makes up the exchange, a query in the URI too."""
    params = {**PARAMS, b"QUERY_STRING": b"b=1"}
    for redact, uri in ((["REQUEST_URI"], "***"), (["query_string"], "/a.php?***"), ([], "/a.php?b=1")):
        made = FastCGIDecoder(Scope("p", 7, False, Masking(redact)))
        [exchange] = exchanges(decode([("c2s", request(params)), ("s2c", REPLY)], made))
        assert exchange.uri == uri


# --- streams that turn wrong ---

FROM_CLIENT = [
    (b"GET / HTTP/1.1\r\n", "no version of FastCGI"),
    (b"\x01\x06\x00\x01\x00\x00\x00\x00", "STDOUT from the client"),
    (b"\x01\x01\x00\x01\x00\x05\x03\x00", "BEGIN_REQUEST of 5 bytes, not 8"),
    (b"\x01\x01\x00\x00\x00\x08\x00\x00", "BEGIN_REQUEST with request id 0"),
    (b"\x01\x09\x00\x01\x00\x00\x00\x00", "GET_VALUES with request id 1"),
    (b"\x01\x02\x00\x01\x00\x01\x00\x00", "ABORT_REQUEST of 1 bytes, not 0"),
    (b"\x01\x05\x00\x00\x00\x00\x00\x00", "STDIN with request id 0"),
]
FROM_SERVER = [
    (b"HTTP/1.1 200 OK\r\n", "version 72"),
    (b"\x01\x05\x00\x01\x00\x00\x00\x00", "STDIN from the server"),
    (b"\x01\x63\x00\x01\x00\x00\x00\x00", "type 99, which no server sends"),
    (b"\x01\x03\x00\x01\x00\x00\x00\x00", "END_REQUEST of 0 bytes, not 8"),
]


@pytest.mark.parametrize(
    ("direction", "wrong", "reason"), [("c2s", *w) for w in FROM_CLIENT] + [("s2c", *w) for w in FROM_SERVER]
)
@pytest.mark.parametrize("split", [1, 3, 1000])
def test_wrong_turns(direction: Direction, wrong: bytes, reason: str, split: int) -> None:
    """Where a direction stops being FastCGI there is one error, with its offset and the reason, and no more."""
    good = request() if direction == "c2s" else wire.encode_record(wire.STDERR, 1, b"fine")
    stream = good + wrong * 3
    made = decoder()
    if direction == "s2c":
        made.feed("c2s", 1, request())
    pieces = [stream[i : i + split] for i in range(0, len(stream), split)]
    events = [e for piece in pieces for e in made.feed(direction, 1, piece)]
    [error] = errors(events)
    assert (error.direction, error.offset) == (direction, len(good))
    assert error.reason.startswith(reason)


def test_params_that_end_inside_a_pair() -> None:
    """PARAMS whose last pair is not whole are wrong."""
    content = wire.encode_pairs(PARAMS)[:-1]
    [error] = errors(decode([("c2s", wire.encode_begin(1) + wire.encode_stream(wire.PARAMS, 1, content))]))
    assert error.reason == "PARAMS ended inside a name-value pair"


def test_the_other_direction_goes_on() -> None:
    """A client that turns wrong in the middle still has its answer decoded."""
    [exchange] = exchanges(decode([("c2s", request() + b"garbage!" * 5), ("s2c", REPLY)]))
    assert (exchange.uri, exchange.status, exchange.incomplete) == ("/a.php?b=1", 201, None)


def test_an_answer_that_cannot_be_decoded() -> None:
    """Where the server's side is wrong, its exchange says so at the end."""
    [exchange] = exchanges(decode([("c2s", request()), ("s2c", b"nonsense")]))
    assert exchange.incomplete == "the response could not be decoded"


def test_lost_bytes() -> None:
    """A decoder that is told of lost bytes says so once and stops guessing."""
    made = decoder()
    made.feed("c2s", 1, request()[:30])
    assert len(made.lost("c2s", 1)) == 1
    assert len(made.lost("c2s", 1)) == 0
    assert not made.feed("c2s", 1, request())


# --- bounds ---


def test_too_many_open_requests() -> None:
    """A client may not make the decoder remember requests without end."""
    begins = b"".join(wire.encode_begin(i) for i in range(1, MAX_OPEN + 10))
    events = decode([("c2s", begins)])
    assert len(exchanges(events)) == MAX_OPEN
    assert [error.reason for error in errors(events)] == [f"more than {MAX_OPEN} requests open at once"]


@settings(deadline=None, max_examples=5)
@given(st.sampled_from([wire.STDIN, wire.PARAMS, wire.STDOUT, wire.STDERR]))
def test_memory_is_bounded(kind: int) -> None:
    """64 MiB of any stream, in large or tiny records, leave less than 1 MiB behind."""
    direction: Direction = "c2s" if kind in (wire.STDIN, wire.PARAMS) else "s2c"
    made = decoder(messages=False)
    made.feed("c2s", 1, wire.encode_begin(1))
    large = wire.encode_record(kind, 1, b"\x7f" * 65535) * 4
    tiny = wire.encode_record(kind, 1, b"\x7f") * 10_000
    tracemalloc.start()
    for _ in range(256):
        made.feed(direction, 1, large)
    made.feed(direction, 1, tiny)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1024 * 1024


# --- recognition ---


@given(client_streams(), st.integers(0, 40))
def test_fastcgi_is_recognised(client: bytes, size: int) -> None:
    """A FastCGI client is never taken for something else, however little has come."""
    assert recognise(client[:size]) is (True if size >= 10 else None)


@pytest.mark.parametrize(
    "start",
    [
        b"GET / HTTP",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16/",
        b"\x01\x05",
        b"\x01\x01\x00\x00\x00\x08\x00\x00",
    ],
)
def test_other_protocols_are_not(start: bytes) -> None:
    """HTTP, Redis, PostgreSQL and almost-FastCGI are not taken for FastCGI."""
    assert recognise(start) is False


def test_management_first() -> None:
    """A client may begin with a management record, also of a type that a server sends (spec 4.1, 4.2)."""
    for first in (
        wire.encode_record(wire.GET_VALUES, 0),
        wire.encode_record(wire.GET_VALUES_RESULT, 0, wire.encode_pairs({b"FCGI_MAX_CONNS": b"1"})),
        wire.encode_record(wire.UNKNOWN_TYPE, 0, bytes(8)),
    ):
        assert recognise(first) is True
        assert recognise(first[:2]) is None
        events = decode([("c2s", first + request()), ("s2c", REPLY)])
        assert len(exchanges(events)) == 1
        assert errors(events) == []


def test_at_is_all_that_a_split_may_change() -> None:
    """`at` of an event is the time of the piece that completed it."""
    whole = decoder().feed("c2s", 5, request())
    made = decoder()
    split = [*made.feed("c2s", 3, request()[:9]), *made.feed("c2s", 5, request()[9:])]
    assert split == list(whole)
    assert replace(split[0], at=0) == replace(whole[0], at=0)


def test_an_end_that_was_cut_ends_its_own_exchange() -> None:
    """An id that is begun again while the end of its last exchange is half here: each is reported once."""
    end = wire.encode_end(1)
    steps: Pieces = [
        ("c2s", wire.encode_begin(1)),
        ("s2c", end[:12]),
        ("c2s", wire.encode_begin(1)),
        ("s2c", end[12:]),
    ]
    assert [exchange.incomplete for exchange in exchanges(decode(steps))] == [
        "its id was begun again",
        "client left",
    ]
