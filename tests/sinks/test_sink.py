"""Batches, the writer's thread, and output that stalls, fails or goes away."""

from __future__ import annotations

import contextlib
import os
import pty
import threading
from pathlib import Path

import pytest

from udsproxy.config import LogConfig
from udsproxy.events import Data, Dropped, Event, Open
from udsproxy.sinks import make_sinks
from udsproxy.sinks.sink import TextSink
from udsproxy.sinks.writer import Writer


class Names:
    """Renders an event as its name, padded."""

    def __init__(self, width: int = 0) -> None:
        self._width = width

    def render(self, event: Event) -> bytes:
        if isinstance(event, Dropped):
            return b"dropped %d %d\n" % (event.count, event.nbytes or 0)
        return event.name.ljust(self._width).encode() + b"\n"


def opened() -> Event:
    return Open(at=1, proxy="p", conn=1)


def drained(fd: int) -> bytes:
    data = b""
    while piece := os.read(fd, 1 << 20):
        data += piece
    return data


def test_lines_are_written_in_order() -> None:
    """What is put is written, in order, all of it, by the time it is closed."""
    read, write = os.pipe()
    writer = Writer(write, "test", owned=True)
    for number in range(100):
        writer.put(b"%d\n" % number)
    assert writer.close(10)
    assert drained(read) == b"".join(b"%d\n" % number for number in range(100))
    assert writer.held == 0
    os.close(read)


def test_a_stalled_reader_costs_events_not_time() -> None:
    """While nobody reads, emitting never waits; what does not fit is counted, and told where it is missing."""
    read, write = os.pipe()
    sink = TextSink("test", Names(1000), Writer(write, "test", owned=True), limit=200_000)
    for _ in range(1000):
        sink.emit(opened())
        sink.flush()
    sink.emit(Data(at=1, proxy="p", conn=1, direction="c2s", offset=0, data=bytes(77)))
    written: list[bytes] = []
    reader = threading.Thread(target=lambda: written.append(drained(read)))
    reader.start()
    while sink._writer.held:
        pass
    sink.emit(opened())
    sink.close(10)
    reader.join()
    lines = written[0].splitlines()
    [told] = [line for line in lines if line.startswith(b"dropped")]
    assert told.split() == [b"dropped", b"%d" % sink.total_dropped, b"77"]
    assert len(lines) - 1 + sink.total_dropped == 1002
    assert sink.total_dropped > 0
    assert lines[-1].startswith(b"open")
    os.close(read)


def test_closing_does_not_wait_for_a_stalled_reader() -> None:
    """The end does not wait for a reader longer than it was told to."""
    read, write = os.pipe()
    writer = Writer(write, "test", owned=True)
    sink = TextSink("test", Names(), writer)
    writer.put(bytes(1 << 20))
    sink.close(0.01)
    assert sink.failure is not None
    assert "nobody reads it" in sink.failure
    drained_by = threading.Thread(target=drained, args=(read,))
    drained_by.start()
    assert writer.close(30)
    drained_by.join()
    os.close(read)


def test_a_full_disk() -> None:
    """Lines that cannot be written are counted; the failure is named."""
    writer = Writer(os.open("/dev/full", os.O_WRONLY), "test", owned=True)
    sink = TextSink("json", Names(), writer)
    sink.emit(opened())
    sink.close(10)
    assert sink.failure == "json: No space left on device; 1 events were not written"
    assert writer.lost_lines == 1
    assert not writer.dead


def test_a_line_torn_by_a_full_disk_is_ended() -> None:
    """After a line was cut short, and another lost whole, the next one begins on a line of its own."""
    read, write = os.pipe()
    writer = Writer(write, "test", owned=True)
    outcomes: list[int | OSError] = [3, OSError(28, "full"), OSError(28, "full")]

    def write_some(view: memoryview) -> int:
        outcome = outcomes.pop(0) if outcomes else len(view)
        if isinstance(outcome, OSError):
            raise outcome
        return os.write(write, view[:outcome])

    writer._write_some = write_some  # type: ignore[method-assign]  # a disk that fills at the right byte
    for line in (b"first\n", b"second\n", b"third\n"):
        writer._write(line)
    assert writer.close(10)
    assert drained(read) == b"fir\nthird\n"
    assert writer.lost_lines == 2
    os.close(read)


