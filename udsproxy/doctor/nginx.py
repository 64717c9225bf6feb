"""What nginx's configuration has about a socket: blocks, places that pass requests on to it, their logs.

Rules: whatever the files are, nothing here raises; what is read and what is looked at is bounded. Where a variable
says where requests go, and the files do not say what it is, a place is told as one that may lead to the socket.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple, Protocol

import msgspec

from udsproxy.doctor.facts import ErrorLog, Nginx, Pass, Peer, Refused, Upstream
from udsproxy.doctor.nginx_start import Start, is_log
from udsproxy.doctor.nginx_syntax import MAX_DIRECTIVES, MAX_NESTED, Configuration, Directive, parse
from udsproxy.doctor.nginx_values import Pieces, Values, may_be, text_of
from udsproxy.doctor.reading import Reader, shown

_TIME = re.compile(r"([0-9]{1,12})(ms|[smhdwMy]?)")
_SECONDS = {
    "ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "M": 2592000.0,
    "y": 31536000.0,
}  # fmt: skip
_MAX_FOUND = 200
"""Blocks, and places, that are told."""
_MAX_PEERS = 200
_MAX_ELSEWHERE = 3
_SCHEMES = ("http://", "https://", "grpc://", "grpcs://", "uwsgi://", "suwsgi://", "scgi://", "fastcgi://")
_PASSES = ("fastcgi_pass", "proxy_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass")
_WHOLE = ("fastcgi_pass", "uwsgi_pass", "scgi_pass")
"""Where a variable alone may be a Unix socket. (What is proxied to ``http://$name`` is none.)"""
_INHERITED = ("read_timeout", "next_upstream", "keep_conn")
_UNIX = "unix:"
_LEVELS = ("debug", "info", "notice", "warn", "error", "crit", "alert", "emerg")

Settings = dict[str, tuple[str, ...]]
Logs = tuple[tuple[str, str], ...]
"""Where, and from which level on."""


class Sockets(Protocol):
    """What is known of paths that stand in the configuration."""

    names: tuple[str, ...]
    """What the socket that is looked at is called."""

    def is_same(self, path: str) -> bool:
        """Is this the socket that is looked at?"""

    def missing(self, path: str) -> str | None:
        """Why there is no socket; None: there is one, or that cannot be told."""


class _Passed(NamedTuple):
    """A place, before it is known whether it leads to the socket."""

    target: str
    each: Pass
    logs: Logs


class _Search:
    """Finds what is about a socket."""

    def __init__(self, configuration: Configuration, start: Start, sockets: Sockets) -> None:
        self.user: str | None = None
        self.worker_connections = 512
        self.upstreams: dict[str, Upstream] = {}
        self.passes: list[Pass] = []
        self.logs: dict[str, str] = {}
        """The level of each."""
        self.elsewhere: set[str] = set()
        """Where nginx logs, and that is no file."""
        self._configuration = configuration
        self._start = start
        self._sockets = sockets
        self._values = Values()
        self._passed: list[_Passed] = []
        self._walk(None, configuration.file, {}, ((start.error_log, "error"),), 0)
        for passed in self._passed:
            self._judge(passed)

    def _walk(
        self, block: tuple[Directive, ...] | None, file: str, around: Settings, logs: Logs, depth: int
    ) -> None:
        if depth > MAX_NESTED:
            self._configuration.note_depth(file)
            return
        settings = dict(around)
        own_logs: list[tuple[str, str]] = []
        later: list[tuple[Directive, str]] = []
        for each, where in self._directives(block, file, depth):
            if each.name.partition("_")[2] in _INHERITED:
                settings[each.name] = each.args
            elif each.name == "error_log" and each.args:
                level = next((arg for arg in each.args[1:] if arg in _LEVELS), "error")
                own_logs.append((each.args[0], level))
            elif each.name == "user" and depth == 0 and each.args:
                self.user = shown(each.args[0])
            elif each.name == "worker_connections" and each.args and re.fullmatch(r"[0-9]{1,9}", each.args[0]):
                self.worker_connections = int(each.args[0])
            elif each.name in _PASSES or each.block is not None:
                later.append((each, where))
            self._values.add(each)
        # (What is inherited does not depend on the order in which it stands.)
        logs = tuple(own_logs[:_MAX_FOUND]) or logs
        for each, where in later:
            if each.block is None:
                self._pass(each, where, settings, logs)
            elif each.name == "upstream" and each.args:
                self._upstream(each, where)
            else:
                self._walk(each.block, where, settings, logs, depth + 1)

    def _directives(
        self, block: tuple[Directive, ...] | None, file: str, depth: int
    ) -> Iterator[tuple[Directive, str]]:
        given = parse(self._start.globals) if depth == 0 else ()
        return chain(((each, "-g") for each in given), self._configuration.directives(block, file))

    def _pass(self, each: Directive, where: str, settings: Settings, logs: Logs) -> None:
        if not each.args or len(self._passed) >= MAX_DIRECTIVES // 10:
            return
        protocol = each.name.removesuffix("_pass")
        timeout = seconds(" ".join(settings.get(f"{protocol}_read_timeout", ())))
        found = Pass(
            each.name,
            f"{shown(where)}:{each.line}",
            60.0 if timeout is None else timeout,
            tuple(map(shown, settings.get(f"{protocol}_next_upstream", ("error", "timeout"))[:20])),
            settings.get(f"{protocol}_keep_conn") == ("on",),
        )
        self._passed.append(_Passed(each.args[0], found, logs))

    def _judge(self, passed: _Passed) -> None:
        """Does it lead to the socket, or may it?"""
        found, each = None, passed.each
        for pieces in self._values.expand(passed.target):
            target = text_of(pieces)
            if target is None:
                if self._may_be(pieces, each.directive):
                    found = found or msgspec.structs.replace(each, is_sure=False)
                continue
            target = _without_scheme(target)
            if self._here(target):
                found = each
                break
            if (name := target.partition("/")[0]) in self.upstreams:
                found = msgspec.structs.replace(each, upstream=shown(name))
                break
        if found is None:
            return
        if "$" in passed.target:
            found = msgspec.structs.replace(found, variable=shown(passed.target))
        self.passes.append(found)
        for target, level in passed.logs:
            path = os.path.normpath(os.path.join(self._start.prefix, target))
            if is_log(target):
                self.logs[path] = min(self.logs.get(path, "emerg"), level, key=_LEVELS.index)
            else:
                self.elsewhere.add(target)

    def _may_be(self, pieces: Pieces, directive: str) -> bool:
        if isinstance(pieces[0], str):
            pieces = (_without_scheme(pieces[0]), *pieces[1:])
        if pieces == (None,):
            return directive in _WHOLE
        if pieces[0] is None or pieces[0] in ("", "unix"):
            return False  # a host, most likely
        names = [f"{_UNIX}{path}" for path in self._sockets.names]
        return any(may_be(pieces, name) for name in (*names, *self.upstreams))

    def _upstream(self, each: Directive, where: str) -> None:
        peers: list[Peer] = []
        keepalive = 0
        for one, _ in self._configuration.directives(each.block, where):
            if one.name == "server" and one.args and len(peers) < _MAX_PEERS:
                peers.append(self._peer(one.args))
            elif one.name == "keepalive" and one.args and re.fullmatch(r"[0-9]{1,9}", one.args[0]):
                keepalive = int(one.args[0])
        if any(peer.here for peer in peers) and len(self.upstreams) < _MAX_FOUND:
            self.upstreams[each.args[0]] = Upstream(
                shown(each.args[0]), f"{shown(where)}:{each.line}", tuple(peers), keepalive
            )

    def _peer(self, args: tuple[str, ...]) -> Peer:
        options = dict(arg.partition("=")[::2] for arg in args[1:])
        fails = options.get("max_fails", "")
        timeout = seconds(options.get("fail_timeout", ""))
        here = self._here(args[0])
        missing = None
        if not here and args[0].startswith(_UNIX) and "down" not in options:
            missing = self._sockets.missing(self._path(args[0]))
        return Peer(
            shown(args[0]),
            here,
            int(fails) if re.fullmatch(r"[0-9]{1,9}", fails) else 1,
            10.0 if timeout is None else timeout,
            "backup" in options,
            missing,
        )

    def _here(self, target: str) -> bool:
        return target.startswith(_UNIX) and self._sockets.is_same(self._path(target))

    def _path(self, target: str) -> str:
        """Of ``unix:/run/x.sock``, and of proxy_pass ``unix:/run/x.sock:/uri``."""
        return os.path.join(self._start.directory, target.removeprefix(_UNIX).partition(":")[0])


def _without_scheme(target: str) -> str:
    for scheme in _SCHEMES:
        target = target.removeprefix(scheme)
    return target


def look(reader: Reader, start: Start, pid: int, sockets: Sockets) -> tuple[Nginx | None, list[Refused]]:
    """What a configuration has about a socket (None: nothing), and what keeps nginx from reading it anew."""
    configuration = Configuration(reader, start.file)
    search = _Search(configuration, start, sockets)
    if reader.missing(start.file) is not None:
        reader.note(f"{shown(start.file)}: {reader.missing(start.file)}")
    if not search.upstreams and not search.passes:
        return None, configuration.refused
    for target in sorted(search.elsewhere)[:_MAX_ELSEWHERE]:
        reader.note(f"the error log of nginx (pid {pid}): it goes to {shown(target)}")
    return Nginx(
        pid=pid,
        conf=shown(start.file),
        user=search.user,
        worker_connections=search.worker_connections,
        upstreams=tuple(search.upstreams.values()),
        passes=tuple(search.passes[:_MAX_FOUND]),
        logs=tuple(ErrorLog(path, level=level) for path, level in search.logs.items()),
    ), configuration.refused


def seconds(text: str) -> float | None:
    """``60``, ``60s``, ``1m 30s``, ``500ms``; None: it is none of these."""
    text = text.replace(" ", "")
    parts = list(_TIME.finditer(text[:100]))
    if not parts or "".join(part[0] for part in parts) != text:
        return None
    return sum(int(part[1]) * _SECONDS[part[2]] for part in parts)
