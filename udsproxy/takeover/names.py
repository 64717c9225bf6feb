"""The two names of a tapped socket, and how its path is put back.

Rules:

* What to do is decided by which files have the two names now, and by nothing that was done before: so it can be
  done twice, or half, or by somebody else.
* What an exchange has brought is looked at; where it is not what was meant, the names are exchanged back.
* The lock keeps our own processes apart (the proxy, its guardian, another tap, ``tap --restore``). Nobody waits for
  it for long: the checks hold without it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Container
from enum import Enum, auto
from typing import NamedTuple

from udsproxy.kernel.directory import Directory, Identity

SUFFIX = ".udsproxy"
LOCK_S = 1.0
"""How long another udsproxy that works in the directory is waited for."""
_TRAFFIC_LOCK_S = 0.02
"""The same where traffic waits meanwhile."""
_MAX_TRIES = 100
"""How often a path is put back, where a server removes or makes its file in that very moment."""


class Names(NamedTuple):
    """A path that is tapped: the directory, held open, and the socket's name in it."""

    directory: Directory
    name: str

    @property
    def aside(self) -> str:
        """The name of the real socket while we stand at the path."""
        return self.name + SUFFIX

    @property
    def path(self) -> str:
        """The path, for people."""
        return self.directory.path_of(self.name)

    @property
    def aside_path(self) -> str:
        """The path of the real socket while we stand at ``path``, for people."""
        return self.directory.path_of(self.aside)


class Known(NamedTuple):
    """Files that are known, whatever they are called."""

    ours: Container[Identity | None]
    """Those that we made."""
    real: Container[Identity | None]
    """Those that the server made."""


class File(Enum):
    """What has a name."""

    NOTHING = auto()
    OURS = auto()
    REAL = auto()
    SOCKET = auto()
    """A socket that is not known."""
    OTHER = auto()
    """Something else that is not known."""


class Step(Enum):
    """What is done to put a path back."""

    NONE = auto()
    EXCHANGE = auto()
    """Swap the names, and remove ours."""
    MOVE = auto()
    """The real socket back to the path, if somebody listens on it; else it goes."""
    SUPERSEDED = auto()
    """Something else has the path: the real socket goes, unless somebody listens on it."""
    REMOVE_ASIDE = auto()
    REMOVE_PATH = auto()
    REMOVE_BOTH = auto()


_ROWS = """
           NOTHING      OURS          REAL        SOCKET      OTHER
NOTHING    NONE         REMOVE_ASIDE  MOVE        MOVE        NONE
OURS       REMOVE_PATH  REMOVE_BOTH   EXCHANGE    EXCHANGE    REMOVE_PATH
REAL       NONE         REMOVE_ASIDE  SUPERSEDED  SUPERSEDED  NONE
SOCKET     NONE         REMOVE_ASIDE  SUPERSEDED  SUPERSEDED  NONE
OTHER      NONE         REMOVE_ASIDE  SUPERSEDED  SUPERSEDED  NONE
"""


def _table(rows: str) -> dict[tuple[File, File], Step]:
    head, *lines = (line.split() for line in rows.strip().splitlines())
    return {
        (File[row], File[column]): Step[step]
        for row, *steps in lines
        for column, step in zip(head, steps, strict=True)
    }


STEPS = _table(_ROWS)
"""For what is at the path (a row), and beside it (a column): what is done to put the path back."""


def look(names: Names, name: str, known: Known) -> File:
    """Return what has this name. Raises OSError."""
    identity = names.directory.identity(name)
    if identity is None:
        return File.NOTHING
    if identity in known.ours:
        return File.OURS
    if identity in known.real:
        return File.REAL
    return File.SOCKET if names.directory.is_socket(name) else File.OTHER


def put_back(names: Names, known: Known, alive: Callable[[str], bool] | None = None) -> str | None:
    """Put the real socket back to its path, and remove what is ours. Returns what was done, for people; None: there
    was nothing to do.

    ``alive``: whether somebody listens on the socket that has a name; without it that is found by connecting.
    Raises OSError.
    """
    with names.directory.locked(LOCK_S):
        return put_back_locked(names, known, alive)


def put_back_locked(names: Names, known: Known, alive: Callable[[str], bool] | None = None) -> str | None:
    """`put_back`, for who has the lock."""
    alive = alive or names.directory.answers
    for _ in range(_MAX_TRIES):
        here, aside = look(names, names.name, known), look(names, names.aside, known)
        try:
            done, what = _do(STEPS[here, aside], names, known, alive)
        except (FileNotFoundError, FileExistsError):
            continue  # what was there has gone, or something has come: it is another case now
        if done:
            return None if what is None else f"{names.path}: {what}"
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), names.path)


def _do(step: Step, names: Names, known: Known, alive: Callable[[str], bool]) -> tuple[bool, str | None]:
    """Returns whether it was done, and what to say of it. Raises OSError."""
    directory, name, aside = names.directory, names.name, names.aside
    back = "the real socket is back in its place"
    if step is Step.NONE:
        return True, None
    if step is Step.EXCHANGE:
        return _exchange(names, known, File.OURS) and directory.remove(aside, known.ours), back
    if step is Step.REMOVE_ASIDE:
        return directory.remove(aside, known.ours), None
    if step in (Step.REMOVE_PATH, Step.REMOVE_BOTH):
        if step is Step.REMOVE_BOTH:
            directory.remove(aside, known.ours)
        return directory.remove(name, known.ours), "the real socket is gone; ours was removed"
    lives = alive(aside)
    if lives and step is Step.MOVE:
        directory.move(aside, name)
        return True, back
    if lives:
        return True, f"somebody else has taken the path; the server that had it still answers at {names.aside_path}"
    if directory.identity(aside) not in known.real:
        return True, f"{names.aside_path} is left as it is: nobody listens on it, and it is not known"
    return directory.remove(aside, known.real), f"{names.aside_path} was removed: nobody listened on it"


def _exchange(names: Names, known: Known, expected: File) -> bool:
    """Swap the names, so that what is expected comes from the path to the name beside it. Where something else has
    come they are swapped back. Raises OSError."""
    names.directory.exchange(names.name, names.aside)
    if look(names, names.aside, known) is expected:
        return True
    names.directory.exchange(names.name, names.aside)  # somebody has put another there in that very moment
    return False


def stand_down(names: Names, known: Known) -> bool:
    """Give the path to the real socket and keep ours beside it, so that `stand_up` can take it again. Returns
    whether that was done: nothing is, where we do not stand at the path.

    Raises OSError.
    """
    with names.directory.locked(LOCK_S):
        standing = look(names, names.name, known) is File.OURS
        if not standing or look(names, names.aside, known) not in (File.REAL, File.SOCKET):
            return False
        return _exchange(names, known, File.OURS)


def stand_up(names: Names, known: Known) -> bool:
    """Take the path again after `stand_down`. Returns whether that was done. Raises OSError."""
    with names.directory.locked(_TRAFFIC_LOCK_S) as held:
        if not held or not is_stood_down(names, known):
            return False
        return _exchange(names, known, File.REAL)


def is_stood_down(names: Names, known: Known) -> bool:
    """Return whether the real socket is at the path, and ours beside it. Raises OSError."""
    return look(names, names.name, known) is File.REAL and look(names, names.aside, known) is File.OURS
