"""No byte of a secret is shown: whatever is damaged, however it is cut, at any verbosity, in any output."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.hostile import Hostile, stream
from tests.protocols.strategies import cut
from udsproxy.events import Close, Data, Event, Message, Request
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.screen import HeaderScreen, RawScreen
from udsproxy.protocols.secrets import Masking
from udsproxy.protocols.tap import Tap
from udsproxy.sinks.console import ConsoleRenderer
from udsproxy.sinks.json_lines import JsonRenderer
from udsproxy.sinks.sink import Renderer
from udsproxy.sinks.socat import SocatRenderer
from udsproxy.sinks.text import WallClock

STREAMS = int(os.environ.get("UDSPROXY_SECRET_STREAMS", "300"))
FIRST = int(os.environ.get("UDSPROXY_SECRET_FIRST", "0"))
"""The number of the first, so that many can be shared among processes."""

MASKING = Masking(show=["STDIN"])
BEGIN = wire.encode_begin(1)
CLOCK = WallClock()
REPLY = wire.encode_stream(wire.STDOUT, 1, b"Status: 200\r\n\r\nhi") + wire.encode_end(1)


class Kept:
    """A sink that keeps the events."""

    name = "kept"
    total_dropped = 0

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> Iterator[None] | None:
        self.events.append(event)
        return None

    def flush(self) -> None:
        pass


def observe(
    pieces: list[bytes],
    *,
    verbosity: int,
    decode: str = "auto",
    masking: Masking | None = MASKING,
    answer: bytes = REPLY,
) -> list[Event]:
    """All events of a client that sent this, and whom the server answered."""
    sink = Kept()
    tap = Tap([sink], name="p", decode={"p": decode}, verbosity=verbosity, masking=masking)
    seen = tap.observe("p", 1)
    for piece in pieces:
        seen.data("c2s", 0, piece)
    seen.data("s2c", 0, answer)
    seen.close(
        Close(at=0, proxy="p", conn=1, by="client", c2s_bytes=1, s2c_bytes=1, total_s=1.0, requests=0), "left"
    )
    while tap.work(1000):
        pass
    assert tap.budget.held == 0
    return sink.events


def shown(events: list[Event]) -> bytes:
    """The client's bytes, as they are shown."""
    return b"".join(event.data for event in events if isinstance(event, Data) and event.direction == "c2s")


def rendered(events: list[Event], renderer: Renderer) -> bytes:
    out = []
    for event in events:
        lines = renderer.render(event)
        out.append(lines if isinstance(lines, bytes) else b"".join(lines or ()))
    return b"".join(out)


def renderers(verbosity: int) -> list[Renderer]:
    console = ConsoleRenderer(CLOCK, color=False, verbosity=verbosity, hexdump=1 << 16)
    return [console, JsonRenderer(CLOCK, hexdump=1 << 16), SocatRenderer(CLOCK)]


