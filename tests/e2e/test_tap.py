"""``udsproxy tap`` before small servers: it takes a live socket's place, follows its server, and gives the place
back whatever happens.

Rule: the socket is alone in its directory. "All is as it was" means that this has the same one file, with the same
inode and rights.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest

from tests.e2e.tap import File, StartTap, Tap, aside_of, beside, is_armed, is_served
from tests.e2e.tools import (
    UDSPROXY,
    EchoServer,
    connect,
    echoes,
    program,
    read,
    receive_all,
    receive_exactly,
    run,
    udsproxy,
    until,
)
from tests.stage import Stage

ROOT = os.geteuid() == 0
OTHER_UID, OTHER_GID = 65534, 65533
"""Somebody else, on every system."""

ECHO_AND_END = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(b"hello")
    assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def path(stage: Stage) -> str:
    """Of a socket that is not there yet."""
    return stage.path("run", "s.sock")


@pytest.fixture
def served(path: str) -> Iterator[str]:
    """Of a socket with an echo server."""
    with EchoServer(path):
        yield path


def exchange(sock: socket.socket, data: bytes) -> None:
    """A question and its answer on a connection to an echo server."""
    sock.sendall(data)
    assert receive_exactly(sock, len(data)) == data


def refused(path: str, *options: str, wrap: Sequence[str] = ()) -> str:
    """The line with which a tap refuses; exit code 4 says so too, and nothing is changed."""
    before = beside(path)
    # (Who has no place for a control socket is told so, besides.)
    done = run([*wrap, *UDSPROXY, "tap", path, *options, "--control", "none"])
    assert done.returncode == 4
    assert done.stdout == b""
    line, end = done.stderr.decode().split("\n")
    assert end == ""
    assert line.startswith("udsproxy: ")
    assert path in line
    assert beside(path) == before
    return line


def restore(path: str) -> None:
    """``tap --restore``, which says in a line what it did."""
    done = udsproxy("tap", "--restore", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    line, end = done.stderr.decode().split("\n")
    assert line.startswith(f"udsproxy: {path}: ")
    assert end == ""


# --- from beginning to end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_tap_shows_connections_and_leaves_no_trace(
    served: str, start_tap: StartTap, number: signal.Signals
) -> None:
    """While a tap runs the server's own socket is beside, and connections show; after SIGTERM or Ctrl-C all is as
    it was, and they do not."""
    before = beside(served)
    tap = start_tap(served)
    assert beside(served).keys() == before.keys() | {"s.sock.udsproxy"}
    assert File.at(aside_of(served)) == before["s.sock"]
    assert echoes(served)
    tap.wait_for("close", by="client", c2s_bytes=5, s2c_bytes=5)
    tap.signal(number)
    assert tap.wait() == 0
    assert beside(served) == before
    assert echoes(served)
    assert len(tap.events("open")) == 1


def test_the_file_has_the_rights_of_the_real_one(served: str, start_tap: StartTap) -> None:
    """Mode, owner and group of what stands at the path are those of the server's file."""
    if ROOT:
        os.chown(served, OTHER_UID, OTHER_GID)
    os.chmod(served, 0o660)
    before = beside(served)
    tap = start_tap(served)
    assert File.at(served)[1:] == before["s.sock"][1:]
    assert File.at(served).inode != before["s.sock"].inode
    tap.stop()
    assert beside(served) == before


def test_a_symbolic_link(stage: Stage, served: str, start_tap: StartTap) -> None:
    """Where PATH is a symbolic link the socket that it leads to is tapped, for clients of both; the link stays."""
    link = stage.path("links", "link.sock")
    os.symlink(served, link)
    before, links = beside(served), beside(link)
    tap = start_tap(link)
    assert echoes(link)
    assert echoes(served)
    tap.wait_for("open", count=2)
    assert beside(link) == links
    tap.stop()
    assert (beside(served), beside(link)) == (before, links)


