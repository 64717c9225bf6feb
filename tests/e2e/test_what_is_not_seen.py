"""What udsproxy says at its start of what it will not show."""

from __future__ import annotations

import os

import pytest

from tests.e2e.site import start_php_fpm
from tests.e2e.tap import StartTap
from tests.e2e.tools import program, until
from tests.stage import Stage

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run php-fpm's workers as another user")


@pytest.mark.parametrize("log", [[], ["--log", "none"]], ids=["shown", "nothing is shown"])
@pytest.mark.parametrize("capable", [True, False])
def test_workers_that_cannot_be_seen(stage: Stage, start_tap: StartTap, log: list[str], *, capable: bool) -> None:
    """Without CAP_SYS_PTRACE (root in a container) workers of php-fpm are not seen: that, and what it takes, are
    the first two lines. Nothing is said where they are seen, and where nothing of them would be shown."""
    served = stage.path("php.sock")
    start_php_fpm(stage, served, workers=1)
    wrap = [] if capable else [program("setpriv"), "--bounding-set=-sys_ptrace", "--"]
    tap = start_tap(served, "--control", "none", log=log or ["--color", "never"], wrap=wrap)
    until(lambda: "in place of" in tap.said, "the tap to begin")
    assert tap.stop() == 0
    lines = [line for line in tap.said.splitlines() if line.startswith("udsproxy: ")]
    if capable or log:
        assert lines[0].startswith("udsproxy: in place of ")
        assert "not shown" not in tap.said
    else:
        assert lines[:2] == [
            "udsproxy: not shown: which worker has a request and what it waits for",
            "udsproxy: to see it, run udsproxy with CAP_SYS_PTRACE",
        ]
        assert lines[2].startswith("udsproxy: in place of ")
        assert tap.said.count("not shown") == 1
