"""Findings about who connects: may they, and do they see this socket at all. Pure."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from udsproxy.doctor.facts import Entry, Facts, Pool, User
from udsproxy.doctor.finding import Finding, dated, grep
from udsproxy.doctor.php_fpm import octal
from udsproxy.doctor.rights import SEARCH, WRITE, is_masked, obstacle, why_not


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    if not facts.entries or facts.kind is not None or facts.failure not in (None, "ECONNREFUSED"):
        return  # (what is no socket is not ours to open to anybody)
    for user in facts.clients:
        yield from dated("now", _may_connect(facts, user))
    if not facts.clients:
        yield Finding(
            "note",
            "who connects is not known",
            "No nginx is seen to run whose configuration has this path.",
            "Name the client's user: --client www-data.",
        )
    if facts.onward is not None and facts.onward.way:
        yield from dated("now", [_goes_on(facts, facts.onward)])
    if facts.pool is not None and facts.tapped is None and not facts.hops and facts.systemd is None:
        yield from _as_configured(facts)
        yield from _ignored(facts.pool)
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
    if user.sees is False and user.stale_mount:
        yield Finding(
            "problem",
            f"{who} has a stale bind mount at this path: it gets ECONNREFUSED",
            "The socket's file is mounted there (a container's volume), and the server has made it anew since: the "
            "mount leads to the old one.",
            f"Mount the directory {shlex.quote(os.path.dirname(facts.path))} instead of the file, and restart the "
            "container.",
            f"grep {path} /proc/{user.pid or 'PID'}/mountinfo   "
            "(//deleted: the file that is mounted is there no more)",
        )
    elif user.sees is False:
        yield Finding(
            "problem",
            f"{who} sees another file at this path, or none",
            "That process has file systems of its own (a unit's PrivateTmp=, a container): clients get ENOENT or "
            "ECONNREFUSED though the socket is here.",
            "Put the socket where both see it: in /run, not in /tmp.",
            f"systemctl show -p PrivateTmp nginx; nsenter -m -t {user.pid or 'PID'} ls -l {path}",
        )
    if user.sees is False:
        return
    entries = user.way or facts.entries
    stopped = obstacle(entries, user)
    if stopped is None:
        yield Finding("fine", f"{who} may connect")
        return
    at_socket = stopped is entries[-1]
    check = f"namei -l {path}; sudo -u {shlex.quote(user.name)} test -w {path} && echo may connect"
    if user.way:
        check = f"nsenter -m -t {user.pid} namei -l {shlex.quote(entries[-1].path)}   (it has other mounts than we)"
    yield Finding(
        "problem",
        f"{who} cannot connect: EACCES (13: Permission denied)",
        f"{stopped.path} is {stopped.owner}, mode {stopped.mode:o}; {why_not(stopped, user)}, and "
        + ("write permission is needed." if at_socket else "search permission (x) is needed on every directory."),
        _way_in(facts, stopped, user, at_socket),
        check,
    )


def _goes_on(facts: Facts, user: User) -> Finding:
    """May a ``run`` connect to the socket behind it?"""
    stopped, socket = obstacle(user.way, user), user.way[-1].path
    who = f"{user.name} ({user.where})"
    if stopped is None:
        return Finding("fine", f"{who} may connect to {socket}")
    return Finding(
        "problem",
        f"{who} cannot connect to {socket}: EACCES (13: Permission denied)",
        f"{stopped.path} is {stopped.owner}, mode {stopped.mode:o}; {why_not(stopped, user)}. (As root udsproxy "
        "connects as its clients; as another user it does as itself.)",
        f"{_way_in(facts, stopped, user, stopped is user.way[-1])} Or run udsproxy as root.",
        f"namei -l {shlex.quote(socket)}",
    )


def _way_in(facts: Facts, stopped: Entry, user: User, at_socket: bool) -> str:
    group = user.group or user.name
    if is_masked(stopped, user, WRITE if at_socket else SEARCH):
        return (
            f"setfacl -m m::{'rw' if at_socket else 'rx'} {shlex.quote(stopped.path)}; then find who runs chmod "
            "on it: with an ACL, chmod's bits for the group are the mask."
        )
    if not at_socket:
        return (
            f"setfacl -m u:{user.name}:x {shlex.quote(stopped.path)}, or a directory that all may enter (/run/php)."
        )
    if facts.systemd is not None:
        where = "its unit" if facts.unit is None else facts.unit.name
        return f"SocketGroup={group} and SocketMode=0660 in {where} (systemctl edit); then restart that."
    pool = facts.pool
    if pool is not None and pool.has_acl:
        key = "listen.acl_users" if pool.settings.get("listen.acl_users") else "listen.acl_groups"
        name = user.name if key == "listen.acl_users" else group
        return (
            f"{key} = {pool.settings[key]},{name} ({pool.at(key)}); restart php-fpm. (With an ACL it ignores "
            "listen.owner and listen.group.)"
        )
    if facts.php_fpm is not None:
        where = "in the pool" if pool is None else f"({pool.at('listen.owner')})"
        return f"listen.owner = {user.name}, listen.group = {group}, listen.mode = 0660 {where}; restart php-fpm."
    return f"Have the server make it with group {group} and mode 660. For now: chgrp {group}, chmod g+w."


def _ignored(pool: Pool) -> Iterator[Finding]:
    ignored = [key for key in ("listen.owner", "listen.group") if pool.settings.get(key)]
    if pool.has_acl and ignored:
        acl = next(key for key in ("listen.acl_users", "listen.acl_groups") if pool.settings.get(key))
        yield Finding(
            "note",
            f"{' and '.join(ignored)}: ignored, for {acl} = {pool.settings[acl]}",
            f"php-fpm gives the file an ACL instead ({pool.at(acl)}), and leaves owner and group as they are.",
            f"Remove {' and '.join(ignored)} ({pool.at(ignored[0])}), or the ACL.",
            grep("is ignored", [pool.error_log] if pool.error_log else [], "php-fpm's"),
        )


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
        first = next(name for name, differs in told.items() if differs)
        yield Finding(
            "warning",
            f"the file is {file.owner}, mode {file.mode:o}; the pool has {', '.join(different)}",
            "The file was changed by hand, or the pool's configuration since php-fpm started; the next start makes "
            "it as configured. (A reload keeps it as it is.)",
            f"Decide which is right: change {pool.at(first)}, or restart php-fpm.",
            f"ls -l {shlex.quote(facts.path)}",
        )
