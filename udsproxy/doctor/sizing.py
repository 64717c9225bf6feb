"""How many workers, and how long a queue: arithmetic.

* Little's law: at R requests a second of T seconds each, R·T are being served on average. With no more workers than
  that the queue grows without end.
* Erlang C: requests come as they like (Poisson), N workers, one queue: how many of them have to wait.
* A stall: for S seconds no worker becomes free; R·S requests come, and those for whom no worker is idle queue up.
* The kernel lets one more wait than the backlog says (net/unix/af_unix.c, unix_recvq_full).

Rule: pure; requests a second, and seconds.
"""

from __future__ import annotations

import math

MOST_LOAD = 1_000_000.0
"""Workers that are busy on average: more is no pool."""
MAY_WAIT = 0.01
"""Of the requests, how many may have to wait for a worker."""


def load(rate: float, time_s: float) -> float:
    """How many workers are busy on average."""
    return rate * time_s


def busy_on_average(rate: float, time_s: float) -> int:
    """The least number of workers with which the queue does not grow without end, but for chance."""
    return math.ceil(load(rate, time_s))


def waiting_share(workers: int, offered: float) -> float:
    """Erlang C: the share of requests that find all workers busy; 1 where there are too few."""
    if workers <= offered:
        return 1.0
    blocked = 1.0
    for each in range(1, workers + 1):
        blocked = _next_blocked(blocked, each, offered)
    return _waiting(blocked, workers, offered)


def workers_for(offered: float, may_wait: float = MAY_WAIT) -> int:
    """The least number of workers with which no more than that share waits. ``offered``: at most `MOST_LOAD`."""
    blocked, workers = 1.0, 0
    while True:
        workers += 1
        blocked = _next_blocked(blocked, workers, offered)
        if workers > offered and _waiting(blocked, workers, offered) <= may_wait:
            return workers


def _next_blocked(blocked: float, workers: int, offered: float) -> float:
    """Erlang B by its recursion, which stays between 0 and 1 for every number."""
    return offered * blocked / (workers + offered * blocked)


def _waiting(blocked: float, workers: int, offered: float) -> float:
    return blocked / (1 - offered / workers * (1 - blocked))


def queued_in_stall(rate: float, stall_s: float, idle: int = 0) -> int:
    """How many wait at the end of it. ``idle``: workers that can take one each before they are stuck too."""
    return max(0, math.ceil(rate * stall_s) - idle)


def stall_that_fits(rate: float, backlog: int, idle: int = 0) -> float:
    """The longest one, in seconds, in which nobody gets EAGAIN."""
    return (backlog + 1 + idle) / rate


def drained_after(queued: int, workers: int, rate: float, time_s: float) -> float | None:
    """Seconds until a queue is empty again; None: never."""
    spare = workers / time_s - rate
    return queued / spare if spare > 0 else None
