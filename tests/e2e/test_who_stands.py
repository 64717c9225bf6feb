"""Who stands at a path, and whether that stands still: what `state`, `doctor` and `explain` say of it, and which
names `tap` and `run` refuse.

Rules: the socket is alone in its directory, so what is left there can be told. The commands that only look are
called in this process, which takes a tenth of the time.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.site import Gate, start_nginx, start_php_fpm
from tests.e2e.tap import StartTap, aside_of, beside
from tests.e2e.test_tap import dead_socket, killed_with_its_guardian
from tests.e2e.tools import UDSPROXY, EchoServer, called, echoes, read, udsproxy, until
from tests.stage import Stage
from udsproxy.cli.common import Failure
from udsproxy.cli.doctor import doctor as doctor_command
from udsproxy.cli.explain import explain as explain_command
from udsproxy.cli.run import run as run_command
from udsproxy.cli.state import state as state_command
from udsproxy.cli.tap import tap as tap_command
from udsproxy.inspection.taps import SUFFIX
from udsproxy.kernel.procfs import read_parent
from udsproxy.takeover import names

_PTRACE_ATTACH, _PTRACE_DETACH = 16, 17
NGINX = "[error] 1#1: *3 connect() to unix:{} failed (111: Connection refused) while connecting to upstream"


@pytest.fixture
def path(stage: Stage) -> str:
    """Of a socket that is not there yet."""
    return stage.path("run", "s.sock")


@pytest.fixture
def served(path: str) -> Iterator[str]:
    """Of a socket with an echo server."""
    with EchoServer(path):
        yield path


def doctor(path: str, *words: str) -> tuple[int, list[tuple[str, str]]]:
    """The exit code, and level and title of each finding that is about who stands there, or stands still; or that
    has one of these words."""
    code, said = called(doctor_command, path, json=True)
    about = words or ("tap", SUFFIX, "stopped", "clients get")
    return code, [
        (each["level"], each["title"])
        for each in json.loads(said)["findings"]
        if any(word in each["title"] for word in about)
    ]


def state(*paths: str) -> str:
    code, said = called(state_command, *paths)
    assert code == 0
    return said


def explain(line: str) -> str:
    return called(explain_command, line)[1]


def overview(path: str) -> list[str]:
    """What is said of each socket that was bound as this path."""
    return [line.partition(path)[2].strip() for line in state().splitlines() if path in line]


def me() -> str:
    return f"{read('/proc/self/comm').strip()}, pid {os.getpid()}"


# --- a tap ---


def test_the_names_are_the_same() -> None:
    """The look and the tap mean the same second name."""
    assert names.SUFFIX == SUFFIX


def test_a_tap_that_runs(served: str, start_tap: StartTap) -> None:
    """It is named with whom it stands in front of, and there is nothing wrong with that."""
    tap = start_tap(served)
    stands = f"tapped by udsproxy, pid {tap.pid}, in front of {me()}"
    assert doctor(served) == (0, [("note", stands)])
    lines = state(served).splitlines()
    assert lines[1] == f"  tapped by udsproxy, pid {tap.pid}; the server's own socket is {aside_of(served)}"
    assert f"{aside_of(served)}  stream, listening" in state(served)
    assert sorted(overview(served)) == ["(a tap stands in front of it)", "(a tap's)"]
    assert f"On this machine: {stands}; the server's own" in explain(NGINX.format(served))


def test_through_a_symbolic_link(stage: Stage, served: str, start_tap: StartTap) -> None:
    """The same of a path that leads there."""
    link = stage.path("link.sock")
    os.symlink(served, link)
    tap = start_tap(link)
    assert doctor(link) == (0, [("note", f"tapped by udsproxy, pid {tap.pid}, in front of {me()}")])
    assert f"  tapped by udsproxy, pid {tap.pid}; the server's own socket is {aside_of(served)}\n" in state(link)


def test_a_tap_that_is_stopped(served: str, start_tap: StartTap) -> None:
    """Where nobody puts the path back (its guardian is stopped, too) that is a problem, and it is said which
    process stands there; where the guardian has put it back, that is said."""
    tap = start_tap(served)
    [guardian] = tap.guardians()
    os.kill(guardian, signal.SIGSTOP)
    tap.freeze()
    stands = f"tapped by udsproxy, pid {tap.pid}, in front of {me()}"
    code, found = doctor(served)
    assert (code, found[0]) == (1, ("problem", f"{stands}; it is stopped: clients wait"))
    assert f"it is stopped: clients wait; kill -CONT {tap.pid}\n" in state(served)
    assert any(" (stopped) " in line for line in state().splitlines() if served in line)
    os.kill(guardian, signal.SIGCONT)
    back = f"udsproxy (tap), pid {tap.pid}, is stopped: its guardian has given the path back to {me()}"
    until(lambda: doctor(served) == (0, [("warning", back)]), "the path to be given back")
    assert f"  {back}; kill -CONT {tap.pid}\n" in state(served)
    tap.signal(signal.SIGCONT)
    until(lambda: doctor(served)[1] == [("note", stands)], "nothing to be wrong any more")


def test_a_tap_that_was_killed_with_its_guardian(served: str, start_tap: StartTap) -> None:
    """The path is dead and the server lives: that is the problem, and the command that mends it is said by all."""
    before = beside(served)
    killed_with_its_guardian(served, start_tap)
    problem = "a tap was killed, and its guardian too: clients get ECONNREFUSED"
    command = f"udsproxy tap --restore {served}"
    done = udsproxy("doctor", served)
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout.decode().startswith(f"problem: {problem}\n")
    assert f"    do:    {command}\n" in done.stdout.decode()
    line = f"a tap was killed, and nobody listens on what it has left at this path; {me()}, still answers at "
    line += f"{aside_of(served)}: {command}"
    assert f"  {line}\n" in state(served)
    assert overview(served) == [f"(not at its path, a tap was killed: {command})"]
    assert explain(NGINX.format(served)).startswith(f"On this machine: {line}\n\nconnect(): ECONNREFUSED")
    piped = udsproxy("explain", "-", stdin=NGINX.format(served).encode()).stdout.decode()
    assert f"\n1 x On this machine: {line}\n\nconnect(): ECONNREFUSED" in piped
    assert udsproxy(*command.split()[1:]).returncode == 0
    assert doctor(served) == (0, [])
    assert beside(served) == before


def test_a_path_that_has_gone(served: str, start_tap: StartTap) -> None:
    """The same where what the tap had left was removed: clients get ENOENT."""
    killed_with_its_guardian(served, start_tap)
    os.unlink(served)
    problem = "nothing is at this path, which a tap has had: clients get ENOENT"
    assert doctor(served) == (1, [("problem", problem)])
    said = f"nothing is at this path; {me()}, still answers at {aside_of(served)}: udsproxy tap --restore {served}"
    assert said in state(served)
    assert udsproxy("tap", "--restore", aside_of(served)).returncode == 0  # by that name, too
    assert doctor(served) == (0, [])
    assert echoes(served)


def test_what_is_left_beside_a_server(served: str) -> None:
    """A dead socket at the other name is worth a warning; removing it is the command's work."""
    dead_socket(aside_of(served))
    assert doctor(served) == (0, [("warning", f"{aside_of(served)} is left from a tap that was killed")])
    assert f"  {aside_of(served)} is left from a tap that was killed, and nobody listens on it; " in state(served)
    assert udsproxy("tap", "--restore", served).returncode == 0
    assert doctor(served) == (0, [])


