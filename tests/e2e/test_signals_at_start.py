"""SIGINT and SIGTERM at any moment of the start: nothing is said, the exit code is right, and the path is the
server's.

Rule: moments are drawn, not waited for: what a process does at one of them is the machine's affair. Of the commands
that end by themselves only quietness and exit code are looked at.
"""

from __future__ import annotations

import glob
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import udsproxy
from tests.e2e.children import Orphans, adopting
from tests.e2e.tap import beside
from tests.e2e.tools import LIMIT_S, UDSPROXY, EchoServer, echoes, read, until
from tests.stage import Stage

SIGNALS = int(os.environ.get("UDSPROXY_START_SIGNALS", "12"))
"""How many signals, of all kinds together."""
LATEST_S = 1.2
"""A start takes less, on most machines."""
SCRIPT = (os.path.join(os.path.dirname(sys.executable), "udsproxy"),)
"""The command as it is installed."""
PACKAGE = os.path.dirname(udsproxy.__file__)
ENDS = {
    signal.SIGTERM: {0, -signal.SIGTERM, 128 + signal.SIGTERM},
    signal.SIGINT: {0, -signal.SIGINT, 128 + signal.SIGINT},
    signal.SIGHUP: {0, -signal.SIGHUP, 128 + signal.SIGHUP},
}
"""Exit codes: it had begun, and has put all back; or nothing had begun."""


def _is_before_us(said: str) -> bool:
    """The interpreter had not come to what `__main__` does first: until then (some 5 ms) a Ctrl-C is its affair."""
    ours = {line.split('"')[1] for line in said.splitlines() if line.startswith(f'  File "{PACKAGE}/')}
    return "KeyboardInterrupt" in said and ours <= {f"{PACKAGE}/__init__.py", f"{PACKAGE}/__main__.py"}


@pytest.fixture
def orphans() -> Iterator[Orphans]:
    with adopting() as orphans:
        yield orphans


class Start:
    """One process that is to be interrupted while it starts."""

    def __init__(self, stage: Stage, name: str, argv: list[str], number: signal.Signals, moment_s: float) -> None:
        self._number = number
        self.moment_s = moment_s
        self._said = stage.path(name, "stderr")
        self._told = f"{' '.join(argv[-4:])}: {number.name} after {moment_s * 1e3:.0f} ms"
        self.process = stage.spawn(name, ["/bin/sh", "-c", 'exec "$@" 2>>"$0"', self._said, *argv], os.devnull)

    def signal(self) -> None:
        self.process.send_signal(self._number)

    def check(self) -> None:
        """It has ended as it should."""
        code, said = self.process.wait(LIMIT_S), read(self._said)
        lines = [line for line in said.splitlines() if not line.startswith("udsproxy: in place of ")]
        if self._number == signal.SIGINT and _is_before_us(said):
            return
        assert code in ENDS[self._number], f"{self._told}: exit code {code}: {said}"
        assert not lines, f"{self._told}: {said}"


def interrupt(starts: list[Start]) -> None:
    """Send each its signal, at its moment."""
    began = time.monotonic()
    for start in sorted(starts, key=lambda start: start.moment_s):
        time.sleep(max(0.0, began + start.moment_s - time.monotonic()))
        start.signal()
    for start in starts:
        start.check()


def test_a_signal_while_it_starts(stage: Stage, orphans: Orphans) -> None:
    """SIGTERM and SIGINT at drawn moments of the start of `tap` and `run`: nothing is said, and afterwards the
    server's file is at its path with its owner and mode, and neither a file nor a process is left over."""
    chance = random.Random(SIGNALS)
    kinds = [(command, number) for command in ("tap", "run") for number in ENDS]
    with ExitStack() as servers:
        paths = [stage.path(f"run{place}", "s.sock") for place in range(len(kinds))]
        for path in paths:
            servers.enter_context(EchoServer(path))
            os.chmod(path, 0o640)
            if os.geteuid() == 0:
                os.chown(path, 65534, 65533)
        before = [beside(path) for path in paths]
        for wave in range(-(-SIGNALS // len(kinds))):
            starts = []
            for place, ((command, number), path) in enumerate(zip(kinds, paths, strict=True)):
                words = [path] if command == "tap" else [stage.path(f"run{place}", "p.sock"), path]
                words += ["--control", stage.path(f"run{place}", "control")] if wave % 2 else ["--control", "none"]
                how = UDSPROXY if (wave + place) % 2 else SCRIPT
                moment_s = chance.uniform(0.0, LATEST_S)
                name = f"start{wave}-{place}"
                starts.append(Start(stage, name, [*how, command, *words], number, moment_s))
            interrupt(starts)
            orphans.await_none(*(start.process.pid for start in starts))
            for path, files in zip(paths, before, strict=True):
                assert beside(path) == files
                assert echoes(path)


def demo_directories() -> set[str]:
    return set(glob.glob("/tmp/udsproxy-demo-*"))


def test_a_signal_while_another_command_starts(stage: Stage, orphans: Orphans) -> None:
    """So it is with the other commands: nothing is said, and neither a socket nor a directory nor a process is left
    over."""
    chance = random.Random(-SIGNALS)
    path, served = stage.path("run", "s.sock"), stage.path("run", "serve.sock")
    commands = [["state", path], ["doctor", path], ["explain", "EAGAIN"], ["request", path], ["serve", served],
                ["fault", "kinds"], ["demo"]]  # fmt: skip
    known = demo_directories()
    with EchoServer(path):
        before = beside(path)
        for wave in range(max(1, SIGNALS // 12)):
            starts = []
            for place, words in enumerate(commands):
                number, name = chance.choice(list(ENDS)), f"start{wave}-{place}"
                how = UDSPROXY if (wave + place) % 2 else SCRIPT
                starts.append(Start(stage, name, [*how, *words], number, chance.uniform(0.0, LATEST_S)))
            interrupt(starts)
            orphans.await_none(*(start.process.pid for start in starts))
            assert beside(path) == before
    until(lambda: not demo_directories() - known, "the demonstration's directory to be removed")
