"""Sockets that systemd holds for a service (systemd.socket(5)): which unit, and what its files say.

Rules: nothing is run or connected to: unit files are read as systemd does, in its order, with their drop-ins. Only
regular files are read, within limits; what cannot be read is as if it were not there. Which process is a systemd is
told by the program that it runs.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Iterable, Iterator

import msgspec

from udsproxy.endpoints import unescaped
from udsproxy.events import printable
from udsproxy.kernel import procfs
from udsproxy.kernel.roots import Root

ROOT = "/"
"""Where the file system begins (tests set it)."""
_PROGRAMS = ("systemd", "systemd-socket-activate")
_SYSTEM = (
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
)
"""systemd.unit(5), the first counts."""
_USER = (
    "/etc/systemd/user",
    "/run/systemd/user",
    "/usr/local/share/systemd/user",
    "/usr/share/systemd/user",
    "/usr/local/lib/systemd/user",
    "/usr/lib/systemd/user",
    "/lib/systemd/user",
)
_SPECIFIERS = {
    "t": "/run",
    "S": "/var/lib",
    "C": "/var/cache",
    "L": "/var/log",
    "E": "/etc",
    "h": "/root",
    "u": "root",
    "U": "0",
    "%": "%",
}
"""As the system's systemd expands them."""
_LISTENS = ("ListenStream", "ListenDatagram", "ListenSequentialPacket")
_TYPE = ".socket"
_MAX_FILES = 4096
"""Units, and drop-ins of one."""
_MAX_BYTES = 1 << 18
"""Of one file."""
_INSTANCE = "\0"
"""Stands for the name of a template's instance, which is to be found out."""


class SocketUnit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A ``.socket`` unit."""

    name: str
    file: str
    service: str
    """Which it starts for the first connection."""
    backlog: int | None = None
    """``Backlog=``; None: it is not set."""
    backlog_file: str | None = None
    """Where that is."""
    accept: bool = False
    """``Accept=yes``: a service of its own for each connection, which systemd accepts."""

    @property
    def text(self) -> str:
        """``php.socket, Backlog=128``."""
        return self.name if self.backlog is None else f"{self.name}, Backlog={self.backlog}"


def is_systemd(pid: int) -> bool:
    """Does this process run systemd? (Where we may not see which program it is, its name is believed.)"""
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")) in _PROGRAMS
    return procfs.read_comm(pid) == _PROGRAMS[0]


def unit_at(addresses: Iterable[str], pid: int = 1) -> SocketUnit | None:
    """The unit that listens at one of these (paths, ``@NAME``). ``pid``: of the systemd whose unit it is: the
    system's, a user's, a container's."""
    wanted = {os.path.normpath(each) if each.startswith("/") else each for each in addresses}
    directories, specifiers = _manager_of(pid)
    root = Root(pid) if ROOT == "/" else Root.at(ROOT)
    try:
        found = (
            _matching(root, name, file, directories, specifiers, wanted) for name, file in _files(root, directories)
        )
        return next((unit for unit in found if unit is not None), None)
    finally:
        root.close()


def _manager_of(pid: int) -> tuple[list[str], dict[str, str]]:
    """The directories of its units, and what it puts for specifiers."""
    ids = None if pid == 1 else procfs.read_ids(pid)
    if ids is None or (ids[0] == 0 and not _is_of_user(pid)):
        return list(_SYSTEM), _SPECIFIERS
    runtime, home, name = f"/run/user/{ids[0]}", "/nonexistent", str(ids[0])
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(ids[0])
        home, name = user.pw_dir, user.pw_name
    own = [f"{home}/.config/systemd/user", f"{runtime}/systemd/user", f"{home}/.local/share/systemd/user"]
    return [*own, *_USER], _SPECIFIERS | {"t": runtime, "h": home, "u": name, "U": str(ids[0])}


def _is_of_user(pid: int) -> bool:
    """Of root's processes: is it root's user manager, and no system's (a container has one, too)?"""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"--user" in file.read(4096).split(b"\0")
    return False


def _files(root: Root, directories: list[str]) -> Iterator[tuple[str, str]]:
    """Each socket unit, and the file that counts."""
    seen = set[str]()
    for directory in directories:
        with contextlib.suppress(OSError, ValueError):
            for name in sorted(root.names(directory))[:_MAX_FILES]:
                if name.endswith(_TYPE) and name not in seen:
                    seen.add(name)
                    yield name, os.path.join(directory, name)


