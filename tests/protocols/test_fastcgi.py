"""The FastCGI wire format: what is encoded is decoded, however it is cut."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.strategies import cut, pairs
from udsproxy.protocols import fastcgi as wire

sizes = st.lists(st.integers(0, 30), max_size=30)


def read_pairs(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    reader = wire.PairReader()
    return [pair for piece in pieces for pair in reader.feed(piece)]


@given(pairs, sizes)
def test_pairs_come_back(some: list[tuple[bytes, bytes]], at: list[int]) -> None:
    """Name-value pairs that were encoded are decoded the same from any pieces."""
    assert read_pairs(cut(wire.encode_pairs(some), at)) == some


@given(st.binary(max_size=400), sizes)
def test_any_bytes_are_the_same_pairs_in_any_pieces(data: bytes, at: list[int]) -> None:
    """Also bytes that nobody meant as pairs decode the same however they are cut, and never raise."""
    whole, cut_up = wire.PairReader(), wire.PairReader()
    assert whole.feed(data) == [pair for piece in cut(data, at) for pair in cut_up.feed(piece)]
    assert whole.partial == cut_up.partial


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 65535, 100_000])
def test_lengths_of_one_and_four_bytes(length: int) -> None:
    """Up to 127 a length takes one byte, else four (spec 3.4)."""
    data = wire.encode_pairs({b"n": b"v" * length})
    assert len(data) == 1 + (1 if length < 128 else 4) + 1 + length
    [(name, value)] = read_pairs([data])
    assert name == b"n"
    assert value == (b"v" * length)[: len(value)]


@given(st.sampled_from([b"n", b"n" * 300, b"n" * 20_000]), st.integers(15_000, 70_000), sizes)
def test_long_pairs_are_cut_the_same_in_any_pieces(name: bytes, length: int, at: list[int]) -> None:
    """A pair longer than is kept comes out short, always equally short, and the next one whole."""
    data = wire.encode_pairs([(name, b"v" * length), (b"after", b"it")])
    got = read_pairs(cut(data, [size * 997 for size in at]))
    assert got == read_pairs([data])
    assert got[1] == (b"after", b"it")
    assert name.startswith(got[0][0])
    assert len(got[0][0]) + len(got[0][1]) <= max(wire.PairReader.MAX_KEPT, len(name) + length)


def test_a_pair_that_claims_two_gigabytes() -> None:
    """A length of 2 GiB costs no memory: the head is kept, the rest counted."""
    reader = wire.PairReader()
    tracemalloc.start()
    assert reader.feed(b"\x04" + b"\xff\xff\xff\xff" + b"NAME") == []
    for _ in range(500):
        assert reader.feed(b"x" * 65536) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.partial
    assert peak < 1024 * 1024


def test_only_wanted_pairs() -> None:
    """Names that are not wanted are passed over, long ones too."""
    reader = wire.PairReader(frozenset({b"B"}))
    data = wire.encode_pairs([(b"A", b"1"), (b"B", b"2"), (b"C", b"3" * 50_000), (b"B", b"4")])
    assert reader.feed(data[:7]) + reader.feed(data[7:]) == [(b"B", b"2"), (b"B", b"4")]


@given(st.integers(0, 255), st.integers(0, 65535), st.binary(max_size=300), st.integers(0, 255), sizes)
def test_records_come_back(kind: int, request_id: int, content: bytes, padding: int, at: list[int]) -> None:
    """A record that was encoded is read the same from any pieces, and its padding is gone."""
    data = wire.encode_record(kind, request_id, content, padding=padding) * 2
    reader = wire.RecordReader()
    assert [r for piece in cut(data, at) for r in reader.feed(piece)] == [(kind, request_id, content)] * 2


def test_padding_to_eight() -> None:
    """By default records are padded to a multiple of 8 bytes (spec 3.3)."""
    assert all(len(wire.encode_record(wire.STDIN, 1, b"x" * n)) % 8 == 0 for n in range(20))


@given(st.integers(0, 200_000))
def test_streams_are_records_and_an_end(size: int) -> None:
    """A stream is its content in records of at most 65,535 bytes, and an empty record."""
    read = wire.RecordReader().feed(wire.encode_stream(wire.STDIN, 1, b"x" * size))
    assert b"".join(r.content for r in read) == b"x" * size
    assert [r for r in read if not r.content] == read[-1:]


def test_what_cannot_be_encoded() -> None:
    """What no record can hold is a ValueError."""
    with pytest.raises(ValueError, match="no FastCGI record"):
        wire.encode_record(wire.STDIN, 1, bytes(65536))
    with pytest.raises(ValueError, match="no FastCGI record"):
        wire.encode_record(wire.STDIN, 65536)


def test_another_version_is_refused() -> None:
    """Who takes part in the protocol is told where the stream is not FastCGI 1."""
    with pytest.raises(ValueError, match="version 2"):
        wire.RecordReader().feed(b"\x02" + bytes(7))


SOME_PAIRS = st.lists(
    st.tuples(
        st.sampled_from([b"A", b"B", b"\xc3\xa9", b"N" * 127, b"N" * 128, b""]),
        st.one_of(st.binary(max_size=6), st.integers(0, 20_000).map(bytes), st.just(b"\xff" * 130)),
    ),
    max_size=12,
)


@given(SOME_PAIRS, st.integers(0, 5), st.data())
def test_hasty_picking_finds_what_care_does(
    pairs: list[tuple[bytes, bytes]], before: int, data: st.DataObject
) -> None:
    """Whatever the lengths, wherever the pairs are cut: `pick_pairs` finds what `PairReader` does, and leaves it
    the rest."""
    wanted = frozenset({b"A", b"\xc3\xa9", b"N" * 128})
    stream = wire.encode_pairs(pairs)
    cut = data.draw(st.integers(0, len(stream)))
    found: dict[bytes, bytes] = {}
    stopped = wire.pick_pairs(b"\x90" * before + stream + b"\x01", before, before + cut, wanted, found) - before
    assert 0 <= stopped <= cut
    assert found == dict(wire.PairReader(wanted).feed(stream[:stopped]))
    reader = wire.PairReader(wanted)
    rest = reader.feed(stream[stopped:cut])
    whole = wire.PairReader(wanted)
    assert found | dict(rest) == dict(whole.feed(stream[:cut]))
    assert reader.partial == whole.partial
    assert found | dict(rest + reader.feed(stream[cut:])) == {
        name: value[: wire.PairReader.MAX_KEPT - len(name) - _sizes_size(name, value)]
        for name, value in pairs
        if name in wanted
    }


def _sizes_size(name: bytes, value: bytes) -> int:
    return sum(1 if len(each) < 128 else 4 for each in (name, value))


@given(st.binary(max_size=400), st.data())
def test_hasty_picking_takes_any_bytes(garbage: bytes, data: st.DataObject) -> None:
    """Whatever it is fed, it stops where a pair ends or begins, and never past the end."""
    end = data.draw(st.integers(0, len(garbage)))
    start = data.draw(st.integers(0, end))
    found: dict[bytes, bytes] = {}
    stopped = wire.pick_pairs(garbage, start, end, frozenset({b"", b"a"}), found)
    assert start <= stopped <= end
    assert found == dict(wire.PairReader(frozenset({b"", b"a"})).feed(garbage[start:stopped]))
