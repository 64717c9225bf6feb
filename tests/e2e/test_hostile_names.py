"""Names that are made to drive a terminal, or to forge a line, in every output: of a directory and a socket, of the
processes that serve it and that connect, of requests, rules, settings and logs.

Rule: what is printed has no control character but line ends of ours (and, on a terminal, the sequences that colour
and redraw are made of), no mark that changes the direction of text, and no byte that is no UTF-8.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.tap import StartTap
from tests.e2e.tools import LIMIT_S, UDSPROXY, connect, read, receive_all, until, with_output
from tests.stage import REPOSITORY, Stage
from udsproxy.cli import main
from udsproxy.protocols import fastcgi as wire

EVIL = b"\x1b]0;PWN\x07\nPWN\xc2\x9b2J\xe2\x80\xae\xe2\x80\x8b\xff\x7f"
"""OSC and BEL, a line end, C1's CSI, a right-to-left override, a space of no width, no UTF-8, DEL."""
EVIL_TEXT = os.fsdecode(EVIL)
COMM = b"\x1b[2J\n\xe2\x80\xae\xff\xc2\x9bPW"

_SERVER = """
import ctypes, os, socket, sys, time
ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen(int(sys.argv[3]))
open(sys.argv[1] + ".file", "w")
while True:
    one = sock.accept()[0]
    data = one.recv(65536)
    if data == b"stay":
        with open(sys.argv[1] + ".fifo", "rb") as fifo:
            fifo.read()
    elif b"slow" in data:
        time.sleep(1.5)
    one.close()
"""
_CLIENT = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, bytes.fromhex(sys.argv[2]))
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(sys.argv[1])
    sock.sendall(bytes.fromhex(sys.argv[3]))
    sock.recv(100)
"""
REQUEST = wire.encode_request(
    {
        b"REQUEST_URI": b"/slow" + EVIL,
        b"REQUEST_METHOD": b"GET" + EVIL,
        b"SCRIPT_NAME": b"/x" + EVIL,
        b"X" + EVIL: EVIL,
    }
)


@pytest.fixture
def place(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server's socket with such a name, in such a directory, of such a process."""
    directory = os.path.join(stage.directory, "d" + EVIL_TEXT)
    os.mkdir(directory)
    monkeypatch.setenv("XDG_RUNTIME_DIR", stage.path("run", ""))
    path = os.path.join(directory, "s" + EVIL_TEXT)
    os.mkfifo(path + ".fifo")
    argv = [sys.executable, "-c", _SERVER, path, COMM.hex(), "1", EVIL_TEXT]
    stage.spawn("server", argv, stage.path("server.out"))
    until(lambda: os.path.exists(path + ".file"), "the server to listen")
    return path


def call(path: str, data: bytes) -> subprocess.Popen[bytes]:
    """A client with such a name."""
    argv = [sys.executable, "-c", _CLIENT, path, COMM.hex(), data.hex()]
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def require_clean(text: bytes, *, said: str) -> None:
    """Raises AssertionError."""
    found = text.decode("utf-8")  # not UTF-8: fails
    bad = [line for line in found.split("\n") if not line.isprintable()]
    assert bad == [], said
    assert not any(line.startswith("PWN") for line in found.split("\n")), said


