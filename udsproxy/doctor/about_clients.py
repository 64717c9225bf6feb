"""Findings about who connects: may they, and do they see this socket at all. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from udsproxy.doctor.facts import Entry, Facts, User
from udsproxy.doctor.finding import Finding
from udsproxy.doctor.php_fpm import octal
from udsproxy.doctor.rights import obstacle, why_not


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    if not facts.entries or facts.kind is not None or facts.failure not in (None, "ECONNREFUSED"):
        return  # (what is no socket is not ours to open to anybody)
    for user in facts.clients:
        yield from _may_connect(facts, user)
    if not facts.clients:
        yield Finding(
            "note",
            "who connects is not known",
            "No nginx is seen to run whose configuration has this path.",
            "Name the client's user: --client www-data.",
        )
    if facts.pool is not None and facts.tapped is None and not facts.hops:
        yield from _as_configured(facts)
    if all(entry.mode & 1 for entry in facts.entries[:-1]) and facts.entries[-1].mode & 2:
        yield Finding(
            "note",
            "every user of this machine may connect",
            f"Mode {facts.entries[-1].mode:o}: who may send requests here may run code as the server's user, "
            "where that is php-fpm.",
            "Mode 660, with the client's group (listen.group, listen.mode = 0660).",
            f"ls -l {shlex.quote(facts.path)}",
        )


def _may_connect(facts: Facts, user: User) -> Iterator[Finding]:
    who, path = f"{user.name} ({user.where})", shlex.quote(facts.path)
    if user.sees is False:
        yield Finding(
            "problem",
            f"{who} sees another file at this path, or none",
            "That process has file systems of its own (a unit's PrivateTmp=, a container): clients get ENOENT or "
            "ECONNREFUSED though the socket is here.",
            "Put the socket where both see it: in /run, not in /tmp.",
            f"systemctl show -p PrivateTmp nginx; nsenter -m -t PID ls -l {path}",
        )
    stopped = obstacle(facts.entries, user)
    if stopped is None:
        yield Finding("fine", f"{who} may connect")
        return
    at_socket = stopped is facts.entries[-1]
    yield Finding(
        "problem",
        f"{who} cannot connect: EACCES (13: Permission denied)",
        f"{stopped.path} is {stopped.owner}, mode {stopped.mode:o}; {why_not(stopped, user)}, and "
        + ("write permission is needed." if at_socket else "search permission (x) is needed on every directory."),
        _way_in(facts, stopped, user, at_socket),
        f"namei -l {path}; sudo -u {shlex.quote(user.name)} test -w {path} && echo may connect",
    )


def _way_in(facts: Facts, stopped: Entry, user: User, at_socket: bool) -> str:
    group = user.group or user.name
    if not at_socket:
        return (
            f"setfacl -m u:{user.name}:x {shlex.quote(stopped.path)}, or a directory that all may enter (/run/php)."
        )
    if facts.php_fpm is not None:
        return (
            f"listen.owner = {user.name}, listen.group = {group}, listen.mode = 0660 in the pool; restart php-fpm."
        )
    return f"Have the server make it with group {group} and mode 660. For now: chgrp {group}, chmod g+w."


def _as_configured(facts: Facts) -> Iterator[Finding]:
    """The file's owner and mode, and what the pool says they shall be."""
    pool, file = facts.pool, facts.entries[-1]
    assert pool is not None
    mode = octal(pool.settings.get("listen.mode"))
    told = {
        "listen.owner": pool.owner is not None and pool.owner != file.uid,
        "listen.group": pool.group is not None and pool.group != file.gid,
        "listen.mode": mode is not None and mode != file.mode and not file.acl,
    }
    different = [f"{name} = {pool.settings.get(name)}" for name, differs in told.items() if differs]
    if different:
        yield Finding(
            "warning",
            f"the file is {file.owner}, mode {file.mode:o}; the pool has {', '.join(different)}",
            "The file was changed by hand, or the pool's configuration since php-fpm started; the next start makes "
            "it as configured. (A reload keeps it as it is.)",
            f"Decide which is right: change {pool.file}, or restart php-fpm.",
            f"ls -l {shlex.quote(facts.path)}",
        )
