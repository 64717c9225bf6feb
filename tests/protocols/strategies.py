"""Strategies: FastCGI as peers send it, and streams cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from udsproxy.protocols import fastcgi as wire

request_ids = st.integers(1, 4)
names = st.sampled_from([b"REQUEST_METHOD", b"REQUEST_URI", b"SCRIPT_NAME", b"HTTP_COOKIE", b"X"]) | st.binary(
    max_size=200
)
values = st.binary(max_size=40) | st.binary(min_size=120, max_size=300)
pairs = st.lists(st.tuples(names, values), max_size=6)


@st.composite
def records(draw: st.DrawFn, kind: int, content: bytes) -> bytes:
    """A stream of one request, its content cut into records with any padding, and its end."""
    request_id, parts = draw(request_ids), []
    for piece in cut(content, draw(st.lists(st.integers(1, 100), max_size=5))):
        if piece:
            parts.append(wire.encode_record(kind, request_id, piece, padding=draw(st.integers(0, 255))))
    return b"".join([*parts, wire.encode_record(kind, request_id)])


@st.composite
def client_streams(draw: st.DrawFn) -> bytes:
    """What a client may send: requests, interleaved or not, management, unknown types, some of it out of order."""
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        request_id = draw(request_ids)
        parts.append(
            draw(
                st.one_of(
                    st.just(wire.encode_begin(request_id, flags=draw(st.integers(0, 255)))),
                    st.just(wire.encode_record(wire.ABORT_REQUEST, request_id)),
                    pairs.flatmap(lambda some: records(wire.PARAMS, wire.encode_pairs(some))),
                    st.binary(max_size=300).flatmap(lambda body: records(wire.STDIN, body)),
                    st.binary(max_size=50).flatmap(lambda body: records(wire.DATA, body)),
                    st.just(wire.encode_record(wire.GET_VALUES, 0, wire.encode_pairs({b"FCGI_MAX_CONNS": b""}))),
                    st.builds(wire.encode_record, st.integers(12, 255), st.integers(0, 3), st.binary(max_size=20)),
                )
            )
        )
    return wire.encode_begin(draw(request_ids)) + b"".join(parts)


@st.composite
def server_streams(draw: st.DrawFn) -> bytes:
    """What a server may send."""
    heads = st.sampled_from(
        [
            b"Status: 404 Not Found\r\n\r\n",
            b"Content-Type: a/b\r\n\r\n",
            b"Location: /x\n\n",
            b"\r\n\r\n",
            b"X: y\r\n",
        ]
    )
    parts = []
    for _ in range(draw(st.integers(1, 6))):
        parts.append(
            draw(
                st.one_of(
                    st.builds(lambda h, b: h + b, heads, st.binary(max_size=300)).flatmap(
                        lambda out: records(wire.STDOUT, out)
                    ),
                    st.binary(max_size=100).flatmap(lambda text: records(wire.STDERR, text)),
                    st.builds(
                        lambda i, a, p: wire.encode_end(i, app_status=a, protocol_status=p),
                        request_ids,
                        st.integers(0, 2**32 - 1),
                        st.integers(0, 5),
                    ),
                    st.just(
                        wire.encode_record(wire.GET_VALUES_RESULT, 0, wire.encode_pairs({b"FCGI_MAX_CONNS": b"1"}))
                    ),
                    st.just(wire.encode_record(wire.UNKNOWN_TYPE, 0, bytes(8))),
                )
            )
        )
    return b"".join(parts)


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """``data`` in pieces of these sizes, the rest as the last one."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]]
