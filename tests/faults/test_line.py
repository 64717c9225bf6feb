"""A chain of stream faults: order, nothing lost that no fault takes, the same again from the same seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.faults import strategies
from udsproxy.faults import kinds
from udsproxy.faults.line import Item
from udsproxy.faults.path import Path
from udsproxy.faults.rules import Book, Rule
from udsproxy.faults.spelling import parse_all
from udsproxy.faults.stages import FOREVER, Ending

S = 1_000_000_000

LOSSLESS = (kinds.ConnectDelay, kinds.Latency, kinds.Bandwidth, kinds.Slicer, kinds.SlowClose)

chunks = st.lists(st.tuples(st.integers(0, 5 * S), st.binary(min_size=1, max_size=300)), max_size=10).map(
    lambda found: sorted(found, key=lambda chunk: chunk[0])
)
faults = st.lists(strategies.stream_kinds, max_size=4)


def rules_of(found: list[kinds.AnyStream]) -> tuple[Rule, ...]:
    return tuple(Rule(fault=fault, name=f"r{number}") for number, fault in enumerate(found))


def path_of(rules: tuple[Rule, ...], seed: int = 1, number: int = 1) -> Path:
    return Path(Book("p", seed, rules), number, 0, list(rules), (), lambda rule, request: None)


def pass_through(path: Path, fed: list[tuple[int, bytes]], *, end_at: int | None = None) -> list[tuple[int, Item]]:
    """All that comes out of the server's direction, and when: as the one who moves the bytes asks."""
    line, out = path.lines["s2c"], list[tuple[int, Item]]()

    def take(now: int, until: int) -> None:
        while (due := line.due()) is not None and due <= until:
            now = max(now, due)
            while (item := line.take(now)) is not None:
                out.append((now, item))

    last_at = 0
    for at, data in fed:
        take(last_at, at)
        path.feed("s2c", at, data)
        last_at = at
    if end_at is not None:
        take(last_at, end_at)
        path.end("s2c", end_at)
        last_at = end_at
    take(last_at, FOREVER)
    return out


def bytes_of(out: list[tuple[int, Item]]) -> bytes:
    return b"".join(item for _, item in out if isinstance(item, bytes))


@given(found=faults, fed=chunks)
def test_order_and_no_loss(found: list[kinds.AnyStream], fed: list[tuple[int, bytes]]) -> None:
    """What comes out is what went in, in order, from its start on; all of it where no fault takes any. Times never
    go back, nothing comes before it was fed, and no bytes come behind an ending."""
    sent = b"".join(data for _, data in fed)
    out = pass_through(path_of(rules_of(found)), fed, end_at=6 * S)
    got = bytes_of(out)
    endings = [item for _, item in out if isinstance(item, Ending)]
    if any(isinstance(fault, kinds.Corrupt) for fault in found):
        assert len(got) <= len(sent)
    else:
        assert sent.startswith(got)
    if all(isinstance(fault, LOSSLESS) for fault in found):
        assert (len(got), endings) == (len(sent), [Ending.EOF])
    times = [at for at, _ in out]
    assert times == sorted(times)
    assert endings == [item for _, item in out[len(out) - len(endings) :]]
    assert len(endings) < 2 or endings[1:] in ([Ending.CLOSE], [Ending.RESET])
    fed_by = passed = 0
    for at, item in out:
        if isinstance(item, bytes):
            passed += len(item)
            fed_by = sum(len(data) for fed_at, data in fed if fed_at <= at)
            assert passed <= fed_by


@given(found=faults, fed=chunks, seed=st.integers(0, 2**32), number=st.integers(1, 1000))
def test_the_same_seed_does_the_same(
    found: list[kinds.AnyStream], fed: list[tuple[int, bytes]], seed: int, number: int
) -> None:
    """To the same traffic, on a connection of the same number."""
    one, other = (pass_through(path_of(rules_of(found), seed, number), fed) for _ in range(2))
    assert one == other


