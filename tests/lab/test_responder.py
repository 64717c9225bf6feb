"""The FastCGI server's side of a connection, without sockets."""

from __future__ import annotations

import contextlib
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.strategies import cut
from udsproxy.lab.responder import Conversation
from udsproxy.protocols import fastcgi as wire

PARAMS = {b"REQUEST_METHOD": b"POST", b"X": b"\x1b[31m"}


def answers(data: bytes, sizes: list[int] | None = None) -> tuple[list[wire.Record], Conversation]:
    made = Conversation(workers=3)
    sent = b"".join(answer for piece in cut(data, sizes or []) for answer, _ in made.feed(piece))
    return wire.RecordReader().feed(sent), made


@given(st.binary(max_size=500), st.lists(st.integers(1, 50), max_size=20))
def test_it_echoes(body: bytes, sizes: list[int]) -> None:
    """The answer lists the parameters and the body's length and hash, however the request was cut."""
    records, made = answers(wire.encode_request(PARAMS, body), sizes)
    page = b"".join(record.content for record in records if record.kind == wire.STDOUT).decode()
    assert page.startswith("Content-Type: text/plain")
    assert "REQUEST_METHOD=POST\nX=\\x1b[31m\n" in page
    assert f"body: {len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}" in page
    assert records[-1] == (wire.END_REQUEST, 1, wire.END_BODY.pack(0, 0))
    assert made.finished


def test_kept_connections() -> None:
    """With KEEP_CONN it goes on answering; without, it is finished (spec 5.1)."""
    records, made = answers(wire.encode_request(PARAMS, flags=wire.KEEP_CONN) * 2)
    assert [record.kind for record in records].count(wire.END_REQUEST) == 2
    assert not made.finished


def test_only_one_request_at_a_time() -> None:
    """A second request on the same connection is refused with CANT_MPX_CONN, the first one answered."""
    begun = wire.encode_begin(1) + wire.encode_begin(2)
    rest = wire.encode_stream(wire.PARAMS, 1, b"") + wire.encode_stream(wire.STDIN, 1, b"")
    records, _ = answers(begun + rest)
    assert records[0] == (wire.END_REQUEST, 2, wire.END_BODY.pack(0, 1))
    assert records[-1] == (wire.END_REQUEST, 1, wire.END_BODY.pack(0, 0))


def test_other_roles_are_refused() -> None:
    """Only responders are served (spec 5.5, UNKNOWN_ROLE)."""
    records, _ = answers(wire.encode_begin(1, role=2))
    assert records == [(wire.END_REQUEST, 1, wire.END_BODY.pack(0, 3))]


def test_management() -> None:
    """GET_VALUES is answered with what is known; an unknown type with UNKNOWN_TYPE (spec 4)."""
    asked = {b"FCGI_MAX_CONNS": b"", b"FCGI_MPXS_CONNS": b"", b"NONSENSE": b""}
    values = wire.encode_record(wire.GET_VALUES, 0, wire.encode_pairs(asked))
    records, _ = answers(values + wire.encode_record(99, 0))
    assert dict(wire.PairReader().feed(records[0].content)) == {b"FCGI_MAX_CONNS": b"3", b"FCGI_MPXS_CONNS": b"0"}
    assert records[1] == (wire.UNKNOWN_TYPE, 0, bytes((99,)) + bytes(7))


def test_an_aborted_request_is_ended() -> None:
    """ABORT_REQUEST is answered with the end (spec 5.4)."""
    records, made = answers(wire.encode_begin(1) + wire.encode_record(wire.ABORT_REQUEST, 1))
    assert [record.kind for record in records] == [wire.END_REQUEST]
    assert made.finished


def test_parameters_without_end() -> None:
    """More parameters than anybody means are answered with 431, not kept."""
    piece = wire.encode_record(wire.PARAMS, 1, wire.encode_pairs({b"A": b"x" * 10_000}))
    records, made = answers(wire.encode_begin(1) + piece * 200)
    assert b"431" in records[0].content
    assert made.finished


@given(st.binary(max_size=300))
def test_nonsense_is_refused(data: bytes) -> None:
    """Whatever comes, it is answered or refused with a ValueError."""
    made = Conversation(workers=1)
    with contextlib.suppress(ValueError):
        assert all(answer for answer, _ in made.feed(data))