@pytest.mark.parametrize("spelling", ["{path}", "s.sock", "./s.sock", "../run/.//s.sock"])
def test_the_name_of_the_real_one(
    path: str, start_tap: StartTap, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    """Clients see in getpeername() the name that the server has bound its socket under, as without a tap; what that
    takes is gone. (Who may not use chroot() can have it so only where it is relative and leads nowhere up.)"""
    monkeypatch.chdir(os.path.dirname(path))
    name = spelling.format(path=path)
    with EchoServer(name):
        tap = start_tap(path)
        with connect(path) as sock:
            seen = sock.getpeername()
        assert seen == name or (not ROOT and name not in ("s.sock", "./s.sock") and seen == aside_of(path))
        assert beside(path).keys() == {"s.sock", "s.sock.udsproxy"}
        assert tap.stop() == 0
    assert beside(path).keys() == {"s.sock"}


def test_what_a_killed_tap_has_left_is_removed(
    path: str, start_tap: StartTap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory in which a tap that was killed has bound its socket is removed by the next; that of one that
    lives stays."""
    monkeypatch.chdir(os.path.dirname(path))
    dead = run(["sh", "-c", "echo $$"]).stdout.decode().strip()
    for pid in (dead, os.getpid()):
        os.makedirs(f".udsproxy-{pid}.d/run", mode=0o700)
        os.chmod(f".udsproxy-{pid}.d", 0o700)
        with socket.socket(socket.AF_UNIX) as sock:
            os.fchmod(sock.fileno(), 0)
            sock.bind(f".udsproxy-{pid}.d/run/s.sock")
    with EchoServer("s.sock"):
        start_tap(path)
        assert beside(path).keys() == {"s.sock", "s.sock.udsproxy", f".udsproxy-{os.getpid()}.d"}


def test_a_command(served: str, start_tap: StartTap) -> None:
    """A tap with a command lasts as long as that, shows what it does, and ends with its exit status."""
    before = beside(served)
    tap = start_tap(served, command=[sys.executable, "-c", ECHO_AND_END, served, "7"])
    assert tap.wait() == 7
    assert len(tap.events("open")) == 1
    assert beside(served) == before


def test_a_command_that_cannot_be_run(served: str, stage: Stage, start_tap: StartTap) -> None:
    """What is found out only by running it (its interpreter is missing) ends a tap with exit status 127, as a
    shell's would. (What is not there, or not executable, is found before: test_typing_errors.py.)"""
    before = beside(served)
    script = stage.write("#!/no/such/interpreter\n", "bin", "script")
    os.chmod(script, 0o755)
    tap = start_tap(served, command=[script])
    assert tap.wait() == 127
    assert f"cannot run {script}" in tap.said
    assert beside(served) == before


def test_a_tap_for_a_while(served: str, start_tap: StartTap) -> None:
    """With --for a tap ends by itself, not before that time."""
    before, began = beside(served), time.monotonic()
    tap = start_tap(served, "--for", "1s")
    assert tap.wait() == 0
    assert time.monotonic() - began >= 1
    assert beside(served) == before


def test_open_connections_go_on(served: str, start_tap: StartTap) -> None:
    """After SIGTERM the path is given back at once; the tap stays until all who are connected through it leave."""
    before = beside(served)
    tap = start_tap(served)
    with connect(served) as sock:
        exchange(sock, b"before")
        tap.signal()
        until(lambda: beside(served) == before, "the path to be given back")
        exchange(sock, b"after")
        assert tap.process.poll() is None
    assert tap.wait() == 0
    [close] = tap.events("close")
    assert (close["by"], close["c2s_bytes"]) == ("client", len(b"beforeafter"))


def test_a_second_signal_ends_open_connections(served: str, start_tap: StartTap) -> None:
    """SIGTERM for the second time ends the tap, and the connections through it."""
    before = beside(served)
    tap = start_tap(served)
    with connect(served) as sock:
        exchange(sock, b"before")
        tap.signal()
        until(lambda: beside(served) == before, "the path to be given back")
        assert tap.stop() == 0
        assert receive_all(sock) == b""
    [close] = tap.events("close")
    assert close["by"] == "proxy"


def test_clients_that_wait_at_the_end_are_served(served: str, start_tap: StartTap) -> None:
    """Clients that are in the tap's accept queue when SIGTERM comes are served, as if there were no tap."""
    before = beside(served)
    tap = start_tap(served)
    tap.freeze()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(served)) for _ in range(5)]
        for number, client in enumerate(clients):
            client.sendall(b"client %d" % number)
            client.shutdown(socket.SHUT_WR)
        tap.signal(signal.SIGTERM)
        tap.signal(signal.SIGCONT)
        assert [receive_all(client) for client in clients] == [b"client %d" % number for number in range(5)]
    assert tap.wait() == 0
    assert len(tap.events("open")) == 5
    assert beside(served) == before


