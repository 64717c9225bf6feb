"""Rules that ask something of a request, and faults in its answer."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.events import Direction
from udsproxy.faults.line import Item
from udsproxy.faults.path import Path
from udsproxy.faults.requests import MOST_HELD
from udsproxy.faults.rules import Book
from udsproxy.faults.spelling import parse_all
from udsproxy.faults.stages import Ending
from udsproxy.protocols import fastcgi as wire

Told = list[tuple[str, int | None]]


def path_of(*texts: str, told: Told | None = None, seed: int = 1) -> Path:
    book = Book("p", seed, parse_all(texts))
    rules, for_requests = book.for_connection(1, None)

    def tell(rule: object, request: int | None) -> None:
        if told is not None:
            told.append((rule.name, request))  # type: ignore[attr-defined]

    return Path(book, 1, 0, rules, for_requests, tell)


def request(script: bytes = b"/a.php", *, request_id: int = 1, body: bytes = b"", **params: str) -> bytes:
    found = {b"SCRIPT_NAME": script, b"REQUEST_METHOD": b"GET"} | {
        name.encode(): value.encode() for name, value in params.items()
    }
    return wire.encode_request(found, body, request_id=request_id, flags=wire.KEEP_CONN)


def answer(page: bytes = b"Status: 200 OK\r\n\r\nhello", *, request_id: int = 1) -> bytes:
    return wire.encode_record(wire.STDOUT, request_id, page) + wire.encode_end(request_id)


def taken(path: Path, direction: Direction, now: int = 0) -> list[Item]:
    items = []
    while (item := path.lines[direction].take(now)) is not None:
        items.append(item)
    return items


def joined(items: list[Item]) -> bytes:
    return b"".join(item for item in items if isinstance(item, bytes))


def through(path: Path, asked: bytes, answered: bytes) -> tuple[bytes, list[Item]]:
    """What the server gets of a request, and the client of the answer."""
    path.feed("c2s", 0, asked)
    got = joined(taken(path, "c2s"))
    path.feed("s2c", 0, answered)
    return got, taken(path, "s2c")


def records(data: bytes) -> list[wire.Record]:
    return wire.RecordReader().feed(data)


@given(seed=st.integers(), scripts=st.lists(st.sampled_from([b"/a.php", b"/slow.php"]), min_size=1, max_size=5))
def test_any_cut_gives_the_same(seed: int, scripts: list[bytes]) -> None:
    """Wherever the bytes of requests and answers are cut, all of them pass, and the rule finds its requests."""
    told: Told = []
    path = path_of("slicer=7B@both if script=/slow.php name=slow", told=told)
    asked = b"".join(request(script, request_id=number + 1) for number, script in enumerate(scripts))
    answered = b"".join(answer(request_id=number + 1) for number in range(len(scripts)))
    cuts, got = random.Random(seed), {"c2s": b"", "s2c": b""}
    streams: tuple[tuple[Direction, bytes], ...] = (("c2s", asked), ("s2c", answered))
    for direction, data in streams:
        start = 0
        while start < len(data):
            size = cuts.randint(1, 60)
            path.feed(direction, 0, data[start : start + size])
            got[direction] += joined(taken(path, direction))
            start += size
    assert got == {"c2s": asked, "s2c": answered}
    assert told == [("slow", n) for n, script in enumerate(scripts, 1) if script == b"/slow.php"]


@given(junk=st.lists(st.tuples(st.sampled_from(["c2s", "s2c"]), st.binary(max_size=100)), max_size=20))
def test_what_is_no_fastcgi_passes(junk: list[tuple[Direction, bytes]]) -> None:
    """Whatever it is, all of it arrives, at its end at the latest."""
    path = path_of("latency=1s if script=/x", "fcgi-truncate if uri=/y")
    got: dict[Direction, bytes] = {"c2s": b"", "s2c": b""}
    for direction, data in junk:
        path.feed(direction, 0, data)
    for direction in got:
        path.end(direction, 0)
        got[direction] = joined(taken(path, direction))
    assert got == {way: b"".join(data for at, data in junk if at == way) for way in got}


def test_only_the_request_is_met() -> None:
    """Its answer is late, that of the one before it is not; what is behind it waits with it."""
    path = path_of("latency=1s if script=/slow.php")
    _, first = through(path, request(), answer())
    assert joined(first) == answer()
    _, second = through(path, request(b"/slow.php"), answer())
    assert second == []
    _, third = through(path, request(), answer())
    assert third == []
    assert joined(taken(path, "s2c", 1_000_000_000)) == answer() * 2


def test_conditions() -> None:
    """method, uri, script and any parameter; all must hold, with globs."""
    for text, meets in (
        ("if method=GET", True),
        ("if method=POST", False),
        ("if script=/a.php", True),
        ("if script=/srv/*", True),
        ("if uri=/a.php?x=*", True),
        ("if uri=/b*", False),
        ("if HTTP_HOST=*.example method=GET", True),
        ("if HTTP_HOST=*.example method=POST", False),
        ("if HTTP_ACCEPT=*", False),
        ("if conn=1 method=GET", True),
        ("if conn=2 method=GET", False),
        ("if comm=nginx method=GET", False),
    ):
        told: Told = []
        path = path_of(f"latency=1s {text}", told=told)
        asked = request(SCRIPT_FILENAME="/srv/a.php", QUERY_STRING="x=1", HTTP_HOST="www.example")
        assert through(path, asked, b"")[0] == asked
        assert bool(told) == meets, text


def test_chance_and_selection_are_of_requests() -> None:
    """``on`` counts the requests that match, p is drawn for each."""
    told: Told = []
    path = path_of("latency=1ms if script=/a.php on=2", "latency=1ms if method=GET p=0.5 name=half", told=told)
    for number in range(200):
        through(path, request(b"/b.php" if number == 0 else b"/a.php", request_id=number + 1), b"")
        path.feed("s2c", 0, answer(request_id=number + 1))
    assert [number for name, number in told if name == "latency"] == [3]
    half = [number for name, number in told if name == "half"]
    assert 70 < len(half) < 130
    told.clear()
    path = path_of("latency=1ms if script=/a.php on=2", "latency=1ms if method=GET p=0.5 name=half", told=told)
    for number in range(200):
        path.feed("c2s", 0, request(request_id=number + 1))
        path.feed("s2c", 0, answer(request_id=number + 1))
    assert [number for name, number in told if name == "half"] == half


def test_requests_at_once() -> None:
    """Requests that share a connection are told apart; one that is not decided yet holds what comes behind it."""
    path = path_of("limit=0B,then=stall if script=/slow.php")
    slow, fast = request(b"/slow.php", request_id=1), request(request_id=2)
    begin, rest = slow[:16], slow[16:]
    path.feed("c2s", 0, begin)
    path.feed("c2s", 0, fast)
    assert taken(path, "c2s") == []
    path.feed("c2s", 0, rest)
    assert joined(taken(path, "c2s")) == begin + fast + rest
    path.feed("s2c", 0, answer(request_id=2))
    assert joined(taken(path, "s2c")) == answer(request_id=2)


def test_no_parameters_without_end() -> None:
    """More parameters than we hold: the request passes, and is met by nothing."""
    told: Told = []
    path = path_of("latency=1s if method=GET", told=told)
    params = wire.encode_pairs([(b"X%d" % number, bytes(1000)) for number in range(1500)])
    asked = wire.encode_begin(1) + wire.encode_stream(wire.PARAMS, 1, params) + wire.encode_record(wire.STDIN, 1)
    path.feed("c2s", 0, asked[:MOST_HELD])
    assert taken(path, "c2s") == []
    path.feed("c2s", 0, asked[MOST_HELD:])
    assert joined(taken(path, "c2s")) == asked
    assert told == []


def test_a_request_that_is_not_whole() -> None:
    """Its client ends in the middle: what it sent arrives, and then the end."""
    path = path_of("latency=1s if method=GET")
    asked = request()[:25]
    path.feed("c2s", 0, asked)
    path.end("c2s", 0)
    items = taken(path, "c2s")
    assert (joined(items), items[-1]) == (asked, Ending.EOF)


# --- FastCGI's own ---


def test_overloaded() -> None:
    """The server sees nothing of the request; its client reads END_REQUEST. A connection that is kept goes on."""
    path = path_of("fcgi-overloaded if script=/a.php")
    got, items = through(path, request(body=b"x" * 100), b"")
    assert got == b""
    assert records(joined(items)) == [wire.Record(wire.END_REQUEST, 1, wire.END_BODY.pack(0, wire.OVERLOADED))]
    assert all(isinstance(item, bytes) for item in items)
    asked = request(b"/b.php")
    got, items = through(path, asked, answer())
    assert (got, joined(items)) == (asked, answer())


def test_a_status() -> None:
    """A whole answer; without FCGI_KEEP_CONN the connection is closed behind it."""
    path = path_of("fcgi-status=503")
    asked = wire.encode_request({b"REQUEST_METHOD": b"GET"})
    got, items = through(path, asked, b"")
    assert got == b""
    assert items.pop() is Ending.CLOSE
    found = records(joined(items))
    assert found[0].content.startswith(b"Status: 503 Service Unavailable\r\n")
    assert [record.kind for record in found] == [wire.STDOUT, wire.STDOUT, wire.END_REQUEST]


def test_what_comes_before_the_answer() -> None:
    """STDERR, and a header of the length asked for; then the answer as it is."""
    _, items = through(path_of("fcgi-stderr='PHP Fatal error'"), request(), answer())
    assert records(joined(items)) == [wire.Record(wire.STDERR, 1, b"PHP Fatal error"), *records(answer())]
    _, items = through(path_of("fcgi-header-too-big=100000B"), request(), answer())
    found = records(joined(items))
    filler = b"".join(record.content for record in found[:-2])
    assert (len(filler), filler[-2:], found[-2:]) == (100_000, b"\r\n", records(answer()))


def test_changed_headers() -> None:
    """Version and type of the first record, and nothing else."""
    asked = answer()
    assert joined(through(path_of("fcgi-version=9"), request(), asked)[1]) == b"\x09" + asked[1:]
    assert joined(through(path_of("fcgi-type=8"), request(), asked)[1]) == asked[:1] + b"\x08" + asked[2:]


def test_truncation() -> None:
    """All but END_REQUEST, and the connection is closed."""
    _, items = through(path_of("fcgi-truncate"), request(), answer())
    assert items.pop() is Ending.CLOSE
    assert records(joined(items)) == records(answer())[:1]
    path = path_of("fcgi-truncate=5B")
    pages = b"".join(wire.encode_record(wire.STDOUT, 1, page) for page in (b"123", b"45", b"6"))
    _, items = through(path, request(), pages + wire.encode_end(1))
    assert items.pop() is Ending.CLOSE
    assert [record.content for record in records(joined(items))] == [b"123", b"45", b""]


def test_faults_of_both_kinds() -> None:
    """An answer of ours goes through stream faults as the server's would."""
    path = path_of("fcgi-status=503,latency=1s if script=/a.php")
    _, items = through(path, request(), b"")
    assert items == []
    assert b"503" in joined(taken(path, "s2c", 1_000_000_000))


