"""What people read: it cannot raise, and where it must not wait it does not."""

from __future__ import annotations

import io
import os
import select
import sys

import pytest

from udsproxy.cli import people


def test_lines_wait_for_nobody() -> None:
    """With a pipe that nobody reads, lines are held up to a limit, then lost; what was held comes when somebody
    reads."""
    reader, writer = os.pipe()
    errors = people._Descriptor(writer, closed=False)
    errors.never_wait()
    for number in range(100_000):
        errors.write(b"line %d\n" % number)
    assert 0 < errors.held <= people.MAX_HELD + 100
    seen = b""
    while errors.held or select.select([reader], [], [], 0)[0]:
        seen += os.read(reader, 1 << 20)
    errors.wait(10)
    errors.write(b"the last\n")
    seen += os.read(reader, 1 << 20)
    lines = seen.splitlines()
    assert lines[:-1] == [b"line %d" % number for number in range(len(lines) - 1)]
    assert lines[-1] == b"the last"
    os.close(reader)
    os.close(writer)


def test_the_end_does_not_wait_for_a_stalled_reader() -> None:
    """Nor do lines that come after it."""
    reader, writer = os.pipe()
    errors = people._Descriptor(writer, closed=False)
    errors.never_wait()
    errors.write(bytes(1 << 20))
    errors.wait(0.01)
    errors.write(b"another\n")
    assert errors.error is None
    os.close(reader)  # ends the thread
    os.close(writer)


@pytest.mark.parametrize("way", ["gone", "full", "closed"])
def test_what_is_lost_is_known(way: str) -> None:
    """Whatever becomes of it, writing raises nothing, and why it failed is kept."""
    reader, fd = os.pipe()
    os.close(reader)
    if way == "full":
        os.close(fd)
        fd = os.open("/dev/full", os.O_WRONLY)
    raw = people._Descriptor(fd, closed=way == "closed")
    text = io.TextIOWrapper(io.BufferedWriter(raw))
    for _ in range(3):
        print("x" * 100_000, file=text, flush=True)
    assert raw.error is not None
    assert raw.error.strerror == {
        "gone": "Broken pipe", "full": "No space left on device", "closed": "Bad file descriptor",
    }[way]  # fmt: skip
    os.close(fd)


def test_no_streams_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the interpreter has none (and `prepare` was not called), lines go nowhere: not to the other stream."""
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", shown := io.StringIO())
    people.say("hello")
    assert shown.getvalue() == ""
