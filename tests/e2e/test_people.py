"""Lines for people, where nobody can read them any more: terminals that are closed, pipes whose reader has left or
does not read, descriptors that were never open. Open connections go on, and no traceback comes.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.proxy import Running, StartProxy
from tests.e2e.starts import Way, start_each
from tests.e2e.tap import StartTap, aside_of
from tests.e2e.tools import UDSPROXY, EchoServer, connect, echoes, read, receive_exactly, until
from tests.stage import REPOSITORY, Stage


@pytest.fixture
def upstream(stage: Stage) -> Iterator[str]:
    """The path of an echo server's socket."""
    path = stage.path("up.sock")
    with EchoServer(path):
        yield path


def shell(redirection: str) -> list[str]:
    """A command that runs another with its descriptors redirected."""
    return ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh"]


def exchange(sock: socket.socket, times: int = 20) -> None:
    """Questions and their answers on an open connection to an echo server."""
    for number in range(times):
        question = b"question %d" % number
        sock.sendall(question)
        assert receive_exactly(sock, len(question)) == question


def wait_for_socket(proxy: Running, path: str) -> None:
    until(lambda: os.path.exists(path) or proxy.process.poll() is not None, f"{path} to be there")


# --- proxies ---


class Terminal:
    """A terminal, as the process that has it sees it; `close` is what an ssh that ends does to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.wrap = shell("<{0} >{0} 2>{0}".format(os.ttyname(slave)))
        """(A session's leader that opens a terminal has its signals.)"""
        self._slave = slave
        self._text = b""

    def read(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(self._master, False)
            self._text += os.read(self._master, 65536)
        return self._text

    def close(self) -> None:
        for fd in (self._slave, self._master):
            os.close(fd)


@pytest.mark.parametrize("log", ["console", "json"])
def test_a_terminal_is_closed_under_a_tap(upstream: str, start_tap: StartTap, log: str) -> None:
    """Its SIGHUP ends the tap as it says: the path is given back, and the connection that is open goes on for as
    long as it likes, although nothing can be written to the terminal any more."""
    terminal = Terminal()
    tap = start_tap(upstream, log=["--log", log, "-v"], wrap=terminal.wrap)
    until(lambda: b"listening" in terminal.read(), "the tap to be in place")
    with connect(upstream) as sock:
        exchange(sock)
        descriptors = f"/proc/{tap.pid}/fd"
        before = len(os.listdir(descriptors))
        terminal.close()
        until(lambda: not os.path.exists(aside_of(upstream)), "the path to be given back")
        until(lambda: len(os.listdir(descriptors)) < before, "the listener to be closed; that is told in a line")
        exchange(sock, 500)
        assert tap.process.poll() is None
    assert tap.wait() == 0  # as with any reader that has gone


@pytest.fixture
def config(stage: Stage, upstream: str) -> str:
    """A file with one proxy, that listens at p.sock."""
    return stage.write(
        f'[log]\nfile = "{stage.path("log")}"\n'
        f'[[proxy]]\nlisten = "{stage.path("p.sock")}"\nupstream = "{upstream}"\n',
        "udsproxy.toml",
    )


@pytest.fixture
def fifo(stage: Stage) -> str:
    """A named pipe, for standard error."""
    path = stage.path("fifo")
    os.mkfifo(path)
    return path


class StartRun:
    """The fixture ``start_run``."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.started: list[Running] = []

    def __call__(self, path: str, config: str, wrap: list[str]) -> Running:
        """``udsproxy run --config`` with its descriptors redirected, when it takes signals."""
        arguments = ["run", "--config", config]
        proxy = Running(self._stage, path, arguments, log=[], wrap=wrap)
        self.started.append(proxy)
        until(lambda: "listening" in read(self._stage.path("log")), "the proxy to listen")
        return proxy


@pytest.fixture
def start_run(stage: Stage) -> Iterator[StartRun]:
    start = StartRun(stage)
    yield start
    for proxy in start.started:
        proxy.end()


def have_it_answer(stage: Stage, config: str, proxy: Running) -> None:
    """SIGHUP is answered in a line; that it has been heeded is seen by a fault."""
    listed = read(config)
    for name in ("first", "second"):
        stage.write(f'{listed}faults = ["latency=1ms name={name}"]\nslow = "7s"\n', "udsproxy.toml")
        proxy.signal(signal.SIGHUP)
        until(lambda: f'"rule":"{name}"' in read(stage.path("log")), f"the fault {name}")  # noqa: B023


@pytest.mark.parametrize("reader", ["gone", "stalled", "full"])
def test_the_answer_to_sighup_cannot_be_written(
    stage: Stage, config: str, fifo: str, reader: str, start_run: StartRun
) -> None:
    """Standard error's reader has left, or does not read and the pipe is full, or it is /dev/full: the faults of
    the file are in force all the same, and an open connection goes on."""
    end = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    proxy = start_run(stage.path("p.sock"), config, shell("2>/dev/full" if reader == "full" else f"2>{fifo}"))
    with connect(proxy.socket) as sock:
        exchange(sock)
        if reader == "gone":
            os.close(end)
        elif reader == "stalled":
            fill(fifo)
        have_it_answer(stage, config, proxy)
        exchange(sock)
    if reader != "gone":
        os.close(end)
    assert proxy.stop() == 0


def fill(fifo: str) -> None:
    fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, b"x")
    os.close(fd)


@pytest.mark.parametrize("program", ["run", "tap"])
def test_standard_error_was_closed_from_the_start(
    stage: Stage, upstream: str, start_proxy: StartProxy, start_tap: StartTap, program: str
) -> None:
    """Not one of its lines comes among the JSON on standard output, and nothing else has its number."""
    output = stage.path("json")
    wrap = shell(f">{output} <&- 2>&-")
    log = ["--log", "json", "--fault", "latency=0ms p=0.5"]  # (It says which seed it has chosen.)
    proxy: Running
    if program == "run":
        proxy = start_proxy(stage.path("p.sock"), upstream, log=log, wrap=wrap)
    else:
        proxy = start_tap(upstream, log=log, wrap=wrap)
    until(lambda: "listening" in read(output), "the proxy to listen")
    assert [os.readlink(f"/proc/{proxy.pid}/fd/{number}") for number in (0, 1, 2)] == [
        os.devnull, output, os.devnull,
    ]  # fmt: skip
    assert echoes(proxy.socket)
    assert proxy.stop() == 0
    events = [json.loads(line)["event"] for line in read(output).splitlines()]
    assert "listening" in events
    assert events[-1] == "summary"


def test_everything_is_full(stage: Stage, upstream: str, start_proxy: StartProxy) -> None:
    """Output and standard error on a full disk: all is lost, the exit code says so, and the traffic goes on."""
    proxy = start_proxy(stage.path("p.sock"), upstream, log=["--log", "json"], wrap=shell(">/dev/full 2>/dev/full"))
    wait_for_socket(proxy, proxy.socket)
    with connect(proxy.socket) as sock:
        exchange(sock)
        proxy.signal()
        exchange(sock)
    assert proxy.wait() == 1


def test_standard_output_was_closed_from_the_start(upstream: str) -> None:
    """A tap that would show nothing is refused before the socket is touched."""
    before = os.lstat(upstream).st_ino
    done = subprocess.run(
        [*shell(">&-"), *UDSPROXY, "tap", upstream], capture_output=True, cwd=REPOSITORY, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (
        1, b"udsproxy: standard output is closed; choose --log none (--log-file goes with it)\n",
    )  # fmt: skip
    assert os.lstat(upstream).st_ino == before


# --- commands that print ---

CONTROL = "{c.control}"
PRINTING = (
    ["--help"],
    ["tap", "--help"],
    ["--version"],
    ["state"],
    ["state", "--json", "{up.sock}"],
    ["doctor", "{up.sock}"],
    ["doctor", "--json", "{up.sock}"],
    ["explain"],
    ["explain", "--markdown"],
    ["fault", "kinds"],
    ["fault", "list", "--control", CONTROL],
    ["fault", "add", "latency=1ms", "--control", CONTROL],
    ["request", "{fcgi.sock}"],
    ["request", "{fcgi.sock}", "-n", "2"],
    ["run", "a", "b", "--check"],
)
NO_SPACE = "udsproxy: cannot write to standard output: No space left on device (ENOSPC)\n"
WAYS: list[tuple[Way, str]] = [
    ([(1, "/dev/full")], NO_SPACE),
    ([(1, None)], "udsproxy: standard output is closed\n"),
    ([(1, "|")], ""),
    ([(0, None), (1, None), (2, None)], ""),
    ([(1, "|"), (2, "/dev/full")], ""),
]
"""And what is said of it. (`| head` knows what it did.)"""


def test_what_is_printed_cannot_be_written(stage: Stage, upstream: str, start_proxy: StartProxy) -> None:
    """Each command that prints: exit code 1, no traceback, and one line on standard error where that can be
    written."""
    stage.spawn("udsproxy serve", [*UDSPROXY, "serve", stage.path("fcgi.sock")], stage.path("serve.out"))
    proxy = start_proxy(stage.path("p.sock"), upstream, "--control", stage.path("c.control"))
    stage.await_socket(stage.path("fcgi.sock"))
    # (Each command in two of the ways; each way with several commands.)
    ways = itertools.cycle(WAYS)
    tried = [(words, *next(ways)) for words in PRINTING for _ in range(2)]
    cases = [
        ([stage.path(word[1:-1]) if word.startswith("{") else word for word in words], way)
        for words, way, _ in tried
    ]
    for (words, way, line), done in zip(tried, start_each(stage, cases), strict=True):
        said = done.error
        if said.startswith("status 200"):
            said = said.partition("\n")[2]  # what request says besides
        assert (words, way, done.code, said) == (words, way, 1, line)
    assert proxy.stop() == 0


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "<&- >&- 2>&-"])
def test_a_start_without_descriptors(redirection: str) -> None:
    """From the interpreter's start on."""
    done = subprocess.run(
        [*shell(redirection), *UDSPROXY, "explain", "EAGAIN"],
        capture_output=True, cwd=REPOSITORY, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.count(b"\n") == ("2>" not in redirection)


def test_a_terminal_is_closed_under_a_watch(stage: Stage, upstream: str) -> None:
    """`state --watch` ends where its terminal cannot be written to any more."""
    for words in (["state", "--watch", "--interval", "50ms", upstream], ["state", "--watch", "--json", upstream]):
        master, slave = pty.openpty()
        with open(stage.path("said"), "wb") as said:
            watching = subprocess.Popen(
                [*UDSPROXY, *words], stdin=slave, stdout=slave, stderr=said, cwd=REPOSITORY, start_new_session=True
            )
        os.close(slave)
        with watching:
            assert os.read(master, 1)
            os.close(master)
            with contextlib.suppress(subprocess.TimeoutExpired):
                watching.wait(60)
            watching.kill()
        assert watching.returncode == 1
        assert read(stage.path("said")) == ("udsproxy: cannot write to standard output: Input/output error (EIO)\n")


def test_a_non_blocking_pipe(stage: Stage) -> None:
    """Somebody has made standard output non-blocking: what does not fit waits, as it would have."""
    out, into = os.pipe()
    os.set_blocking(into, False)
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen([*UDSPROXY, "explain", "--markdown"], stdout=into, cwd=REPOSITORY) as process:
        os.close(into)
        with os.fdopen(out, "rb") as file:
            assert file.read().decode() == read(os.path.join(REPOSITORY, "docs", "errors.md"))
        assert process.wait(60) == 0


def test_standard_input_was_closed() -> None:
    """What reads it says so in a line."""
    for words in (["explain", "-"], ["request", "/nonexistent", "--body", "-"]):
        done = subprocess.run(
            [*shell("<&-"), *UDSPROXY, *words], capture_output=True, cwd=REPOSITORY, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (1, b"")
        assert done.stderr == b"udsproxy: cannot read standard input: it is closed\n"
