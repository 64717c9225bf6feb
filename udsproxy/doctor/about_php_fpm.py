"""Findings about a pool of php-fpm: its workers, how they come and go, what outlives its client. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from udsproxy.doctor.facts import Facts, Pool
from udsproxy.doctor.finding import Finding, dated, grep, plural
from udsproxy.doctor.php_fpm import number, seconds

_FEW_REQUESTS = 200
"""A worker that serves no more than these ends every few seconds at any load that matters."""


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    pool = facts.pool
    if pool is None:
        return
    yield from dated("now", _children(facts, pool))
    yield from _shared(pool)
    yield from _manager(facts, pool)
    yield from _renewal(facts, pool)
    yield from _zombies(facts, pool)


def _search(words: str, pool: Pool) -> str:
    return grep(words, [pool.error_log] if pool.error_log else [], "php-fpm's")


def _workers_of(facts: Facts) -> str:
    """For ps: which processes."""
    return "-C php-fpm" if facts.php_fpm is None else f"--ppid {facts.php_fpm}"


def _children(facts: Facts, pool: Pool) -> Iterator[Finding]:
    most, there, busy = facts.most_workers, len(facts.workers), facts.busy
    if most is None:
        return
    path = shlex.quote(facts.path)
    check = f"udsproxy state {path} --watch"
    if pool.settings.get("pm") in ("dynamic", "ondemand"):  # fpm_process_ctl.c: pm = static says nothing of it
        check += f"; {_search('max_children', pool)}"
    do = "Find what they wait for (udsproxy state says it); only then raise pm.max_children, as memory allows "
    do += f"({pool.at('pm.max_children')})."
    if not facts.servers or facts.idle:
        pass  # we may not see them; or they are not at work (about_standstill)
    elif there and busy == there and there >= most:
        yield Finding(
            "problem",
            f"all {plural(most, 'worker')} of pool {pool.name} are busy now",
            "Whoever comes now waits in the queue; when that is full too, nginx logs error 11.",
            do,
            check,
        )
    elif busy is not None and most >= 5 and busy >= 0.8 * most:
        yield Finding("warning", f"{busy} of {most} workers of pool {pool.name} are busy now", "", do, check)
    else:
        told = "" if busy is None else f", {busy} of them busy"
        yield Finding("fine", f"pool {pool.name}: {there} of {most} workers there now{told}")
    if facts.servers and there < most and pool.settings.get("pm") == "static":
        yield Finding(
            "warning",
            f"pm = static, pm.max_children = {most}, and {plural(there, 'worker')}",
            "They are just being forked anew, or cannot be (memory, a limit of processes), or the file was changed "
            "since php-fpm started.",
            f"See {pool.log}; reload php-fpm.",
            f"ps -o pid,ppid,args {_workers_of(facts)}",
        )


def _shared(pool: Pool) -> Iterator[Finding]:
    """process.max is for all pools together (fpm_children.c, fpm_children_make())."""
    limit, most = pool.process_max, number(pool.settings.get("pm.max_children"), 0)
    if not 0 < limit < max(most, pool.all_children):
        return
    do = f"Raise process.max ({pool.process_max_at}), or set it to 0 (no limit)."
    check = _search("process.max", pool)
    if limit < most:
        yield Finding(
            "problem",
            f"process.max = {limit} is less than pm.max_children = {most}",
            "process.max limits the workers of all pools together: this pool never has its number.",
            do,
            check,
        )
    else:
        yield Finding(
            "warning",
            f"process.max = {limit}, and the {pool.pools} pools may have {pool.all_children} workers together",
            "process.max limits the workers of all pools: when other sites are busy, this pool is refused new "
            "workers though it has not reached its own pm.max_children.",
            f"{do} Or lower pm.max_children of the pools, as memory allows.",
            check,
        )


def _manager(facts: Facts, pool: Pool) -> Iterator[Finding]:
    kind = pool.settings.get("pm")
    most = facts.most_workers or 0
    if kind == "ondemand":
        yield Finding(
            "note",
            "pm = ondemand: workers are forked when requests come",
            "After a quiet time the first requests of a burst each wait for a fork. A worker ends when it was idle "
            f"for pm.process_idle_timeout = {pool.settings.get('pm.process_idle_timeout', '10s')}.",
            f"For a site that has bursts: pm = static ({pool.at('pm')}).",
            f"ps {_workers_of(facts)} | wc -l   (before a burst, and in it)",
        )
    elif kind == "dynamic":
        yield _dynamic(facts, pool, most)


def _dynamic(facts: Facts, pool: Pool, most: int) -> Finding:
    """php-fpm forks workers while fewer than min_spare_servers are idle, and ends idle ones only while there are
    more than max_spare_servers (fpm_process_ctl.c, fpm_pctl_perform_idle_server_maintenance())."""
    least = number(pool.settings.get("pm.min_spare_servers"), 0)
    kept = number(pool.settings.get("pm.max_spare_servers"), 0)
    there, busy = len(facts.workers), facts.busy
    if 0 < most <= min(kept, there):
        return Finding(
            "fine",
            f"pm = dynamic: all {plural(most, 'worker')} are there, and stay (pm.max_spare_servers = {kept})",
        )
    rate = number(pool.settings.get("pm.max_spawn_rate"), 32)
    idle = max(1, least, 0 if busy is None else min(kept, there - busy))
    return Finding(
        "warning" if most >= 20 and idle * 5 < most else "note",
        f"pm = dynamic: a burst finds about {plural(idle, 'idle worker')}, of {most}",
        f"More are forked once a second, 1, 2, 4 and so on up to {rate} at a time, while fewer than {least} "
        "(pm.min_spare_servers) are idle. The queue must hold a burst for as long.",
        f"pm = static ({pool.at('pm')}) where memory is there for all of them anyway, or a larger "
        "pm.min_spare_servers.",
        _search("seems busy", pool),
    )


def _renewal(facts: Facts, pool: Pool) -> Iterator[Finding]:
    most = number(pool.settings.get("pm.max_requests"), 0)
    if most == 0:
        yield Finding(
            "note",
            "pm.max_requests = 0: workers are never renewed",
            "What a script or an extension leaks stays, until memory ends.",
            "pm.max_requests = 1000 or so, if workers grow.",
            f"ps -o rss,etime,args {_workers_of(facts)}   (over days)",
        )
        return
    yield Finding(
        "warning" if 0 < most < _FEW_REQUESTS else "note",
        f"pm.max_requests = {most}: each worker ends after that many, and is forked anew",
        "For some milliseconds there is one worker less. Workers that were started together come to it at about "
        "the same time, and their own caches (paths, connections to databases) are cold then.",
        f"1000 or more ({pool.at('pm.max_requests')}), unless they leak much." if most < _FEW_REQUESTS else "",
        f"ps -o pid,etime,args {_workers_of(facts)}   (ELAPSED: their ages)",
    )


def _zombies(facts: Facts, pool: Pool) -> Iterator[Finding]:
    ends_s = seconds(pool.settings.get("request_terminate_timeout")) or 0.0
    waits = [each.read_timeout_s for nginx in facts.nginx for each in nginx.passes if each.is_sure]
    least = min(waits, default=None)
    has = f"request_terminate_timeout = {pool.settings.get('request_terminate_timeout', '0')}"
    if least is not None and 0 < ends_s <= least:
        yield Finding("fine", f"{has}: a worker gives up no later than nginx ({least:g} s)")
        return
    if ends_s and least is None:
        return
    why = "nginx gives up (error 110, a 504" + (f", after {least:g} s" if least is not None else "") + "), and the "
    why += "worker goes on with nobody to answer to: the pool lacks it, and the visitor's retry takes another. "
    why += "PHP's max_execution_time does not count waiting (databases, sockets, sleep)."
    yield Finding(
        "warning",
        f"{has}: a stuck request holds its worker " + (f"for {ends_s:g} s" if ends_s else "for ever"),
        why,
        f"request_terminate_timeout = {least or 60:g}s or less ({pool.at('request_terminate_timeout')}), or a "
        "longer *_read_timeout in nginx; and timeouts for what the scripts wait for.",
        grep("(110: ", facts.nginx_logs, "nginx's"),
    )
