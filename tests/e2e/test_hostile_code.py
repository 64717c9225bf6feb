"""Whose code runs, and with what: modules that lie in the current directory and where PYTHONPATH says; the
processes that udsproxy starts, what they inherit, who may look into them.
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import udsproxy
from tests.e2e.proxy import Running, StartProxy
from tests.e2e.tap import StartTap
from tests.e2e.tools import LIMIT_S, EchoServer, echoes, read, until
from tests.stage import REPOSITORY, Stage
from udsproxy.kernel import own_processes
from udsproxy.kernel.procfs import read_parent

ROOT = os.geteuid() == 0
SHADOWED = (
    "trio",
    "json",
    "msgspec",
    "cyclopts",
    "structlog",
    "h11",
    "rich",
    "socket",
    "ctypes",
)
"""Modules that udsproxy or Python's library imports."""


@pytest.fixture
def trap(stage: Stage) -> str:
    """A directory full of modules with the names of others; each leaves a mark."""
    for name in SHADOWED:
        stage.write(f"open({stage.path('marks', name)!r}, 'w').close()\nraise ImportError\n", "trap", f"{name}.py")
    return stage.path("trap")


def sprung(stage: Stage) -> list[str]:
    return os.listdir(os.path.dirname(stage.path("marks", "any")))


def children(running: Running) -> dict[str, int]:
    """The observer and the guardian, as far as there are any."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if read_parent(pid) == running.pid:
            line = read(f"/proc/{pid}/cmdline")
            found["guardian" if "guardian_process" in line else "observer"] = pid
    return found


def test_modules_in_the_current_directory(stage: Stage, start_tap: StartTap, trap: str) -> None:
    """Neither the tap nor its observer nor its guardian imports what lies there."""
    with EchoServer(stage.path("up")):
        tap = start_tap(stage.path("up"), wrap=["/usr/bin/env", "-C", trap])
        tap.await_seen()
        assert set(children(tap)) == {"observer", "guardian"}
        tap.kill()
        tap.await_restored()
    assert sprung(stage) == []


def test_the_programs_that_are_started_for_the_demonstration(stage: Stage, trap: str) -> None:
    """A command of ours that we run ourselves imports nothing from there, or from where PYTHONPATH says."""
    argv = own_processes.command("udsproxy.cli", "--version")
    env = {**os.environ, "PYTHONPATH": trap}
    done = subprocess.run(argv, cwd=trap, env=env, capture_output=True, timeout=LIMIT_S, check=True)
    assert done.stdout.decode().strip() == udsproxy.__version__
    assert sprung(stage) == []


@pytest.mark.parametrize("path", ["{trap}", ":", "/nonexistent:", ""])
def test_modules_where_pythonpath_says(stage: Stage, trap: str, path: str) -> None:
    """Root's command imports nothing from there. (Who is not root may have what he wants.)"""
    shutil.copy(Path(REPOSITORY, "udsproxy", "script.py"), stage.path("bin", "udsproxy"))
    argv = [sys.executable, stage.path("bin", "udsproxy"), "explain", "EAGAIN"]
    env = {**os.environ, "PYTHONPATH": path.format(trap=trap)}
    done = subprocess.run(argv, cwd=trap, env=env, capture_output=True, timeout=LIMIT_S, check=False)
    if ROOT:
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"EAGAIN (11, ")
        assert sprung(stage) == []


def test_every_interpreter_that_is_started_is_isolated() -> None:
    """No part of udsproxy starts Python but with -I."""
    found = 0
    for file in Path(udsproxy.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.List) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                assert ast.unparse(node.elts[1]) == "'-I'", file
                found += 1
        assert file.read_text().count("sys.executable") <= file.read_text().count("[sys.executable") + 1
    assert found == 2


def test_what_children_inherit(stage: Stage, start_tap: StartTap) -> None:
    """Nothing but standard input, output and errors, and what they open themselves; a few environment variables."""
    secret = ["/usr/bin/env", "DATABASE_URL=secret", "PYTHONPATH=/nonexistent", "LC_ALL=C.UTF-8"]
    with EchoServer(stage.path("up")):
        # (What somebody has left open for the tap is not ours to close; its children have no use for it.)
        shell = ["/bin/sh", "-c", f'exec "$@" 9<{REPOSITORY}/README.md', "sh", *secret]
        tap = start_tap(stage.path("up"), wrap=shell)
        tap.await_seen()
        found = children(tap)
        assert set(found) == {"observer", "guardian"}
        for pid in found.values():
            variables = read(f"/proc/{pid}/environ").split("\0")[:-1]
            assert {each.partition("=")[0] for each in variables} <= set(own_processes.KEPT)
            assert "LC_ALL=C.UTF-8" in variables
            assert "secret" not in read(f"/proc/{pid}/environ")
        assert os.readlink(f"/proc/{tap.pid}/fd/9") == f"{REPOSITORY}/README.md"
        assert f"{REPOSITORY}/README.md" not in (links(found["guardian"]) | links(found["observer"]))
        assert sum(link.startswith("socket:") for link in links(found["guardian"])) == 1
        assert not any("/proc/sys" in link or link.endswith(".control") for link in links(found["observer"]))


def links(pid: int) -> set[str]:
    """What its descriptors are."""
    return {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}


def test_memory_is_for_nobody_else(stage: Stage, start_proxy: StartProxy) -> None:
    """The kernel makes no core dump of the proxy, and gives its memory to root alone; the observer is the first to
    go where memory runs out."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(
            stage.path("p"), stage.path("up"), wrap=["/bin/sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh"]
        )
        assert echoes(proxy.socket)
        # A process that cannot be dumped belongs to root in /proc, whoever runs it (proc(5)).
        observer = children(proxy)["observer"]
        until(lambda: read(f"/proc/{observer}/oom_score_adj") == "900\n", "the observer to say so")
        proxy.signal(signal.SIGABRT)
        status = os.waitid(os.P_PID, proxy.pid, os.WEXITED | os.WNOWAIT)
        assert status is not None
        assert (status.si_code, status.si_status) == (os.CLD_KILLED, signal.SIGABRT)  # not CLD_DUMPED
        proxy.process.wait()