def pieces_of(rng: random.Random, data: bytes) -> list[bytes]:
    most = rng.choice((1, 40, *(400,) * 10, *(2000,) * 20))
    return cut(data, [rng.randint(1, most) for _ in range(2 * len(data) // most + 1)])


def told(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Data)]


def look(number: int, hostile: Hostile, verbosity: int, wrong: dict[str, list[int]]) -> None:
    """At one stream, cut and whole; note what is wrong."""
    rng = random.Random(-number - 1)
    decode = "fastcgi" if number % 3 == 0 else "auto"
    pieces = [piece for piece in pieces_of(rng, hostile.data) if piece]
    events = observe(pieces, verbosity=verbosity, decode=decode)
    # A hexdump shows the bytes of `Data` and nothing else; mostly those are looked at themselves, which is faster.
    few = events if number % 100 == 0 else told(events)
    texts = [shown(events), *(rendered(few, renderer) for renderer in renderers(verbosity))]
    texts += [rendered(events, SocatRenderer(CLOCK))] if verbosity == 2 else []
    if hostile.leaks(b"\n".join(texts)):
        wrong["leaks"].append(number)
    if verbosity == 2 or number % 4 == 0:
        whole = observe([hostile.data], verbosity=verbosity, decode=decode)
        if shown(events) != shown(whole) or told(events) != told(whole):
            wrong["differs"].append(number)


def test_no_secret_is_shown() -> None:
    """Of many damaged streams no four bytes of a secret in a row are in any output; no cut makes a difference."""
    wrong: dict[str, list[int]] = {"leaks": [], "differs": []}
    for number in range(FIRST, FIRST + STREAMS):
        hostile = stream(number)
        # At -vv everything is told that is at -v, and the bytes; so that needs to be looked at less.
        for verbosity in (0, 1, 2) if number % 10 == 0 else (0, 2):
            look(number, hostile, verbosity, wrong)
    assert wrong == {"leaks": [], "differs": []}


def test_what_finds_leaks_finds_them() -> None:
    """Of streams whose secrets are not masked they are seen, in the bytes and in the messages."""
    for verbosity in (1, 2):
        events = [
            each for number in range(40) for each in observe([stream(number).data], verbosity=2, masking=None)
        ]
        text = shown(events) if verbosity == 2 else b"".join(rendered(told(events), one) for one in renderers(1))
        assert sum(bool(stream(number).leaks(text)) for number in range(40)) > 10


# --- what is a secret ---


@pytest.mark.parametrize(
    "name",
    [
        *("HTTP_COOKIE", "HTTP_AUTHORIZATION", "PHP_AUTH_PW", "PHP_AUTH_DIGEST", "HTTP_PROXY_AUTHORIZATION"),
        *("REDIRECT_HTTP_AUTHORIZATION", "REDIRECT_REDIRECT_HTTP_COOKIE", "HTTP_X_API_KEY", "DB_PASSWORD"),
        *("HTTP_X_AUTH", "HTTP_X_SID", "APP_KEY", "http_cookie", "Http_Authorization", "HTTP_COOKI", "HTTP_X"),
    ],
)
def test_what_is_not_known_to_be_public_is_masked(name: str) -> None:
    """Every form of Cookie and Authorization, other secrets, names that nobody knows; the names are told."""
    events = observe([request({name: "sesame"})], verbosity=2)
    [message] = [event for event in events if isinstance(event, Message) and event.kind == "PARAMS"]
    assert message.fields.get(name, message.fields.get("***")) == "***"
    assert b"sesame" not in shown(events)
    assert b"******" in shown(events)


def test_what_is_public_is_shown() -> None:
    """All of a good request but its secret, in the messages and in the bytes; `show` names more that is so."""
    params = {
        "REQUEST_METHOD": "GET",
        "REDIRECT_URL": "/a",
        "HTTP_COOKIE": "sesame",
        "HTTP_HOST": "h",
        "APP_ENV": "x",
    }
    question = request(params)
    events = observe([question], verbosity=2, masking=Masking(show=["app_env"]))
    [message] = [event for event in events if isinstance(event, Message) and event.kind == "PARAMS"]
    assert message.fields == {"request": 1, **params, "HTTP_COOKIE": "***"}
    # Behind a secret the lengths and the name are not known to be that.
    hidden = question.replace(b"sesame\x09\x01HTTP_HOST", b"*" * 17)
    assert shown(events) == hidden
    assert shown(observe([question], verbosity=2, masking=None)) == question


def test_bodies_of_requests_are_shown_where_that_is_asked_for() -> None:
    """A form has passwords: a body is masked, but for `show` STDIN; and then it is shown as far as it is one."""
    question = wire.encode_request({b"CONTENT_LENGTH": b"9"}, b"pw=sesame")
    hidden = question.replace(b"\x09\x07\x00pw=sesame", b"**\x00" + b"*" * 9)
    assert shown(observe([question], verbosity=2, masking=Masking())) == hidden
    assert shown(observe([question], verbosity=2)) == question
    long = wire.encode_request({b"CONTENT_LENGTH": b"3"}, b"pw=sesame")
    assert shown(observe([long], verbosity=2)) == long.replace(b"sesame", b"******")


def test_redaction_is_by_kind() -> None:
    """A query that is to be masked is masked wherever there is one; a path stays."""
    params = {
        "QUERY_STRING": "b=1", "REQUEST_URI": "/a?b=1",
        "REDIRECT_QUERY_STRING": "b=1", "REDIRECT_URL": "/a?b=1",
        "HTTP_REFERER": "http://h/x?b=1",
        "HTTP_X_ORIGINAL_URL": "/o?b=1", "REDIRECT_REDIRECT_REQUEST_URI": "/r?b=1",
    }  # fmt: skip
    events = observe([request(params)], verbosity=2, masking=Masking(redact=["query_string"]))
    [message] = [event for event in events if isinstance(event, Message) and event.kind == "PARAMS"]
    assert list(message.fields.values())[1:] == [
        "***",
        "/a?***",
        "***",
        "/a?***",
        "http://h/x?***",
        "/o?***",
        "/r?***",
    ]
    [exchange] = [event for event in events if isinstance(event, Request)]
    assert exchange.uri == "/a?***"
    assert b"b=1" not in shown(events)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("/a?user=ada&password=x&b=2", "/a?user=ada&password=***&b=2"),
        ("/a?PHPSESSID=77;z=1", "/a?PHPSESSID=***"),
        ("/a;jsessionid=77?b=1&c=2", "/a;jsessionid=***&c=2"),
        ("/a?api_key=1?2&pass%77ord=x&q=token", "/a?api_key=***&pass%77ord=***&q=token"),
        ("/a?code=9", "/a?code=***"),
        ("/a?barcode=9", "/a?barcode=9"),
        ("/reset/" + "A0" * 20, "/reset/" + "A0" * 20),
        ("/list.p_X_CSRF_TOKENsesame", "/list.p_X_CSRF_TOKEN***"),
        ("/reset/" + "A_" * 20, "/reset/" + "A_" * 8 + "***"),
        ("/reset/" + "a" * 40 + "_b", "/reset/" + "a" * 40 + "_***"),
    ],
)
def test_secrets_in_a_query(uri: str, told: str) -> None:
    """Fields whose keys say that they are secret, and what looks like a long name."""
    [exchange] = [
        event for event in observe([request({"REQUEST_URI": uri})], verbosity=0) if isinstance(event, Request)
    ]
    assert exchange.uri == told