def test_an_answer_of_ours_does_not_cut_the_servers() -> None:
    """Where a record of the server's is passing, it waits for its end."""
    path = path_of("fcgi-status=503 if script=/b.php")
    path.feed("c2s", 0, request(request_id=1))
    page = answer(request_id=1)
    path.feed("s2c", 0, page[:15])
    path.feed("c2s", 0, request(b"/b.php", request_id=2))
    path.feed("s2c", 0, page[15:])
    kinds = [(record.request_id, record.kind) for record in records(joined(taken(path, "s2c")))]
    assert sorted(kinds) == [(1, 3), (1, 6), (2, 3), (2, 6), (2, 6)]
    assert [kind for number, kind in kinds if number == 1] == [wire.STDOUT, wire.END_REQUEST]


def test_the_end_of_a_request_before() -> None:
    """A request is begun with the id of one that has not ended yet: the server's END_REQUEST is that one's."""
    told: Told = []
    path = path_of("latency=1s if script=/b.php", told=told)
    first, second = request(), request(b"/b.php")
    path.feed("c2s", 0, first + second[:20])
    path.feed("s2c", 0, answer())
    path.feed("c2s", 0, second[20:])
    assert joined(taken(path, "c2s")) == first + second
    assert joined(taken(path, "s2c")) == answer()
    assert told == [("latency", 1)]
    path.feed("s2c", 0, answer())
    assert taken(path, "s2c") == []
    assert joined(taken(path, "s2c", 1_000_000_000)) == answer()


