"""php-fpm's configuration: its sections, and the pool that listens at a path (sapi/fpm/fpm/fpm_conf.c).

Each line is a php.ini of its own (``[section]``, ``key = value``, ``;`` comments, quotes, ``${NAME}`` of the
environment); ``$pool`` in a value is the section's name. The same section may stand in several places, and is
merged key by key: the last value of each counts. ``include`` is a pattern; what stands behind it belongs to the
section that the included file ended in. Relative names begin at php-fpm's prefix (its option -p, or as it was
compiled).

Rule: whatever the files are, nothing here raises.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from udsproxy.doctor.facts import Refused
from udsproxy.doctor.reading import Reader, is_pattern, shown

TITLE = "php-fpm: master process"

_TITLE = re.compile(rf"{TITLE} \((.+)\)")
_SECTION = re.compile(r"\[([^\]]+)\](.*)", re.DOTALL)
_SETTING = re.compile(r"([\w.]+(?:\[[^\]]*\])?)\s*=\s*(.*)", re.DOTALL)
_VALUE = re.compile(
    r"""(?P<comment>;) | "(?P<double>(?:\\.|[^"\\])*)"? | '(?P<single>[^']*)'? | (?P<bare>[^;"']+)""", re.VERBOSE
)
_CONSTANTS = {
    "on": "1", "yes": "1", "true": "1", "off": "", "no": "", "false": "", "none": "", "null": "",
}  # fmt: skip
"""zend_ini_scanner.l: bare words."""
_TIME = re.compile(r"([0-9]{1,12})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_FILES_DEEP = 5
"""fpm_conf_load_ini_file(): "failed to include more than 5 files recursively"."""
_MAX_LINES = 200_000
_MAX_SECTIONS = 10_000
_MAX_INCLUDES = 2_000
_MAX_PREFIXES = 32
_DEFAULT = "/etc/php-fpm.conf"
"""Below the prefix, where -p is given and -y is not."""
GLOBAL = "global"


class Setting(msgspec.Struct, frozen=True):
    """A value, and where it stands."""

    value: str
    at: str
    """``/etc/php/8.2/fpm/pool.d/www.conf:7``."""

    @property
    def is_known(self) -> bool:
        """The environment of php-fpm has no part in it: nobody else sees that."""
        return "${" not in self.value


@dataclass(slots=True)
class Section:
    """A pool, or [global]: what counts of each setting."""

    name: str
    at: str
    settings: dict[str, Setting] = field(default_factory=dict)

    def value(self, key: str) -> str | None:
        """None: it is not set, or not known."""
        setting = self.settings.get(key)
        return setting.value if setting is not None and setting.is_known else None


@dataclass(slots=True)
class Configuration:
    """All files of a php-fpm."""

    prefix: str
    sections: dict[str, Section]
    """By name, in lower case; the first is [global]."""
    is_relative: bool = False
    """An include is relative to the prefix."""
    lines: int = 0
    """How many were read."""
    refused: list[Refused] = field(default_factory=list)
    """For which php-fpm would not start."""

    @property
    def needs_prefix(self) -> bool:
        """Another prefix would make it another configuration."""
        return self.is_relative or any(
            self.listens(each) is not None and not (each.value(key) or "/").startswith("/")
            for each in self.pools
            for key in ("listen", "prefix")
        )

    @property
    def pools(self) -> list[Section]:
        return [each for name, each in self.sections.items() if name != GLOBAL]

    @property
    def common(self) -> Section:
        return self.sections[GLOBAL]

    def listens(self, pool: Section) -> str | None:
        """The path of a pool's socket; None: it has none (it is a TCP port), or it is not known."""
        listen = pool.value("listen")
        if not listen or ":" in listen or listen.isdecimal():
            return None
        return os.path.join(self.prefix, pool.value("prefix") or "", listen)


def configuration_of(title: str) -> str | None:
    """The file that a master's title names; None: it is no master."""
    found = _TITLE.match(title)
    return found[1] if found else None


def prefixes(file: str, program: str | None, places: Iterable[str]) -> list[str]:
    """What its prefix may be, the likeliest first: -p does not stand in a master's title. ``file``: its
    configuration; ``program``: its executable; ``places``: other paths that may be below the prefix."""
    found = []
    if file.endswith(_DEFAULT) and file != _DEFAULT:
        found.append(file.removesuffix(_DEFAULT))
    if program is not None and os.path.basename(os.path.dirname(program)) in ("sbin", "bin"):
        found.append(os.path.dirname(os.path.dirname(program)))
    for path in (file, *places):
        while (parent := os.path.dirname(path)) != path:
            found.append(parent)
            path = parent
    return list(dict.fromkeys(found or ["/"]))[:_MAX_PREFIXES]


def read(reader: Reader, file: str, prefix: str) -> Configuration:
    """A file, and all that it includes."""
    reading = _Reading(reader, Configuration(prefix, {GLOBAL: Section(GLOBAL, file)}))
    reading.read(file, 1)
    if reader.missing(file) is not None:
        reader.note(f"{shown(file)}: {reader.missing(file)}")
    return reading.found


class _Reading:
    """The section that a line belongs to is the last that was named, in whatever file."""

    def __init__(self, reader: Reader, found: Configuration) -> None:
        self.found = found
        self._reader = reader
        self._section: Section | None = found.common
        self._includes = 0

    def read(self, file: str, depth: int) -> None:
        for number, line in enumerate((self._reader.read(file) or "").split("\n"), 1):
            self.found.lines += 1
            if self.found.lines > _MAX_LINES:
                self._reader.note(f"{shown(file)}: more than {_MAX_LINES} lines")
                return
            for key, value in parse_line(line):
                at = f"{shown(file)}:{number}"
                if key is None:
                    self._enter(value, at)
                elif key == "include":
                    self._include(value, at, depth)
                elif self._section is not None:
                    value = value.replace("$pool", self._section.name)
                    self._section.settings[key.lower()] = Setting(value, at)

    def _enter(self, name: str, at: str) -> None:
        sections = self.found.sections
        if len(sections) < _MAX_SECTIONS:
            sections.setdefault(name.lower(), Section(name, at))
        self._section = sections.get(name.lower())

    def _include(self, pattern: str, at: str, depth: int) -> None:
        if not pattern.startswith("/"):
            self.found.is_relative = True
        for path in self._reader.matching(pattern, self.found.prefix):
            if depth >= _MAX_FILES_DEEP:
                self._refuse(path, at, f"more than {_MAX_FILES_DEEP} files that include each other")
                return
            self._includes += 1
            if self._includes > _MAX_INCLUDES:
                self._reader.note(f"{at}: more than {_MAX_INCLUDES} files are included")
                return
            self.read(path, depth + 1)
            why = self._reader.missing(path)
            # (A name without a wildcard is a pattern that matches nothing, which is no error; nor is a directory.)
            if why is not None and why != "a directory" and (is_pattern(pattern) or why != "no such file"):
                self._refuse(path, at, why)

    def _refuse(self, path: str, at: str, why: str) -> None:
        refused = Refused("php-fpm", shown(path), at, why)
        if refused not in self.found.refused and len(self.found.refused) < _MAX_PREFIXES:
            self.found.refused.append(refused)


def parse_line(line: str) -> Iterator[tuple[str | None, str]]:
    """(key, value); of a section (None, its name)."""
    line = line.strip()
    if found := _SECTION.match(line):
        yield None, found[1].strip("\"'")
        line = found[2].strip()
    if setting := _SETTING.match(line):
        yield setting[1], parse_value(setting[2])


def parse_value(text: str) -> str:
    """What stands behind the ``=``: words and quoted texts, up to a comment."""
    parts = []
    for found in _VALUE.finditer(text.strip()):
        if found["comment"]:
            break
        part = found[0] if found["bare"] else found["single"]
        parts.append(re.sub(r"\\([\"\\])", r"\1", found["double"]) if part is None else part)
    value = "".join(parts).rstrip()
    if len(parts) == 1 and not text.strip().startswith(("'", '"')):
        return _CONSTANTS.get(value.lower(), value)
    return value


def pool_at(found: Configuration, is_same: Callable[[str], bool]) -> Section | None:
    """The pool that listens at a path. ``is_same``: is this path that one?"""
    for pool in found.pools:
        listen = found.listens(pool)
        if listen is not None and is_same(listen):
            return pool
    return None


def pool_of_unknown(found: Configuration) -> Section | None:
    """The one pool whose ``listen`` the environment says; None: there is none, or there are several."""
    unknown = [each for each in found.pools if "listen" in each.settings and each.value("listen") is None]
    return unknown[0] if len(unknown) == 1 else None


def seconds(text: str | None) -> float | None:
    """``30``, ``30s``, ``5m``; None: it is none of these, or not set."""
    found = _TIME.fullmatch((text or "").strip())
    return float(int(found[1]) * _SECONDS[found[2]]) if found else None


def number(text: str | None, otherwise: int) -> int:
    """A whole number; what is none is as if it was not set."""
    found = re.fullmatch(r"[+-]?\d{1,18}", (text or "").strip(), re.ASCII)
    return int(found[0]) if found else otherwise


def octal(text: str | None) -> int | None:
    """A mode, ``0660``."""
    found = re.fullmatch(r"[0-7]{1,6}", (text or "").strip())
    return int(found[0], 8) & 0o7777 if found else None