# --- killed ---


def test_the_guardian_puts_the_path_back(served: str, start_tap: StartTap) -> None:
    """When the proxy is killed the server answers at its path again within a moment, nothing is left over, and the
    guardian says so on standard error and in the log."""
    before = beside(served)
    tap = start_tap(served)
    with connect(served) as sock:
        exchange(sock, b"open")
        killed = time.monotonic()
        tap.signal(signal.SIGKILL)
        until(lambda: is_served(served), "the server at its path")
        took_s = time.monotonic() - killed
        assert receive_all(sock) == b""
    print(f"the server answers again after {took_s * 1e3:.0f} ms")
    assert took_s < 1
    until(lambda: beside(served) == before, "nothing to be left over")
    tap.wait()
    tap.await_restored()
    [event] = tap.events("restored")
    assert event["proxy"] == "s.sock"
    assert served in event["message"]
    assert tap.said.splitlines().count(f"udsproxy: {event['message']}") == 1


def test_the_guardians_event_has_a_line_of_its_own(served: str, start_tap: StartTap) -> None:
    """Also where the proxy was killed in the middle of a line."""
    tap = start_tap(served)
    tap.freeze()
    with open(tap.log, "a", encoding="ascii") as log:
        log.write('{"ts":')
    tap.kill()
    tap.await_restored()
    *_, cut, whole = read(tap.log).splitlines()
    assert cut == '{"ts":'
    assert json.loads(whole)["event"] == "restored"


def test_a_guardian_that_is_killed_is_replaced(served: str, start_tap: StartTap) -> None:
    """When the guardian is killed another takes its place, which puts the path back just as well."""
    before = beside(served)
    tap = start_tap(served)
    first = tap.guardians()
    [killed] = first
    os.kill(killed, signal.SIGKILL)
    [second] = until(lambda: tap.guardians() - first, "another guardian")
    until(lambda: is_armed(second, served), "the guardian to know the file")
    assert echoes(served)
    tap.kill()
    until(lambda: beside(served) == before, "the path to be given back")
    assert echoes(served)


def killed_with_its_guardian(path: str, start_tap: StartTap) -> Tap:
    """A tap that has left its file at the path."""
    tap = start_tap(path)
    tap.freeze()
    [guardian] = tap.guardians()
    os.kill(guardian, signal.SIGKILL)
    until(lambda: not tap.guardians(), "the guardian's end")
    tap.kill()
    assert beside(path).keys() == {"s.sock", "s.sock.udsproxy"}
    assert not is_served(path)
    return tap


def test_restoring_by_hand(served: str, start_tap: StartTap) -> None:
    """When the proxy and its guardian are killed together, tap --restore puts the path back."""
    before = beside(served)
    killed_with_its_guardian(served, start_tap)
    restore(served)
    assert beside(served) == before
    assert echoes(served)


def test_a_leftover_does_not_mislead(served: str, start_tap: StartTap) -> None:
    """Who taps a path where a killed tap has left its file is told how to put things right."""
    killed_with_its_guardian(served, start_tap)
    assert f"udsproxy tap --restore {served}" in refused(served)