def test_an_end_that_nobody_asked_for() -> None:
    """A server's END_REQUEST for what is not decided changes nothing."""
    path = path_of("latency=1s if script=/b.php")
    asked = request()
    path.feed("c2s", 0, asked[:20])
    path.feed("s2c", 0, wire.encode_end(1))
    path.feed("c2s", 0, asked[20:])
    assert joined(taken(path, "c2s")) == asked


def test_other_roles_and_aborts_are_answered() -> None:
    """An authorizer has no STDIN, a filter has DATA behind it; none of it reaches the server. An abort ends one."""
    params = wire.encode_stream(wire.PARAMS, 1, wire.encode_pairs({b"A": b"b"}))
    stdin, data = wire.encode_stream(wire.STDIN, 1, b"body"), wire.encode_stream(wire.DATA, 1, b"data")
    for asked in (
        wire.encode_begin(1, role=2) + params,
        wire.encode_begin(1, role=wire.FILTER) + params + stdin + data,
        wire.encode_begin(1) + params + wire.encode_record(wire.ABORT_REQUEST, 1),
    ):
        path = path_of("fcgi-status=503")
        got, items = through(path, asked, b"")
        assert got == b""
        assert items.pop() is Ending.CLOSE
        assert b"503" in joined(items)


def test_held_bytes_are_bounded_whoevers_they_are() -> None:
    """Records of others behind a request that is never complete: not more than so many wait."""
    path = path_of("latency=1s if script=/b.php")
    path.feed("c2s", 0, wire.encode_begin(1))
    record = wire.encode_record(wire.STDIN, 2, bytes(60_000))
    for _ in range(30):
        path.feed("c2s", 0, record)
    assert len(joined(taken(path, "c2s"))) > MOST_HELD


