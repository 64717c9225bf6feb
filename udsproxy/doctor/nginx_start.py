"""How a running nginx was started: its options, from its title, and what was decided when it was compiled, from its
executable (auto/options, ngx_process_options() in nginx.c).

- A relative -c, and error logs, begin at the prefix: -p, or the compiled one. A relative -p begins where nginx was
  started, which is its working directory still.
- Rule: a title is only a claim, and the executable may be anything: both are read within limits.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat

import msgspec

from udsproxy.doctor.reading import shown
from udsproxy.kernel.roots import Root

TITLE = "nginx: master process"

_DEFAULTS = ("/etc/nginx/nginx.conf", "/usr/local/nginx/conf/nginx.conf", "/usr/local/etc/nginx/nginx.conf")
"""Where it may be, where the executable cannot be read."""
_GLOBALS = re.compile(r"\s-g\s*(?P<text>.*?)\s*(?=\s-[cpeqtT]\s|\Z)", re.DOTALL)
_OPTION = re.compile(r"\s-(?P<name>[cpe])\s*(?P<value>\S+)")
_BUILD = re.compile(rb"(?:^|[\s'\0])--(prefix|conf-path|error-log-path)=([^\s'\0]{1,1000})")
_MARKS = (b"--prefix=", b"--conf-path=", b"--error-log-path=")
_MAX_PROGRAM = 32 << 20
_CHUNK = 1 << 20


class Options(msgspec.Struct, frozen=True):
    """Of the command line."""

    file: str | None = None
    prefix: str | None = None
    error_log: str | None = None
    globals: str = ""
    """Directives of -g, as text."""


class Build(msgspec.Struct, frozen=True):
    """Of ``nginx -V``."""

    prefix: str = "/usr/local/nginx"
    file: str = "conf/nginx.conf"
    error_log: str = "logs/error.log"


class Start(msgspec.Struct, frozen=True):
    """Where an nginx has its files."""

    file: str
    """The configuration."""
    prefix: str
    """Where relative names of logs begin."""
    error_log: str
    """Where none is configured; ``stderr``."""
    globals: str = ""
    directory: str = "/"
    """The working directory, where relative names of sockets begin."""


def options_of(title: str) -> Options:
    """What a master's title has. (It has no quotes: what has blanks is cut.)"""
    title = title.removeprefix(TITLE)
    given = _GLOBALS.search(title)
    rest = title if given is None else title[: given.start()] + title[given.end() :]
    found = {match["name"]: match["value"] for match in _OPTION.finditer(rest)}
    return Options(found.get("c"), found.get("p"), found.get("e"), "" if given is None else given["text"])


def build_of(data: bytes, known: Build | None = None) -> Build | None:
    """What an executable, or a part of it, has of ``configure arguments``; None: nothing."""
    found = {name.decode(): value.decode("utf-8", "backslashreplace") for name, value in _BUILD.findall(data)}
    if not found:
        return known
    base = known or Build()
    return Build(
        found.get("prefix", base.prefix),
        found.get("conf-path", base.file),
        found.get("error-log-path", base.error_log),
    )


def start_of(options: Options, build: Build | None, directory: str | None, root: Root) -> Start | None:
    """Where it has its files; None: nothing says where. ``directory``: its working directory; None: not known."""
    if directory is None:
        if options.prefix is not None and not options.prefix.startswith("/"):
            return None
        directory = "/"
    prefix = os.path.join(directory, options.prefix or (Build() if build is None else build).prefix)
    if options.file is None and build is None:
        places = (*([os.path.join(prefix, Build().file)] if options.prefix else []), *_DEFAULTS)
        file = next((each for each in places if root.exists(each)), None)
    elif options.file is not None and not options.file.startswith("/") and build is None and not options.prefix:
        file = None
    else:
        file = options.file or (Build() if build is None else build).file
    if file is None:
        return None
    log = options.error_log or (build.error_log if build is not None else "stderr")
    return Start(
        os.path.normpath(os.path.join(prefix, file)),
        os.path.normpath(prefix),
        log,
        options.globals,
        directory,
    )


def started(pid: int, title: str, root: Root) -> Start | None:
    """Of a running nginx."""
    directory = None
    with contextlib.suppress(OSError):
        directory = os.readlink(f"/proc/{pid}/cwd")
    return start_of(options_of(title), _read_build(pid, root), directory, root)


def _read_build(pid: int, root: Root) -> Build | None:
    """From its executable, or the usual one where we may not see which that is."""
    found = None
    with contextlib.suppress(OSError, ValueError), open(_program(pid, root), "rb", buffering=0) as file:
        kept = b""
        for _ in range(_MAX_PROGRAM // _CHUNK):
            data = file.read(_CHUNK)
            if not data:
                break
            # (What lies across the end of a part is found with the next one.)
            part = kept + data
            if any(mark in part for mark in _MARKS):
                found = build_of(part, found)
            kept = data[-4096:]
    return found


def _program(pid: int, root: Root) -> int:
    """Raises OSError, ValueError."""
    try:
        fd = os.open(f"/proc/{pid}/exe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return root.open("/usr/sbin/nginx")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"{shown(str(pid))}: no executable")
    return fd


def is_log(target: str) -> bool:
    """A file, and not stderr, syslog, memory or a device."""
    return bool(target) and target != "stderr" and not target.startswith(("syslog:", "memory:", "/dev/"))
