"""A machine on which things are missing: memory, descriptors, /proc, a /tmp to write in, a disk for the log, the
right time.

Rule: the path is served, or is given back; what udsproxy cannot do it says in a line.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

import udsproxy
from tests.e2e.proxy import Running, StartProxy
from tests.e2e.tap import File, StartTap, aside_of, is_served
from tests.e2e.tools import LIMIT_S, UDSPROXY, EchoServer, echoes, read, run, until
from tests.stage import Stage
from udsproxy.kernel.procfs import read_capabilities, read_parent

MIB = 1024 * 1024
_CAP_SYS_RESOURCE = 24
IN_A_MOUNT_NAMESPACE = (
    ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]
)


def where(mounts: str) -> list[str]:
    """Runs a command where these mounts have been made, for it alone."""
    return [*IN_A_MOUNT_NAMESPACE, "/bin/sh", "-c", f'{mounts} && exec "$@"', "sh"]


# --- memory ---


class Cgroup:
    """A group of processes with a limit on memory, of whichever version (cgroups(7)). A context manager."""

    def __init__(self, nbytes: int) -> None:
        first = Path("/sys/fs/cgroup/memory")
        self._path = (first if first.is_dir() else Path("/sys/fs/cgroup")) / f"udsproxy-test-{os.getpid()}"
        self._path.mkdir()
        names = ["memory.limit_in_bytes"] if first.is_dir() else ["memory.max", "memory.swap.max"]
        for name, limit in zip(names, (nbytes, 0), strict=False):
            (self._path / name).write_text(str(limit))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (self._path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

        def removed() -> bool:
            with contextlib.suppress(OSError):
                self._path.rmdir()
            return not self._path.exists()

        until(removed, "the group's end")

    def wrap(self) -> list[str]:
        return ["/bin/sh", "-c", f'echo $$ >{self._path}/cgroup.procs && exec "$@"', "sh"]


def children(running: Running) -> dict[str, int]:
    """The observer and the guardian, as far as there are any."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if read_parent(pid) == running.pid:
            found["guardian" if "guardian_process" in read(f"/proc/{pid}/cmdline") else "observer"] = pid
    return found


_HOG = "data = []\nwhile True: data.append(b'x' * 1000000)"


def test_memory_runs_out(stage: Stage, start_tap: StartTap) -> None:
    """In a group whose memory another process eats up the kernel kills: whoever that is, the path is served, the
    guardian stays, and when it is the proxy's turn the path is the server's again."""
    if os.geteuid() != 0:
        return  # groups are root's
    with EchoServer(stage.path("up")), Cgroup(150 * MIB) as group:
        mine = File.at(stage.path("up"))
        tap = start_tap(stage.path("up"), wrap=group.wrap())
        tap.await_seen()
        guardian, observer = children(tap)["guardian"], children(tap)["observer"]
        if read_capabilities() >> _CAP_SYS_RESOURCE & 1:
            until(lambda: read(f"/proc/{guardian}/oom_score_adj") == "-1000\n", "the guardian to be spared")
        until(lambda: read(f"/proc/{observer}/oom_score_adj") == "900\n", "the observer to go first")
        hogs = 0
        while tap.process.poll() is None:
            argv = [*group.wrap(), sys.executable, "-c", _HOG]
            done = subprocess.run(argv, timeout=LIMIT_S, check=False)
            assert done.returncode == -signal.SIGKILL
            hogs += 1
            until(lambda: is_served(stage.path("up")), "the path to be served")
            assert os.path.exists(f"/proc/{guardian}")
            if hogs == 2:
                # The observer has gone first by now. Now the proxy is the largest that may be killed.
                until(
                    lambda: read(f"/proc/{observer}/stat").rpartition(")")[2].split()[:1] in ([], ["Z"]), "observer"
                )
                Path(f"/proc/{tap.pid}/oom_score_adj").write_text("1000")
        assert tap.process.returncode == -signal.SIGKILL
        tap.await_restored()
        assert File.at(stage.path("up")) == mine
        assert echoes(stage.path("up"))


# --- descriptors ---


@pytest.mark.parametrize("most", [3, 8, 20, 30])
def test_hardly_any_descriptors(stage: Stage, most: int) -> None:
    """With so few it serves, or says in a line that it cannot and has changed nothing."""
    with EchoServer(stage.path("up")):
        before = File.at(stage.path("up"))
        argv = [
            "/bin/sh",
            "-c",
            f'ulimit -n {most}; exec "$@"',
            "sh",
            *UDSPROXY,
            "tap",
            stage.path("up"),
            "--for",
            "1ms",
        ]
        done = run(argv)
        assert File.at(stage.path("up")) == before
        assert not os.path.exists(aside_of(stage.path("up")))
        assert echoes(stage.path("up"))
        if most >= 20:  # (below that Python itself may have too few to import anything)
            assert b"Traceback" not in done.stderr, done.stderr
            assert done.returncode in (0, 1, 4)


