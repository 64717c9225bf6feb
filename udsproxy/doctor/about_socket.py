"""Findings about the socket itself: is it there, is its queue long enough, do descriptors suffice. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from udsproxy.doctor.facts import Facts, Pool, Process
from udsproxy.doctor.finding import Finding, dated, plural
from udsproxy.doctor.php_fpm import number

_NEAR = 0.8
"""Of the limit of descriptors."""
_AT = 0.95
_OLD_DEFAULT = 511
"""Of listen.backlog, before php-fpm 8.2 (FPM_BACKLOG_DEFAULT in fpm_sockets.h); since then it is -1."""

_MISSING = {
    "ENOENT": ("no such path", "Nobody has made it, or it was removed: php-fpm removes its socket when it stops."),
    "ENOTDIR": ("no such path", "What should be a directory on the way is none."),
    "ELOOP": ("no such path", "The symbolic links on the way go round."),
    "ENAMETOOLONG": ("the path is too long", "A Unix socket's path has at most 107 bytes (unix(7))."),
}


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    if facts.failure is not None and not facts.is_lost:  # else that is a tap's doing (about_standstill)
        yield from dated("now", [_unreachable(facts)])
    elif facts.state is None and not facts.hops:
        yield Finding(
            "warning",
            "the socket cannot be looked at",
            "We may not enter its directory, or the kernel does not show it.",
            "Run this as root.",
            f"sudo udsproxy doctor {shlex.quote(facts.path)}",
        )
    elif facts.state == "unseen":
        yield Finding(
            "warning",
            "its server is in another network namespace (a container), and is not shown",
            "Somebody has a socket here; only root (CAP_SYS_ADMIN, CAP_SYS_PTRACE) sees its queue and its server.",
            "Run this as root.",
            f"sudo udsproxy doctor {shlex.quote(facts.path)}",
        )
    if not facts.sure:
        yield Finding(
            "warning",
            "it is not sure that this is the socket behind the file",
            "Its file system gives several files the same number, as far as the kernel tells (btrfs, FUSE).",
            "Run this as root: the socket itself is then asked for its file.",
            f"sudo udsproxy doctor {shlex.quote(facts.path)}",
        )
    if facts.namespace is not None:
        yield Finding(
            "note",
            f"its server is in another network namespace ({facts.namespace})",
            "A container, most likely. ss and /proc/net/unix do not show its socket here.",
            check=f"udsproxy state {shlex.quote(facts.path)}",
        )
    if facts.type == "datagram":
        yield from _datagrams(facts)
    elif facts.state == "listening":
        yield from dated("now", _queue_now(facts))
        yield from _backlog(facts)
    yield from dated("now", _descriptors(facts))


def in_ss(facts: Facts) -> str:
    """The command that shows the server's socket, and no other: by its inode. `ss` knows only the name that a
    socket was bound to, which need not be the path that clients use (a rename, a link, a mount)."""
    if facts.inode is None:
        return "ss -xl"
    inside = "" if facts.namespace is None or not facts.servers else f"nsenter -n -t {facts.servers[0].pid} "
    return f"{inside}ss -xl | grep -w {facts.inode}"


def _unreachable(facts: Facts) -> Finding:
    path, failure = shlex.quote(facts.behind or facts.path), facts.failure
    check = f"ls -l {path}; udsproxy state {path}"
    behind = "" if facts.behind is None else f" at {facts.behind}, behind udsproxy"
    if failure in _MISSING:
        title, why = _MISSING[failure]
        do = "Start the server; compare its listen = with what the client has."
        if facts.unit is not None:
            do = f"systemctl start {facts.unit.name}: its ListenStream= ({facts.unit.file}) is this path."
            why += (
                f" {facts.unit.service} alone, or started by hand, has no socket: its accept() fails with ENOTSOCK."
            )
        if failure == "ENAMETOOLONG":
            do = "Choose a shorter path, in server and client."
        elif facts.link is not None and not behind:
            why = f"The path is a symbolic link, to {facts.link}. {why}"
        return Finding("problem", f"{title}{behind}: clients get {failure}", why, do, f"ls -ld {path}; ss -xl")
    if failure != "ECONNREFUSED":
        return Finding("problem", f"it cannot be reached: clients get {failure}", "", "Mend the path.", check)
    mounted = facts.mounted
    if facts.state == "stale" and mounted is not None and mounted.is_sure:
        title = "a stale bind mount" if mounted.why == "replaced" else "the server is not reached by this path"
        title = f"{title}{behind}: clients get ECONNREFUSED"
        return Finding("problem", title, f"{_sentence(mounted.text)}.", mounted.cure, f"findmnt -T {path}")
    if facts.state == "stale":
        why = "The file is there, and no process has its socket: the server was killed, or has not removed it."
        if mounted is not None:
            why += f" Or: {mounted.text}."
        return Finding(
            "problem",
            f"nobody listens{behind}: clients get ECONNREFUSED",
            why,
            _start(facts) + "it makes the file anew. (Removing the file only changes the error to ENOENT.)",
            check,
        )
    if facts.state in ("bound", "shut"):
        return Finding(
            "problem",
            f"nobody listens{behind}: clients get ECONNREFUSED",
            "shutdown() was called on it." if facts.state == "shut" else "Nobody has called listen() on it.",
            "Restart the server.",
            check,
        )
    if facts.server_path.startswith("@"):
        return Finding(
            "problem",
            f"nobody listens{behind}: clients get ECONNREFUSED",
            "No socket of that abstract name is in this network namespace.",
            "Start the server, or run this in its network namespace (nsenter --net=/proc/PID/ns/net).",
            "ss -xl",
        )
    leads = "" if facts.link is None else f"The path is a symbolic link, to {facts.link}. "
    return Finding(
        "problem",
        f"it is {facts.kind or 'a file'}, no socket: clients get ECONNREFUSED",
        f"{leads}connect() refuses whatever is not a socket. It is not what a server has left: leave it as it is.",
        "Check the path: compare it with the server's (its listen =) and the client's.",
        f"ls -ld {path}; ss -xl",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _start(facts: Facts) -> str:
    return "Start the server: " if facts.unit is None else f"systemctl restart {facts.unit.name}: "


def _queue_now(facts: Facts) -> Iterator[Finding]:
    queue, backlog, path = facts.queue or 0, facts.backlog, shlex.quote(facts.path)
    if backlog is None:
        return
    if queue > backlog:
        yield Finding(
            "problem",
            f"the queue is full now: {queue} of {backlog + 1}",
            "The next client gets EAGAIN (nginx: 11: Resource temporarily unavailable), or waits in connect().",
            "Find what holds the workers before anything is made larger.",
            f"udsproxy state {path}",
        )
    elif queue:
        # (With workers idle it is a connection that is just being accepted.)
        level, busy = "note", facts.busy
        if busy is not None and facts.workers and busy == len(facts.workers):
            level = "warning"
        yield Finding(
            "warning" if level == "warning" else "note",
            f"{queue} of {backlog + 1} wait in the queue now",
            "Each waits for a worker; no log of nginx or php-fpm has that time.",
            "Find what holds the workers.",
            f"udsproxy state {path} --watch",
        )
    else:
        yield Finding("fine", f"the queue is empty now; {backlog + 1} may wait")
    if facts.gone:
        yield Finding(
            "note",
            f"{facts.gone} of those in the queue {'has' if facts.gone == 1 else 'have'} left",
            "A worker runs their requests all the same, and finds out when it writes.",
            check=f"udsproxy state {path}",
        )


def _backlog(facts: Facts) -> Iterator[Finding]:
    has, most = facts.backlog, facts.somaxconn
    if has is None:
        return
    pool = facts.pool if facts.systemd is None else None  # (else about_systemd)
    asked = None if pool is None or "listen.backlog" in pool.unknown else _asked(pool, has)
    at = "" if pool is None else f" ({pool.at('listen.backlog')})"
    check = f"{in_ss(facts)}   (the second number is what the kernel has)"
    restart = "restart php-fpm: a reload keeps the old socket, and its backlog"
    if pool is not None and asked is not None and _is_raised(pool, asked, has, most):
        yield Finding(
            "note",
            f"listen.backlog = {asked} is raised to {has}: pm = ondemand",
            f"php-fpm before 8.2 takes no less than {_OLD_DEFAULT} for an ondemand pool, and says so when it "
            f"starts.{at}",
            check=check,
        )
    elif asked is not None and asked >= 0 and most is not None and asked > most:
        yield Finding(
            "problem",
            f"listen.backlog = {asked} is cut to {has}",
            f"The kernel silently cuts it to net.core.somaxconn ({most}) when listen() is called; ss and this "
            f"program show what is left of it.{at}",
            f"sysctl -w net.core.somaxconn={asked} (and in /etc/sysctl.d), then {restart}.",
            check,
        )
    elif asked is not None and asked >= 0 and asked != has:
        yield Finding(
            "problem" if asked > has else "warning",
            f"listen.backlog = {asked} is not in force: the kernel has {has}",
            "The file was changed since php-fpm started"
            + (f", or net.core.somaxconn was {has} then.{at}" if asked > has else f".{at}"),
            f"{restart[0].upper()}{restart[1:]}.",
            check,
        )
    elif asked is not None and asked < 0 and most is not None and has < most:
        yield Finding(
            "warning",
            f"the backlog is {has}, and could be {most}",
            "listen.backlog = -1 (the default since PHP 8.2) is net.core.somaxconn as it was when php-fpm started.",
            f"{restart[0].upper()}{restart[1:]}.",
            check,
        )
    elif asked is None and has == most and (facts.unit is None or facts.unit.backlog is None):
        yield Finding(
            "note",
            f"the backlog is {has}, which is net.core.somaxconn",
            "The server may have asked for more: the kernel cuts it silently.",
            "If more is needed, raise net.core.somaxconn, and restart the server.",
            check,
        )
    workers = facts.most_workers
    if workers is None:
        return
    if has + 1 < workers:
        yield Finding(
            "warning",
            f"room for {has + 1} in the queue, and {plural(workers, 'worker')}",
            "When all workers wait for the same thing (a lock, a database), the queue is full before as many "
            "requests more have come as the pool serves at once.",
            f"listen.backlog = {workers} or more{at}; {restart}."
            if pool is not None
            else f"Backlog={workers} or more in its unit.",
            check,
        )
    elif not facts.was_full:
        yield Finding("fine", f"room for {has + 1} in the queue, and {plural(workers, 'worker')}")


def _asked(pool: Pool, has: int) -> int:
    """What the configuration asks for. Where it does not, the default depends on php-fpm's version."""
    given = pool.settings.get("listen.backlog")
    return _OLD_DEFAULT if given is None and has == _OLD_DEFAULT else number(given, -1)