@given(st.sampled_from(["text", "uri", "query"]), st.data())
def test_what_is_hidden_is_decided_by_what_came(kind: str, data: st.DataObject) -> None:
    """Of the start of a value as much is hidden as of the whole, up to there."""
    parts = st.sampled_from(
        [b"a", b"?", b"&", b"=", b";", b"token", b"x=", b"A" * 9, b"_", b"_KEY", b"b" * 20, b"/", b"\x0b", b"%"]
    )
    value = b"".join(data.draw(st.lists(parts, max_size=12)))
    size = data.draw(st.integers(0, len(value)))

    def hidden(some: bytes) -> set[int]:
        return {i for first, last in MASKING.hidden(kind, some) for i in range(first, last)}  # type: ignore[arg-type]

    assert hidden(value[:size]) == {i for i in hidden(value) if i < size}


# --- streams that are wrong ---


def test_a_name_whose_length_is_told_wrong() -> None:
    """nginx tells the length of a name of more than 255 bytes modulo 256: nothing behind it is shown."""
    name = b"HTTP_" + b"X" * 300
    pairs = bytes((len(name) & 0x7F, 1)) + name + b"v" + wire.encode_pairs({b"HTTP_COOKIE": b"sesame " * 9})
    for tail in range(200):
        content = wire.encode_pairs({b"REQUEST_METHOD": b"GET"}) + pairs + bytes(tail)
        events = observe([BEGIN + wire.encode_stream(wire.PARAMS, 1, content)], verbosity=2)
        for text in (shown(events), rendered(told(events), renderers(1)[1])):
            assert b"sesa" not in text
        assert b"GET" in shown(events)


