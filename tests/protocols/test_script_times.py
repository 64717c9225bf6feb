"""The summary's figures: percentiles against exact ones, and which scripts are told."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from udsproxy.events import Request
from udsproxy.protocols.quantiles import (
    LEAST_S,
    MAX_BUCKETS,
    MAX_EXACT,
    MOST_S,
    RELATIVE_ERROR,
    Quantiles,
)
from udsproxy.protocols.script_times import MAX_SCRIPTS, SHOWN, ByScript

ONE = st.floats(0, 1e5) | st.floats(0, 1e-3) | st.sampled_from([0.0, 0.001, 1.0])
FEW = st.lists(ONE, min_size=1, max_size=MAX_EXACT)
MANY = st.tuples(FEW, st.integers(2, 5)).map(
    lambda drawn: (drawn[0] * (MAX_EXACT * drawn[1]))[: MAX_EXACT * drawn[1]]
)
"""Always more than `MAX_EXACT`. (To draw each of them apart takes hypothesis long.)"""
DURATIONS = FEW | MANY
SHARES = st.sampled_from([0.01, 0.5, 0.95, 0.99, 1.0])


def exact(durations: list[float], share: float) -> float:
    """By nearest rank."""
    return sorted(durations)[max(1, math.ceil(share * len(durations))) - 1]


def filled(durations: list[float]) -> Quantiles:
    made = Quantiles()
    for each in durations:
        made.add(each)
    return made


def request(script: str | None, total_s: float = 0.01, **keys: object) -> Request:
    known = {"at": 1, "proxy": "p", "protocol": "fastcgi", "request": 1, "c2s_bytes": 1, "s2c_bytes": 1}
    return Request(**(known | {"script": script, "total_s": total_s} | keys))  # type: ignore[arg-type]


@given(FEW, SHARES)
def test_of_few_requests_percentiles_are_exact(durations: list[float], share: float) -> None:
    """They are times that the lines above the summary show."""
    assert filled(durations).at(share) == exact(durations, share)


def test_of_five_requests_the_99th_percentile_is_the_longest() -> None:
    """As long as the slowest took, and not some per cent less."""
    made = filled([3.0, 3.0, 6.0, 6.0, 9.0])
    assert [made.at(share) for share in (0.5, 0.95, 0.99)] == [6.0, 9.0, 9.0]


@given(MANY)
def test_the_least_and_the_longest_are_exact(durations: list[float]) -> None:
    """However many there are."""
    assert filled(durations).at(1.0) == max(durations)
    assert filled(durations).at(0.0) == min(durations)


@given(MANY, SHARES)
def test_of_many_a_percentile_is_near_the_exact_one(durations: list[float], share: float) -> None:
    """Within 5 %, or a microsecond where it is shorter than that."""
    found = filled(durations).at(share)
    assert found is not None
    wanted = exact(durations, share)
    assert abs(found - wanted) <= max(wanted * RELATIVE_ERROR * (1 + 1e-9), LEAST_S)


@given(st.floats(0, 1e5), st.integers(1, 5) | st.just(MAX_EXACT + 1))
def test_where_all_are_the_same_it_is_exact(seconds: float, count: int) -> None:
    """Their own time is told, of one and of many."""
    made = filled([seconds] * count)
    assert [made.at(share) for share in (0.5, 0.99)] == [seconds, seconds]


@given(DURATIONS, DURATIONS)
def test_merging_loses_nothing(one: list[float], other: list[float]) -> None:
    """What was counted apart and merged is what is counted together."""
    merged, together, taken = filled(one), filled(one + other), filled(other)
    merged.merge(taken)
    for made, wanted in (merged, together), (taken, filled(other)):
        assert made.count == wanted.count
        assert [made.at(share) for share in (0.5, 0.99, 1)] == [wanted.at(share) for share in (0.5, 0.99, 1)]


@given(st.lists(st.floats(allow_nan=False), max_size=200))
def test_any_duration_is_counted_in_bounded_memory(durations: list[float]) -> None:
    """Whatever a clock that is wrong may give."""
    made = filled([*durations, 0.0, -1.0, math.inf, MOST_S])
    assert made.count == len(durations) + 4
    assert all(0 <= bucket < MAX_BUCKETS for bucket in made._counts)
    assert len(made._exact or ()) <= MAX_EXACT
    assert not (made._exact and made._counts)


def test_of_nothing_there_is_no_percentile() -> None:
    """It is unknown, and not 0."""
    assert Quantiles().at(0.5) is None


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 10)), max_size=100))
def test_all_requests_are_in_the_summary(requests: list[tuple[int, float]]) -> None:
    """The ten scripts that took most time in all come first, each complete; the others are one entry."""
    made = ByScript(several=False)
    sums: dict[str, float] = defaultdict(float)
    for script, total_s in requests:
        made.add(request(f"/{script}", total_s))
        sums[f"/{script}"] += total_s
    scripts, others = made.told()
    told = scripts or ()
    assert [each.total_sum_s for each in told] == sorted(sums.values(), reverse=True)[:SHOWN]
    counts = Counter(f"/{script}" for script, _ in requests)
    assert all(each.count == counts[each.script or ""] for each in told)
    assert sum(each.count for each in told) + (others.count if others else 0) == len(requests)
    assert all(each.total_p50_s <= each.total_p99_s <= each.total_max_s for each in told)
    assert not any(each.partial for each in told)


def test_ten_thousand_scripts() -> None:
    """Their number is bounded, and those that take long are told for themselves, complete, all the same."""
    made = ByScript(several=False)
    for number in range(10_000):
        made.add(request(f"/random/{number}", 0.001))
        if number % 10 == 0:
            made.add(request("/real.php", 0.1))
        assert len(made._scripts) <= MAX_SCRIPTS
    made.add(request("/late.php", 50.0))
    scripts, others = made.told()
    assert scripts is not None
    assert others is not None
    assert (scripts[0].script, scripts[0].count, scripts[0].partial) == ("/real.php", 1000, None)
    assert (scripts[1].script, scripts[1].partial) == ("/late.php", True)
    assert sum(each.count for each in scripts) + others.count == 11_001


def test_errors_and_the_queue() -> None:
    """An error has no proper end or a status of 500 or more; percentiles of the queue are of the waits known."""
    made = ByScript(several=False)
    made.add(request("/a", status=200, protocol_status="REQUEST_COMPLETE", accept_wait_s=0.5, total_s=0.6))
    made.add(request("/a", status=404))
    made.add(request("/a", status=503))
    made.add(request("/a", incomplete="client left"))
    made.add(request("/a", protocol_status="OVERLOADED"))
    made.add(request("/b"))
    scripts, others = made.told()
    assert scripts is not None
    assert others is None
    (a, b) = scripts
    assert (a.count, a.errors, b.errors) == (5, 3, 0)
    assert a.queue_p50_s == 0.5
    assert b.queue_p50_s is None


def test_names_of_scripts() -> None:
    """One that is not known is ``?``; of a long one, the beginning counts; of several proxies each has its own."""
    made = ByScript(several=True)
    made.add(request(None))
    made.add(request("/" + "x" * 5000))
    for proxy in ("one", "two"):
        made.add(request("/same", proxy=proxy))
    scripts, _ = made.told()
    assert scripts is not None
    told = {(each.proxy, each.script) for each in scripts}
    assert told == {("p", "?"), ("p", "/" + "x" * 199), ("one", "/same"), ("two", "/same")}
