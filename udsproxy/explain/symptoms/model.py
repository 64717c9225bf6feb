"""What an entry of the table of lines is."""

from __future__ import annotations

import re

import msgspec

from udsproxy.explain.errors import Cause
from udsproxy.logs.line import LogLine


class Symptom(msgspec.Struct, frozen=True):
    """A line that is known by its words: it has no errno, or one that is not the socket's.

    ``words`` is what is logged; ``pattern`` finds it in the program's own words, where ``words`` would not do.
    ``programs`` are those that write it: a line that is known to be another program's is not it. A ``weak`` one
    counts only where the line has no errno.

    ``elsewhere``: it is not the socket's failure, so that the line's errno is told, and the socket's path is not.
    ``rest``: it is what remains of a program's lines with an errno, so that the program has to be known.
    """

    words: str
    means: str
    causes: tuple[Cause, ...]
    pattern: str = ""
    programs: tuple[str, ...] = ()
    fault: str | None = None
    see: tuple[str, ...] = ()
    weak: bool = False
    elsewhere: bool = False
    rest: bool = False

    def is_in(self, line: LogLine) -> bool:
        """Whether ``line`` says so."""
        if self.rest and line.program not in self.programs:
            return line.said == self.words
        if self.programs and line.program and line.program not in self.programs:
            return False
        return self._search(line) is not None

    def named(self, call: str | None, file: str | None) -> str:
        """Its words, with the call and the file that the line names."""
        words = self.words if call is None else re.sub(r"^open\(\)", f"{call}()", self.words)
        return words if file is None else words.replace('"FILE"', f'"{file}"')

    def file_in(self, line: LogLine) -> str | None:
        """The file that the line names, where the pattern has a group for it."""
        found = self._search(line)
        return None if found is None else next((each for each in found.groupdict().values() if each), None)

    def _search(self, line: LogLine) -> re.Match[str] | None:
        return re.search(self.pattern or re.escape(self.words), line.said, re.IGNORECASE)
