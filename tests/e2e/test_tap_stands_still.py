"""A tap that is stopped, or whose guardian is: the path is the server's meanwhile, and the tap's again afterwards.

Rule: as in test_tap.py, the socket is alone in its directory.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.tap import File, StartTap, Tap, aside_of, beside, is_armed, is_served
from tests.e2e.tools import EchoServer, connect, echoes, read, receive_exactly, until
from tests.stage import Stage
from udsproxy.endpoints import ListenError
from udsproxy.takeover.restore import restore

BACK_S = 1.5
"""How soon the server has its path back when the proxy is stopped."""


@pytest.fixture
def path(stage: Stage) -> str:
    """Of a socket that is not there yet."""
    return stage.path("run", "s.sock")


@pytest.fixture
def served(path: str) -> Iterator[str]:
    """Of a socket with an echo server."""
    with EchoServer(path):
        yield path


def answered_within(path: str) -> float:
    """How long it takes until the echo server answers a new client."""
    began = time.monotonic()

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(0.2)
            try:
                sock.connect(path)
                sock.sendall(b"x")
                return sock.recv(1) == b"x"
            except OSError:
                return False

    until(answers, "an answer at the path")
    return time.monotonic() - began


def await_taken_again(tap: Tap, real: File) -> None:
    """Until it stands at the path again, and shows what comes."""
    until(lambda: os.path.lexists(aside_of(tap.socket)) and File.at(aside_of(tap.socket)) == real, "the path")
    tap.await_seen()


def test_a_stopped_proxy(served: str, start_tap: StartTap) -> None:
    """When the proxy is stopped the server has its path back, the guardian says so, and when the proxy goes on it
    takes the path again; at the end all is as it was."""
    before = beside(served)
    tap = start_tap(served)
    for _ in range(2):
        tap.freeze()
        took_s = answered_within(served)
        print(f"the path answers {took_s:.2f} s after SIGSTOP")
        assert took_s < BACK_S
        assert File.at(served) == before["s.sock"]
        tap.signal(signal.SIGCONT)
        await_taken_again(tap, before["s.sock"])
    said = [line for line in tap.said.splitlines() if "stands still" in line]
    assert len(said) == 2
    assert f"{served}: the real socket is in its place until it runs again" in said[0]
    assert [event["message"] for event in tap.events("restored")] == [line.partition(": ")[2] for line in said]
    assert len(tap.events("listening")) == 3
    tap.stop()
    assert beside(served) == before


def test_who_is_connected_while_it_is_stopped(served: str, start_tap: StartTap) -> None:
    """A connection that is open goes on when the proxy does; so does one that waited in its queue."""
    tap = start_tap(served)
    with connect(served) as before, socket.socket(socket.AF_UNIX) as queued:
        before.sendall(b"one")
        assert receive_exactly(before, 3) == b"one"
        tap.freeze()
        queued.connect(served)
        queued.sendall(b"two")
        before.sendall(b"three")
        answered_within(served)
        tap.signal(signal.SIGCONT)
        assert receive_exactly(queued, 3) == b"two"
        assert receive_exactly(before, 5) == b"three"


def test_killed_while_it_is_stopped(served: str, start_tap: StartTap) -> None:
    """A proxy that is killed while it is stopped leaves nothing behind."""
    before = beside(served)
    tap = start_tap(served)
    tap.freeze()
    answered_within(served)
    tap.kill()
    until(lambda: beside(served) == before, "nothing to be left over")
    assert echoes(served)


@pytest.mark.parametrize("order", ["then ended", "then restarted"])
def test_a_server_that_ends_while_the_proxy_is_stopped(path: str, start_tap: StartTap, order: str) -> None:
    """What the server does meanwhile is its own affair: the tap follows when it goes on."""
    with EchoServer(path):
        tap = start_tap(path)
        tap.freeze()
        answered_within(path)
    os.unlink(path)
    if order == "then ended":
        tap.signal(signal.SIGCONT)
        tap.wait_for("upstream_error", op="connect")
        assert not is_served(path)
        assert beside(path) == {}
        with EchoServer(path):
            tap.await_seen()
            tap.stop()
            assert beside(path).keys() == {"s.sock"}
    else:
        with EchoServer(path):
            real = File.at(path)
            tap.signal(signal.SIGCONT)
            await_taken_again(tap, real)
            tap.stop()
            assert beside(path) == {"s.sock": real}


def test_rights_that_change_while_it_is_stopped(served: str, start_tap: StartTap) -> None:
    """Where the server changes its file's mode meanwhile, ours has that mode too afterwards."""
    tap = start_tap(served)
    tap.freeze()
    answered_within(served)
    os.chmod(served, 0o640)
    real = File.at(served)
    tap.signal(signal.SIGCONT)
    await_taken_again(tap, real)
    assert File.at(served)[1:] == real[1:]


def test_a_stopped_guardian(served: str, start_tap: StartTap) -> None:
    """A guardian that is stopped is replaced, and is gone then; the new one does its work."""
    before = beside(served)
    tap = start_tap(served)
    [stopped] = tap.guardians()
    os.kill(stopped, signal.SIGSTOP)
    [second] = until(lambda: tap.guardians() - {stopped}, "another guardian")
    until(lambda: is_armed(second, served), "the guardian to know the file")
    assert not os.path.exists(f"/proc/{stopped}")
    assert echoes(served)
    tap.kill()
    until(lambda: beside(served) == before, "the path to be given back")


