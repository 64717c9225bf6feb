"""What is shown and what is in the log file, side by side: the same events, and neither waits for the other."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
from typing import Any

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.tap import StartTap
from tests.e2e.tools import LIMIT_S, UDSPROXY, EchoServer, echoes, read, udsproxy, until, with_output
from tests.stage import Stage


@pytest.fixture
def upstream(stage: Stage) -> str:
    """The socket of `udsproxy serve`."""
    path = stage.path("up.sock")
    stage.spawn("udsproxy serve", [*UDSPROXY, "serve", path], stage.path("serve.out"))
    stage.await_socket(path)
    return path


def events_in(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(path).splitlines()]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [event["conn"] for event in events if event["event"] == "close"]


@pytest.mark.parametrize("shown", ["console", "socat"])
def test_the_file_and_what_is_shown(stage: Stage, start_proxy: StartProxy, upstream: str, shown: str) -> None:
    """The file has JSON lines of every exchange, whatever is shown on standard output; bytes, which only the other
    output asks for, are not in it."""
    out, log = stage.path("out"), stage.path("log")
    options = ["--log", shown, "--log-file", log]
    proxy = start_proxy(stage.path("p.sock"), upstream, log=options, wrap=with_output(out))
    until(lambda: os.path.exists(log) and "listening" in read(log), "the proxy to listen")
    assert udsproxy("request", proxy.socket, "-n", "3").returncode == 0
    assert proxy.stop() == 0
    assert numbers(events_in(log)) == [1, 2, 3]
    assert {event["event"] for event in events_in(log)} <= {
        "listening", "open", "accepted", "request", "close", "summary",
    }  # fmt: skip
    (script,) = events_in(log)[-1]["scripts"]
    assert (script["script"], script["count"], script["errors"]) == ("/", 3, 0)
    assert 0 < script["total_p50_s"] <= script["total_p99_s"] <= script["total_max_s"] < LIMIT_S
    text = read(out)
    assert ("QUEUE P99  SCRIPT" in text) == (shown == "console")
    assert text.count("GET") >= 3
    assert ("TOTAL" in text) == (shown == "console")
    assert "udsproxy: 3 requests in 3 connections" in proxy.said or shown == "console"


@pytest.mark.parametrize("stalled", ["what is shown", "the file"])
def test_one_output_stalls(stage: Stage, start_proxy: StartProxy, upstream: str, stalled: str) -> None:
    """While nobody reads the one the other goes on, complete, and traffic does; only the one that stalls has a
    `dropped`."""
    fifo, file = stage.path("fifo"), stage.path("file")
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    out, log = (fifo, file) if stalled == "what is shown" else (file, fifo)
    options = ["--log", "console", "--log-file", log, "-v", "--show-secrets"]
    proxy = start_proxy(stage.path("p.sock"), upstream, log=options, wrap=with_output(out))
    stage.await_socket(proxy.socket)
    big = [argument for name in "ABCD" for argument in ("--param", f"{name}={'x' * 15_000}")]
    last = "closed by" if out == file else '"event":"close"'
    for seen in range(30, 151, 30):  # (not more at once than may wait to be written: that would be left out)
        assert udsproxy("request", proxy.socket, *big, "-n", "30", "-c", "4").returncode == 0
        until(lambda seen=seen: read(file).count(last) >= seen, "the output that is read to have all")  # type: ignore[misc]
    proxy.signal()
    assert proxy.wait() == 1
    os.close(fd)
    assert "could not keep up" not in read(file)
    assert '"event":"dropped"' not in read(file)
    name = "console" if stalled == "what is shown" else "json"
    assert [line for line in proxy.said.splitlines() if line.startswith(f"udsproxy: log {name}: nobody reads it")]


def test_the_files_are_within_their_bound(stage: Stage, start_proxy: StartProxy, upstream: str) -> None:
    """With --log-size the log is rotated at line ends while it runs; the files that are kept go on where the one
    before ends."""
    log = stage.path("logs", "log")
    options = ["--log", "json", "--log-file", log, "--log-size", "64KiB", "--log-keep", "2", "-v"]
    proxy = start_proxy(stage.path("p.sock"), upstream, log=options)
    stage.await_socket(proxy.socket)
    assert udsproxy("request", proxy.socket, "-n", "200").returncode == 0
    assert proxy.stop() == 0
    files = [f"{log}.2", f"{log}.1", log]
    assert sorted(glob.glob(f"{log}*")) == sorted(files)
    assert all(os.stat(each).st_size <= 64 * 1024 for each in files)
    assert all(oct(os.stat(each).st_mode) == "0o100600" for each in files)
    events = [event for each in files for event in events_in(each)]
    assert events[-1]["event"] == "summary"
    assert events[-1]["dropped"] == 0
    found = sorted(numbers(events))
    assert len(found) > 20
    assert found == list(range(found[0], events[-1]["connections"] + 1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--log-size", "1MiB"], "--log-size needs --log-file FILE"),
        (["--log-file", "{}", "--log-keep", "3"], "--log-keep needs --log-size SIZE"),
        (["--log-file", "{}", "--log-size", "1k"], "a log size of 1000 bytes: at least 65536 are needed"),
        (["--log-file", "{}", "--log-size", "1MiB", "--log-keep", "0"], "log files to keep: 0: a number from 1 to"),
        (["--log-file", "{}", "--log-size", "big"], "--log-size: 'big' is not a size"),
    ],
)
def test_a_bound_that_cannot_be_meant(stage: Stage, options: list[str], says: str) -> None:
    """Is refused in one line, before there is a file."""
    log = stage.path("log")
    done = udsproxy("run", stage.path("p"), stage.path("up"), *(each.format(log) for each in options))
    assert done.returncode == 2
    assert done.stderr.decode().count("\n") == 1
    assert says in done.stderr.decode()
    assert not os.path.exists(log)


def test_a_name_that_rotation_needs_is_taken(stage: Stage) -> None:
    """Is refused before there is a socket."""
    log = stage.path("log")
    os.mkdir(f"{log}.1")
    options = ["--log-file", log, "--log-size", "1MiB"]
    done = udsproxy("run", stage.path("p"), stage.path("up"), *options)
    line = f"udsproxy: cannot write the log to {log}: log.1 is in the way: it is not a plain file\n"
    assert (done.returncode, done.stderr.decode()) == (1, line)
    assert not os.path.exists(stage.path("p"))


# --- a tap with a command ---


@pytest.mark.parametrize("shown", ["console", "json"])
def test_standard_output_is_the_commands(stage: Stage, shown: str) -> None:
    """What a command prints is all that is on standard output; the tap's lines are on standard error, and in JSON
    they are whole lines there."""
    served = stage.path("s.sock")
    with EchoServer(served):
        script = (
            f"import socket as s; c = s.socket(s.AF_UNIX); c.connect({served!r}); c.send(b'x'); print(c.recv(1))"
        )
        done = subprocess.run(
            [*UDSPROXY, "tap", served, "--log", shown, "--", "python3", "-c", script],
            capture_output=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"b'x'\n")
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("udsproxy: ")]
    if shown == "json":
        names = [json.loads(line)["event"] for line in lines]
        assert [each for each in names if each != "accepted"] == ["listening", "open", "close", "summary"]
    else:
        assert any("closed by client" in line for line in lines)


def test_the_commands_output_and_a_log_file(stage: Stage) -> None:
    """With --log json and --log-file nothing of the log is on either stream."""
    served, log = stage.path("s.sock"), stage.path("log")
    with EchoServer(served):
        done = udsproxy(
            "tap", served, "--log", "json", "--log-file", log, "--", "sh", "-c", "echo out; echo err >&2"
        )
    assert (done.returncode, done.stdout) == (0, b"out\n")
    assert [line for line in done.stderr.decode().splitlines() if not line.startswith("udsproxy: ")] == ["err"]
    assert [event["event"] for event in events_in(log)] == ["listening", "summary"]


def test_nobody_reads_standard_error(stage: Stage) -> None:
    """A tap whose command has ended has the command's exit status, also where its lines were not read."""
    served = stage.path("s.sock")
    read_end, write_end = os.pipe()
    os.close(read_end)
    with EchoServer(served):
        argv = [*UDSPROXY, "tap", served, "--", "sh", "-c", "echo out; exit 3"]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=write_end, timeout=LIMIT_S, check=False)
    os.close(write_end)
    assert (done.returncode, done.stdout) == (3, b"out\n")


def test_a_guardian_finds_a_log_that_was_rotated(stage: Stage, start_tap: StartTap) -> None:
    """What the guardian says of a killed tap is in the file that has the name now."""
    served = stage.path("s.sock")
    with EchoServer(served):
        tap = start_tap(served)
        os.rename(tap.log, f"{tap.log}.old")
        until(lambda: echoes(served) and os.path.exists(tap.log), "the new file")
        tap.signal(signal.SIGKILL)
        assert tap.wait() == -signal.SIGKILL
        tap.await_restored()
        assert '"event":"restored"' not in read(f"{tap.log}.old")
