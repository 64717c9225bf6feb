"""The table at the end of a run: what it shows, and that it fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.sinks.test_renderers import AT, render
from tests.sinks.test_rows import TEXT, lines_of, on_terminal
from udsproxy.events import ScriptTimes, Summary
from udsproxy.layout import cells
from udsproxy.sinks.script_table import script_table

COUNTS: Any = {
    "connections": 1, "requests": 3, "incomplete": 0, "upstream_errors": 0, "decode_errors": 0, "dropped": 0,
    "c2s_bytes": 1, "s2c_bytes": 1,
}  # fmt: skip
LONG = "/var/www/shop/checkout/confirm/payment/a-script-with-a-long-name/index.php"
REPORT = ScriptTimes(
    script=LONG, count=1234, errors=2, total_sum_s=900.0, total_p50_s=0.0123, total_p95_s=1.5, total_p99_s=2.25,
    total_max_s=3.0, queue_p50_s=0.0001, queue_p95_s=0.2, queue_p99_s=0.75,
)  # fmt: skip
SUMMARY = Summary(
    at=AT, proxy="p", total_s=60.0, **COUNTS,
    scripts=(REPORT, replace(REPORT, script="/b", queue_p50_s=None, queue_p95_s=None, queue_p99_s=None)),
    others=replace(REPORT, script=None),
)  # fmt: skip

SECONDS = st.floats(0, 1e6)
TIMES = st.builds(
    ScriptTimes, script=TEXT, proxy=st.none() | TEXT, count=st.integers(0, 10**7), errors=st.integers(0, 10**5),
    total_sum_s=SECONDS, total_p50_s=SECONDS, total_p95_s=SECONDS, total_p99_s=SECONDS, total_max_s=SECONDS,
    queue_p50_s=st.none() | SECONDS, queue_p95_s=st.none() | SECONDS, queue_p99_s=st.none() | SECONDS,
    partial=st.none() | st.just(True),
)  # fmt: skip


def test_where_there_is_no_terminal_all_is_there() -> None:
    """Every column, and names whole: it can be searched."""
    heading, first, second, others = script_table(SUMMARY, None)
    names = [
        "TOTAL",
        "P50",
        "TOTAL",
        "P95",
        "TOTAL",
        "P99",
        "QUEUE",
        "P50",
        "QUEUE",
        "P95",
        "QUEUE",
        "P99",
        "SCRIPT",
    ]
    assert heading.split() == ["COUNT", "ERRORS", *names]
    figures = "12.3 ms 1.50 s 2.25 s 0.10 ms 200 ms 750 ms"
    assert first.split() == ["1234", "2", *figures.split(), LONG]
    assert second.split()[-4:] == ["-", "-", "-", "/b"]
    assert others.endswith("  (others)")


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, "COUNT ERRORS P50 P95 P99 QUEUE P99 SCRIPT"),
        (80, "COUNT ERRORS P50 P95 P99 QUEUE P99 SCRIPT"),
        (100, "COUNT ERRORS TOTAL P50 TOTAL P95 TOTAL P99 QUEUE P99 SCRIPT"),
        (120, "COUNT ERRORS TOTAL P50 TOTAL P95 TOTAL P99 QUEUE P50 QUEUE P95 QUEUE P99 SCRIPT"),
    ],
)
def test_on_a_terminal(width: int, columns: str) -> None:
    """A narrow one has fewer columns, each figure stands under its heading, and a long name loses its middle."""
    heading, first, *_ = script_table(SUMMARY, width)
    assert heading.split() == columns.split()
    for name, text in (("ERRORS", "2"), ("P95", "1.50 s"), ("QUEUE P99", "750 ms")):
        assert first[: heading.index(name) + len(name)].endswith(text)
    assert cells(first) <= width
    assert "…" in first
    assert first.endswith(".php")


@given(st.lists(TIMES, min_size=1, max_size=4), st.none() | TIMES, st.integers(40, 200))
def test_no_row_is_wider_than_the_terminal(
    scripts: list[ScriptTimes], others: ScriptTimes | None, width: int
) -> None:
    """Whatever is in it; and each row is one line."""
    summary = replace(SUMMARY, scripts=tuple(scripts), others=others)
    table = script_table(summary, width)
    assert all(cells(line) <= width for line in table)
    assert len(table) == 1 + len(scripts) + (others is not None)
    assert lines_of(on_terminal(width), summary)[-len(table) :] == table


def test_a_summary_without_requests_has_no_table() -> None:
    """Nothing was decoded."""
    summary = replace(SUMMARY, scripts=None, others=None)
    assert len(render(on_terminal(None), summary).splitlines()) == 1
    assert script_table(summary, 80) == []