# --- file systems ---


def test_no_tmp_to_write_in(stage: Stage, start_tap: StartTap) -> None:
    """Neither the tap nor its guardian writes there."""
    stage.path("run", "any")
    with EchoServer(stage.path("run", "up")):
        # (The socket's own directory, which is in it, stays as it is.)
        at = stage.directory
        mounts = f"mount --bind /tmp /tmp && mount --bind {at} {at} && mount -o remount,ro,bind /tmp"
        mounts += " && ! touch /tmp/udsproxy-probe 2>/dev/null"
        tap = start_tap(stage.path("run", "up"), wrap=where(mounts))
        tap.await_seen()
        tap.kill()
        tap.await_restored()
        assert echoes(stage.path("run", "up"))


def test_no_proc(stage: Stage) -> None:
    """What cannot work without it says so in a line, and changes nothing."""
    with EchoServer(stage.path("up")):
        before = File.at(stage.path("up"))
        for words in (
            ["run", stage.path("p"), stage.path("up")],
            ["tap", stage.path("up"), "--for", "1ms"],
            ["state", stage.path("up")],
            ["doctor", stage.path("up")],
        ):
            argv = [*where("mount -t tmpfs none /proc"), "/usr/bin/timeout", "-s", "INT", "10", *UDSPROXY, *words]
            done = run(argv)
            assert b"Traceback" not in done.stderr, (words, done.stderr.decode())
            assert done.stderr.count(b"\n") <= 2, (words, done.stderr.decode())
            assert File.at(stage.path("up")) == before
            assert echoes(stage.path("up"))


@pytest.mark.parametrize("bound", [[], ["--log-size", "64KiB", "--log-keep", "3"]], ids=["unbounded", "bounded"])
def test_a_disk_that_is_full(stage: Stage, bound: list[str]) -> None:
    """A log on a file system of 160 KiB, in one file or several: traffic goes on, what is there are whole lines,
    and the end says what is missing."""
    stage.path("disk", "any")
    mounts = f"mount -t tmpfs -o size=160k none {stage.path('disk')}"
    with EchoServer(stage.path("up")):
        argv = [*where(mounts), *UDSPROXY, "run", stage.path("p"), stage.path("up"), "--log", "json", "-vv"]
        argv += ["--log-file", stage.path("disk", "log"), *bound]
        process = stage.spawn("run", argv, stage.path("said"))
        stage.await_socket(stage.path("p"))
        for _ in range(400):
            assert echoes(stage.path("p"), b"x" * 5000)
        disk = os.open(f"/proc/{process.pid}/root{stage.path('disk')}", os.O_RDONLY)  # (a mount of its own)
        process.terminate()
        assert process.wait(LIMIT_S) == 1
        names = os.listdir(disk)
        assert (len(names) > 1) == bool(bound)
        assert all(json.loads(line) for name in names for line in read(f"/proc/self/fd/{disk}/{name}").splitlines())
        os.close(disk)
        said = read(stage.path("said"))
        assert "udsproxy: log json: No space left on device; " in said
        assert "Traceback" not in said


# --- time ---

_WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "fromtimestamp", "strftime"}
_TELLS = {
    "sinks/text.py",
    "takeover/guardian_process.py",
    "doctor/seen.py",
    "doctor/gathering.py",
    "logs/times.py",
    "cli/explain.py",
    "cli/state.py",
    "proxy/nginx_log.py",
}
"""Where the time of day is told to people, or compared with that of a log."""


def test_no_duration_is_taken_from_the_time_of_day() -> None:
    """The time of day, which may jump, is looked at only where it is told."""
    package = Path(udsproxy.__file__).parent
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in _WALL
                and ast.unparse(node.func.value) in ("time", "datetime", "date")
            ):
                found.add(str(file.relative_to(package)))
    assert found <= _TELLS


@pytest.mark.parametrize("offset", ["--monotonic 100000000", "--monotonic 5 --boottime 100000000"])
def test_another_monotonic_clock(stage: Stage, start_proxy: StartProxy, offset: str) -> None:
    """In a time namespace (time_namespaces(7)), where the clock that durations are taken from is years ahead, as
    after a long uptime, durations and times of day are right."""
    wrap = ["unshare", "--time", *offset.split(), "--fork", "--kill-child"]
    if os.geteuid() != 0:
        wrap[1:1] = ["--user", "--map-root-user"]
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"), wrap=wrap)
        assert echoes(proxy.socket)
        (close,) = proxy.wait_for("close")
        assert 0 <= close["total_s"] < LIMIT_S
        assert close["ts"] >= proxy.events("listening")[0]["ts"]
        assert close["ts"][:2] == "20"
        assert close["ts"] < "2100"
        (pid,) = (int(n) for n in os.listdir("/proc") if n.isdigit() and read_parent(int(n)) == proxy.pid)
        os.kill(pid, signal.SIGTERM)
        assert proxy.wait() == 0