def _matching(
    root: Root, name: str, file: str, directories: list[str], specifiers: dict[str, str], wanted: set[str]
) -> SocketUnit | None:
    settings = [(key, value, file) for key, value in _settings(root, file)]
    if not settings:
        return None  # (it is masked, or nothing is in it)
    for dropin in _dropins(root, name, directories):
        settings += [(key, value, dropin) for key, value in _settings(root, dropin)]
    prefix, at, instance = name.removesuffix(_TYPE).partition("@")
    if at and not instance:
        instance = _INSTANCE
    told = specifiers | {"p": prefix, "i": instance, "I": instance, "j": prefix.rpartition("-")[2]}
    told |= {"n": f"{prefix}{at}{instance}{_TYPE}", "N": f"{prefix}{at}{instance}"}
    listens = dict[str, list[str]]()
    last = dict[str, tuple[str, str]]()
    for key, value, where in settings:
        if key in _LISTENS:
            listens[key] = [*listens.get(key, []), _expanded(value, told)] if value else []
        else:
            last[key] = value, where
    for listen in (each for those in listens.values() for each in those):
        found = _instance_of(listen, wanted)
        if found is not None:
            return _unit(f"{prefix}{at}{instance.replace(_INSTANCE, found)}", file, last, told)
    return None


def _unit(name: str, file: str, last: dict[str, tuple[str, str]], told: dict[str, str]) -> SocketUnit:
    service = _expanded(last["Service"][0], told) if last.get("Service", ("", ""))[0] else f"{name}.service"
    accept = last.get("Accept", ("", ""))[0].lower() in ("1", "yes", "y", "true", "t", "on")
    backlog, where = last.get("Backlog", ("", ""))
    return SocketUnit(
        name=printable(f"{name}{_TYPE}"),
        file=printable(file),
        service=printable(f"{name}@.service" if accept else service),
        backlog=int(backlog) if backlog.isdecimal() and len(backlog) < 11 else None,
        backlog_file=printable(where) if backlog else None,
        accept=accept,
    )


def _instance_of(listen: str, wanted: set[str]) -> str | None:
    """The instance with which this is one of those wanted; empty where it has none; None: it is none of them."""
    path = os.path.normpath(listen) if listen.startswith("/") else listen
    before, *others = path.split(_INSTANCE)
    if not others:
        return "" if path in wanted else None
    pattern = re.compile(re.escape(before) + "([^/]+)" + "\\1".join(map(re.escape, others)))
    return next((found[1] for each in wanted if (found := pattern.fullmatch(each))), None)


def _expanded(value: str, specifiers: dict[str, str]) -> str:
    return re.sub(r"%(.)", lambda found: specifiers.get(found[1], found[0]), value)


def _dropins(root: Root, name: str, directories: list[str]) -> list[str]:
    """In the order in which they count: by name, whatever directory they are in; of two with one name, the one in
    the directory that comes first."""
    stem, at, instance = name.removesuffix(_TYPE).partition("@")
    of = [f"{_TYPE[1:]}.d", *([f"{stem}@{_TYPE}.d"] if at and instance else []), f"{name}.d"]
    found = dict[str, str]()
    for directory in directories:
        for each in reversed(of):
            with contextlib.suppress(OSError, ValueError):
                for file in sorted(root.names(os.path.join(directory, each)))[:_MAX_FILES]:
                    if file.endswith(".conf"):
                        found.setdefault(file, os.path.join(directory, each, file))
    return [found[file] for file in sorted(found)]


def _settings(root: Root, path: str) -> Iterator[tuple[str, str]]:
    """The keys and values of a unit file's section [Socket]."""
    section, before = "", ""
    for line in root.read(path, _MAX_BYTES).decode("utf-8", "surrogateescape").splitlines():
        line = before + line.strip()
        before = ""
        if not line or line[0] in "#;":
            continue
        if line.endswith("\\"):
            before = f"{line[:-1].rstrip()} "
        elif line[0] == "[":
            section = line
        elif section == "[Socket]":
            key, equals, value = line.partition("=")
            if equals:
                yield key.rstrip(), unescaped(value.strip().strip('"'))
