"""php-fpm's configuration: its sections, and the pool that listens at a path.

The form is php.ini's (``[section]``, ``key = value``, ``;`` comments) with ``include=``; ``$pool`` in a value is
the pool's name (php-fpm.conf(5), sapi/fpm/fpm/fpm_conf.c). Rule: whatever the files are, nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from udsproxy.doctor.reading import MAX_DEPTH, Reader, shown

TITLE = "php-fpm: master process"

_TITLE = re.compile(rf"{TITLE} \((.+)\)")
_SECTION = re.compile(r"\[([^\]]+)\]")
_SETTING = re.compile(r"([\w.]+(?:\[[^\]]*\])?)\s*=\s*(.*)", re.DOTALL)
_TIME = re.compile(r"([0-9]{1,12})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_MOST_LINES = 200_000
_MOST_SECTIONS = 10_000

Sections = dict[str, dict[str, str]]


def configuration_of(title: str) -> str | None:
    """The file that a master's title names; None: it is no master."""
    found = _TITLE.match(title)
    return found[1] if found else None


def read_sections(reader: Reader, file: str) -> tuple[Sections, dict[str, str]]:
    """The settings of each section, and the file that each section is in."""
    found: Sections = {"global": {}}
    files: dict[str, str] = {}
    section = "global"
    for read, (key, value, at) in enumerate(_walk(reader, file, 0, ())):
        if read >= _MOST_LINES:
            reader.note(f"{shown(file)}: more than {_MOST_LINES} lines")
            break
        if key is None:
            section = value
            if len(found) < _MOST_SECTIONS:
                files.setdefault(section, at)
                found.setdefault(section, {})
        elif section in found:
            found[section][key] = value
    return found, files


def _walk(reader: Reader, file: str, depth: int, above: tuple[str, ...]) -> Iterator[tuple[str | None, str, str]]:
    """(key, value, file); a section is a value without a key."""
    text = reader.read(file)
    for line in (text or "").splitlines():
        setting = parse_line(line)
        if setting is None:
            continue
        key, value = setting
        if key != "include":
            yield key, value, file
        elif depth >= MAX_DEPTH or file in above:
            reader.note(f"{shown(file)}: includes that go round, or too deep")
        else:
            # (php-fpm takes them relative to where it was started, mostly the root.)
            for each in reader.matching(value, "/"):
                yield from _walk(reader, each, depth + 1, (*above, file))


def parse_line(line: str) -> tuple[str | None, str] | None:
    """(key, value); of a section (None, its name); None: nothing is said."""
    line = line.strip()
    if found := _SECTION.match(line):
        return None, found[1].strip()
    if line.startswith((";", "#")) or not (setting := _SETTING.match(line)):
        return None
    value = setting[2]
    quoted = value[:1] in ("'", '"')
    return setting[1], value[1:].partition(value[0])[0] if quoted else value.partition(";")[0].rstrip()


def pool_at(sections: Sections, is_same: Callable[[str], bool]) -> str | None:
    """The name of the pool that listens at a path. ``is_same``: is this path that one?"""
    for name, settings in sections.items():
        listen = settings.get("listen")
        if name != "global" and listen:
            prefix = settings.get("prefix", sections["global"].get("prefix", ""))
            listen = listen.replace("$pool", name)
            if is_same(listen if listen.startswith("/") else f"{prefix.replace('$pool', name)}/{listen}"):
                return name
    return None


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
