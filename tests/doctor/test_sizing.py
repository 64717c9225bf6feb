"""The arithmetic: how many workers, and how long a queue."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import sizing

RATES = st.floats(0.01, 10_000)
TIMES = st.floats(0.0001, 10)
LOADS = st.floats(0.001, 3_000)


def erlang_c(workers: int, offered: float) -> float:
    """As the textbooks have it, which overflows for many workers."""
    waiting = offered**workers / math.factorial(workers) * workers / (workers - offered)
    return waiting / (sum(offered**k / math.factorial(k) for k in range(workers)) + waiting)


@given(st.integers(1, 60), st.floats(0.01, 0.99))
def test_the_share_that_waits_is_erlangs(workers: int, busy: float) -> None:
    """The recursion gives what Erlang's formula gives."""
    offered = workers * busy
    assert sizing.waiting_share(workers, offered) == pytest.approx(erlang_c(workers, offered), rel=1e-9)


@given(LOADS)
def test_as_many_workers_as_needed_and_no_more(offered: float) -> None:
    """With so many no more than 1 % wait, with one less more do."""
    workers = sizing.workers_for(offered)
    assert workers > offered
    assert sizing.waiting_share(workers, offered) <= sizing.MAY_WAIT
    assert sizing.waiting_share(workers - 1, offered) > sizing.MAY_WAIT


@given(st.integers(1, 500), st.floats(0.001, 600))
def test_more_workers_let_fewer_wait(workers: int, offered: float) -> None:
    """The share is one, and falls with the number of workers; too few make everybody wait."""
    fewer, more = sizing.waiting_share(workers, offered), sizing.waiting_share(workers + 1, offered)
    assert 0 <= more <= fewer <= 1
    assert (fewer == 1) == (workers <= offered)


@pytest.mark.parametrize("offered", [10_000.0, 100_000.0])
def test_large_pools(offered: float) -> None:
    """It is stable for more workers than anybody has: above the load by a few times its root."""
    assert 2 < (sizing.workers_for(offered) - offered) / math.sqrt(offered) < 3


@given(RATES, TIMES)
def test_littles_law(rate: float, time_s: float) -> None:
    """R·T are busy: with that many the work that comes can be done, with one less it cannot."""
    workers = sizing.busy_on_average(rate, time_s)
    assert workers >= rate * time_s > workers - 1


@given(RATES, st.floats(0, 100), st.integers(0, 100))
def test_a_stall_that_fits_fits(rate: float, stall_s: float, idle: int) -> None:
    """A backlog of what queues up in a stall holds at least that stall; all who come have a place."""
    queued = sizing.queued_in_stall(rate, stall_s, idle)
    assert queued + idle >= rate * stall_s
    assert sizing.stall_that_fits(rate, queued, idle) >= stall_s


@given(st.integers(0, 1000), st.integers(1, 1000), RATES, TIMES)
def test_a_queue_drains_or_does_not(queued: int, workers: int, rate: float, time_s: float) -> None:
    """It drains exactly where the workers serve more than comes."""
    drained = sizing.drained_after(queued, workers, rate, time_s)
    assert (drained is None) == (workers / time_s <= rate)
    assert drained is None or drained >= 0


def test_the_example_of_the_documentation() -> None:
    """200 requests/s of 50 ms each, and a stall of 3 s."""
    assert sizing.busy_on_average(200, 0.05) == 10
    assert sizing.workers_for(10) == 19
    assert sizing.queued_in_stall(200, 3, 9) == 591
