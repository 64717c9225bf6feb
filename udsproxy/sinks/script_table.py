"""The summary's table: a row for each script, how often it was called and how long that took.

Rule: `COLUMNS` says what there is, `NARROWER` and `FEWER` what gives way on a narrow terminal. The script comes
last; on a terminal a long name loses its middle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from udsproxy.events import ScriptTimes, Summary
from udsproxy.layout import fitting, shortened
from udsproxy.sinks.text import duration


class Column(NamedTuple):
    """Its heading, its width with a gap before it, what stands in it, and the heading where it is narrower."""

    heading: str
    width: int
    text: Callable[[ScriptTimes], str]
    short: str = ""

    def headed(self, width: int) -> str:
        """The heading, in that width."""
        return (self.heading if len(self.heading) < width else self.short).rjust(width)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


COLUMNS = {
    "count": Column("COUNT", 9, lambda each: str(each.count)),
    "errors": Column("ERRORS", 8, lambda each: str(each.errors)),
    "p50": Column("TOTAL P50", 11, lambda each: _time(each.total_p50_s), "P50"),
    "p95": Column("TOTAL P95", 11, lambda each: _time(each.total_p95_s), "P95"),
    "p99": Column("TOTAL P99", 11, lambda each: _time(each.total_p99_s), "P99"),
    "q50": Column("QUEUE P50", 11, lambda each: _time(each.queue_p50_s)),
    "q95": Column("QUEUE P95", 11, lambda each: _time(each.queue_p95_s)),
    "q99": Column("QUEUE P99", 11, lambda each: _time(each.queue_p99_s)),
}
NARROWER = (
    {"q50": 0, "q95": 0},
    {"count": 7, "errors": 7, "p50": 8, "p95": 8, "p99": 8, "q99": 10},
)
FEWER = ({"p50": 0}, {"q99": 0}, {"p95": 0}, {"errors": 0}, {"p99": 0})
GOOD_SCRIPT, MIN_SCRIPT = 24, 10
"""Cells for the script: with fewer, columns become narrower, or are left out."""
_GAP = "  "


def script_table(summary: Summary, width: int | None) -> list[str]:
    """The heading and the rows, for a terminal of that width; None: for none. Nothing where no script is known."""
    if not summary.scripts:
        return []
    widths = {name: column.width for name, column in COLUMNS.items()}
    for steps, script in ((NARROWER, GOOD_SCRIPT), (FEWER, MIN_SCRIPT)):
        widths = fitting(widths, None if width is None else width - len(_GAP) - script, steps)
    lines = ["".join(COLUMNS[name].headed(wide) for name, wide in widths.items()) + f"{_GAP}SCRIPT"]
    for each in (*summary.scripts, *([summary.others] if summary.others is not None else [])):
        figures = "".join(COLUMNS[name].text(each).rjust(wide) for name, wide in widths.items())
        left = None if width is None else max(1, width - len(figures) - len(_GAP))
        lines.append(f"{figures}{_GAP}{shortened(_name(each), left)}")
    return lines


def _name(each: ScriptTimes) -> str:
    if each.script is None:
        return "(others)"
    name = each.script if each.proxy is None else f"{each.proxy} {each.script}"
    return f"{name} (and some of the others)" if each.partial else name