def test_ending_beside_a_stopped_guardian(served: str, start_tap: StartTap) -> None:
    """A tap ends as it should also where its guardian is stopped, and takes that with it."""
    before = beside(served)
    tap = start_tap(served)
    [guardian] = tap.guardians()
    os.kill(guardian, signal.SIGSTOP)
    assert tap.stop() == 0
    assert beside(served) == before
    until(lambda: not os.path.exists(f"/proc/{guardian}"), "the guardian's end")


def test_both_stopped(served: str, start_tap: StartTap) -> None:
    """Where the guardian is stopped first nobody can put the path back; when the guardian goes on it does."""
    tap = start_tap(served)
    [guardian] = tap.guardians()
    os.kill(guardian, signal.SIGSTOP)
    tap.freeze()
    os.kill(guardian, signal.SIGCONT)
    assert answered_within(served) < BACK_S
    tap.signal(signal.SIGCONT)
    tap.await_seen()


# --- Ctrl-Z ---


def state_of(pid: int) -> str:
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]


JOB = "import subprocess, sys; sys.exit(subprocess.Popen(sys.argv[1:], process_group=0).wait())"
"""Runs a command as a shell does a job. (Whoever has no shell to be continued by is not stopped by SIGTSTP.)"""


def test_ctrl_z(served: str, start_tap: StartTap) -> None:
    """On SIGTSTP the path is the server's before the tap is stopped, and the tap says so before; SIGCONT takes it
    again."""
    before = beside(served)
    tap = start_tap(served, wrap=[sys.executable, "-c", JOB])
    pid = int(read(f"/proc/{tap.pid}/task/{tap.pid}/children").split()[0])
    os.kill(pid, signal.SIGTSTP)
    until(lambda: state_of(pid) == "T", "the tap to be stopped")
    assert "until this runs again" in tap.said
    assert File.at(served) == before["s.sock"]
    assert echoes(served)
    os.kill(pid, signal.SIGCONT)
    await_taken_again(tap, before["s.sock"])
    assert "stands still" not in tap.said
    os.kill(pid, signal.SIGTERM)
    assert tap.wait() == 0
    assert beside(served) == before


# --- faults, and directories that go ---


def test_a_missing_path_is_missing(served: str, start_tap: StartTap) -> None:
    """The fault `missing` has clients of a tapped path meet ENOENT, and at the end the server has its path back."""
    before = beside(served)
    tap = start_tap(served, "--fault", "missing for=300ms")
    tap.wait_for("fault", count=1)
    until(lambda: not os.path.exists(served) or tap.events("open"), "the path to be missing")
    until(lambda: is_served(served), "the fault's end")
    tap.await_seen()
    tap.stop()
    assert beside(served) == before


def test_a_directory_that_is_made_anew(stage: Stage, start_tap: StartTap) -> None:
    """A server whose directory goes with it and comes again (systemd's RuntimeDirectory=) is followed."""
    directory = Path(stage.path("run", ""), "own")
    directory.mkdir()
    path = str(directory / "s.sock")
    with EchoServer(path):
        tap = start_tap(path)
        tap.await_seen()
    os.unlink(path)
    until(lambda: not os.listdir(directory), "nothing of the tap's in it")
    directory.rmdir()
    directory.mkdir()
    with EchoServer(path):
        real = File.at(path)
        tap.await_seen()
        tap.stop()
        assert beside(path) == {"s.sock": real}


# --- two at once ---


def test_two_taps_at_once(served: str, start_tap: StartTap) -> None:
    """Of two taps that begin at the same moment one stands at the path, and the other refuses."""
    before = beside(served)
    taps = [start_tap(served, log=["--control", "none"]) for _ in range(2)]
    [loser] = until(lambda: [tap for tap in taps if tap.process.poll() is not None], "one to refuse")
    [winner] = [tap for tap in taps if tap is not loser]
    assert loser.wait() == 4
    assert "tapped already" in loser.said
    until(lambda: "Ctrl-C" in winner.said, "the other")
    assert echoes(served)
    assert winner.stop() == 0
    assert beside(served) == before


def test_restoring_while_taps_come_and_go(served: str, start_tap: StartTap) -> None:
    """tap --restore at any moment of a tap's life takes nothing away: the path answers all the time."""
    before, ended, complaints = beside(served), threading.Event(), list[str]()

    def restore_all_the_time() -> None:
        while not ended.is_set():
            try:
                complaints.append(restore(served))
            except ListenError as error:
                complaints.append(str(error))
            try:
                assert echoes(served)
            except (OSError, AssertionError) as error:
                complaints.append(f"no answer: {error!r}")

    with ThreadPoolExecutor(1) as pool:
        restoring = pool.submit(restore_all_the_time)
        try:
            for _ in range(3):
                tap = start_tap(served)
                tap.await_seen()
                assert tap.stop() == 0
        finally:
            ended.set()
        restoring.result()
    assert beside(served) == before
    assert {line.split(": ")[1][:20] for line in complaints} <= {"nothing to restore", "somebody listens the"}
