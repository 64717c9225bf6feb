"""``udsproxy state``: the command, on a pipe and on a terminal, of real sockets and a real php-fpm."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.e2e.site import Gate, start_php_fpm, write_scripts
from tests.e2e.tools import LIMIT_S, UDSPROXY, called, cgi_params, connect, read, udsproxy, until
from tests.stage import REPOSITORY, Stage
from udsproxy import endpoints
from udsproxy.cli.doctor import doctor as doctor_command
from udsproxy.cli.state import state as state_command
from udsproxy.protocols import fastcgi as wire


def state(*arguments: str) -> str:
    done = udsproxy("state", *arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


@contextlib.contextmanager
def listening(path: str | bytes, backlog: int, clients: int = 0) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(backlog)
        for _ in range(clients):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        yield listener


def test_php_fpm(stage: Stage) -> None:
    """Workers at work and idle, the master, a queue that is full with one who has left."""
    root, path = write_scripts(stage), stage.path("php.sock")
    start_php_fpm(stage, path, "listen.backlog = 2", workers=2)
    until(lambda: state(path).count("accept") >= 2, "idle workers")
    assert re.search(r"processes: 3, 2 of them waiting for a connection", state(path))
    gates = [Gate(stage.path("gates", str(number))) for number in range(2)]
    with contextlib.ExitStack() as stack:
        for gate in gates:
            sock = stack.enter_context(connect(path))
            sock.sendall(wire.encode_request(cgi_params(gate.script, root=root), b""))
            gate.wait_until_started()
        waiting = [stack.enter_context(connect(path)) for _ in range(3)]
        waiting[0].close()
        text = state(path)
        assert "queue: 3 of 3 (backlog 2), full: the next client gets EAGAIN, or waits in connect()" in text
        assert re.search(rf"waiting: 2 of \S+, pid {os.getpid()}\n", text)
        assert "1 of them has left, and will be served all the same" in text
        assert "processes: 3, none of them waiting for a connection" in text
        assert text.count("holds it for its children") == 1
        assert "connected: 2" in text
        [line] = [line for line in state().splitlines() if line.endswith(path)]
        assert line.split()[:3] == ["3", "3", "2"]
        [told] = json.loads(state("--json", path))["sockets"]
        assert (told["queue"], told["backlog"], told["limit"], told["gone"]) == (3, 2, 3, 1)
        assert sorted(each["waits"] for each in told["processes"]) == [False] * 3
        for gate in gates:
            gate.open()


def test_names_that_would_deceive(stage: Stage) -> None:
    """Neither control characters nor rich's markup reach the terminal as such, and no name moves another's line."""
    os.chmod(stage.directory, 0o755)
    names = [
        b"\x1b[35mpurple\x07",
        b"[red]markup",
        b"new\nline",
        b"\xff\xfe",
        b"x" * 60,
        "\u202egnp".encode(),
    ]
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(listening(os.fsencode(stage.directory) + b"/" + name, 5))
            stack.enter_context(listening(b"\0" + os.fsencode(stage.directory) + name, 5))
        for text in (state(), state("--json"), on_terminal("state")[0]):
            assert not set("\x07\u202e") & set(text)
            assert "\x1b[35m" not in text
            assert "[red]markup" in text
            assert r"new\nline" in text.replace("\\\\", "\\")  # (JSON doubles it)
        lines = state().splitlines()
        assert sum(stage.directory in line for line in lines) == 2 * len(names)
        # What is shown can be given back.
        for shown in (r"\x1b[35mpurple\x07", r"new\nline"):
            for address in (f"{stage.directory}/{shown}", f"@{stage.directory}{shown}"):
                assert state(address).startswith(f"{address}  stream, listening")


@pytest.mark.parametrize("name", [b"a\0b\0", b"c,d", b"\xfe\n", b"plain"])
def test_abstract_names(name: bytes) -> None:
    """Whatever is in one: as `state` prints it, and in every spelling of an endpoint, all commands take it."""
    name = f"udsproxy-{os.getpid()}-".encode() + name
    with listening(b"\0" + name, 5):
        [shown] = [line.split()[-1] for line in called(state_command)[1].splitlines() if name[:12].decode() in line]
        for spelled in (shown, f"unix:{shown}", rf"\0{shown[1:]}", rf"\x00{shown[1:]}"):
            assert f"{shown}  stream, listening" in called(state_command, spelled)[1]
            told = json.loads(called(doctor_command, spelled, json=True)[1])["facts"]
            assert (told["state"], told["backlog"]) == ("listening", 5)
            assert endpoints.parse(spelled) == endpoints.UnixAbstract(os.fsdecode(name))


def test_what_fails(stage: Stage) -> None:
    """One line, exit code 1; what can be told is told all the same."""
    path = stage.path("s")
    for address, says in (
        (stage.path("none"), "No such file or directory"),
        ("/etc/passwd", "is no socket"),
        ("@udsproxy-none", "nobody has a socket of that name"),
        ("/etc/passwd/s", "Not a directory"),
        ("x" * 5000, "File name too long"),
    ):
        done = udsproxy("state", address)
        assert (done.returncode, done.stdout) == (1, b"")
        [line] = done.stderr.decode().splitlines()
        assert line.startswith(f"udsproxy: {address}: {says}")
    with listening(path, 1):
        done = udsproxy("state", "/etc/passwd", path)
        assert done.returncode == 1
        assert done.stdout.decode().startswith(path)
        assert done.stderr == b"udsproxy: /etc/passwd: is no socket\n"
    assert "nobody listens behind this file: clients get ECONNREFUSED" in state(path)
    for option in ("0", "x", "10ms"):
        assert udsproxy("state", "--watch", "--interval", option).returncode == 2


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        ('"$@" | head -c 1 >/dev/null', 0, b""),
        ('"$@" --json | head -c 1 >/dev/null', 0, b""),
        ('"$@" | true', 0, b""),
        ('"$@" >/dev/full', 1, b"udsproxy: cannot write to standard output: No space left on device (ENOSPC)\n"),
        ('"$@" >&-', 1, b"udsproxy: standard output is closed\n"),
        ('PYTHONIOENCODING=ascii "$@" >/dev/null', 0, b""),
    ],
)
def test_standard_output_that_is_none(stage: Stage, command: str, code: int, says: bytes) -> None:
    """A pipe that is closed is no error to speak of; others are one line. Enough sockets to fill a pipe."""
    assert os.path.isdir(stage.directory)
    with contextlib.ExitStack() as stack:
        for number in range(1500):
            stack.enter_context(listening(f"\0udsproxy-\u00e9-{os.getpid()}-{number}", 1))
        done = subprocess.run(
            ["sh", "-c", command, "sh", *UDSPROXY, "state"],
            check=False,
            capture_output=True,
            cwd=REPOSITORY,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (code, says)


def test_many_sockets() -> None:
    """Thousands are told, each once, those that wait first."""
    with contextlib.ExitStack() as stack:
        prefix = f"udsproxy-many-{os.getpid()}-"
        for number in range(400):
            stack.enter_context(listening(f"\0{prefix}{number}", 5, number % 3))
        lines = [line.split() for line in state().splitlines() if prefix in line]
    assert len(lines) == 400
    queues = [int(line[0]) for line in lines]
    assert queues == sorted(queues, reverse=True)


# --- a terminal ---


def on_terminal(*arguments: str, columns: int = 80, signals: tuple[int, ...] = ()) -> tuple[str, int]:
    """What it writes to a terminal, and its exit code. Each signal is sent when a screen has come."""
    pid, fd = pty.fork()
    if not pid:
        os.chdir(REPOSITORY)
        os.environ |= {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}
        os.execv(sys.executable, [*UDSPROXY, *arguments])  # noqa: S606
    data, limit, left = b"", time.monotonic() + LIMIT_S, list(signals)
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal any more
        while time.monotonic() < limit:
            if select.select([fd], [], [], 1)[0]:
                if not (more := os.read(fd, 65536)):
                    break
                data += more
            if left and data.count(b"SOCKET") + data.count(b"queue: ") > 1:
                number = left.pop(0)
                os.write(fd, b"\x03") if number == signal.SIGINT else os.kill(pid, number)
    os.close(fd)
    assert time.monotonic() < limit, f"it goes on: {data[-500:]!r}"
    return data.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("one", [False, True])
def test_watch(stage: Stage, number: int, code: int, one: bool) -> None:
    """It goes on until it is ended, and gives the terminal back: main screen, with a cursor, nothing said."""
    path = stage.path("s")
    with listening(path, 2, 3):
        text, status = on_terminal(
            "state", "--watch", "--interval", "50ms", *([path] if one else []), signals=(number,)
        )
    assert status == code
    assert "\x1b[?1049h" in text
    assert re.search(r"\d\d:\d\d:\d\d  every 0.05 s; Ctrl-C ends it", text)
    after = text.rpartition("\x1b[?1049l")[2]
    assert "\x1b[?25h" in text.rpartition("\x1b[?25l")[2]
    assert "Traceback" not in text
    assert after.replace("\x1b[?25h", "").strip() in ("", "^C")


def test_watch_through_a_pipe(stage: Stage) -> None:
    """Each look begins with the time."""
    path, out = stage.path("s"), stage.path("out")
    with listening(path, 2):
        process = stage.spawn("state", [*UDSPROXY, "state", "--watch", "--interval", "50ms", path], out)
        until(lambda: len(re.findall(r"^\d\d:\d\d:\d\d\n", read(out), re.MULTILINE)) > 1, "two looks")
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    assert re.match(rf"\d\d:\d\d:\d\d\n{path}  stream, listening", read(out))


def test_unread_bytes(stage: Stage) -> None:
    """How much each end has not read yet, under its own name; a client that is gone is told as such."""
    path = stage.path("s")
    with listening(path, 2) as listener, connect(path) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"question")
            server.sendall(b"answer")
            head, row = called(state_command, path)[1].splitlines()[-2:]
            assert re.split("  +", head.strip()) == ["UNREAD BY SERVER", "UNREAD BY CLIENT", "CLIENT", "SERVER"]
            assert re.match(r" +8 B +6 B  \S+, pid \d+", row)
            client.close()
            assert re.match(r" +8 B +\(gone\)  ", called(state_command, path)[1].splitlines()[-1])


def test_watch_of_a_server_that_goes_and_comes(stage: Stage) -> None:
    """Not on a terminal it writes one look after the other; a socket that is gone does not end it."""
    path = stage.path("s")
    with listening(path, 2) as listener:
        process = stage.spawn(
            "state", [*UDSPROXY, "state", "--watch", "--json", "--interval", "50ms", path], stage.path("out")
        )

        def said() -> list[dict[str, list[object]]]:
            return [json.loads(line) for line in read(stage.path("out")).split("\n")[:-1]]

        until(lambda: len(said()) > 1, "two looks")
        os.unlink(path)
        listener.close()
        until(lambda: said()[-1]["failed"], "a look without a socket")
        assert said()[-1]["failed"] == [f"{path}: No such file or directory"]
    with listening(path, 7):
        until(lambda: not said()[-1]["failed"], "a look with a new socket")
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    assert "Traceback" not in read(stage.path("out"))


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_width(stage: Stage, columns: int) -> None:
    """On a narrow terminal the list has fewer columns, and a long name loses its middle; `state PATH` folds it, and
    a pipe has it on one line."""
    path = stage.path("s" * 80)
    with listening(path, 3, 4):
        text, status = on_terminal("state", columns=columns)
        assert status == 0
        assert "…" + "s" * 10 in text
        if columns != 60:  # (there it depends on how long the names of other sockets' holders are)
            assert ("CONNECTED" in text) == (columns > 60)
        one, status = on_terminal("state", path, columns=columns)
        assert status == 0
        assert path in "".join(line.strip() for line in plain_lines(one))
        assert path in state()
    for line in plain_lines(text + one):
        assert len(line) <= columns


def test_a_watch_fits(stage: Stage) -> None:
    """What is drawn again and again is no wider than the terminal, either, and the name is whole."""
    path = stage.path("s" * 80)
    with listening(path, 3, 4):
        text, _ = on_terminal(
            "state", "--watch", "--interval", "50ms", path, columns=60, signals=(signal.SIGINT, signal.SIGINT)
        )
    lines = plain_lines(text.replace("^C", ""))
    assert max(map(len, lines)) <= 60
    assert path in "".join(line.strip() for line in lines)


def plain_lines(text: str) -> list[str]:
    """Without escapes; a move of the cursor begins a line."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", re.sub(r"\x1b\[[0-9;]*H", "\n", text)).splitlines()