def test_a_leftover_beside_a_new_server(served: str) -> None:
    """So is who taps a path where a server listens and beside which a killed tap has left one."""
    dead_socket(aside_of(served))
    assert f"udsproxy tap --restore {served}" in refused(served)
    restore(served)
    assert beside(served).keys() == {"s.sock"}
    assert echoes(served)


def test_nothing_to_restore(served: str) -> None:
    """tap --restore where there is no tap changes nothing, and that is no failure."""
    before = beside(served)
    restore(served)
    assert beside(served) == before
    assert echoes(served)


def test_restoring_under_a_tap_that_runs(served: str, start_tap: StartTap) -> None:
    """tap --restore does not take the place from a tap that runs."""
    tap = start_tap(served)
    refused(served, "--restore")
    tap.await_seen()


# --- what cannot be tapped ---


def no_socket(path: str) -> None:
    with open(path, "x", encoding="ascii"):
        pass


def dead_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda _: None, "No such file or directory"),
        (no_socket, "is not a socket"),
        (os.mkdir, "is not a socket"),
        (dead_socket, "nobody listens"),
    ],
    ids=["nothing", "file", "directory", "dead socket"],
)
def test_what_cannot_be_tapped(path: str, make: Callable[[str], None], complaint: str) -> None:
    """Where there is no live socket a tap refuses, and says what is there."""
    make(path)
    assert complaint in refused(path)


