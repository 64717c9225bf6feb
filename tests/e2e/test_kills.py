"""`kill -9` of a tap, of its guardian, and of both, at any moment of its life, under load: the path is the server's
afterwards, with its file's inode, owner and mode, and nothing is left over.

Rule: the kill comes a drawn time after something that is waited for (the guardian is there, the tap stands,
SIGTERM), so that it falls where the path is changed, on a slow machine too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.children import Orphans, adopting
from tests.e2e.load import Load
from tests.e2e.tap import aside_of, beside, guardians_of
from tests.e2e.tools import LIMIT_S, UDSPROXY, EchoServer, echoes, read, until
from tests.stage import Stage
from udsproxy.cli.tap import tap as tap_command

KILLS = int(os.environ.get("UDSPROXY_KILLS", "9"))
"""How many rounds, of all kinds together."""
WHO = (("proxy",), ("guardian",), ("proxy", "guardian"), ("guardian", "proxy"))
"""Who is killed, in this order."""
WHEN = {"begins": 0.3, "has a guardian": 0.15, "stands": 0.1, "ends": 0.05}
"""From when on, and how much later at most (s)."""


@pytest.fixture
def orphans() -> Iterator[Orphans]:
    with adopting() as orphans:
        yield orphans


class Round:
    """A tap, and its death."""

    def __init__(self, stage: Stage, path: str, number: int) -> None:
        self._path = path
        self._said = stage.path("said", str(number))
        self._tap = stage.spawn("tap", [*UDSPROXY, "tap", path, "--control", "none", "--log", "json"], self._said)

    def await_moment(self, when: str, later_s: float) -> None:
        if when != "begins":
            self._until(lambda: bool(guardians_of(self._tap.pid)), "the guardian")
        if when in ("stands", "ends"):
            self._until(lambda: '"event":"listening"' in read(self._said), "the tap to stand at the path")
        if when == "ends":
            self._tap.send_signal(signal.SIGTERM)
        time.sleep(later_s)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        until(lambda: condition() or self._tap.poll() is not None, what)
        assert self._tap.poll() is None, read(self._said)

    def kill(self, who: tuple[str, ...]) -> bool:
        """Returns whether both were killed."""
        guardians = guardians_of(self._tap.pid)
        for each in who:
            for pid in (self._tap.pid,) if each == "proxy" else guardians:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return len(who) == 2

    def end(self) -> subprocess.Popen[bytes]:
        """Wait for its end; where the proxy lives, ask for it."""
        if self._tap.poll() is None:
            self._tap.send_signal(signal.SIGTERM)
        self._tap.wait(LIMIT_S)
        assert "Traceback" not in read(self._said), read(self._said)
        return self._tap


def restore(path: str) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        assert tap_command(path, restore_=True) == 0


def test_kills(stage: Stage, orphans: Orphans) -> None:
    """Where one of them is killed the other puts the path back; where both are, `tap --restore` does."""
    chance = random.Random(KILLS)
    kinds = list(itertools.product(WHO, WHEN))
    chance.shuffle(kinds)
    path = stage.path("run", "s.sock")
    with EchoServer(path):
        os.chmod(path, 0o640)
        if os.geteuid() == 0:
            os.chown(path, 65534, 65533)
        before = beside(path)
        restored, failed = Counter[str](), Counter[str]()
        with Load(path) as load:
            for number in range(KILLS):
                who, when = kinds[number % len(kinds)]
                later_s = chance.uniform(0.0, WHEN[when])
                one, failed_before = Round(stage, path, number), load.failures
                one.await_moment(when, later_s)
                both = one.kill(who)
                tap = one.end()
                orphans.await_none(tap.pid)
                if not both:
                    failed += load.failures - failed_before
                else:
                    restored["needed" if beside(path) != before else "not needed"] += 1
                    restore(path)
                told = f"{' and '.join(who)} killed {later_s * 1e3:.0f} ms after the tap {when}"
                assert beside(path) == before, told
                assert not os.path.lexists(aside_of(path)), told
                assert echoes(path), told
    print(f"{KILLS} kills, {len(load.requests)} requests; where both were killed, --restore was {dict(restored)};")
    print(f"failed: {dict(load.failures)}, of which {dict(failed)} where one was killed")
