"""Finding processes by what they call themselves, and how near each is to its limit of descriptors (proc(5)).

Rules: never raises because a process is gone or hidden: then the answer is None, or empty. What a process says of
itself (its title) is anything at all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator

import msgspec

from udsproxy.kernel.procfs import read_parent

_MOST_TITLE = 4096
_MAX_BEFORE = 6
"""Of the arguments: the interpreter, its options, and the script."""
_STARTED = re.compile(r"udsproxy$|python")
"""The first argument of a udsproxy."""
_NOFILE = re.compile(r"^Max open files +(\d+|unlimited) +(\d+|unlimited)", re.MULTILINE)


class Descriptors(msgspec.Struct, frozen=True):
    """RLIMIT_NOFILE of a process, and how many it has open. None: no limit; or that may not be read."""

    soft: int | None = None
    hard: int | None = None
    used: int | None = None


def read_title(pid: int) -> str:
    """``/proc/PID/cmdline``: the arguments, a space between them, or the title that a server has put there."""
    text = _read_command_line(pid)
    return text.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "backslashreplace")


def read_arguments(pid: int) -> list[str]:
    """The same, each argument by itself (`os.fsdecode`)."""
    return [os.fsdecode(word) for word in _read_command_line(pid).removesuffix(b"\0").split(b"\0")]


def is_udsproxy(pid: int) -> bool:
    """Has it been started as a udsproxy, by what its command line says? (As a script, or by ``python -m``.)"""
    return "udsproxy" in map(os.path.basename, read_arguments(pid)[:_MAX_BEFORE])


def words_after(pid: int, *commands: str) -> list[str] | None:
    """What follows ``udsproxy COMMAND`` in the command line of a udsproxy, for one of these commands; None: it is
    another process. (Not one that starts a udsproxy, as sudo does.)"""
    words = read_arguments(pid)
    if not _STARTED.match(os.path.basename(words[0])):
        return None
    for number, (word, command) in enumerate(itertools.pairwise(words[: _MAX_BEFORE + 1])):
        if os.path.basename(word) == "udsproxy" and command in commands:
            return words[number + 2 :]
    return None


def _read_command_line(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(_MOST_TITLE)
    except OSError:
        return b""


def all_pids() -> list[int]:
    """Every process that is shown to us, in the order of their numbers."""
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir("/proc")
    return sorted(int(name) for name in names if name.isdigit())


def titled(start: str) -> Iterator[tuple[int, str]]:
    """The processes whose title begins so."""
    for pid in all_pids():
        title = read_title(pid)
        if title.startswith(start):
            yield pid, title


def titled_children(parent: int, start: str) -> list[int]:
    """The children of a process whose title begins so."""
    return [pid for pid, _ in titled(start) if read_parent(pid) == parent]


def read_descriptors(pid: int) -> Descriptors:
    """How many descriptors it may have, and has."""
    soft = hard = used = None
    with contextlib.suppress(OSError), open(f"/proc/{pid}/limits", encoding="ascii", errors="replace") as file:
        if found := _NOFILE.search(file.read()):
            soft, hard = (int(value) if value.isdigit() else None for value in found.groups())
    with contextlib.suppress(OSError):
        used = len(os.listdir(f"/proc/{pid}/fd"))
    return Descriptors(soft, hard, used)
