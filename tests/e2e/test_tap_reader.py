"""Who reads what a tap shows goes: `| head`, a pager that is quit, a terminal that is closed.

Rule: "all is as it was" is meant as in test_tap.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from tests.e2e.children import adopting
from tests.e2e.tap import StartTap, Tap, aside_of, beside
from tests.e2e.tools import EchoServer, connect, echoes, receive_exactly, until, with_output
from tests.stage import Stage

WAIT_FOR_FILE = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
sys.exit(7)
"""


@pytest.fixture
def served(stage: Stage) -> Iterator[str]:
    """A socket with an echo server, alone in its directory."""
    path = stage.path("run", "s.sock")
    with EchoServer(path):
        yield path


class Reader:
    """Reads the standard output of a tap, until it goes."""

    def __init__(self, kind: str, stage: Stage) -> None:
        self.path = stage.path("fifo")
        if kind == "pipe":
            os.mkfifo(self.path)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        else:
            self._fd, terminal = os.openpty()
            os.set_blocking(self._fd, False)
            self.path = os.ttyname(terminal)
            os.close(terminal)

    def await_text(self, text: bytes) -> None:
        shown = bytearray()

        def found() -> bool:
            try:
                shown.extend(os.read(self._fd, 1 << 16))
            except OSError:  # (nothing; of a terminal: nobody has it open yet)
                return False
            return text in shown

        until(found, f"{text!r} to be shown")

    def go(self) -> None:
        os.close(self._fd)


def start(start_tap: StartTap, path: str, reader: Reader, *options: str, **settings: list[str]) -> Tap:
    """A tap that is read, and has begun. (With a command it shows its lines on standard error.)"""
    wrap = with_output(reader.path, 2 if "command" in settings else 1)
    tap = start_tap(path, *options, "--control", "none", log=["-v"], wrap=wrap, **settings)
    reader.await_text(b"listening")
    return tap


@pytest.mark.parametrize("options", [[], ["--log", "json"]], ids=["console", "json"])
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_tap_ends_with_its_reader(
    stage: Stage, served: str, start_tap: StartTap, kind: str, options: list[str]
) -> None:
    """A tap of a socket where nothing flows ends when its reader goes: with exit code 0, saying nothing, and all is
    as it was; no process is left over."""
    before, reader = beside(served), Reader(kind, stage)
    with adopting() as orphans:
        tap = start(start_tap, served, reader, *options)
        reader.go()
        assert tap.wait() == 0
        orphans.await_none(tap.pid)
    assert tap.said == f"udsproxy: in place of {served}; Ctrl-C puts it back\n"
    assert beside(served) == before
    assert echoes(served)


def test_open_connections_go_on_without_a_reader(stage: Stage, served: str, start_tap: StartTap) -> None:
    """The path is given back at once, and the tap stays until all who are connected through it leave."""
    before, reader = beside(served), Reader("pipe", stage)
    tap = start(start_tap, served, reader)
    with connect(served) as sock:
        exchange(sock)
        reader.go()
        until(lambda: beside(served) == before, "the path to be given back")
        for _ in range(100):
            exchange(sock)
        assert tap.process.poll() is None
    assert tap.wait() == 0
    assert "Broken pipe" not in tap.said


def exchange(sock: socket.socket) -> None:
    sock.sendall(b"hello")
    assert receive_exactly(sock, 5) == b"hello"


def test_a_command_goes_on_without_a_reader(stage: Stage, served: str, start_tap: StartTap) -> None:
    """A tap with a command lasts as long as that, whoever reads, and has its exit status."""
    before, reader, file = beside(served), Reader("pipe", stage), stage.path("go")
    tap = start(start_tap, served, reader, command=[sys.executable, "-c", WAIT_FOR_FILE, file])
    reader.go()
    for _ in range(100):
        assert echoes(served)
    assert os.path.exists(aside_of(served))
    stage.write("", "go")
    assert tap.wait() == 7
    assert "Broken pipe" not in tap.said
    assert beside(served) == before


def test_a_tap_that_writes_to_a_file_needs_no_reader(stage: Stage, served: str, start_tap: StartTap) -> None:
    """With --log none and --log-file it goes on."""
    reader, log = Reader("pipe", stage), stage.path("log")
    tap = start_tap(
        served, "--control", "none", log=["--log", "none", "--log-file", log], wrap=with_output(reader.path)
    )
    until(lambda: os.path.exists(log) and os.stat(log).st_size, "the tap to begin")
    reader.go()
    tap.signal(signal.SIGSTOP)  # so that it has had the time to see that
    tap.signal(signal.SIGCONT)
    for _ in range(100):
        assert echoes(served)
    assert tap.process.poll() is None
    assert tap.stop() == 0


@pytest.mark.parametrize("again", ["SIGHUP twice", "--for"])
def test_what_ends_it_twice(served: str, start_tap: StartTap, again: str) -> None:
    """A terminal that is closed sends SIGHUP twice (the kernel, and the shell): that ends no open connection, as a
    second Ctrl-C does. Nor does the end of --for, after a Ctrl-C."""
    before = beside(served)
    tap = start_tap(served, *(["--for", "2s"] if again == "--for" else []))
    began = time.monotonic()
    with connect(served) as sock:
        exchange(sock)
        for _ in range(2 if again == "SIGHUP twice" else 1):
            tap.signal(signal.SIGHUP)
            until(lambda: beside(served) == before, "the path to be given back")
        if again == "--for":
            until(lambda: time.monotonic() > began + 2.5, "the time to be over")
        for _ in range(100):
            exchange(sock)
        assert tap.process.poll() is None
    assert tap.wait() == 0
