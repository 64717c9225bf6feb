"""The socket that is looked at, as the configurations of other programs may name it.

Rule: in a container a path means another file than here. There the file decides, or the name that the server itself
has bound.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable
from copy import copy

from udsproxy.doctor.facts import Entry
from udsproxy.doctor.reading import shown
from udsproxy.doctor.way import way_to
from udsproxy.kernel.roots import Root
from udsproxy.kernel.server_diag import is_bound
from udsproxy.kernel.socket_file import SocketFile


class KnownSocket:
    """See the module."""

    def __init__(self, path: str | None, bound: str | None = None) -> None:
        """``path``: absolute; None: it is an abstract name, and no path. ``bound``: what its server calls it."""
        self.others: frozenset[str] = frozenset()
        """Further paths that stand for it here."""
        self.path = path
        self.real = None if path is None else os.path.realpath(path)
        self.bound = bound
        self._file: tuple[int, int] | None = None
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                found = os.stat(path)
                self._file = (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None

    @property
    def names(self) -> tuple[str, ...]:
        """Absolute paths that it has, or may have elsewhere."""
        found = (self.path, self.real, self.bound, *sorted(self.others))
        return tuple(dict.fromkeys(each for each in found if each is not None and each.startswith("/")))

    def known_as(self, paths: Iterable[str]) -> KnownSocket:
        """The same, with further paths: its server's, behind what stands in front of it."""
        known = copy(self)
        known.others = frozenset(paths)
        return known

    def seen_from(self, root: Root, pid: int | None = None) -> SeenFrom:
        """``pid``: a process with that root directory."""
        return SeenFrom(self, root, pid)

    def is_file(self, root: Root, path: str) -> bool:
        """A path leads a process with that root directory to the socket's file."""
        if self._file is None:
            return False
        try:
            found = root.stat(path)
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) == self._file

    def was_file(self, path: str, pid: int) -> bool:
        """A path leads a process to a mount of the file that was the socket's before its server made it anew."""
        if self._file is None or self.real is None:
            return False
        try:
            file = SocketFile.at(path, pid)
        except (OSError, ValueError):
            return False
        mount = file.mount
        return (
            mount is not None
            and mount.is_replaced
            and mount.point == path
            and file.stat.st_dev == self._file[0]
            and self.real.endswith(mount.source)
        )


class SeenFrom:
    """The socket, and others, by the paths that a process with some root directory has for them."""

    def __init__(self, known: KnownSocket, root: Root, pid: int | None) -> None:
        self._known = known
        self._pid = pid
        self._root = root
        self.names = known.names
        self.leads_there: dict[str, bool] = {}
        """Below another root: paths that were taken for the socket, and whether they lead to its file."""

    def is_same(self, path: str) -> bool:
        known = self._known
        if not path.startswith("/"):
            return False
        if self._root.is_ours:
            if os.path.normpath(path) in (known.path, *known.others):
                return True
            with contextlib.suppress(OSError, ValueError):
                if known.real is not None and os.path.realpath(path) == known.real:
                    return True
            return known.is_file(self._root, path)
        is_file = known.is_file(self._root, path)
        was_file = not is_file and self._pid is not None and known.was_file(path, self._pid)
        if is_file or was_file or os.path.normpath(path) == known.bound:
            self.leads_there[path] = is_file
            return True
        return False

    def there(self) -> str | None:
        """As `udsproxy.doctor.facts.Nginx.there`."""
        paths = sorted(self.leads_there, key=self.leads_there.__getitem__, reverse=True)
        return shown(paths[0]) if paths else None

    def way(self) -> tuple[Entry, ...] | None:
        """As `udsproxy.doctor.facts.Nginx.way`, for the paths that were taken for the socket."""
        if not self.leads_there:
            return None
        path = next((each for each, is_file in self.leads_there.items() if is_file), None)
        try:
            return () if path is None else way_to(self._root, path)
        except (OSError, ValueError):
            return ()

    def missing(self, path: str) -> str | None:
        """Why nobody can be reached there; None: a socket is there, or that cannot be told."""
        try:
            fd = self._root.pin(path)
        except (FileNotFoundError, NotADirectoryError):
            return "no such file"
        except (OSError, ValueError):
            return None
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                return "a file, and no socket"
            return "a socket that nobody has" if is_bound(f"/proc/self/fd/{fd}") is False else None
        finally:
            os.close(fd)
