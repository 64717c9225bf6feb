"""Findings about nginx: what it makes of one error 11, whom it runs as, what it keeps open. Pure.

ngx_event_connect.c: EAGAIN of connect() is a peer that has failed, whatever ``*_next_upstream`` says.
ngx_http_upstream_round_robin.c: failures count only where a block has several servers (``peers->single``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from udsproxy.doctor.facts import Facts, Nginx, Peer, Refused, Upstream
from udsproxy.doctor.finding import Finding, grep, plural

_MAX_SHOWN = 3


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    for refused in facts.refused:
        yield _refused(refused)
    for nginx in facts.nginx:
        for upstream in nginx.upstreams:
            yield from _missing(upstream)
            yield from _failures(facts, nginx, upstream)
            yield from _kept(facts, nginx, upstream)
        yield from _passes(nginx)
        yield from _process(facts, nginx)


def _refused(refused: Refused) -> Finding:
    reload, test = ("nginx -s reload", "nginx -t") if refused.program == "nginx" else ("A reload", "php-fpm -t")
    return Finding(
        "problem",
        f"{refused.program} cannot be started anew: {refused.path} is {refused.why}",
        f"It is included at {refused.at}. What runs goes on with what it has read before; {reload} is refused, and "
        "after a restart or a reboot nothing runs.",
        f"Remove it ({shlex.quote(refused.path)}), or bring back what it shall be.",
        f"{test}; ls -l {shlex.quote(refused.path)}",
    )


def _missing(upstream: Upstream) -> Iterator[Finding]:
    """Its requests go to the others, after a failure each time that it is tried again."""
    for peer in [each for each in upstream.peers if each.missing][:_MAX_SHOWN]:
        again = (
            f" After each fail_timeout ({peer.fail_timeout_s:g} s) a request tries it again and fails there first."
        )
        yield Finding(
            "problem" if not peer.max_fails and not peer.backup else "warning",
            f"upstream {upstream.name} ({upstream.at}): {peer.address} cannot be reached: {peer.missing}",
            "nginx gets ENOENT (error 2) or ECONNREFUSED (111) there, and sends the request to another server of "
            "the block; this socket gets the load of both."
            + (again if peer.max_fails else " With max_fails=0 every request that is its turn fails there first."),
            "Start its server, or remove it from the block, or mark it `down`. Then nginx -s reload.",
            f"ls -l {shlex.quote(peer.address.removeprefix('unix:'))}",
        )


def _failures(facts: Facts, nginx: Nginx, upstream: Upstream) -> Iterator[Finding]:
    peers = upstream.peers
    block = f"upstream {upstream.name} ({upstream.at})"
    if len(peers) == 1:
        yield Finding(
            "fine", f"{block} has one server: max_fails does not apply, an error 11 is one 502 and no more"
        )
        return
    here = [each for each in peers if each.here]
    counted = [each for each in here if each.max_fails]
    if not counted:
        yield Finding("fine", f"{block}: max_fails=0, an error 11 does not put the server out")
    else:
        check = grep("no live upstreams", facts.nginx_logs, "nginx's")
        yield _amplified(block, peers, counted[0], f"nginx -T | grep -A9 'upstream '; {check}")
    for found in nginx.passes:
        if found.upstream == upstream.name and "off" in found.next_upstream:
            yield Finding(
                "note",
                f"{found.directive} at {found.at}: next_upstream is off",
                "A request that gets error 11 is answered with 502 though another server may have room.",
                f"{found.directive.partition('_')[0]}_next_upstream error timeout;",
                "nginx -T | grep next_upstream",
            )
            break


def _amplified(block: str, peers: tuple[Peer, ...], here: Peer, check: str) -> Finding:
    all_go = all(each.max_fails for each in peers)
    # Sockets of one machine fill up together; other machines may still have room.
    local = all(each.address.startswith("unix:") for each in peers)
    fails, for_s = here.max_fails, here.fail_timeout_s
    first = "One error 11 is" if fails == 1 else f"{fails} errors 11 within {for_s:g} s are"
    why = (
        f"{first} enough for nginx to leave the server out for fail_timeout = {for_s:g} s; the others get its load."
    )
    if all_go:
        why += " When all are out, every request is a 502 with `no live upstreams`: a short burst is an outage."
    return Finding(
        "problem" if all_go and local else "warning",
        f"{block}: a full queue puts the server out for {for_s:g} s",
        why,
        f"server {here.address} max_fails=0; the same for the block's other sockets of this machine. Then "
        "nginx -s reload.",
        check,
    )


def _kept(facts: Facts, nginx: Nginx, upstream: Upstream) -> Iterator[Finding]:
    """A worker of php-fpm stays with its connection: one that nginx keeps idle takes a worker away."""
    most = facts.most_workers
    keeps = any(each.keep_conn and each.upstream == upstream.name for each in nginx.passes)
    if most is None or facts.pool is None or not upstream.keepalive or not keeps:
        return
    kept = upstream.keepalive * max(1, len(nginx.workers))
    yield Finding(
        "problem" if kept >= most else "warning",
        f"nginx keeps up to {plural(kept, 'connection')} open, and there {'is' if most == 1 else 'are'} "
        f"{plural(most, 'worker')}",
        "A worker of php-fpm serves one connection until it is closed: kept open and idle, it has no worker for "
        f"others. (keepalive {upstream.keepalive} is for each of {plural(len(nginx.workers), 'nginx worker')}.)",
        "fastcgi_keep_conn off; on a Unix socket connecting anew costs next to nothing.",
        f"udsproxy state {shlex.quote(facts.path)}   (workers that wait in read() for nginx)",
    )


def _passes(nginx: Nginx) -> Iterator[Finding]:
    for each in [each for each in nginx.passes if not each.is_sure][:_MAX_SHOWN]:
        yield Finding(
            "note",
            f"{each.directive} {each.variable} at {each.at} may lead to this socket",
            "The path is a variable, and nginx's files do not say which values it has.",
            check=f"sed -n {each.at.rpartition(':')[2]}p {shlex.quote(each.at.rpartition(':')[0])}",
        )
    direct = [each for each in nginx.passes if each.upstream is None and each.is_sure]
    if direct:
        places = ", ".join(each.at for each in direct[:_MAX_SHOWN])
        more = f" and {len(direct) - _MAX_SHOWN} more" if len(direct) > _MAX_SHOWN else ""
        yield Finding("fine", f"{direct[0].directive} names the socket ({places}{more}): an error 11 is one 502")


def _process(facts: Facts, nginx: Nginx) -> Iterator[Finding]:
    names = {each.name for each in facts.clients if each.where != "--client"}
    if nginx.user is not None and len(facts.nginx) == 1 and names and nginx.user not in names:
        yield Finding(
            "note",
            f"nginx runs as {', '.join(sorted(names))}; its configuration has user {nginx.user}",
            "The file was changed and nginx not reloaded, or its master is not root: then it has no effect.",
            "nginx -s reload, if that is meant.",
            f"ps -o user,args --ppid {nginx.pid}",
        )
    limits = [each.descriptors.soft for each in nginx.workers if each.descriptors.soft is not None]
    if limits and min(limits) < nginx.worker_connections:
        yield Finding(
            "warning",
            f"nginx: worker_connections = {nginx.worker_connections}, and {min(limits)} descriptors a worker",
            "A request that is passed on takes two connections, and a descriptor for each.",
            f"worker_rlimit_nofile {2 * nginx.worker_connections};",
            f"grep files /proc/{nginx.workers[0].pid}/limits",
        )
