"""What the benchmark prints: the machine, a table for each workload, and the targets.

Rules: a ratio is the median of the ratios of the rounds, each taken within its round; a figure that was not
measured is shown as "-" or "not measured", never guessed.
"""

import os
import platform
import re
from dataclasses import dataclass
from statistics import median

from tests.bench.contenders import (
    HAPROXY,
    SOCAT_V,
    UDSPROXY_FIXED,
    UDSPROXY_FORWARD,
    UDSPROXY_JSON,
    UDSPROXY_UNWATCHED,
)
from tests.bench.layout import DIRECT, version
from tests.bench.workloads import FASTCGI, REDIS_50, Sample, Workload

# Samples of one run: workload, contender, then one sample for each round.
Results = dict[str, dict[str, list[Sample]]]


@dataclass(frozen=True)
class Target:
    """`subject` must reach `factor` times `reference` in a workload."""

    subject: str
    factor: float
    reference: str
    workload: str


TARGETS = (
    Target(UDSPROXY_JSON, 5.0, SOCAT_V, FASTCGI),
    Target(UDSPROXY_JSON, 0.5, HAPROXY, FASTCGI),
    Target(UDSPROXY_FORWARD, 0.75, HAPROXY, FASTCGI),
    Target(UDSPROXY_FORWARD, 0.7, HAPROXY, REDIS_50),
    Target(UDSPROXY_FORWARD, 0.97, UDSPROXY_FIXED, FASTCGI),
    Target(UDSPROXY_FORWARD, 0.97, UDSPROXY_FIXED, REDIS_50),
    Target(UDSPROXY_JSON, 0.98, UDSPROXY_UNWATCHED, FASTCGI),
)


def machine(programs: list[str]) -> str:
    """One line on the machine and the versions of the programs."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count()
    parts = [f"{usable} of {present} cores", _processor(), f"Linux {platform.release()}"]
    parts.append(f"Python {platform.python_version()}")
    return ", ".join([*parts, *(f"{program} {version(program)}" for program in programs)])


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        found = re.search(r"model name\s*:\s*(.+)", file.read())
    return found[1] if found else platform.machine()


def ratios(of: dict[str, list[Sample]], subject: str, reference: str) -> list[float]:
    """The ratio of each round; empty when one was not measured or the reference once gave nothing."""
    mine, other = of.get(subject, []), of.get(reference, [])
    if not all(sample.rate for sample in other):
        return []
    return [ours.rate / theirs.rate for ours, theirs in zip(mine, other, strict=False)]


def table(workload: Workload, of: dict[str, list[Sample]]) -> str:
    """The table of one workload."""
    heads = ("contender", "median", "min .. max", "x direct", "x haproxy")
    rows = [heads, *(_row(of, contender) for contender in of)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [f"{workload.name}: {workload.unit} ({workload.what})"]
    for row, failures in zip(rows, ["", *map(_failures, of.values())], strict=True):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append(f"  {'  '.join(cells)}  {failures}".rstrip())
    return "\n".join(lines)


def _row(of: dict[str, list[Sample]], contender: str) -> tuple[str, ...]:
    rates = [sample.rate for sample in of[contender]]
    spread = f"{_rate(min(rates))} .. {_rate(max(rates))}"
    against = [_middle(ratios(of, contender, reference)) for reference in (DIRECT, HAPROXY)]
    return (contender, _rate(median(rates)), spread, *against)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _middle(values: list[float]) -> str:
    return f"{median(values):.3f}" if values else "-"


def _failures(samples: list[Sample]) -> str:
    non_2xx = sum(sample.non_2xx for sample in samples)
    errors = sum(sample.socket_errors for sample in samples)
    unrecorded = sum(sample.unrecorded for sample in samples)
    counts = {"non-2xx": non_2xx, "socket errors": errors, "not recorded": unrecorded}
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def targets(results: Results) -> str:
    """One line for each target: whether it is met, and the measured ratio."""
    lines = [_target(target, results.get(target.workload, {})) for target in TARGETS]
    return "\n".join(["targets: median (min .. max) of the rounds' ratios", *lines])


def _target(target: Target, of: dict[str, list[Sample]]) -> str:
    text = f"{target.subject} >= {target.factor:g} x {target.reference} in {target.workload}"
    values = ratios(of, target.subject, target.reference)
    if not values:
        return f"  not measured  {text}"
    verdict = "met" if median(values) >= target.factor else "MISSED"
    return f"  {verdict:12}  {text}: {median(values):.3f} ({min(values):.3f} .. {max(values):.3f})"
