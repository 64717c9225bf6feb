"""Findings about numbers: workers enough for this rate, and a queue for so long a stall? Pure."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator

import msgspec

from udsproxy.doctor import sizing
from udsproxy.doctor.about_socket import in_ss
from udsproxy.doctor.facts import Facts
from udsproxy.doctor.finding import Finding, plural
from udsproxy.doctor.seen import Traffic


class Load(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the socket has to take."""

    rate: float | None = None
    """Requests a second, when it is busiest."""
    time_s: float | None = None
    """How long one holds a worker, on average."""
    stall_s: float = 1.0
    source: str = "as given"
    traffic: Traffic | None = None


def findings(facts: Facts, load: Load) -> Iterator[Finding]:
    """All of them."""
    traffic = load.traffic
    if traffic is not None and traffic.times_full:
        yield Finding(
            "problem",
            f"the queue was seen full {traffic.times_full} times in {load.source}",
            "Each time, clients that came meanwhile got EAGAIN.",
            "Look at the requests that ended first after each: they held the workers.",
            f"""jq -c 'select(.event == "queue" or .event == "request")' {shlex.quote(load.source)}""",
        )
    if load.rate is not None and load.time_s is not None:
        yield _workers(facts, load.rate, load.time_s, load)
    elif load.time_s is not None and facts.most_workers:
        most = facts.most_workers / load.time_s
        yield Finding(
            "note",
            f"{plural(facts.most_workers, 'worker')} at {_time(load.time_s)} each serve {most:.4g} requests/s",
        )
    if load.rate is not None:
        yield from _backlog(facts, load.rate, load)
    if facts.kind is None and (load.rate is None or load.time_s is None):
        missing = [
            name
            for name, value in (("how many requests/s", load.rate), ("how long each", load.time_s))
            if value is None
        ]
        yield Finding(
            "note",
            f"not known: {', '.join(missing)}",
            "So neither is how many workers, and how long a queue, it needs.",
            "Say it (--rate 200 --time 50ms), or have it seen: udsproxy tap, with its log read here (--log).",
            f"udsproxy tap {shlex.quote(facts.path)} --log json --log-file seen.json; "
            f"udsproxy doctor {shlex.quote(facts.path)} --log seen.json",
        )


def _workers(facts: Facts, rate: float, time_s: float, load: Load) -> Finding:
    offered = sizing.load(rate, time_s)
    average, needed = sizing.busy_on_average(rate, time_s), sizing.workers_for(offered)
    title = f"{rate:.4g} requests/s of {_time(time_s)} each ({load.source}): {plural(needed, 'worker')} needed"
    why = f"{plural(average, 'worker')} busy on average; with {needed}, no more than 1 % of requests wait for one"
    why += ", as long as they come by chance and nothing stalls."
    if load.traffic is not None:
        seen = load.traffic
        why += (
            f" (Seen: {seen.requests} requests, {seen.mean_rate:.4g}/s on average, {seen.busiest_rate:.4g} in the "
        )
        why += f"busiest second; p99 {_time(seen.p99_s)}.)"
    has = facts.most_workers
    check = f"udsproxy state {shlex.quote(facts.path)} --watch   (how many are busy)"
    if has is None:
        return Finding("note", title, why, "", check)
    do = f"pm.max_children = {needed}, as memory allows; or make requests shorter."
    if has <= offered:
        why = f"The {has} there are serve {has / time_s:.4g} requests/s: the queue fills up, however long. {why}"
        return Finding("problem", title, why, do, check)
    share = sizing.waiting_share(has, offered)
    if has < needed:
        return Finding("warning", title, f"With the {has} there are, {_percent(share)} wait. {why}", do, check)
    return Finding("fine", f"{title}, {has} there", f"{_percent(share)} of requests wait for a worker.")


def _backlog(facts: Facts, rate: float, load: Load) -> Iterator[Finding]:
    workers, has = facts.most_workers or 0, facts.backlog
    average = 0 if load.time_s is None else math.ceil(rate * load.time_s)
    idle = max(0, workers - average) if load.time_s is not None else 0
    queued = sizing.queued_in_stall(rate, load.stall_s, idle)
    title = f"a stall of {_time(load.stall_s)} at {rate:.4g} requests/s needs a backlog of {queued}"
    why = f"{math.ceil(rate * load.stall_s)} come meanwhile" + (f", {idle} find an idle worker." if idle else ".")
    if queued and workers and load.time_s is not None:
        drained = sizing.drained_after(queued, workers, rate, load.time_s)
        why += f" The last waits {_time(queued * load.time_s / workers)} more when it is over"
        why += (
            ", and the queue never empties." if drained is None else f"; the queue is empty after {_time(drained)}."
        )
    if has is None:
        yield Finding("note", title, why)
        return
    fits = f" The present {has} holds {_time(sizing.stall_that_fits(rate, has, idle))}."
    if queued <= has + 1:
        yield Finding("fine", f"{title}; it is {has}", why + fits)
        return
    option = f"listen.backlog = {queued}" if facts.pool is not None else f"A backlog of {queued}"
    cut = facts.somaxconn is not None and queued > facts.somaxconn
    yield Finding(
        "warning",
        f"{title}; it is {has}",
        why + fits,
        option
        + (f", and net.core.somaxconn={queued}" if cut else "")
        + ("; restart php-fpm. " if facts.pool is not None else ". ")
        + "A queue only makes clients wait instead of fail: the cure is the stall's cause.",
        in_ss(facts),
    )


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if share >= 0.0001 else "next to none"


def _time(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"
