"""Finding processes by title, and their descriptors."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from udsproxy.kernel import process_table

GONE = 2**22 + 1
"""Above the largest pid."""


def test_ourselves() -> None:
    """Our own title, limit and descriptors are what we know they are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = process_table.read_descriptors(os.getpid())
    assert (found.soft, found.hard) == (soft, hard)
    assert found.used is not None
    assert found.used >= 3
    assert sys.executable.rpartition("/")[2] in process_table.read_title(os.getpid())


def test_a_child_by_its_title() -> None:
    """It is found among our children, and elsewhere not."""
    title = f"a title {os.getpid()}: master"
    assert process_table.titled_children(os.getpid(), title) == []
    with subprocess.Popen([title], executable="/bin/cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write(b"\n")
        cat.stdin.flush()
        cat.stdout.readline()  # Popen returns in the middle of exec(), when the title may not be there
        assert process_table.titled_children(os.getpid(), title) == [cat.pid]
        assert list(process_table.titled(title)) == [(cat.pid, title)]
        cat.communicate()


COMMAND_LINES = [
    (["/usr/local/bin/udsproxy", "run", "/l", "/u"], ["/l", "/u"]),
    (["/opt/bin/python3.11", "-I", "/opt/bin/udsproxy", "tap", "/p"], ["/p"]),
    (["python3", "-m", "udsproxy", "run", "--config", "/c"], ["--config", "/c"]),
    (["udsproxy", "run"], []),
    (["udsproxy", "state", "run"], None),
    (["udsproxy"], None),
    (["sudo", "-u", "www-data", "udsproxy", "run", "/l", "/u"], None),
    (["sh", "-c", "udsproxy run /l /u"], None),
    (["python3", "-I", "-c", "...", "/src/udsproxy", "udsproxy.inspection.observer"], None),
    (["grep", "udsproxy", "run"], None),
    ([""], None),
]


@pytest.mark.parametrize(("words", "after"), COMMAND_LINES)
def test_what_follows_a_command(monkeypatch: pytest.MonkeyPatch, words: list[str], after: list[str] | None) -> None:
    """Of a udsproxy, however it was started; not of what starts one, nor of what else names it."""
    monkeypatch.setattr(process_table, "read_arguments", lambda _: words)
    assert process_table.words_after(1, "run", "tap") == after


def test_who_is_gone() -> None:
    """Nothing is known, and nothing raised."""
    assert process_table.read_title(GONE) == ""
    assert process_table.words_after(GONE, "run") is None
    assert process_table.read_descriptors(GONE) == process_table.Descriptors()