def test_a_record_that_is_lost() -> None:
    """A value that goes on in another record than the next may go on with something else."""
    content = wire.encode_pairs({b"REQUEST_URI": b"/" + b"a" * 19, b"HTTP_COOKIE": b"sesame" * 5})
    for kind, number in ((wire.PARAMS, 9), (wire.STDIN, 1), (77, 1)):
        records = [
            wire.encode_record(wire.PARAMS, 1, content[:20]),
            wire.encode_record(kind, number, content[20:50]),
        ]
        rest = wire.encode_record(wire.PARAMS, 1, content[50:]) + wire.encode_record(wire.PARAMS, 1)
        events = observe([BEGIN + b"".join(records) + rest], verbosity=2)
        assert b"sesa" not in shown(events) + rendered(told(events), renderers(1)[1])


def test_after_a_wrong_turn_nothing_of_the_client_is_shown() -> None:
    """What can no longer be told from secrets counts as secret."""
    for wrong in (b"\x07" * 8, b"\x01\x0c\x00\x01\x00\x00\x00\x00", b"\x01\x05\x00\x01\x00\x00\x00\x09"):
        events = observe([request({}) + wrong + b"Cookie: s=1", b"Cookie: s=1"], verbosity=2)
        assert shown(events).endswith(b"*" * 22)


# --- what is no FastCGI ---


@given(st.lists(st.integers(0, 40), max_size=8))
def test_headers_of_http_are_masked(at: list[int]) -> None:
    """Cookie, Set-Cookie and Authorization to the end of their lines, also of lines that go on."""
    text = b"GET / HTTP/1.1\r\nCookie: a=b\r\nHost: h\r\nAUTHORIZATION: Basic x\r\n y\r\nX-Cookie: z\r\n\r\ncookie:"
    want = b"GET / HTTP/1.1\r\nCookie:*****\nHost: h\r\nAUTHORIZATION:*********\n***\nX-Cookie: z\r\n\r\ncookie:"
    for made in (HeaderScreen(), RawScreen()):
        assert b"".join(made.feed(piece) for piece in cut(text, at)) == want


def test_cookies_that_are_set_are_masked() -> None:
    """In a server's answer, whatever it is decoded as."""
    answer = wire.encode_stream(wire.STDOUT, 1, b"Set-Cookie: id=sesame\r\nStatus: 200\r\n\r\nhi")
    for decode in ("auto", "raw", "none"):
        events = observe([request({})], verbosity=2, decode=decode, answer=answer)
        text = b"".join(event.data for event in events if isinstance(event, Data) and event.direction == "s2c")
        assert text == answer.replace(b" id=sesame\r", b"*" * 11)


@given(st.lists(st.integers(0, 40), max_size=8))
def test_parameters_in_another_wrapping_are_masked(at: list[int]) -> None:
    """SCGI and others carry the same parameters: nothing is shown from the first on."""
    text = b"70:CONTENT_LENGTH\x0027\x00SCGI\x001\x00REQUEST_METHOD\x00POST\x00HTTP_COOKIE\x00a=b\x00,"
    start = text.index(b"REQUEST_METHOD") + 14
    made = RawScreen()
    assert b"".join(made.feed(piece) for piece in cut(text, at)) == text[:start] + b"*" * (len(text) - start)


def test_raw_bytes_are_shown() -> None:
    """What has nothing of CGI or HTTP is shown as it is."""
    text = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n"
    assert shown(observe([text], verbosity=2)) == text


def request(params: dict[str, str]) -> bytes:
    return wire.encode_request({name.encode(): value.encode() for name, value in params.items()})
