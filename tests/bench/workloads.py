"""The workloads: one measurement of one contender each.

Rules: a measurement ends when the work is done at the far end. Clients that can't be given a time are given
an amount, chosen from the rate last seen so that it takes about the wanted seconds. Requests that failed are
no throughput: they are taken off the rate and counted.
"""

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.layout import Layout, find
from tests.stage import REPOSITORY, StageError

# A fixed floor: redis-benchmark counts time in milliseconds.
LEAST_REQUESTS = 1000


@dataclass(frozen=True)
class Sample:
    """What one measurement gave: a rate in the workload's unit, how many requests failed in what way, and how
    many things the contender says it saw but did not record."""

    rate: float
    non_2xx: int = 0
    socket_errors: int = 0
    unrecorded: int = 0


@dataclass(frozen=True)
class Workload:
    """One workload: `measure(layout, contender, seconds, rate last seen)`, and how to warm up for it."""

    name: str
    service: str
    unit: str
    what: str
    measure: Callable[[Layout, str, float, float], Sample]
    warmup_seconds: tuple[float, ...]
    first_rate: float = 0.0


def _fastcgi(layout: Layout, contender: str, seconds: float, rate: float) -> Sample:
    argv = [find("wrk"), "-c", "8", "-t", "2", "-d", f"{round(seconds)}s", layout.url(contender)]
    text = _run(argv, contender, seconds)
    total = _number(r"(\d+) requests in", text)
    non_2xx = _number(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    good = (total - non_2xx) / total if total else 0.0
    return Sample(
        rate=_number(r"Requests/sec:\s+([\d.]+)", text) * good,
        non_2xx=int(non_2xx),
        socket_errors=sum(map(int, errors.groups())) if errors else 0,
    )


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def _redis(clients: int) -> Callable[[Layout, str, float, float], Sample]:
    def measure(layout: Layout, contender: str, seconds: float, rate: float) -> Sample:
        count = max(LEAST_REQUESTS, round(rate * seconds))
        argv = [find("redis-benchmark"), "-s", layout.listen(contender, "redis"), "-t", "get", "--csv"]
        text = _run([*argv, "-c", str(clients), "-n", str(count)], contender, seconds)
        rows = [row for row in csv.reader(text.splitlines()) if row and row[0] == "GET"]
        if not rows:
            raise StageError(f"redis-benchmark gave no figure for {contender}")
        return Sample(float(rows[0][1]))

    return measure


def _bulk(layout: Layout, contender: str, seconds: float, rate: float) -> Sample:
    size = round(rate * seconds * 1e6)
    socket_path = layout.listen(contender, "bulk")
    argv = [sys.executable, "-m", "tests.bench.bulk", "send", socket_path, str(size)]
    return Sample(size / 1e6 / float(_run(argv, contender, seconds)))


def _run(argv: list[str], contender: str, seconds: float) -> str:
    """Run a client to its end and return what it printed."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, cwd=REPOSITORY, timeout=60 + 10 * seconds
        )
    except subprocess.TimeoutExpired:
        raise StageError(f"{argv[0]} does not end with {contender}") from None
    if done.returncode:
        raise StageError(f"{argv[0]} failed with {contender}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


REQUESTS = "requests/s"
REDIS_WARMUP = (0.05, 0.5)
FASTCGI = "fastcgi"
REDIS_50 = "redis50"

WORKLOADS = (
    Workload(FASTCGI, "fastcgi", REQUESTS, "wrk -c 8 -t 2, nginx, php-fpm hello world", _fastcgi, (1.0,)),
    Workload(REDIS_50, "redis", REQUESTS, "redis-benchmark, 50 clients", _redis(50), REDIS_WARMUP, 20e3),
    Workload("redis1", "redis", REQUESTS, "redis-benchmark, 1 client", _redis(1), REDIS_WARMUP, 20e3),
    Workload("bulk", "bulk", "MB/s", "one way, 256 KiB buffers", _bulk, (0.2, 0.5), 100.0),
)
