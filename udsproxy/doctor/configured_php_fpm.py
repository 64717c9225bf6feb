"""The configuration of the php-fpm that serves a socket: which files it is, and the pool in them.

A master's title names its main file, and not its prefix. Where names are relative, the prefix is the first of the
likely ones (`udsproxy.doctor.php_fpm.prefixes`) with which a pool listens at the socket that this master holds.

Rules: it only looks. What cannot be read is told.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from udsproxy.doctor import php_fpm
from udsproxy.doctor.facts import Pool, Process, Refused
from udsproxy.doctor.known import KnownSocket
from udsproxy.doctor.php_fpm import Configuration, Section
from udsproxy.doctor.reading import Reader, shown
from udsproxy.kernel import process_table
from udsproxy.kernel.roots import Root

_MAX_PROCESSES = 10_000
_SETTINGS = ("listen", "pm", "process.", "request_", "rlimit_")
"""Of a pool: what these begin with."""
_MAX_LINES = 200_000
"""Before no other prefix is tried."""
_MAX_UNKNOWN = 5
_NO_LOGS = ("/proc/", "/dev/")


class Looked(NamedTuple):
    """What was found. ``pid``: of the master."""

    pid: int | None = None
    pool: Pool | None = None
    refused: tuple[Refused, ...] = ()
    unseen: tuple[str, ...] = ()


def look(known: KnownSocket, servers: tuple[Process, ...]) -> Looked:
    """The master, and the pool that listens there. Who serves may be hidden from us; titles are not."""
    pids = [each.pid for each in servers] or [pid for pid, _ in process_table.titled(php_fpm.TITLE)]
    for pid in pids[:_MAX_PROCESSES]:
        file = php_fpm.configuration_of(process_table.read_title(pid))
        if file is None:
            continue
        file = os.path.join(_link(f"/proc/{pid}/cwd") or "/", file)
        root = Root(pid)
        if root.is_hidden:
            return Looked(
                pid, unseen=(f"the configuration of php-fpm (pid {pid}): it is in a container (run as root)",)
            )
        try:
            found = look_at(known, file, _program(pid), root, holds=bool(servers))
        finally:
            root.close()
        if found.pool is not None and found.pool.error_log and not root.is_ours:
            there = f"/proc/{pid}/root{found.pool.error_log}"
            found = found._replace(pool=msgspec.structs.replace(found.pool, error_log=there))
        if found.pool is not None or servers:
            return found._replace(pid=pid)
    return Looked()


def look_at(known: KnownSocket, file: str, program: str | None, root: Root, *, holds: bool) -> Looked:
    """What a php-fpm with that main file and executable has read. ``holds``: it is known to have the socket."""
    reader = Reader(root)
    sockets = known.seen_from(root)
    found = section = None
    lines = 0
    for prefix in php_fpm.prefixes(file, program, known.names):
        tried = php_fpm.read(reader, file, prefix)
        section = php_fpm.pool_at(tried, sockets.is_same)
        if found is None or section is not None:
            found = tried
        lines += tried.lines
        if section is not None or not tried.needs_prefix or lines > _MAX_LINES:
            break
    assert found is not None
    if section is None and holds:
        section = php_fpm.pool_of_unknown(found)
    if section is None:
        line = f"{shown(file)}: no pool there has listen = {shown(known.path or '?')}"
        if found.is_relative:
            line += " (its includes are relative, and its prefix is not known)"
        return Looked(None, None, tuple(found.refused), (*reader.notes, line))
    pool = _pool(found, section, root)
    environment = [
        f"{key} of pool {pool.name}: php-fpm takes it from its environment ({pool.at(key)})"
        for key in pool.unknown[:_MAX_UNKNOWN]
    ]
    return Looked(None, pool, tuple(found.refused), (*reader.notes, *environment))


def _link(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return None


def _program(pid: int) -> str | None:
    link = _link(f"/proc/{pid}/exe")
    return None if link is None else link.removesuffix(" (deleted)")


def _pool(found: Configuration, section: Section, root: Root) -> Pool:
    relevant = {shown(key): each for key, each in section.settings.items() if key.startswith(_SETTINGS)}
    settings = {key: shown(each.value) for key, each in relevant.items() if each.is_known}
    if "pm" in settings:
        settings["pm"] = settings["pm"].lower()
    process_max = found.common.settings.get("process.max")
    pool = Pool(
        name=shown(section.name),
        file=section.at,
        settings=settings,
        places={key: each.at for key, each in relevant.items()},
        unknown=tuple(key for key, each in relevant.items() if not each.is_known),
        process_max=php_fpm.number(found.common.value("process.max"), 0),
        process_max_at="" if process_max is None else process_max.at,
        error_log=_log(found.common.value("error_log")),
        pools=len(found.pools),
        all_children=sum(max(0, php_fpm.number(each.value("pm.max_children"), 0)) for each in found.pools),
    )
    if pool.has_acl:
        return pool
    return _with_owner(pool, settings.get("listen.owner"), settings.get("listen.group"), root)


def _log(path: str | None) -> str:
    """Where a relative name begins is not known: at the prefix, or at a directory that was compiled in."""
    return shown(path) if path is not None and path.startswith("/") and not path.startswith(_NO_LOGS) else ""


def _with_owner(pool: Pool, owner: str | None, group: str | None, root: Root) -> Pool:
    reader = Reader(root)
    return msgspec.structs.replace(
        pool,
        owner=_number_of(owner, reader, "/etc/passwd", lambda name: pwd.getpwnam(name).pw_uid),
        group=_number_of(group, reader, "/etc/group", lambda name: grp.getgrnam(name).gr_gid),
    )


def _number_of(name: str | None, reader: Reader, table: str, look_up: Callable[[str], int]) -> int | None:
    """Of a user or group. In a container its own table counts."""
    if not name:
        return None
    if name.isdecimal() and len(name) < 12:
        return int(name)
    if not reader.root.is_ours:
        entries = [line.split(":") for line in (reader.read(table) or "").split("\n")]
        return next((php_fpm.number(each[2], -1) for each in entries if each[0] == name and len(each) > 2), None)
    try:
        return look_up(name)
    except (KeyError, ValueError, OSError):
        return None