def test_somebody_beside_a_server(served: str) -> None:
    """So is a server at the other name, to which no client comes."""
    with EchoServer(aside_of(served)):
        assert doctor(served) == (0, [("warning", f"{me()}, listens at {aside_of(served)}")])
        assert f"  {me()}, listens at {aside_of(served)}, where no client" in state(served)


def test_both_are_dead(served: str, path: str) -> None:
    """Where the server has gone, too, that is the problem; what is left beside is said besides."""
    dead_socket(aside_of(path))
    os.rename(path, f"{path}.old")
    dead_socket(path)
    assert doctor(path) == (
        1,
        [
            ("problem", "nobody listens: clients get ECONNREFUSED"),
            ("warning", f"{aside_of(path)} is left from a tap that was killed"),
        ],
    )


# --- any server ---


def test_a_pool_that_is_stopped(stage: Stage) -> None:
    """One worker of two, both, and the master alone: what comes of each."""
    path = stage.path("php.sock")
    master = start_php_fpm(stage, path, workers=2).pid

    def workers() -> list[int]:
        pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
        return sorted(pid for pid in pids if read_parent(pid) == master)

    # (One that has just been forked calls itself the master, still.)
    until(lambda: ["pool" in read(f"/proc/{pid}/cmdline") for pid in workers()] == [True] * 2, "two workers")
    first, second = workers()
    name = read(f"/proc/{master}/comm").strip()
    how = "(SIGSTOP or Ctrl-Z)"
    with stopped(first):
        assert doctor(path) == (0, [("warning", f"{name}, pid {first}, is stopped {how}: its clients wait")])
        line = f"1 of 2 that serve are stopped {how}: whom they have accepted waits; kill -CONT {first}\n"
        assert line in state(path)
        with stopped(second):
            assert doctor(path) == (1, [("problem", f"all 2 workers ({name}) are stopped {how}: clients wait")])
            line = f"2 of 2 that serve are stopped {how}: clients wait; kill -CONT {first} {second}\n"
            assert line in state(path)
    with stopped(master):
        assert doctor(path) == (0, [("warning", f"{name}, pid {master}, is stopped {how}: it starts no workers")])
    assert doctor(path) == (0, [])


