"""Reads configuration files that include each other, and the ends of logs, within limits.

Rules: files are found as the program that they belong to finds them (`udsproxy.kernel.roots`); only regular files
are read, each configuration file once and none beyond `MAX_BYTES_EACH`. What could not be read is noted in a line,
once; a file that is not there is the program's own matter: `Reader.missing` says why. Nothing here raises on what a
file, a name or a pattern is.
"""

from __future__ import annotations

import errno
import fnmatch
import os

from udsproxy.events import printable
from udsproxy.kernel.roots import Root

MAX_BYTES_EACH = 1 << 20
MAX_BYTES = 8 << 20
MAX_FILES = 512
MAX_NAMES = 20_000
"""Names in directories that patterns are compared with."""
MAX_DEPTH = 16
"""Includes within includes."""
MAX_TAIL = 4 << 20
"""Of a log, the last bytes are read."""

_MAX_NOTES = 20
_WILD = set("*?[")
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR}


class Reader:
    """Files of one program."""

    def __init__(self, root: Root | None = None) -> None:
        self.root = Root() if root is None else root
        self.notes: list[str] = []
        """What was not read, and why: a line each."""
        self._texts: dict[str, str | None] = {}
        self._missing: dict[str, str] = {}
        self._nbytes = 0
        self._names = 0

    def read(self, path: str) -> str | None:
        """A file's text, as `os.fsdecode`, so that names in it stand for the same files; None: it cannot be had."""
        if path not in self._texts:
            if len(self._texts) >= MAX_FILES or self._nbytes >= MAX_BYTES:
                self.note(f"more than {len(self._texts)} files or {MAX_BYTES >> 20} MiB of configuration")
                return None
            self._texts[path] = self._read(path)
        return self._texts[path]

    def missing(self, path: str) -> str | None:
        """Why a file that was to be read is none: ``no such file``, ``a link to /x, which is not there``, ``a
        directory``. None: it is a file, or that is not known."""
        return self._missing.get(path)

    def _read(self, path: str) -> str | None:
        data = bytearray()
        try:
            number = self.root.open(path)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _NOT_THERE:
                self._missing[path] = self._why_missing(path, error.errno)
            else:
                why = error.strerror if isinstance(error, OSError) else None
                self.note(f"{shown(path)}: {why or 'no name of a file'}")
            return None
        try:
            while len(data) <= MAX_BYTES_EACH and (more := os.read(number, MAX_BYTES_EACH + 1 - len(data))):
                data += more
        except OSError as error:
            self.note(f"{shown(path)}: {error.strerror}")
            return None
        finally:
            os.close(number)
        if len(data) > MAX_BYTES_EACH:
            self.note(f"{shown(path)}: what comes after its first MiB")
        self._nbytes += len(data)
        return os.fsdecode(bytes(data[:MAX_BYTES_EACH]))

    def _why_missing(self, path: str, number: int) -> str:
        if number == errno.EISDIR:
            return "a directory"
        link = self.root.link(path)
        if link is not None:
            return f"a link to {shown(link)}, which is not there"
        return "no such file"

    def tail(self, path: str) -> tuple[bytes, bool, float] | None:
        """The end of a log: its last bytes, whether these are all, and when it was written last (seconds since
        1970). None: it cannot be read, which is noted."""
        try:
            number = self.root.open(path)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "no name of a file"
            link = self.root.link(path)
            self.note(f"{shown(path)}: {why if link is None else f'it is a link to {shown(link)}'}")
            return None
        try:
            about = os.fstat(number)
            begin = max(0, about.st_size - MAX_TAIL)
            data = bytearray()
            # (It may grow meanwhile: what comes later is left.)
            while len(data) < MAX_TAIL and (more := os.pread(number, MAX_TAIL - len(data), begin + len(data))):
                data += more
        except OSError as error:
            self.note(f"{shown(path)}: {error.strerror}")
            return None
        finally:
            os.close(number)
        return bytes(data), not begin, about.st_mtime

    def matching(self, pattern: str, directory: str) -> list[str]:
        """The files that an include means, in order, as glob(3) finds them: links that lead nowhere, too.
        ``directory``: where a relative one begins. A name without a wildcard need not be there."""
        pattern = os.path.join(directory, pattern)
        if "\0" in pattern or len(pattern) > 4096:
            self.note("an include whose name is none")
            return []
        if not is_pattern(pattern):
            return [pattern]
        found, is_listed = ["/"], True
        for part in filter(None, pattern.split("/")):
            if not is_pattern(part):
                found = [os.path.join(each, part) for each in found]
                is_listed = False
                continue
            found = [os.path.join(each, name) for each in found for name in self._names_in(each, part)]
            is_listed = True
        found = found[:MAX_NAMES]
        return [each for each in found if is_listed or self.root.exists(each)][:MAX_FILES]

    def _names_in(self, directory: str, pattern: str) -> list[str]:
        found: list[str] = []
        if self._names > MAX_NAMES:
            return found
        try:
            names = sorted(self.root.names(directory))
        except (OSError, ValueError) as error:
            if isinstance(error, PermissionError):
                self.note(f"{shown(directory)}: {error.strerror}")
            return found
        for name in names:
            self._names += 1
            if self._names > MAX_NAMES:
                self.note(f"more than {MAX_NAMES} names in directories that are included")
                break
            if name.startswith(".") <= pattern.startswith(".") and fnmatch.fnmatchcase(name, pattern):
                found.append(name)
        return found

    def note(self, line: str) -> None:
        if line not in self.notes and len(self.notes) < _MAX_NOTES:
            self.notes.append(line)


def is_pattern(name: str) -> bool:
    """It has wildcards, and stands for the files that it matches."""
    return not _WILD.isdisjoint(name)


def shown(text: str, limit: int = 200) -> str:
    """What somebody else wrote, to be shown."""
    text = printable(text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."
