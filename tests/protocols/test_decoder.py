"""Recognising a protocol, and the registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.strategies import client_streams, cut, server_streams
from udsproxy.events import Direction
from udsproxy.protocols.decoder import Scope
from udsproxy.protocols.registry import PROTOCOLS, make_decoder

sizes = st.lists(st.integers(1, 20), max_size=20)


@given(client_streams(), server_streams(), sizes)
def test_auto_is_fastcgi_where_it_is_fastcgi(client: bytes, server: bytes, at: list[int]) -> None:
    """Recognising loses nothing: the events are those of the FastCGI decoder, however the first bytes come."""
    auto, chosen = make_decoder("auto", Scope("p", 1, True)), make_decoder("fastcgi", Scope("p", 1, True))
    for made in (auto, chosen):
        assert made.exchanges == 0
    split: list[tuple[Direction, bytes]] = [("c2s", piece) for piece in cut(client, at) if piece]
    pieces = [*split, ("s2c", server)] if server else split
    expected = [e for direction, piece in pieces for e in chosen.feed(direction, 1, piece)] + list(
        chosen.close(1, "x")
    )
    got = [e for direction, piece in pieces for e in auto.feed(direction, 1, piece)] + list(auto.close(1, "x"))
    assert got == expected
    assert (auto.protocol, auto.exchanges) == (chosen.protocol, chosen.exchanges)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"*1\r\n$4\r\nPING\r\n", b"\x01\x05rest of it"])
@pytest.mark.parametrize("step", [1, 100])
def test_auto_is_raw_where_it_is_not(first: bytes, step: int) -> None:
    """Another protocol is raw: no events, no error, no name."""
    made = make_decoder("auto", Scope("p", 1, True))
    for i in range(0, len(first), step):
        assert not made.feed("c2s", 1, first[i : i + step])
    assert not made.feed("s2c", 1, b"answer")
    assert not made.close(1, "x")
    assert made.protocol is None


def test_a_server_that_speaks_first() -> None:
    """FastCGI servers wait for their client; one that speaks first is raw, whatever the client says then."""
    made = make_decoder("auto", Scope("p", 1, True))
    assert not made.feed("s2c", 1, b"220 hello\r\n")
    assert not made.feed("c2s", 1, b"\x01\x01\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00")


def test_lost_before_it_was_known() -> None:
    """If the first bytes were lost nobody can tell what comes: nothing is guessed then."""
    made = make_decoder("auto", Scope("p", 1, True))
    assert not made.lost("c2s", 1)
    assert not made.feed("c2s", 1, b"\x01\x01\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00")
    assert made.protocol is None


def test_the_registry() -> None:
    """Each protocol can be chosen by its name; another name is a KeyError."""
    for entry in PROTOCOLS:
        assert make_decoder(entry.name, Scope("p", 1)).protocol == entry.name
    with pytest.raises(KeyError):
        make_decoder("gopher", Scope("p", 1))
