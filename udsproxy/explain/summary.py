"""What the lines of logs say together: how often each error came, when, and for which scripts.

Rules:

* Sans I/O. Memory is bounded, whatever the logs hold: `MAX_KINDS` errors, `MAX_SCRIPTS` scripts of each, and the
  newest `MAX_RUNS` runs. What is beyond is counted, not kept.
* Lines come in order of time (`merged`). A line without a time has that of the line before it in its file.
* A time without a zone is local time; all are shown in local time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, MutableSequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from udsproxy.explain.lines import Found, understand
from udsproxy.logs.records import Records

MAX_KINDS = 500
MAX_SCRIPTS = 200
MAX_RUNS = 15
_MAX_OF_RUN = 20
"""Scripts of one run that are kept."""
_GAP = timedelta(seconds=5)
"""Lines that are further apart are not one event."""

Kind = tuple[str | None, str | None, str | None, str | None]
"""Call, errno, a symptom's words, the socket's path (or the call that failed instead): lines that share it are
counted together."""
Meant = tuple[str | None, str | None, str | None]
"""Call, errno, a symptom's words: what has one explanation."""
Stamped = tuple[datetime | None, Found]
_EARLIEST = datetime.min.replace(tzinfo=UTC)


def kind_of(found: Found) -> Kind:
    """What it is counted as."""
    return *meant(found), found.path or found.tcp or found.failed


def meant(found: Found) -> Meant:
    """What it is explained as. (With a symptom, the errno is the line's.)"""
    symptom = None if found.symptom is None else found.symptom.words
    return found.call, found.errno, symptom


def script_of(found: Found) -> str | None:
    """The script, or the path of the request."""
    if found.script is not None:
        return found.script
    words = (found.request or "").split(" ")
    return words[1].partition("?")[0] or None if len(words) > 1 else None


@dataclass(slots=True)
class Tally:
    """One kind of error. ``example`` is the newest line of it."""

    example: Found
    count: int = 0
    first: datetime | None = None
    last: datetime | None = None
    busiest: datetime | None = None
    """The minute with most of its lines."""
    busiest_count: int = 0
    scripts: dict[str, int] = field(default_factory=dict)
    texts: dict[str, int] = field(default_factory=dict)
    """What scripts wrote."""
    files: dict[str, int] = field(default_factory=dict)
    """Those that could not be used."""
    _minute: datetime | None = None
    _in_minute: int = 0

    def add(self, found: Found, at: datetime | None) -> None:
        self.example = found
        self.count += 1
        script = script_of(found)
        if script is not None:
            _count(self.scripts, script, MAX_SCRIPTS)
        for text in found.texts:
            _count(self.texts, text, MAX_SCRIPTS)
        if found.file is not None:
            _count(self.files, found.file, MAX_SCRIPTS)
        if at is None:
            return
        self.first = self.first or at
        self.last = at
        minute = at.replace(second=0, microsecond=0)
        self._in_minute = self._in_minute + 1 if minute == self._minute else 1
        self._minute = minute
        if self._in_minute > self.busiest_count:
            self.busiest, self.busiest_count = minute, self._in_minute


def top(counts: dict[str, int], number: int) -> list[tuple[str, int]]:
    """The most frequent ones."""
    return sorted(counts.items(), key=lambda each: -each[1])[:number]


def _count(counts: dict[str, int], name: str, limit: int) -> None:
    if name in counts or len(counts) < limit:
        counts[name] = counts.get(name, 0) + 1


@dataclass(slots=True)
class Run:
    """Lines in a row that are one event: of one kind, of one program, about the same file or text of a script, and
    not far apart."""

    example: Found
    first: datetime | None
    last: datetime | None
    count: int = 0
    scripts: dict[str, int] = field(default_factory=dict)

    def takes(self, found: Found, at: datetime | None) -> bool:
        """Whether this line belongs to it."""
        if kind_of(found) != kind_of(self.example) or found.program != self.example.program:
            return False
        if (found.texts, found.file) != (self.example.texts, self.example.file):
            return False
        return at is None or self.last is None or at - self.last <= _GAP

    def add(self, found: Found, at: datetime | None) -> None:
        self.example, self.last, self.count = found, at or self.last, self.count + 1
        if (script := script_of(found)) is not None:
            _count(self.scripts, script, _MAX_OF_RUN)


def runs_of(stamped: Iterable[Stamped], runs: MutableSequence[Run]) -> None:
    """Append them, in order of time."""
    for at, found in stamped:
        if not runs or not runs[-1].takes(found, at):
            runs.append(Run(found, at, at))
        runs[-1].add(found, at)


class Summary:
    """All that was found so far."""

    def __init__(self) -> None:
        self._tallies: dict[Kind, Tally] = {}
        self.runs: deque[Run] = deque(maxlen=MAX_RUNS)
        self.others = 0
        """Lines of kinds beyond `MAX_KINDS`."""

    def add(self, found: Found, at: datetime | None) -> None:
        """Count it."""
        kind = kind_of(found)
        if (tally := self._tallies.get(kind)) is None:
            if len(self._tallies) >= MAX_KINDS:
                self.others += 1
                return
            tally = self._tallies[kind] = Tally(found)
        tally.add(found, at)
        runs_of([(at, found)], self.runs)

    def tallies(self) -> list[Tally]:
        """The most frequent first; of those as frequent, the newest."""
        order = sorted(self._tallies.values(), key=lambda each: each.last or _EARLIEST, reverse=True)
        return sorted(order, key=lambda each: each.count, reverse=True)


class Reader:
    """The lines of one file or stream: what each says, and when."""

    def __init__(self, today: date, *, is_cut: bool = False) -> None:
        """``is_cut``: the first line may be of a record that began before it."""
        self._records = Records(today, is_cut=is_cut)
        self.has_zone = True
        """No time came without one."""
        self.last: datetime | None = None
        """The time of the last line, in local time."""

    def read(self, lines: Iterable[str], *, whole: bool = True) -> Iterator[Stamped]:
        """Those that have an error. ``whole``: nothing of the last one is still to come."""
        for said in self._records.all(lines) if whole else self._records.read(lines):
            if said.at is not None:
                self.last = _local(said.at) or self.last
                self.has_zone &= said.at.tzinfo is not None
            found = understand(said)
            if found is not None:
                yield self.last, found


def merged(streams: Iterable[Iterable[Stamped]]) -> list[Stamped]:
    """Those of all streams in order of time, and lines of the same time as they stand. (Sorted as a whole: a stream
    may hold several logs, one behind the other, as of ``cat``.)"""
    return sorted((each for stream in streams for each in stream), key=lambda stamped: stamped[0] or _EARLIEST)


def _local(at: datetime) -> datetime | None:
    try:
        return at.astimezone()
    except (ValueError, OverflowError, OSError):  # the year 1, or 9999
        return None