@pytest.mark.parametrize("name", ["@{}", "unix:@{}"])
def test_an_abstract_socket(stage: Stage, name: str) -> None:
    """An abstract name cannot be exchanged with another, and a tap says what can be done."""
    path = name.format(stage.path("s.sock"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0" + stage.path("s.sock"))
        sock.listen()
        for options in ((), ("--restore",)):
            done = udsproxy("tap", path, *options)
            assert (done.returncode, done.stdout) == (4, b"")
            line, end = done.stderr.decode().split("\n")
            assert end == ""
            assert line.startswith(
                f"udsproxy: cannot tap {path}: an abstract name cannot be exchanged; use udsproxy run"
            )


def test_a_path_that_is_spelled_as_an_endpoint(served: str, start_tap: StartTap) -> None:
    """unix:PATH is PATH."""
    start_tap(f"unix:{served}")
    assert beside(served).keys() == {"s.sock", "s.sock.udsproxy"}


def test_a_path_that_is_tapped_already(served: str, start_tap: StartTap) -> None:
    """A second tap of a path refuses; the first goes on."""
    tap = start_tap(served)
    assert "tapped already" in refused(served)
    tap.await_seen()


def test_a_directory_that_cannot_be_written(served: str) -> None:
    """Who may not write the socket's directory cannot tap it."""
    directory, wrap = os.path.dirname(served), list[str]()
    if ROOT:
        # Nobody can run the tests' Python everywhere; root without these capabilities may do no more than nobody.
        wrap = [program("setpriv"), "--bounding-set=-dac_override,-dac_read_search,-fowner", "--"]
        os.chown(directory, OTHER_UID, OTHER_GID)
    os.chmod(directory, 0o555)
    try:
        assert "Permission denied" in refused(served, wrap=wrap)
    finally:
        os.chmod(directory, 0o755)


# --- the server changes ---


def refusal(path: str) -> int:
    """connect()'s errno, or 0."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path)


def await_follower(tap: Tap) -> None:
    """Until a new server's connections show; then end the tap, after which the server alone is there."""
    path = os.path.realpath(tap.socket)
    tap.await_seen()
    real = File.at(aside_of(path))
    assert tap.stop() == 0
    assert beside(path) == {"s.sock": real}
    assert echoes(path)


def start_seen(path: str, start_tap: StartTap) -> Tap:
    """A tap that has shown a connection."""
    tap = start_tap(path)
    assert echoes(path)
    tap.wait_for("close")
    return tap


@pytest.mark.parametrize("unlinks", ["first", "last"])
def test_a_server_that_stops_and_starts(path: str, start_tap: StartTap, unlinks: str) -> None:
    """While the server is stopped clients get ENOENT, and the tap stays; when it starts again it is followed."""
    with EchoServer(path):
        tap = start_seen(path, start_tap)
        if unlinks == "first":
            os.unlink(path)
            assert refusal(path) == errno.ENOENT
    if unlinks == "last":
        os.unlink(path)
    until(lambda: beside(path) == {}, "nothing to be there")
    assert refusal(path) == errno.ENOENT
    assert tap.process.poll() is None
    with EchoServer(path):
        await_follower(tap)


def test_a_server_that_restarts_at_once(path: str, start_tap: StartTap) -> None:
    """A server that stops and starts without a pause is followed each time."""
    with ExitStack() as servers:
        servers.enter_context(EchoServer(path))
        tap = start_seen(path, start_tap)
        for _ in range(5):
            os.unlink(path)
            servers.close()
            servers.enter_context(EchoServer(path))
            tap.await_seen()
        await_follower(tap)


def test_a_server_that_restarts_unseen(path: str, start_tap: StartTap) -> None:
    """So is one that stops and starts before the tap can look; after a stop that the tap has seen, too. (The new
    socket's file may have the inode number of one that the tap has had.)"""
    with ExitStack() as servers:
        servers.enter_context(EchoServer(path))
        tap = start_seen(path, start_tap)
        for number in range(1, 4):
            os.unlink(path)
            tap.wait_for("upstream_error", count=number, errno="ENOENT")
            servers.close()
            servers.enter_context(EchoServer(path))
            tap.await_seen()
            tap.freeze()
            os.unlink(path)
            servers.close()
            servers.enter_context(EchoServer(path))
            real = File.at(path)
            tap.signal(signal.SIGCONT)
            tap.await_seen()
            assert File.at(aside_of(path)) == real


def test_a_server_that_is_killed(path: str, start_tap: StartTap) -> None:
    """Where the server has ended and left its path nobody answers there; one that is started anew is followed."""
    with EchoServer(path):
        tap = start_seen(path, start_tap)
        real = File.at(aside_of(path))
    until(lambda: refusal(path) == errno.ECONNREFUSED, "connect() to be refused")
    until(lambda: beside(path) == {"s.sock": real}, "the dead server's file alone")
    assert tap.process.poll() is None
    os.unlink(path)
    with EchoServer(path):
        await_follower(tap)


def test_a_tap_of_a_server_that_is_killed_ends(path: str, start_tap: StartTap) -> None:
    """SIGTERM while the server is not there ends the tap; what the server left stays as it was."""
    with EchoServer(path):
        before = beside(path)
        tap = start_seen(path, start_tap)
    until(lambda: beside(path) == before, "the dead server's file alone")
    assert tap.stop() == 0
    assert beside(path) == before


@pytest.mark.parametrize("old_one", ["ends at once", "ends later"])
def test_a_server_that_renames_its_socket_into_place(path: str, start_tap: StartTap, old_one: str) -> None:
    """A server that binds beside the path and renames over it is followed; no client is refused."""
    new_path = f"{path}.new"
    with ExitStack() as old:
        old.enter_context(EchoServer(path))
        tap = start_seen(path, start_tap)
        with EchoServer(new_path):
            real = File.at(new_path)
            os.rename(new_path, path)
            assert echoes(path)
            if old_one == "ends later":
                tap.await_seen()
            old.close()
            assert echoes(path)
            tap.await_seen()
            assert File.at(aside_of(path)) == real
            await_follower(tap)


def test_a_server_that_changes_its_files_rights(served: str, start_tap: StartTap) -> None:
    """What a server does to mode and owner at its path is done to its own file too."""
    real = File.at(served)
    tap = start_tap(served)
    os.chmod(served, 0o606)
    if ROOT:
        os.chown(served, OTHER_UID, OTHER_GID)
    wanted = File.at(served)._replace(inode=real.inode)
    assert stat.S_IMODE(wanted.mode) == 0o606
    until(lambda: File.at(aside_of(served)) == wanted, "the real file's rights")
    assert tap.stop() == 0
    assert beside(served) == {"s.sock": wanted}