def test_faults_of_fastcgi_one_after_the_other() -> None:
    """What one puts before the answer, the next sees as records."""
    _, items = through(path_of("fcgi-stderr=x,fcgi-truncate=3B"), request(), answer())
    assert items.pop() is Ending.CLOSE
    assert [(record.kind, record.content) for record in records(joined(items))] == [
        (wire.STDERR, b"x"),
        (wire.STDOUT, b""),
    ]
    _, items = through(path_of("fcgi-status=503,fcgi-truncate"), request(), b"")
    assert items.pop() is Ending.CLOSE
    assert [record.kind for record in records(joined(items))] == [wire.STDOUT, wire.STDOUT]


def test_many_requests_leave_nothing() -> None:
    """On a connection that is kept, whoever answers them."""
    path = path_of("fcgi-status=503 if script=/b.php", "latency=1ms if method=GET")
    for number in range(300):
        asked = request(b"/b.php" if number % 2 else b"/a.php", request_id=1 + number % 7)
        path.feed("c2s", 0, asked)
        if number % 2 == 0:
            path.feed("s2c", 0, answer(request_id=1 + number % 7))
        taken(path, "c2s")
        taken(path, "s2c", number * 1_000_000_000)
    assert path._requests is not None
    assert len(path._requests._asking) + len(path._requests._asked) <= 7
    assert max(len(slot._exchanges) for line in path.lines.values() for slot in line._slots) <= 1
