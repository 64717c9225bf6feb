"""nginx's configuration: its words, its blocks, and what in them is about a path.

The form is that of ngx_conf_file.c: words that may be quoted, ``;`` ends a directive, ``{ }`` encloses others,
``#`` begins a comment, a file is included where it is named. Rules: whatever the files are, nothing here raises;
what is read and what is looked at is bounded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import msgspec

from udsproxy.doctor.facts import Nginx, Pass, Peer, Upstream
from udsproxy.doctor.reading import MAX_DEPTH, Reader, shown

DEFAULTS = ("/etc/nginx/nginx.conf", "/usr/local/nginx/conf/nginx.conf", "/usr/local/etc/nginx/nginx.conf")
"""Where it is without -c; this is decided when nginx is compiled."""
TITLE = "nginx: master process"

_WORD = re.compile(
    r"""\s+ | \#[^\n]* | (?P<mark>[;{}])
    | "(?P<double>(?:\\.|[^"\\])*)(?:"|\\?\Z) | '(?P<single>(?:\\.|[^'\\])*)(?:'|\\?\Z)
    | (?P<bare>(?:\\.|\$\{|\$|[^\s;{\\$])+) | (?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\([\"'\\])")
_OPTION = re.compile(r"\s-(?P<name>[cp])\s*(?P<value>\S+)")
_TIME = re.compile(r"([0-9]{1,12})(ms|[smhdwMy]?)")
_SECONDS = {
    "ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "M": 2592000.0,
    "y": 31536000.0,
}  # fmt: skip
_MOST_NESTED = 64
_MOST_DIRECTIVES = 200_000
_MOST_INCLUDED = 100_000
"""Of these, directives that come out of an include: the rest is for the blocks."""
_MOST_FOUND = 200
"""Blocks, and places, that are told."""
_SCHEMES = ("http://", "https://", "grpc://", "grpcs://", "uwsgi://", "suwsgi://", "scgi://", "fastcgi://")
_PASSES = ("fastcgi_pass", "proxy_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass")
_INHERITED = ("read_timeout", "next_upstream", "keep_conn")


class Directive(msgspec.Struct, frozen=True):
    """``name args...;``, or with a block."""

    name: str
    args: tuple[str, ...]
    line: int
    block: tuple[Directive, ...] | None = None


def configuration_of(title: str) -> tuple[str | None, str | None]:
    """What a master's title has as -c and -p."""
    found = {match["name"]: match["value"] for match in _OPTION.finditer(title.removeprefix(TITLE))}
    return found.get("c"), found.get("p")


def parse(text: str) -> tuple[Directive, ...]:
    """A file's directives. What is malformed is taken as far as it goes."""
    level: list[Directive] = []
    above: list[tuple[list[Directive], tuple[str, ...], int]] = []
    words: list[str] = []
    too_deep = began = 0

    def end(block: tuple[Directive, ...] | None) -> None:
        if words:
            level.append(Directive(words[0], tuple(words[1:]), began, block))
            words.clear()

    for word, is_mark, line in _words(text):
        if not is_mark:
            if not words:
                began = line
            words.append(word)
        elif word == ";":
            end(None)
        elif word == "{":
            if len(above) >= _MOST_NESTED:
                too_deep += 1
            else:
                above.append((level, tuple(words), began))
                level = []
            words.clear()
        else:
            end(None)
            if too_deep:
                too_deep -= 1
            elif above:
                block = tuple(level)
                level, (*head,), began = above.pop()
                words.extend(head)
                end(block)
    end(None)
    while above:
        block = tuple(level)
        level, (*head,), began = above.pop()
        words.extend(head)
        end(block)
    return tuple(level)


def _words(text: str) -> Iterator[tuple[str, bool, int]]:
    """(word, is it a ``;``, ``{`` or ``}``, the line it begins in)."""
    line, counted = 1, 0
    for found in _WORD.finditer(text):
        kind = found.lastgroup
        if kind is None:
            continue
        line += text.count("\n", counted, found.start())
        counted = found.start()
        word = found[kind]
        yield (word if kind == "bare" else _ESCAPE.sub(r"\1", word)), kind == "mark", line


class Configuration:
    """The directives of a file and of all that it includes, in order."""

    def __init__(self, reader: Reader, file: str) -> None:
        self._reader = reader
        self.file = file
        self._directory = os.path.dirname(file)
        self._parsed: dict[str, tuple[Directive, ...]] = {}
        self._looked_at = 0
        self._included = 0

    def directives(
        self, block: tuple[Directive, ...] | None = None, file: str | None = None, above: tuple[str, ...] = ()
    ) -> Iterator[tuple[Directive, str]]:
        """Those of a block (without one, of the file), each with the file that it stands in."""
        file = file or self.file
        for each in self._in_file(file) if block is None else block:
            self._looked_at += 1
            self._included += bool(above)
            if self._looked_at > _MOST_DIRECTIVES or (above and self._included > _MOST_INCLUDED):
                self._reader.note(f"{shown(self.file)}: more than {_MOST_DIRECTIVES} directives")
                return
            if each.name != "include" or len(each.args) != 1:
                yield each, file
            elif len(above) >= MAX_DEPTH:
                self.note_depth(file)
            else:
                for path in self._reader.matching(each.args[0], self._directory):
                    yield from self.directives(None, path, (*above, path))

    def note_depth(self, file: str) -> None:
        self._reader.note(f"{shown(file)}: includes that go round, or too deep")

    def _in_file(self, file: str) -> tuple[Directive, ...]:
        if file not in self._parsed:
            self._parsed[file] = parse(self._reader.read(file) or "")
        return self._parsed[file]


class _Search:
    """Finds what is about a path."""

    def __init__(self, configuration: Configuration, is_same: Callable[[str], bool]) -> None:
        self.user: str | None = None
        self.worker_connections = 512
        self.upstreams: dict[str, Upstream] = {}
        self.passes: list[Pass] = []
        self.variables = 0
        """Places that pass requests on to what a variable says."""
        self._configuration = configuration
        self._is_same = is_same
        self._passed: list[tuple[str, Pass]] = []
        self._walk(None, configuration.file, {}, 0)
        for target, found in self._passed:
            if self._here(target):
                self.passes.append(found)
            elif target.partition("/")[0] in self.upstreams:
                self.passes.append(msgspec.structs.replace(found, upstream=shown(target.partition("/")[0])))

    def _walk(
        self, block: tuple[Directive, ...] | None, file: str, around: dict[str, tuple[str, ...]], depth: int
    ) -> None:
        if depth > _MOST_NESTED:
            self._configuration.note_depth(file)
            return
        settings = dict(around)
        later: list[tuple[Directive, str]] = []
        for each, where in self._configuration.directives(block, file):
            if each.name.partition("_")[2] in _INHERITED:
                settings[each.name] = each.args
            elif each.name == "user" and depth == 0 and each.args:
                self.user = shown(each.args[0])
            elif each.name == "worker_connections" and each.args and re.fullmatch(r"[0-9]{1,9}", each.args[0]):
                self.worker_connections = int(each.args[0])
            elif each.name in _PASSES or each.block is not None:
                later.append((each, where))
        # (What is inherited does not depend on the order in which it stands.)
        for each, where in later:
            if each.block is None:
                self._pass(each, where, settings)
            elif each.name == "upstream" and each.args:
                self._upstream(each, where)
            else:
                self._walk(each.block, where, settings, depth + 1)

    def _pass(self, each: Directive, where: str, settings: dict[str, tuple[str, ...]]) -> None:
        if not each.args or len(self._passed) >= _MOST_DIRECTIVES // 10:
            return
        target = each.args[0]
        for scheme in _SCHEMES:
            target = target.removeprefix(scheme)
        protocol = each.name.removesuffix("_pass")
        self.variables += "$" in target.partition("/")[0]
        timeout = seconds(" ".join(settings.get(f"{protocol}_read_timeout", ())))
        self._passed.append(
            (
                target,
                Pass(
                    each.name,
                    f"{shown(where)}:{each.line}",
                    60.0 if timeout is None else timeout,
                    tuple(map(shown, settings.get(f"{protocol}_next_upstream", ("error", "timeout"))[:20])),
                    settings.get(f"{protocol}_keep_conn") == ("on",),
                ),
            )
        )

    def _upstream(self, each: Directive, where: str) -> None:
        peers, keepalive = [], 0
        for one, _ in self._configuration.directives(each.block, where):
            if one.name == "server" and one.args:
                peers.append(self._peer(one.args))
            elif one.name == "keepalive" and one.args and re.fullmatch(r"[0-9]{1,9}", one.args[0]):
                keepalive = int(one.args[0])
        if any(peer.here for peer in peers) and len(self.upstreams) < _MOST_FOUND:
            self.upstreams[each.args[0]] = Upstream(
                shown(each.args[0]), f"{shown(where)}:{each.line}", tuple(peers), keepalive
            )

    def _peer(self, args: tuple[str, ...]) -> Peer:
        options = dict(arg.partition("=")[::2] for arg in args[1:])
        fails = options.get("max_fails", "")
        timeout = seconds(options.get("fail_timeout", ""))
        return Peer(
            shown(args[0]),
            self._here(args[0]),
            int(fails) if re.fullmatch(r"[0-9]{1,9}", fails) else 1,
            10.0 if timeout is None else timeout,
            "backup" in options,
        )

    def _here(self, target: str) -> bool:
        """``unix:/run/x.sock``, and of proxy_pass ``unix:/run/x.sock:/uri``."""
        kind, _, rest = target.partition(":")
        return kind == "unix" and self._is_same(rest.partition(":")[0])


def look(reader: Reader, file: str, pid: int, is_same: Callable[[str], bool]) -> Nginx | None:
    """What this configuration has about a path; None: nothing. ``is_same``: is this path that one?"""
    search = _Search(Configuration(reader, file), is_same)
    if search.variables:
        reader.note(f"{shown(file)}: where {search.variables} of its *_pass lead: it is a variable that says it")
    if not search.upstreams and not search.passes:
        return None
    return Nginx(
        pid=pid,
        conf=shown(file),
        user=search.user,
        worker_connections=search.worker_connections,
        upstreams=tuple(search.upstreams.values()),
        passes=tuple(search.passes[:_MOST_FOUND]),
    )


def seconds(text: str) -> float | None:
    """``60``, ``60s``, ``1m 30s``, ``500ms``; None: it is none of these."""
    text = text.replace(" ", "")
    parts = list(_TIME.finditer(text[:100]))
    if not parts or "".join(part[0] for part in parts) != text:
        return None
    return sum(int(part[1]) * _SECONDS[part[2]] for part in parts)
