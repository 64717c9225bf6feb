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
from udsproxy.doctor.seen import MIN_REQUESTS, MIN_SPAN_S, Traffic


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
            when="before",
            level="problem",
            title=f"the queue was seen full {plural(traffic.times_full, 'time')} in {load.source}",
            why="Whoever came while it was got EAGAIN.",
            do="Look at the requests that ended first after each: they held the workers.",
            check=f"""jq -c 'select(.event == "queue" or .event == "request")' {shlex.quote(load.source)}""",
        )
    if load.rate is not None and load.time_s is not None:
        yield _workers(facts, load.rate, load.time_s, load)
    elif load.time_s is not None and facts.most_workers:
        most = facts.most_workers / load.time_s
        yield Finding(
            "note",
            f"{plural(facts.most_workers, 'worker')} at {_time(load.time_s)} each serve {_about(most)} requests/s",
        )
    if load.rate is not None:
        yield from _backlog(facts, load.rate, load)
    if facts.kind is not None or (load.rate is not None and load.time_s is not None):
        return
    if traffic is not None and not traffic.is_enough:
        yield _too_few(traffic, load.source)
    else:
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


def _too_few(seen: Traffic, source: str) -> Finding:
    return Finding(
        "note",
        f"too few requests to say how many workers are needed: {seen.requests} in {_time(seen.span_s)} ({source})",
        f"They took {_time(seen.mean_s)} on average, and {seen.busiest_rate:.0f} came in the busiest second. A "
        "single slow one decides the average of so few.",
        f"Have it see a busy hour (at least {MIN_REQUESTS} requests, in {MIN_SPAN_S:.0f} s), or say it (--rate 200 "
        "--time 50ms).",
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
            f" (Seen: {seen.requests} requests, {_about(seen.mean_rate)}/s on average, {seen.busiest_rate:.0f} in "
        )
        why += f"the busiest second; p99 {_time(seen.p99_s)}.)"
    has = facts.most_workers
    check = f"udsproxy state {shlex.quote(facts.path)} --watch   (how many are busy)"
    if has is None:
        return Finding("note", title, why, "", check)
    do = f"pm.max_children = {needed}, as memory allows; or make requests shorter."
    if has <= offered:
        serve = "The 1 there is serves" if has == 1 else f"The {has} there are serve"
        why = f"{serve} about {_about(has / time_s)} requests/s: the queue fills up, however long. {why}"
        return Finding("problem", title, why, do, check)
    share = sizing.waiting_share(has, offered)
    if has < needed:
        there = "1 there is" if has == 1 else f"{has} there are"
        return Finding("warning", title, f"With the {there}, {_percent(share)} wait. {why}", do, check)
    title, why = f"{title}, {has} there", f"{_percent(share)} of the requests wait for a worker."
    if _was_full(facts, load):
        return Finding("note", title, f"{why} The queue was full all the same: for a while, all of them waited.")
    return Finding("fine", title, why)


def _was_full(facts: Facts, load: Load) -> bool:
    return facts.was_full or (load.traffic is not None and load.traffic.times_full > 0)


def _backlog(facts: Facts, rate: float, load: Load) -> Iterator[Finding]:
    workers, has = facts.most_workers or 0, facts.backlog
    average = 0 if load.time_s is None else math.ceil(rate * load.time_s)
    idle = max(0, workers - average) if load.time_s is not None else 0
    queued = sizing.queued_in_stall(rate, load.stall_s, idle)
    title = f"a stall of {_time(load.stall_s)} at {rate:.4g} requests/s needs a backlog of {queued}"
    why = f"{math.ceil(rate * load.stall_s)} come meanwhile" + (f", {idle} find an idle worker." if idle else ".")
    if queued and workers and load.time_s is not None:
        drained = sizing.drained_after(queued, workers, rate, load.time_s)
        why += f" The last waits {_about_time(queued * load.time_s / workers)} more when it is over"
        why += (
            ", and the queue never empties."
            if drained is None
            else f"; the queue is empty after {_about_time(drained)}."
        )
    if has is None:
        yield Finding("note", title, why)
        return
    longest = _about_time(sizing.stall_that_fits(rate, has, idle))
    fits = f" The present backlog of {has} is enough for a stall of about {longest}."
    if queued <= has + 1:
        if _was_full(facts, load):
            fits += " The queue was full all the same: there was a longer one, or more came."
            yield Finding("note", f"{title}; it is {has}", why + fits)
        else:
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


def _about(value: float) -> str:
    """Two figures: what is computed from an average is no more exact."""
    rounded = float(f"{value:.2g}")
    return f"{rounded:.0f}" if rounded >= 10 else f"{rounded:g}"


def _about_time(seconds: float) -> str:
    return _time(float(f"{seconds:.2g}"))


def _time(seconds: float) -> str:
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"