def _is_raised(pool: Pool, asked: int, has: int, most: int | None) -> bool:
    """fpm_conf.c: "listen.backlog(%d) was too low for the ondemand process manager. I updated it for you"."""
    raised = min(_OLD_DEFAULT, _OLD_DEFAULT if most is None else most)
    return pool.settings.get("pm") == "ondemand" and asked < _OLD_DEFAULT and asked != has and has == raised


def _datagrams(facts: Facts) -> Iterator[Finding]:
    yield Finding(
        "note",
        "it receives datagrams: nobody is accepted, and there is no backlog",
        "A sender gets EAGAIN, or waits, when net.unix.max_dgram_qlen messages wait"
        + (f"; {facts.queue} bytes do now." if facts.queue else "."),
        check="sysctl net.unix.max_dgram_qlen",
    )


def _descriptors(facts: Facts) -> Iterator[Finding]:
    for role, processes in (
        ("server", facts.servers),
        *((f"nginx (pid {each.pid})", each.workers) for each in facts.nginx),
    ):
        known = [each for each in processes if each.descriptors.used is not None and each.descriptors.soft]
        if not known:
            continue
        worst = max(known, key=_share)
        used, soft, hard = worst.descriptors.used, worst.descriptors.soft, worst.descriptors.hard
        who = f"{worst.comm} (pid {worst.pid})"
        if _share(worst) < _NEAR:
            yield Finding("fine", f"{role}: {used} of {soft} descriptors at most, in {who}")
            continue
        option = "rlimit_files" if facts.php_fpm and role == "server" else "LimitNOFILE= of its unit"
        yield Finding(
            "problem" if _share(worst) >= _AT else "warning",
            f"{who} has {used} of {soft} descriptors open",
            "At the limit accept() and connect() fail with EMFILE (24: Too many open files).",
            f"Raise {'worker_rlimit_nofile' if role != 'server' else option} (the hard limit is {hard or 'none'}); "
            "if the number only grows, the process leaks them.",
            f"ls /proc/{worst.pid}/fd | wc -l; grep files /proc/{worst.pid}/limits",
        )


def _share(process: Process) -> float:
    seen = process.descriptors
    return (seen.used or 0) / (seen.soft or 1)
