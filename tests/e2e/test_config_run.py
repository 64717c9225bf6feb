"""`udsproxy run --config FILE`: several proxies, and faults that are read again at SIGHUP."""

from __future__ import annotations

import json
import signal
import socket
from typing import Any

import pytest

from tests.e2e.tools import UDSPROXY, EchoServer, echoes, read, udsproxy, until
from tests.stage import Stage

FILE = """
[log]
format = "json"
file = "{directory}/log"
[[proxy]]
listen = "{directory}/one"
upstream = "{directory}/up"
faults = [{one}]
[[proxy]]
listen = "{directory}/two"
upstream = "{directory}/up"
faults = [{two}]
"""


def events(stage: Stage, name: str) -> list[dict[str, Any]]:
    lines = read(stage.path("log")).split("\n")[:-1]
    return [event for event in map(json.loads, lines) if event["event"] == name]


def refuses(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) != 0


def test_several_proxies_and_a_reload(stage: Stage) -> None:
    """Each proxy has its own faults; SIGHUP puts those of the file in force; a bad file changes nothing, says why;
    other changes are said to take a restart; SIGTERM ends them all and removes their files."""

    def write(one: str, two: str, more: str = "") -> str:
        return stage.write(FILE.format(directory=stage.directory, one=one, two=two) + more, "udsproxy.toml")

    one, two = stage.path("one"), stage.path("two")
    conf, said = write('"refuse"', ""), stage.path("said")
    with EchoServer(stage.path("up")):
        process = stage.spawn("udsproxy", [*UDSPROXY, "run", "--config", conf], said)
        until(lambda: refuses(one) and not refuses(two), "the first faults")
        assert echoes(two)

        write("", '"refuse"')
        process.send_signal(signal.SIGHUP)
        until(lambda: refuses(two) and not refuses(one), "the other faults")
        assert echoes(one)

        write('"refus"', "")
        process.send_signal(signal.SIGHUP)
        until(lambda: "nothing is changed" in read(said), "the mistake")
        assert "proxy[1].faults: fault 'refus': unknown fault 'refus'; did you mean 'refuse'?" in read(said)
        assert echoes(one)

        write("", "", 'backlog = 3\n[[proxy]]\nlisten = "/x"\nupstream = "/y"')
        process.send_signal(signal.SIGHUP)
        until(lambda: not refuses(two), "the end of the fault")
        until(lambda: "a new proxy takes a restart: x" in read(said), "what takes a restart")
        assert "other sockets or settings take a restart: two" in read(said)

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(one)
    told = [(event["proxy"], event["detail"]) for event in events(stage, "fault")]
    assert told == [
        ("one", "in force: refuse"),
        ("one", "taken away"),
        ("two", "in force: refuse"),
        ("two", "taken away"),
    ]
    assert "Traceback" not in read(said)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run"], 2, "LISTEN and UPSTREAM are needed, or --config FILE"),
        (["run", "/l", "/u", "--config", "/x"], 2, "leave out LISTEN"),
        (["run", "--config", "/nonexistent/file"], 3, "/nonexistent/file: No such file or directory"),
        (["run", "--config", "/dev/null"], 3, "/dev/null: it is not a file (SIGHUP reads it again)"),
    ],
)
def test_mistakes(words: list[str], code: int, says: str) -> None:
    """One line, and the exit code."""
    done = udsproxy(*words)
    assert (done.returncode, done.stdout) == (code, b"")
    assert says in done.stderr.decode()
    assert done.stderr.decode().count("\n") == 1


def test_the_example_is_understood() -> None:
    """`--check` on config/udsproxy.toml prints its proxy."""
    done = udsproxy("run", "--config", "config/udsproxy.toml", "--check")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"www: /tmp/udsproxy-seen.sock -> /run/php/php8.2-fpm.sock\n"
