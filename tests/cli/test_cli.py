"""The command line: what is refused, with which exit code, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def udsproxy(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "udsproxy", *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["walk"], 2, "walk"),
        (["run"], 2, "LISTEN"),
        (["run", "/tmp/x"], 2, "UPSTREAM"),
        (["run", "--config", "/tmp/x", "--fault", "close"], 2, "leave out --fault"),
        (["fault", "list", "--control", "/nonexistent/x"], 1, "No such file or directory"),
        (["fault", "add"], 2, "FAULT"),
        (["run", "/tmp/x", "/tmp/y", "--logg", "json"], 2, "--log"),
        (["run", "/tmp/x", "/tmp/y", "--log", "xml"], 2, "xml"),
        (["run", "/tmp/x", "/tmp/y", "--decode", "http"], 2, "http"),
        (["run", "/tmp/x", "/tmp/y", "--grace", "soon"], 2, "--grace: 'soon' is not a duration"),
        (["run", "/tmp/x", "/tmp/y", "--hexdump", "-1"], 2, "hexdump"),
        (["run", "/tmp/x", "/tmp/y", "--backlog", "-1"], 2, "backlog"),
        (["run", "/tmp/x,mod=600", "/tmp/y"], 2, "did you mean 'mode'"),
        (["run", "/tmp/x", "/tmp/y,mode=600"], 2, "for LISTEN"),
        (["run", "/tmp/x", "/tmp/./x"], 2, "forward to itself"),
        (["run", "/nonexistent/x", "/tmp/y"], 4, "make the directory first"),
        (["run", "/etc/passwd", "/tmp/y"], 4, "not a socket"),
        (
            ["run", "@udsproxy-never", "/tmp/y", "--log", "json", "--log-file", "/nonexistent/log"],
            1,
            "cannot write the log",
        ),
        (["serve"], 2, "SOCKET"),
        (["serve", "/nonexistent/x"], 4, "make the directory first"),
        (["serve", "/tmp/x", "--workers", "0"], 2, "at least 1"),
        (["request", "/nonexistent/s"], 1, "ENOENT"),
        (["request", "/nonexistent/s", "--param", "x"], 2, "NAME=VALUE"),
        (["request", "/nonexistent/s", "--body", "/nonexistent/b"], 1, "cannot read"),
    ],
)
def test_mistakes(words: list[str], code: int, says: str) -> None:
    """A mistake ends with its exit code and one line on standard error that names it."""
    done = udsproxy(*words)
    assert done.returncode == code
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("udsproxy: ")
    assert says in line


def test_standard_output_is_closed(tmp_path: Path) -> None:
    """Without a standard output to write to the error is one line too."""
    words = [sys.executable, "-m", "udsproxy", "run", str(tmp_path / "a"), str(tmp_path / "b")]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], check=False, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"standard output is closed" in done.stderr


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str) -> None:
    """The version is that of the package."""
    done = udsproxy(flag)
    project = Path(__file__).parents[2] / "pyproject.toml"
    assert f'version = "{done.stdout.strip()}"' in project.read_text()


@pytest.mark.parametrize("command", ["help", "man"])
def test_help_on_nothing(command: str) -> None:
    """A command that there is not is an error, with the one that is meant."""
    for words, says in (
        (["tab"], "unknown command tab; did you mean tap?"),
        (["fault", "ad"], "unknown command ad; did you mean add?"),
        (["tap", "x"], "unknown command x"),
        (["\x1b[2J"], "unknown command \\x1b[2J"),
    ):
        done = udsproxy(command, *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert says in done.stderr


@pytest.mark.parametrize("words", [[], ["fault"]])
def test_no_command(words: list[str]) -> None:
    """Where a command is missing, the help is shown, and the exit code says that nothing was done."""
    done = udsproxy(*words)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == udsproxy(*words, "--help").stdout == udsproxy("help", *words).stdout
