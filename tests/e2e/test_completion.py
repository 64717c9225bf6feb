"""``udsproxy completion``: what bash, zsh and fish make of the script when somebody presses TAB."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.e2e.tools import LIMIT_S, program, udsproxy
from tests.stage import Stage

LINES = {
    "udsproxy t": "tap",
    "udsproxy tap --fo": "--for",
    "udsproxy run --fault lat": "latency=250ms",
    "udsproxy run --decode f": "fastcgi",
    "udsproxy tap --log j": "json",
    "udsproxy tap DIRECTORY/live.so": "DIRECTORY/live.sock",
    "udsproxy doctor --log DIRECTORY/live.so": "DIRECTORY/live.sock",
    "udsproxy fault add --control DIRECTORY/live.so": "DIRECTORY/live.sock",
    "udsproxy help doc": "doctor",
    "udsproxy completion z": "zsh",
    "udsproxy explain ECONNREF": "ECONNREFUSED",
}
"""What was typed, and what comes of it."""

_BASH = """
source "$1"
while IFS= read -r line; do
    read -ra COMP_WORDS <<<"$line"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$line COMP_POINT=${#line} COMPREPLY=()
    _udsproxy
    echo "${COMPREPLY[*]}"
done
"""
_FISH = """
source $argv[1]
while read line
    complete --do-complete $line | string replace --regex '\\t.*' '' | string join ' '
end
true
"""


@pytest.fixture
def lines(stage: Stage) -> dict[str, str]:
    """`LINES`, with a directory that has one file in it."""
    stage.write("", "dir", "live.sock")
    directory = stage.path("dir")
    return {
        typed.replace("DIRECTORY", directory): made.replace("DIRECTORY", directory) for typed, made in LINES.items()
    }


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shells find udsproxy, which gives what no script can have."""
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")


def script(stage: Stage, shell: str, *name: str) -> str:
    """The path of the file with that shell's script."""
    done = udsproxy("completion", shell)
    assert (done.returncode, done.stderr) == (0, b"")
    return stage.write(done.stdout.decode(), *name)


def completed(argv: list[str], lines: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        argv, input="".join(f"{line}\n" for line in lines), capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr == ""
    return dict(zip(lines, done.stdout.split("\n")[:-1], strict=True))


@pytest.mark.usefixtures("path")
def test_bash(stage: Stage, lines: dict[str, str]) -> None:
    """Commands, options, choices, faults, errors and paths are completed."""
    argv = [program("bash"), "--norc", "-c", _BASH, "bash", script(stage, "bash", "udsproxy.bash")]
    assert completed(argv, lines) == lines


@pytest.mark.usefixtures("path")
def test_fish(stage: Stage, lines: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""
    monkeypatch.setenv("HOME", stage.path("home", ""))
    os.chmod(os.path.dirname(stage.path("home", "")), 0o700)
    monkeypatch.chdir(os.path.dirname(stage.path("empty", "")))  # fish would offer files beside commands
    argv = [program("fish"), "--no-config", "-c", _FISH, script(stage, "fish", "udsproxy.fish")]
    assert completed(argv, lines) == lines


class Terminal:
    """A terminal with an interactive zsh, which completes at a terminal only."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def await_output(self, wanted: str) -> None:
        """Until it has written that."""
        got, limit = b"", time.monotonic() + LIMIT_S
        while wanted.encode() not in got:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, limit - time.monotonic()))
            assert ready, f"waited in vain for {wanted!r}: {got!r}"
            got += os.read(self._ours, 65536)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def zsh(stage: Stage, path: None) -> Iterator[Terminal]:
    """With the script where zsh looks for it, under the name of the function in it."""
    directory = os.path.dirname(script(stage, "zsh", "functions", "_cyclopts_udsproxy"))
    environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "HOME": directory, "LC_ALL": "C.UTF-8"}
    terminal = Terminal([program("zsh"), "-f", "-i"], environment)
    with contextlib.closing(terminal):
        terminal.type(f"fpath=({shlex.quote(directory)} $fpath); autoload -Uz compinit; compinit -u -D\n")
        terminal.type("show() { zle -I; print -r -- \"[$BUFFER]\"; BUFFER= }; zle -N show; bindkey '^X' show\n")
        terminal.type("print ready${:-:}\n")
        terminal.await_output("ready:")
        yield terminal


def test_zsh(zsh: Terminal, lines: dict[str, str]) -> None:
    """The same."""
    for typed, made in lines.items():
        zsh.type(f"{typed}\t\x18")
        zsh.await_output(f"[{' '.join([*typed.split()[:-1], made])}")
