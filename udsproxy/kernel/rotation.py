"""Rotating a log: FILE becomes FILE.1, FILE.1 becomes FILE.2, and so on, and FILE is made anew.

Rules:

* Nothing is renamed or removed but files that are ours: FILE where the open descriptor is that file; FILE.1 and the
  others where they are plain files of root's or of our own user, without a second name. Symbolic links are not
  followed. In a directory that others may change, a file that was exchanged in that moment goes back
  (`udsproxy.kernel.directory.Directory.move_known`).
* A number that is missing is filled first: what is beyond it stays where it is.
* A rotation that has failed, or was cut short, can be done again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from udsproxy.kernel.directory import Directory, find, identity_of
from udsproxy.kernel.files import foreign_log, open_log

_NEW = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_WAIT_S = 0.2
"""How long another process that rotates in this directory is waited for."""


def require_rotatable(fd: int, path: str, keep: int) -> None:
    """Check that the log that is open can be rotated, before anything is written.

    Raises OSError: it is no file of this name, or what is not ours has one of the names FILE.1 to FILE.``keep``."""
    with _held(path) as (directory, name):
        if not stat.S_ISREG(os.fstat(fd).st_mode) or directory.identity(name) != identity_of(fd):
            raise OSError(errno.EINVAL, "it is not a plain file, so its size cannot be bounded")
        for number in range(1, keep + 1):
            _ours(directory, f"{name}.{number}")


def rotate(fd: int, path: str, keep: int) -> int:
    """Move FILE and those before it on by one, remove what would be FILE.``keep`` + 1, and make FILE anew.

    ``fd`` is what is open, and stays open. Where it is not FILE any more, somebody else has rotated it.

    Returns a descriptor of what is FILE now; if it is new it has mode 600. Raises OSError: a name is not ours.
    """
    with _held(path) as (directory, name), directory.locked(_WAIT_S):
        if directory.identity(name) != identity_of(fd):
            return open_log(path, by_name=True)
        _make_room(directory, name, keep)
        if not directory.move_known(name, f"{name}.1", [identity_of(fd)]):
            raise OSError(errno.EBUSY, f"{name} was exchanged while it was rotated")
        return os.open(name, _NEW, 0o600, dir_fd=directory.fd)


@contextlib.contextmanager
def _held(path: str) -> Iterator[tuple[Directory, str]]:
    """The directory of FILE, and its name there. What is raised inside names FILE."""
    try:
        directory, name = find(path)
        try:
            yield directory, name
        finally:
            directory.close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def _make_room(directory: Directory, name: str, keep: int) -> None:
    """Free FILE.1. Raises OSError."""
    free = 1
    while free <= keep and _ours(directory, f"{name}.{free}") is not None:
        free += 1
    if free > keep:
        free = keep
        directory.remove(f"{name}.{free}", [_ours(directory, f"{name}.{free}")])
    for number in range(free - 1, 0, -1):
        old = f"{name}.{number}"
        directory.move_known(old, f"{name}.{number + 1}", [_ours(directory, old)])


def _ours(directory: Directory, name: str) -> tuple[int, int] | None:
    """Which file has this name; None: none has. Raises OSError: it is not ours."""
    found = directory.stat(name)
    if found is None:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EEXIST, f"{name} is in the way: it is not a plain file")
    if (why := foreign_log(found)) is not None:
        raise OSError(errno.EPERM, f"{name} is in the way: {why}")
    return found.st_dev, found.st_ino