@given(found=faults, fed=chunks, data=st.data())
def test_a_fault_that_is_taken_away(
    found: list[kinds.AnyStream], fed: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    """At any time, any of them: the bytes that waited in it go on, in order and whole; and with none left,
    everything passes at once."""
    found = [fault for fault in found if isinstance(fault, (*LOSSLESS, kinds.Stall)) and not _cuts(fault)]
    rules = rules_of(found)
    path = path_of(rules)
    line, out = path.lines["s2c"], bytearray()
    assert not line.waits
    coins = data.draw(st.lists(st.booleans(), min_size=len(fed), max_size=len(fed)))
    names: list[str] = data.draw(st.permutations([rule.name for rule in rules]))
    now = 0
    for at, piece in fed:
        now = at
        path.feed("s2c", at, piece)
        if names and coins.pop():
            path.remove(at, frozenset({names.pop()}))
        while (item := line.take(at)) is not None:
            assert isinstance(item, bytes)
            out += item
    path.remove(now, frozenset(names))
    path.end("s2c", now)
    items = []
    while (item := line.take(now)) is not None:
        items.append(item)
    assert items.pop() is Ending.EOF
    assert bytes(out) + b"".join(item for item in items if isinstance(item, bytes)) == b"".join(d for _, d in fed)
    assert line.held == 0
    assert not line.waits


def _cuts(fault: kinds.AnyStream) -> bool:
    return isinstance(fault, kinds.Stall) and fault.then != "pass"


@given(fed=chunks, share=st.integers(1, 1000).map(lambda n: n / 1000), cuts=st.lists(st.integers(1, 50)))
def test_what_is_corrupted_does_not_depend_on_chunks(
    fed: list[tuple[int, bytes]], share: float, cuts: list[int]
) -> None:
    """The same bytes are changed, however they are cut."""
    rules = rules_of([kinds.Corrupt(share)])
    whole = b"".join(data for _, data in fed)
    pieces, start = [], 0
    for cut in cuts:
        pieces.append((0, whole[start : start + cut]))
        start += cut
    pieces.append((0, whole[start:]))
    changed = bytes_of(pass_through(path_of(rules), fed))
    assert bytes_of(pass_through(path_of(rules), [piece for piece in pieces if piece[1]])) == changed
    if share == 1:
        assert all(a != b for a, b in zip(changed, whole, strict=True))


def run(text: str, fed: list[tuple[int, bytes]], end_at: int | None = None) -> list[tuple[float, Item]]:
    """What comes out of a chain so spelled; times in seconds."""
    return [(at / S, item) for at, item in pass_through(path_of(parse_all([text])), fed, end_at=end_at)]


def test_latency_pipelines() -> None:
    """Three chunks a second apart stay a second apart; the end is late too."""
    fed = [(0, b"a"), (S, b"b"), (2 * S, b"c")]
    assert run("latency=5s", fed, 3 * S) == [(5, b"a"), (6, b"b"), (7, b"c"), (8, Ending.EOF)]


def test_distributions() -> None:
    """Mean and spread are as asked for; uniform stays within its bounds, the others have no upper one."""
    for distribution, low, high in (("uniform", 0.8, 1.2), ("normal", 0.0, 2.0), ("pareto", 0.8, 20.0)):
        drawn = [
            run(f"latency=1s±200ms,distribution={distribution} name={number}", [(0, b"x")])[0][0]
            for number in range(2000)
        ]
        assert 0.98 < sum(drawn) / len(drawn) < 1.02
        assert low <= min(drawn) < max(drawn) <= high
        if distribution != "uniform":
            assert max(drawn) > 1.4


def test_a_jitter_that_would_overtake() -> None:
    """What was sent first comes first."""
    out = run("latency=1s±1s", [(n * 1000, bytes((n,))) for n in range(200)])
    assert [item for _, item in out] == [bytes((n,)) for n in range(200)]


def test_bandwidth() -> None:
    """1,000 bytes at 100 a second take ten, a little at a time, and a second burst waits for the first."""
    out = run("bandwidth=100B/s", [(0, bytes(500)), (0, bytes(500))])
    assert out[-1][0] == 10
    halves = sum(len(item) for at, item in out if at <= 5 and isinstance(item, bytes))
    assert halves == 500


def test_slices() -> None:
    """Pieces of the size asked for, so far apart."""
    assert run("slicer=2B,delay=1s", [(0, b"abcde")]) == [(0, b"ab"), (1, b"cd"), (2, b"e")]


def test_limit() -> None:
    """So many bytes, then what was asked for."""
    fed = [(0, b"abc"), (S, b"def")]
    for then, ending in (("close", Ending.CLOSE), ("reset", Ending.RESET), ("half-close", Ending.HALF_CLOSE)):
        assert run(f"limit=4B,then={then}", fed) == [(0, b"abc"), (1, b"d"), (1, ending)]
    assert run("limit=4B,then=stall", fed, 2 * S) == [(0, b"abc"), (1, b"d")]
    assert run("limit=3B", fed) == [(0, b"abc"), (0, Ending.CLOSE)]


def test_stall() -> None:
    """Nothing for a time from the first bytes on, then everything, or the end; without a time never."""
    fed = [(S, b"a"), (2 * S, b"b"), (9 * S, b"c")]
    assert run("stall=5s", fed) == [(6, b"a"), (6, b"b"), (9, b"c")]
    assert run("stall=5s,then=reset", fed) == [(6, Ending.RESET)]
    assert run("stall", fed, 10 * S) == []


def test_ends() -> None:
    """slow-close, half-close, close and reset: when, and what still passes."""
    fed = [(0, b"a"), (S, b"b"), (3 * S, b"c")]
    assert run("slow-close=5s", fed, 4 * S)[-1] == (9, Ending.EOF)
    assert run("half-close", fed)[0][1] == b"a"
    assert run("half-close", fed)[-1][1] is Ending.HALF_CLOSE
    assert run("half-close=2s", fed)[1] == (1, b"b")
    assert run("close=2s", fed) == [(0, b"a"), (1, b"b"), (2, Ending.CLOSE)]
    assert run("close", fed) == [(0, Ending.CLOSE)]


def test_a_chain_adds_up() -> None:
    """Each acts on what the one before it lets out; but what a fault ends, it ends at its time."""
    out = run("latency=1s,slicer=1B,delay=1s,limit=2B", [(0, b"abc")])
    assert out == [(1, b"a"), (2, b"b"), (2, Ending.CLOSE)]
    for chain in ("close=2s,latency=9s", "latency=9s,close=2s", "close=2s,stall", "stall,close=2s"):
        assert run(chain, [(0, b"abc")]) == [(2, Ending.CLOSE)]
    assert run("half-close=2s,latency=9s", [(0, b"abc")]) == [(9, b"abc"), (9, Ending.HALF_CLOSE)]
    assert run("close=2s,limit=1B", [(0, b"abc")]) == [(0, b"a"), (0, Ending.CLOSE)]


def test_a_slow_link_holds_little() -> None:
    """A byte a second does not cut what waits into a piece for each."""
    path = path_of(parse_all(["bandwidth=1B/s"]))
    path.feed("s2c", 0, bytes(250_000))
    line = path.lines["s2c"]
    assert line.take(0) is None
    assert line.due() == S
    assert 249_000 < line.held < 251_000
    assert line.held < line.most
