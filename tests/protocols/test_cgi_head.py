"""The head of a CGI answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.heads import HEADS
from tests.protocols.strategies import cut
from udsproxy.protocols.cgi_head import MAX_HEAD, MAX_KEPT, CGIHead


def read(pieces: list[bytes]) -> CGIHead:
    """What has been read of these, as long as it wants them; it never keeps much."""
    head = CGIHead()
    for piece in pieces:
        ended = head.feed(piece)
        assert head.kept <= MAX_KEPT
        if ended:
            break
    return head


@pytest.mark.parametrize("name", HEADS)
def test_status(name: str) -> None:
    """The status is what the server says, whole or byte by byte."""
    data = HEADS[name].data + HEADS[name].body
    expected = HEADS[name].says
    assert read([data]).status == expected
    assert read([bytes([byte]) for byte in data]).status == expected


@pytest.mark.parametrize("start", [b"", b"Content-Type: text/html", b"Status: 404\r\nX: " + b"y" * 20_000])
def test_a_head_that_does_not_end(start: bytes) -> None:
    """It has no status."""
    assert read([start]).status is None


def test_content_type() -> None:
    """Of the final head; a folded one is one value."""
    assert read([b"Content-Type: a/b; \r\n charset=c \r\nStatus: 103\r\n\r\nX: y\r\n\r\n"]).content_type is None
    assert read([b"X: y\r\nContent-type: a/b;\r\n charset=c \r\n\r\n"]).content_type == b"a/b;\r\n charset=c"


_LINES = st.sampled_from(
    [b"Status: 404", b"status:500 x", b"HTTP/1.1 103 Early", b"HTTP/1.0 301", b"Location: /",
     b" Status: 410", b"\tx", b"Content-Type: a/b", b"X: y", b"", b"Status: 103",
     b"Status:", b"X: " + b"y" * 9000, b" " + b"z" * 5000]
)  # fmt: skip


@given(st.lists(st.tuples(_LINES, st.sampled_from([b"\n", b"\r\n"])), max_size=12), st.lists(st.integers(1, 3000)))
def test_any_split_reads_the_same(lines: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    """Where the bytes are cut, and how much is kept, does not matter."""
    data = b"".join(line + end for line, end in lines)
    whole, parts, single = read([data]), read(cut(data, sizes)), read([bytes([byte]) for byte in data])
    assert whole.status == parts.status == single.status
    assert (whole.content_type is None) == (parts.content_type is None) == (single.content_type is None)


@pytest.mark.parametrize("ending", [b"\r\n\r\n", b"\n\n", b"\n\r\n", b"\r\n\n"])
@pytest.mark.parametrize("more", [-2, -1, 0, 1, 2])
def test_the_limit_is_the_same_for_any_split(ending: bytes, more: int) -> None:
    """A head that ends near the limit is read, or not, wherever the bytes are cut."""
    start = b"Status: 404"
    head = start + b"\nX: ".ljust(MAX_HEAD - len(start) + more, b"x") + ending
    seen = {read([head + b"body\n\nbody"]).status}
    for at in range(MAX_HEAD - 4, len(head)):
        seen.add(read([head[:at], head[at:] + b"body"]).status)
    assert seen == ({404} if head.index(ending.lstrip(b"\r")) <= MAX_HEAD else {None})


@given(st.binary(max_size=300), st.lists(st.integers(1, 20)))
def test_any_bytes(data: bytes, sizes: list[int]) -> None:
    """It never raises."""
    read(cut(data, sizes))
