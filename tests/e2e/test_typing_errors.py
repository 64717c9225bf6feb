"""A typing error touches nothing: neither the socket nor its directory changes, not for a moment."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.starts import start_each
from tests.e2e.tap import StartTap
from tests.e2e.tools import EchoServer, echoes
from tests.stage import Stage
from udsproxy.cli import app
from udsproxy.cli.mistakes import commands_of


@pytest.fixture
def live(stage: Stage) -> Iterator[str]:
    """The path of a socket that is in use, alone in its directory."""
    path = stage.path("live", "s.sock")
    with EchoServer(path):
        yield path


def seen(path: str) -> tuple[int, int, list[str]]:
    """Changes with whatever is made, renamed or exchanged there."""
    directory = os.path.dirname(path)
    return os.lstat(path).st_ino, os.stat(directory).st_mtime_ns, os.listdir(directory)


MISTAKES = [
    (["--logg", "json"], 2, "unknown option --logg; did you mean --log? (see udsproxy tap --help)"),
    (["--logg=json"], 2, "unknown option --logg; did you mean --log? (see udsproxy tap --help)"),
    (["--workers", "2"], 2, "unknown option --workers; udsproxy serve has it (see udsproxy tap --help)"),
    (["--verbos"], 2, "unknown option --verbos; did you mean --verbose? (see udsproxy tap --help)"),
    (["-x"], 2, "unknown option -x (see udsproxy tap --help)"),
    (["-vx"], 2, "unknown option -x (see udsproxy tap --help)"),
    (["--no-verbose"], 2, "unknown option --no-verbose; did you mean --verbose? (see udsproxy tap --help)"),
    (
        ["/other.sock"],
        2,
        "/other.sock is one argument too many; a command stands after -- (see udsproxy tap --help)",
    ),
    (["true"], 2, "true is one argument too many; a command stands after -- (see udsproxy tap --help)"),
    (
        ["true", "--", "true"],
        2,
        "true is one argument too many; a command stands after -- (see udsproxy tap --help)",
    ),
    (["--for", "soon"], 2, "--for: 'soon' is not a duration"),
    (["--for"], 2, "--for requires an argument"),
    (["--log-file", "--verbose"], 2, "--log-file requires an argument"),
    (["--log", "jsn"], 2, 'Did you mean "json"?'),
    (["--fault", "eagan"], 2, "did you mean 'eagain'?"),
    (["--"], 2, "a command is needed after --"),
    (["--restore", "--", "true"], 2, "--restore runs no command"),
    (
        ["--", "/no/such/command"],
        127,
        "cannot run /no/such/command: No such file or directory; nothing was touched",
    ),
    (["--", "no-such-command"], 127, "cannot run no-such-command: No such file or directory; nothing was touched"),
    (["--", ""], 2, "a command is needed after --"),
    (["--", "/etc/passwd"], 126, "cannot run /etc/passwd: Permission denied; nothing was touched"),
    (["--", "/etc"], 126, "cannot run /etc: Permission denied; nothing was touched"),
]


def test_a_tap_with_a_mistake(stage: Stage, live: str) -> None:
    """One line, its exit code, and the socket as it was."""
    before = seen(live)
    cases = [["tap", live, *words] for words, _, _ in MISTAKES]
    cases += [["tap", "--", live, "true"], ["tap", *MISTAKES[0][0], live]]
    done = start_each(stage, [(words, []) for words in cases])
    expected = [*MISTAKES, ([], 2, "PATH requires an argument"), MISTAKES[0]]
    for words, (_, code, line), each in zip(cases, expected, done, strict=True):
        assert (words, each.code, each.output) == (words, code, "")
        assert each.error.startswith("udsproxy: ")
        assert each.error.count("\n") == 1
        assert line in each.error
    assert seen(live) == before
    assert echoes(live)


def test_a_fault_that_the_socket_cannot_have(stage: Stage) -> None:
    """It is known before the path is taken."""
    path = stage.path("live", "d.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        before = seen(path)
        (done,) = start_each(stage, [(["tap", path, "--fault", "latency=1ms"], [])])
        assert (done.code, done.output) == (2, "")
        assert "it is for connections" in done.error
        assert seen(path) == before


def test_every_command_knows_its_options(stage: Stage) -> None:
    """An unknown option, or an argument too many, is an error of each command, and names what there is."""
    chains = list(commands_of(app))
    assert {("run",), ("fault", "list"), ("demo",)} <= set(chains)
    words = [[*chain, "--hlp"] for chain in chains]
    for each, done in zip(words, start_each(stage, [(each, []) for each in words]), strict=True):
        command = " ".join(("udsproxy", *each[:-1]))
        line = f"udsproxy: unknown option --hlp; did you mean --help? (see {command} --help)\n"
        assert (each, done) == (each, (2, "", line))


OTHERS = [
    (["tab", "/x"], "unknown command tab; did you mean tap? (see udsproxy --help)"),
    (["wlk"], "unknown command wlk: there are tap, run, state, doctor, explain, fault, request, serve, demo"),
    (["fault", "lst"], "unknown command lst; did you mean list? (see udsproxy fault --help)"),
    (["--restore", "/x"], "unknown option --restore; udsproxy tap has it"),
    (["--verion"], "unknown option --verion; did you mean --version?"),
    (["explain", "--markdow"], "unknown option --markdow; did you mean --markdown? (see udsproxy explain --help)"),
    (["explain", "--since", "1h"], "unknown option --since (see udsproxy explain --help)"),
    (["explain", "conect", "EAGIAN"], "no error is known in 'conect EAGIAN': did you mean connect EAGAIN?"),
    (["serve", "/x", "--log", "json"], "unknown option --log; udsproxy tap, run and doctor have it"),
    (["run", "a", "b", "c"], "c is one argument too many (see udsproxy run --help)"),
    (["demo", "x\x1b[2J" + "y" * 1000], "x\\x1b[2Jyyy"),
]


def test_other_commands_with_a_mistake(stage: Stage) -> None:
    """What was meant is named."""
    for (words, line), done in zip(OTHERS, start_each(stage, [(words, []) for words, _ in OTHERS]), strict=True):
        assert (words, done.code, done.output) == (words, 2, "")
        assert line in done.error
        assert done.error.count("\n") == 1
        assert len(done.error) < 200


def test_a_command_with_options_of_ours(live: str, start_tap: StartTap) -> None:
    """What stands after -- is the command's, whatever it looks like, another -- included."""
    tap = start_tap(live, command=["sh", "-c", 'test "$*" = "-- --log json -v"', "sh", "--", "--log", "json", "-v"])
    assert tap.wait() == 0
