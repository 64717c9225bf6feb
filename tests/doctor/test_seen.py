"""What a log says: rates, times, and whatever else may be in a file."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import seen


def request(ts: str, total_s: float, proxy: str = "p", **more: object) -> bytes:
    return json.dumps({"ts": ts, "event": "request", "proxy": proxy, "total_s": total_s, **more}).encode() + b"\n"


def read(log: bytes, path: str = "/run/x.sock") -> seen.Traffic | None:
    return seen.read(io.BytesIO(log), lambda endpoint: endpoint == path)


def test_rates_and_times() -> None:
    """Requests are counted when they came; how long they were in the queue is not how long they took a worker."""
    log = b"".join(
        [
            request("2026-11-23T06:10:10.500000Z", 0.1),
            request("2026-11-23T06:10:10.600000Z", 0.3),
            request("2026-11-23T06:10:12.500000Z", 2.2, accept_wait_s=0.2),
            request("2026-11-23T06:10:20.500000Z", 0.0),
        ]
    )
    found = read(log)
    assert found is not None
    assert (found.requests, found.busiest_rate, found.skipped) == (4, 3.0, 0)
    assert found.span_s == pytest.approx(10.2)
    assert found.mean_rate == pytest.approx(4 / 10.2)
    assert found.mean_s == pytest.approx(0.6)
    assert found.p99_s == pytest.approx(2.0, rel=0.01)


def test_a_full_queue_is_counted() -> None:
    """Each time that it became full, and not when it no longer is."""
    log = b"".join(
        json.dumps({"ts": "", "event": "queue", "proxy": "p", "queue": n, "backlog": 2, "active": 2}).encode()
        + b"\n"
        for n in (3, 1, 3, 0)
    )
    found = read(log + request("2026-11-23T06:10:10.500000Z", 0.1))
    assert found is not None
    assert found.times_full == 2


def test_the_proxy_that_is_asked_for() -> None:
    """Of several proxies the one whose upstream is the path, however little it has seen."""
    listening = {"ts": "", "event": "listening", "proxy": "b", "listen": "/run/y.sock", "upstream": "/run/x.sock"}
    log = json.dumps(listening).encode() + b"\n" + request("2026-11-23T06:10:10Z", 0.5, "b")
    log += 9 * request("2026-11-23T06:10:10Z", 0.1, "a")
    found = read(log)
    assert found is not None
    assert found.requests == 1
    other = read(log, "/run/z.sock")
    assert other is not None
    assert other.requests == 9


def test_what_is_no_event_is_skipped() -> None:
    """Broken lines, other JSON, times that cannot be."""
    log = b'{"event":\n[]\n\xff\n\n{"event":"request","proxy":"p","total_s":1e400}\n' + b"[" * 100_000 + b"\n"
    log += request("never", 0.1) + request("2026-11-23T06:10:10Z", -1) + request("0001-01-01T00:00:00", 1)
    assert read(log) is None
    found = read(log + request("2026-11-23T06:10:10Z", 0.1))
    assert found is not None
    assert found.requests == 1
    assert found.skipped >= 7


def test_memory_is_bounded() -> None:
    """A year of seconds, and a line without an end, are not kept."""
    counted = seen._Counted()
    for second in range(20_000):
        counted.add(float(second), 0.1)
    assert (counted.requests, counted.busiest, len(counted._seconds) <= 4096) == (20_000, 1, True)
    assert read(b"x" * (3 * seen.MOST_LINE) + b"\n" + request("2026-11-23T06:10:10Z", 0.1)) is not None


@pytest.mark.parametrize(("requests", "span_s", "enough"), [(99, 60, False), (100, 9, False), (100, 10, True)])
def test_enough_to_compute_with(requests: int, span_s: int, enough: bool) -> None:
    """A hundred requests in ten seconds are."""
    began = datetime(2026, 11, 23, tzinfo=UTC)
    log = (requests - 1) * request(began.isoformat(), 0.0)
    found = read(log + request((began + timedelta(seconds=span_s)).isoformat(), 0.0))
    assert found is not None
    assert found.is_enough == enough


@given(st.lists(st.floats(0.0001, 1000), min_size=1))
def test_the_percentile_is_one_of_the_times(times: list[float]) -> None:
    """To 1 %."""
    counted = seen._Counted()
    for each in times:
        counted.add(0.0, each)
    wanted = sorted(times)[-(len(times) // 100) - 1]
    assert counted.percentile(0.99) == pytest.approx(wanted, rel=0.011)


@given(st.binary())
def test_any_file_is_read(log: bytes) -> None:
    """It never raises on what is in it."""
    read(log)