def test_a_renderers_bug_costs_the_event() -> None:
    """An exception while rendering is counted and named at the end; what comes after it is written."""
    read, write = os.pipe()

    class Broken(Names):
        def render(self, event: Event) -> bytes:
            if event.at == 2:
                raise KeyError("oops")
            return super().render(event)

    sink = TextSink("json", Broken(), Writer(write, "test", owned=True))
    for at in (1, 2, 3):
        sink.emit(Open(at=at, proxy="p", conn=1))
    sink.close(10)
    assert drained(read) == b"open\ndropped 1 0\nopen\n"
    assert sink.total_dropped == 1
    assert sink.failure == "json: KeyError: 'oops' (a bug of udsproxy)"
    os.close(read)


def test_a_reader_that_goes_while_a_batch_is_open() -> None:
    """What was batched when the reader went is counted too."""
    read, write = os.pipe()
    writer = Writer(write, "test", owned=True)
    sink = TextSink("console", Names(), writer)
    sink.emit(opened())
    os.close(read)
    sink.flush()
    sink.emit(opened())
    while not writer.dead:
        pass
    for _ in range(10):
        sink.emit(opened())
    sink.close(10)
    assert sink.failure == "console: Broken pipe; 12 events were not written"


def test_a_reader_that_has_gone() -> None:
    """After EPIPE nothing is rendered any more, and events are counted as dropped."""
    read, write = os.pipe()
    os.close(read)
    writer = Writer(write, "test", owned=True)
    sink = TextSink("console", Names(), writer)
    sink.emit(opened())
    sink.flush()
    while not writer.dead:
        pass
    sink.emit(opened())
    sink.close(10)
    assert sink.total_dropped == 2
    assert sink.failure == "console: Broken pipe; 2 events were not written"


def test_a_log_file_is_nobody_elses(tmp_path: Path) -> None:
    """The log file is made with mode 600 whatever the umask, and added to."""
    file = tmp_path / "log"
    before = os.umask(0)
    try:
        for _ in range(2):
            [sink] = make_sinks(LogConfig(format="json", file=str(file)))
            sink.emit(opened())
            sink.close(10)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text().splitlines()) == 2


def test_no_log() -> None:
    """With format ``none`` there is no sink."""
    assert make_sinks(LogConfig(format="none")) == []


def test_slow_rendering_is_driven_on() -> None:
    """A renderer that comes in pieces is driven by who emits, piece by piece."""
    read, write = os.pipe()

    class Pieces:
        def render(self, event: Event) -> bytes | None:
            return None

    sink = TextSink("none", Pieces(), Writer(write, "test", owned=True))
    assert sink.emit(opened()) is None
    sink.close(10)
    with contextlib.closing(os.fdopen(read, "rb")) as reader:
        assert reader.read() == b""


def test_a_line_that_could_not_be_written_whole_leaves_nothing_in_a_file(tmp_path: Path) -> None:
    """When a file cannot grow in the middle of a line, what stays in it are whole lines; a `dropped` that is lost
    itself is told again, with what was lost since."""
    path = tmp_path / "log"
    writer = Writer(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "test", owned=True)
    sink = TextSink("test", Names(), writer)
    outcomes = ["whole", "torn", "whole", "torn", "whole", "whole"]
    write_some = writer._write_some

    def write_or_tear(view: memoryview) -> int:
        outcome = outcomes.pop(0)
        if outcome == "failed":
            raise OSError(28, "full")
        if outcome == "torn":
            outcomes.insert(0, "failed")
            view = view[:3]
        return write_some(view)

    writer._write_some = write_or_tear  # type: ignore[method-assign]  # a disk that fills at the right byte
    for _ in range(6):
        sink.emit(opened())
        sink.flush()
        while writer.held:
            pass
    sink.close(10)
    assert path.read_bytes().split() == b"open open open dropped 2 0 open".split()
    assert sink.total_dropped == 2


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_it_is_known_that_nobody_reads_any_more(kind: str) -> None:
    """Whether or not something was written since; what is written then is counted, and nothing is tried again."""
    read, write = os.pipe() if kind == "pipe" else pty.openpty()
    writer = Writer(write, "test", owned=False)
    sink = TextSink("test", Names(), writer)
    told = [sink.reader_has_gone]
    os.close(read)
    told.append(sink.reader_has_gone)
    sink.emit(opened())
    sink.close(10)
    told.append(sink.reader_has_gone)
    assert told == [False, True, True]
    assert writer.dead
    assert sink.total_dropped == 1
    os.close(write)


def test_a_file_has_no_reader_to_go(tmp_path: Path) -> None:
    """Nor has a disk that is full."""
    for path in (tmp_path / "file", Path("/dev/full"), Path("/dev/null")):
        writer = Writer(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "test", owned=False)
        writer.put(b"line\n")
        assert writer.close(10)
        assert not writer.reader_has_gone
