"""Reads configuration files that include each other, within limits.

Rules: only regular files are read, each at most once and none beyond `MOST_BYTES_EACH`; what was left out is noted
in a line, once. Nothing here raises on what a file, a name or a pattern is.
"""

from __future__ import annotations

import fnmatch
import os
import stat

from udsproxy.events import printable

MOST_BYTES_EACH = 1 << 20
MOST_BYTES = 8 << 20
MOST_FILES = 512
MOST_NAMES = 20_000
"""Names in directories that patterns are compared with."""
MOST_DEPTH = 16
"""Includes within includes."""

_MOST_NOTES = 20
_NOT_FILES = ("/proc/", "/sys/", "/dev/")
"""Reading something there may have an effect, and anybody can name it in the title of a process."""
_WILD = set("*?[")


class Reader:
    """Files of one program."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        """What was not read, and why: a line each."""
        self._texts: dict[str, str | None] = {}
        self._nbytes = 0
        self._names = 0

    def read(self, path: str) -> str | None:
        """A file's text; None: it cannot be had."""
        if path not in self._texts:
            if len(self._texts) >= MOST_FILES or self._nbytes >= MOST_BYTES:
                self.note(f"more than {len(self._texts)} files or {MOST_BYTES >> 20} MiB of configuration")
                return None
            self._texts[path] = self._read(path)
        return self._texts[path]

    def _read(self, path: str) -> str | None:
        if os.path.realpath(path.replace("\0", "")).startswith(_NOT_FILES):
            self.note(f"{shown(path)}: no configuration is there")
            return None
        try:
            # (A FIFO would be waited for.)
            number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            self.note(f"{shown(path)}: {why or 'no name of a file'}")
            return None
        data = bytearray()
        try:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                self.note(f"{shown(path)}: it is no regular file")
                return None
            while len(data) <= MOST_BYTES_EACH and (more := os.read(number, MOST_BYTES_EACH + 1 - len(data))):
                data += more
        except OSError as error:
            self.note(f"{shown(path)}: {error.strerror}")
            return None
        finally:
            os.close(number)
        if len(data) > MOST_BYTES_EACH:
            self.note(f"{shown(path)}: what comes after its first MiB")
        self._nbytes += len(data)
        return bytes(data[:MOST_BYTES_EACH]).decode("utf-8", "backslashreplace")

    def matching(self, pattern: str, directory: str) -> list[str]:
        """The files that an include means, in order; ``directory``: where a relative one begins."""
        pattern = os.path.join(directory, pattern)
        if "\0" in pattern or len(pattern) > 4096:
            self.note("an include whose name is none")
            return []
        if not _WILD & set(pattern):
            return [pattern]
        found = ["/"]
        for part in filter(None, pattern.split("/")):
            if not _WILD & set(part):
                found = [os.path.join(each, part) for each in found]
                continue
            found = [os.path.join(each, name) for each in found for name in self._names_in(each, part)]
        return [each for each in found if os.path.exists(each)][:MOST_FILES]

    def _names_in(self, directory: str, pattern: str) -> list[str]:
        found = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self._names += 1
                    if self._names > MOST_NAMES:
                        self.note(f"more than {MOST_NAMES} names in directories that are included")
                        break
                    if entry.name.startswith(".") <= pattern.startswith(".") and fnmatch.fnmatchcase(
                        entry.name, pattern
                    ):
                        found.append(entry.name)
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                self.note(f"{shown(directory)}: {error.strerror}")
        return sorted(found)

    def note(self, line: str) -> None:
        if line not in self.notes and len(self.notes) < _MOST_NOTES:
            self.notes.append(line)


def shown(text: str, most: int = 200) -> str:
    """What somebody else wrote, to be shown."""
    text = printable(text[: most + 1])
    return text if len(text) <= most else text[:most] + "..."