@pytest.mark.parametrize("tapped", [False, True])
def test_idle_connections(stage: Stage, start_tap: StartTap, tapped: bool) -> None:
    """All workers stay with connections that nginx keeps open: that is named, with whose they are, through a tap,
    too; one that works, or that waits for the next client, is none of them."""
    path = stage.path("php.sock")
    start_php_fpm(stage, path, workers=2)
    if tapped:
        start_tap(path)
    front = start_nginx(stage, {"kept": path})["kept"]
    gates = [Gate(stage.path("gates", str(number))) for number in range(2)]
    with ExitStack() as stack:
        for gate in gates:
            stack.enter_context(front.begin(f"/kept{gate.script}"))
            gate.wait_until_started()
        assert " idle connections of " not in state(path)
        gates[0].open()
        until(lambda: state(path).count("read() on") == 1, "one to wait for nginx")
        assert " idle connections of " not in state(path)
        gates[1].open()
        until(lambda: " idle connections of " in state(path), "both to wait for nginx")
        assert doctor(path, " idle connections of ")[1][0][0] == "problem"
        [(_, title)] = doctor(path, " idle connections of ")[1]
        assert re.fullmatch(r"2 of 2 workers hold idle connections of nginx, pid \d+", title)
        assert "are busy now" not in called(doctor_command, path)[1]
        line = r"    2 of 2 workers hold idle connections of nginx, pid \d+: whoever connects waits"
        assert re.search(line, state(path))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] == "T", "it to stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_server_in_a_debugger(stage: Stage, served: str) -> None:
    """It is said who holds it."""
    path = stage.path("p.sock")
    server = stage.spawn("server", [*UDSPROXY, "run", path, served], stage.path("said"))
    stage.await_socket(path)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.ptrace(_PTRACE_ATTACH, server.pid, None, None) == 0
    try:
        until(lambda: read(f"/proc/{server.pid}/stat").rpartition(")")[2].split()[0] == "t", "it to stop")
        code, found = doctor(path)
        assert (code, found[0][0]) == (1, "problem")
        assert found[0][1].endswith(f", pid {server.pid}, is stopped (by {me()}): clients wait")
    finally:
        until(lambda: libc.ptrace(_PTRACE_DETACH, server.pid, None, None) == 0, "it to be let go")
    assert doctor(path) == (0, [])


# --- names that are refused ---


def refused(command: Callable[..., int], *words: str) -> str:
    """The one line, with exit code 4; nothing has been begun."""
    with pytest.raises(Failure) as refusal:
        command(*words)
    assert refusal.value.code == 4
    return str(refusal.value)


def test_names_that_are_refused(stage: Stage, served: str, start_tap: StartTap) -> None:
    """A tap of what a tap has put aside is refused: ended in the wrong order, nobody would be at the path. So is
    another tap of a tapped socket by whatever name, and a proxy that listens at such a name or forwards to it."""
    aside, link, other, directory = (stage.path(name) for name in ("aside", "link", "p.sock", "directory"))
    os.symlink(aside_of(served), aside)
    os.symlink(served, link)
    os.symlink(os.path.dirname(served), directory)
    tap = start_tap(served)
    before = beside(served)
    for asked in (aside_of(served), aside):
        assert f"use {served} itself" in refused(tap_command, asked)
    for asked in (link, os.path.join(directory, os.path.basename(served))):
        done = udsproxy("tap", asked, "--control", "none")
        assert done.returncode == 4
        assert b"tapped already" in done.stderr
    for words, what in (((aside_of(served), served), "listen on"), ((other, aside_of(served)), "forward to")):
        assert f"cannot {what} {aside_of(served)}: names that end in {SUFFIX} belong" in refused(
            run_command, *words
        )
    assert not os.path.lexists(other)
    assert beside(served) == before
    tap.await_seen()