def told(*arguments: str, stdin: bytes = b"") -> bytes:
    """What udsproxy says, on both its outputs."""
    done = subprocess.run(
        [*UDSPROXY, *arguments], input=stdin, capture_output=True, cwd=REPOSITORY, timeout=LIMIT_S, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr
    require_clean(done.stdout, said=f"{arguments!r}: standard output")
    require_clean(done.stderr, said=f"{arguments!r}: standard error")
    return done.stdout + done.stderr


def test_what_looks(stage: Stage, place: str) -> None:
    """`state` and `doctor`, of a socket and of all, for people and for programs."""
    with connect(place) as busy, connect(place):
        busy.sendall(b"stay")
        assert b"PWN" in told("state", place)
        assert b"PWN" in told("state", place, "--json")
        assert b"PWN" in told("state")
        assert b"PWN" in told("state", "--json")
        assert b"PWN" in told("doctor", place)
        told("doctor", place, "--json")
    log = stage.path("log" + EVIL_TEXT)
    told("doctor", place, "--log", log)
    told("doctor", place, "--log", REPOSITORY)


@pytest.mark.parametrize("log", ["console", "json", "socat"])
def test_what_flows(stage: Stage, start_proxy: StartProxy, place: str, log: str) -> None:
    """A proxy before it, for whose requests a process waits; and an incident, as the queue stays full."""
    out = stage.path("out")
    options = ["--log", log, "-vv", "--show-secrets", "--color", "never"]
    options += ["--name", "n" + EVIL_TEXT, "--slow", "100ms", "--incident", "50ms"]
    proxy = start_proxy(stage.path("p"), place, log=options, wrap=with_output(out))
    until(lambda: os.path.exists(proxy.socket) or proxy.process.poll() is not None, "the proxy to listen")
    assert proxy.process.poll() is None, proxy.said
    callers = [call(proxy.socket, REQUEST) for _ in range(3)]
    for each in callers:
        each.wait()
    if log != "socat":
        until(lambda: "slow" in read(out) and "incident" in read(out), "an incident, and a request that is slow")
    proxy.stop()
    assert "PWN" in read(out)
    with open(out, "rb") as file:
        data = file.read()
    if log == "socat":
        data = re.sub(rb"(?m)^PWN|[\t]", b"", data)  # its line ends and tabs are as they came (docs/output.md)
    require_clean(data, said=log)
    require_clean(proxy.said.encode(), said="standard error")


def test_a_tap(stage: Stage, start_tap: StartTap, place: str) -> None:
    """A tap, its faults, its end; and what its guardian says when it is killed."""
    log = ["--log", "json", "--log-file", stage.path("log")]
    tap = start_tap(place, "--control", stage.path("c" + EVIL_TEXT), log=log)
    until(lambda: "listening" in read(stage.path("log")), "the tap")
    control = ["--control", stage.path("c" + EVIL_TEXT)]
    assert b"PWN" in told("fault", "add", f"latency=1ms if uri=/{EVIL_TEXT!r}", *control)
    told("fault", "add", f"latency=1ms name=x{EVIL_TEXT[:4]}", *control)
    told("fault", "list", *control)
    told("fault", "list", "--json", *control)
    told("fault", "remove", EVIL_TEXT, *control)
    told("fault", "add", EVIL_TEXT, *control)
    told("fault", "list", "--proxy", EVIL_TEXT, *control)
    assert b"PWN" in told("tap", place)  # it is tapped already
    told("state", place)
    tap.kill()
    until(lambda: "the proxy has died" in tap.said and "restored" in read(stage.path("log")), "the guardian")
    require_clean(tap.said.encode(), said="the guardian")
    require_clean(read(stage.path("log")).encode(), said="the guardian's event")
    assert b"PWN" in told("tap", "--restore", place)


ERRORS: list[list[str]] = [
    ["run", "{}", "{}"],
    ["run", "tcp:{}:1", "{}"],
    ["run", "{},mode=9", "{}"],
    ["run", "{},owner={}", "/x"],
    ["run", "/nonexistent/x", "/y", "--log-file", "{}/x"],
    ["run", "/nonexistent/x", "/y", "--control", "{}/x"],
    ["run", "/nonexistent/x", "/y", "--control", "tcp:{}:1"],
    ["run", "/nonexistent/x", "/y", "--fault", "{}"],
    ["run", "/nonexistent/x", "/y", "--grace", "{}"],
    ["run", "/nonexistent/x", "/y", "--log", "{}"],
    ["run", "/nonexistent/x", "/y", "--{}", "x"],
    ["run", "/nonexistent/x", "/y", "--backlog", "{}"],
    ["run", "--config", "{}"],
    ["tap", "{}"],
    ["tap", "unix:@{}"],
    ["tap", "tcp:{}"],
    ["tap", "--restore", "{}"],
    ["state", "{}"],
    ["state", "@{}"],
    ["state", "--interval", "{}"],
    ["doctor", "{}"],
    ["explain", "{}"],
    ["explain", 'connect() to unix:{} failed (11: {}) while, client: {}, request: "{}"'],
    ["fault", "list", "--control", "{}"],
    ["fault", "{}"],
    ["serve", "{}/x/y"],
    ["request", "{}"],
    ["request", "unix:@{}"],
    ["request", "/x", "--body", "{}"],
    ["request", "/x", "--param", "{}"],
    ["{}"],
    ["--{}"],
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")
def test_what_is_refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each error is said without what was typed driving the terminal. (In this process: to start another for each
    takes long.)"""
    for words in ERRORS:
        typed = [word.replace("{}", EVIL_TEXT) for word in words]
        monkeypatch.setattr(sys, "argv", ["udsproxy", *typed])
        with pytest.raises(SystemExit):
            main()
        for text in capfd.readouterr():
            require_clean(text.encode("utf-8", "surrogateescape"), said=repr(words))


def test_settings_and_logs(stage: Stage, place: str) -> None:
    """A file of settings with such names, understood and not; a log that is explained."""
    quoted = "\\u001b]0;PWN\\u0007\\nPWN\\u009b2J\\u202e"
    good = f'[[proxy]]\nlisten = "/tmp/{quoted}"\nupstream = "/{quoted}"\nname = "{quoted}"\n'
    good += 'faults = ["latency=1ms"]\n'
    conf = stage.path("c" + EVIL_TEXT)
    for text in (good, good.replace('"latency=1ms"', f'"{quoted}"'), good + f'"{quoted}" = 1\n', f"\x1b{quoted}"):
        with open(conf, "w", encoding="utf-8") as file:
            file.write(text)
        assert b"PWN" in told("run", "--config", conf, "--check") or text[0] == "\x1b"
    with open(conf, "wb") as file:
        file.write(EVIL)
    told("run", "--config", conf, "--check")
    line = b'connect() to unix:%s failed (11: x) while connecting, client: %s, request: "GET %s"\n' % ((EVIL,) * 3)
    told("explain", "-", stdin=line.replace(b"\n", b"") + b"\n" + line)


def test_a_lab(stage: Stage, place: str) -> None:
    """A server and a client under such a name."""
    path = stage.path("lab" + EVIL_TEXT)
    out = stage.path("serve.out")
    stage.spawn("serve", [*UDSPROXY, "serve", path], out)
    until(lambda: "serving" in read(out), "the server")
    with open(out, "rb") as file:
        require_clean(file.read(), said="serve")
    told("request", path, "-n", "3")
    told("request", place, "-n", "2", "--script", EVIL_TEXT)


def on_a_terminal(arguments: Sequence[str], *, ends: bool) -> bytes:
    """What is written to a terminal that is wide enough for whole names; of a command that does not end, until it
    has drawn a second time."""
    main, other = pty.openpty()
    fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
    process = subprocess.Popen(
        [*UDSPROXY, *arguments], stdin=other, stdout=other, stderr=other, cwd=REPOSITORY, start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
    )  # fmt: skip
    os.close(other)
    got, limit = b"", time.monotonic() + LIMIT_S
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while time.monotonic() < limit:
            if select.select([main], [], [], 0.1)[0]:
                got += os.read(main, 65536)
            if not ends and got.count(b"PWN") >= 4:
                process.send_signal(signal.SIGINT)
                ends = True
    process.wait(LIMIT_S)
    os.close(main)
    return got


@pytest.mark.parametrize(
    "words", [["state"], ["state", "{}"], ["state", "{}", "--watch", "--interval", "50ms"], ["doctor", "{}"]]
)
def test_on_a_terminal(stage: Stage, place: str, words: list[str]) -> None:
    """There, too: besides colours and moves of the cursor nothing that drives it."""
    with connect(place) as busy, connect(place):
        busy.sendall(b"stay")
        got = on_a_terminal([word.replace("{}", place) for word in words], ends="--watch" not in words)
    assert b"PWN" in got
    assert b"\x1b]0;PWN" not in got
    plain = re.sub(rb"\x1b\[\??[0-9;]*[A-KSTfhlm]", b"", got).replace(b"\r", b"")
    require_clean(plain, said="a terminal")


def test_a_console_on_a_terminal(stage: Stage, place: str) -> None:
    """The lines of a proxy, in colour."""
    main, other = pty.openpty()
    path = stage.path("p")
    process = subprocess.Popen(
        [*UDSPROXY, "run", path, place, "-vv"], stdin=other, stdout=other, stderr=other, cwd=REPOSITORY
    )
    os.close(other)
    until(lambda: os.path.exists(path), "the proxy")
    call(path, wire.encode_request({b"REQUEST_URI": b"/" + EVIL})).wait()
    got = b""
    while b" PWN" not in got and b"URI" not in got:
        assert select.select([main], [], [], LIMIT_S)[0]
        got += os.read(main, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):
        while data := os.read(main, 65536):
            got += data
    process.wait(LIMIT_S)
    os.close(main)
    require_clean(re.sub(rb"\x1b\[[0-9;]*m", b"", got).replace(b"\r", b""), said="the console")


def test_the_client_gets_what_was_sent(stage: Stage, start_proxy: StartProxy) -> None:
    """(All of that is for people: what passes through is passed as it is.)"""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stage.path("up"))
        listener.listen()
        proxy = start_proxy(stage.path("p"), stage.path("up"), "-vv")
        with connect(proxy.socket) as client:
            client.sendall(EVIL)
            server, _ = listener.accept()
            server.settimeout(LIMIT_S)
            assert server.recv(100) == EVIL
            server.sendall(EVIL)
            server.close()
            assert receive_all(client) == EVIL
