"""The control socket, used by those who mean it ill: other users, floods, requests that are none.

Rule: whatever is done there, the traffic goes on, what was not asked for properly changes nothing, and those who
ask properly are answered.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.test_control import control_socket, fault, faults, runtime
from tests.e2e.tools import LIMIT_S, EchoServer, echoes, peak_memory, program, read, receive_all, until
from tests.stage import Stage
from udsproxy.control import place
from udsproxy.control.client import Client, ControlError
from udsproxy.control.finding import running
from udsproxy.control.serving import MAX_CONNECTIONS

__all__ = ["runtime"]

ROOT = os.geteuid() == 0
NOBODY = 65534
FLOOD = int(os.environ.get("UDSPROXY_CONTROL_FLOOD", "300"))
MUTATIONS = int(os.environ.get("UDSPROXY_CONTROL_MUTATIONS", "60"))
MEMORY = 24 * 1024 * 1024
SLACK = 16
"""Descriptors that a connection through the proxy, or a look at /proc, may have at that moment."""

_ASK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as sock:
    sock.settimeout(20)
    try:
        sock.connect(sys.argv[1])
        sock.sendall(b"GET /proxies HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        print(sock.recv(9))
    except OSError as error:
        print(type(error).__name__)
"""
_LISTEN = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
while True:
    one = sock.accept()[0]
    if data := one.recv(1000):
        open(sys.argv[1] + ".asked", "ab").write(data)
        one.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\n[]")
"""


@pytest.fixture
def proxy(stage: Stage, start_proxy: StartProxy, runtime: str) -> Iterator[Proxy]:
    with EchoServer(stage.path("up")):
        yield start_proxy(stage.path("p"), stage.path("up"))


def as_nobody(*argv: str) -> list[str]:
    return [program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *argv]


def nobody_gets(path: str) -> str:
    """What another user is answered."""
    argv = [sys.executable, "-I", "-c", _ASK, path]
    done = subprocess.run(
        as_nobody(*argv) if ROOT else argv, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    return done.stdout.strip()


# --- who may ---


def test_another_user(stage: Stage, proxy: Proxy, runtime: str) -> None:
    """The rights of the file keep him out; where these are changed later, by who gives the directory away, his
    connection is closed unread."""
    path = control_socket(runtime, proxy)
    os.chmod(stage.directory, 0o711)
    os.chmod(runtime, 0o711)
    if ROOT:
        assert nobody_gets(path) == "PermissionError"
        os.chmod(os.path.dirname(path), 0o711)
        assert nobody_gets(path) == "PermissionError"
        os.chmod(path, 0o666)
        assert nobody_gets(path) in ("b''", "ConnectionResetError", "BrokenPipeError")
        os.chown(path, NOBODY, NOBODY)
        assert nobody_gets(path) in ("b''", "ConnectionResetError", "BrokenPipeError")
    assert faults("--control", path) == "  no faults\n"
    assert echoes(proxy.socket)


def test_another_user_who_was_let_in(stage: Stage, start_proxy: StartProxy) -> None:
    """A mode that was asked for is what it says."""
    os.chmod(stage.directory, 0o711)
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"), "--control", f"{stage.path('control')},mode=666")
        assert nobody_gets(stage.path("control")) == "b'HTTP/1.1 '"
        assert stat.S_IMODE(os.stat(stage.path("control")).st_mode) == 0o666
        assert echoes(proxy.socket)


@pytest.fixture
def others(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory with the control socket of another user's process, and nothing else to be found. (Who is not root
    has only his own.)"""
    os.chmod(stage.directory, 0o711)
    directory = os.path.dirname(stage.path("run", "udsproxy", "any"))
    if ROOT:
        os.chown(directory, NOBODY, NOBODY)
    path = os.path.join(directory, "1.control")
    argv = [sys.executable, "-I", "-c", _LISTEN, path]
    stage.spawn("another's", as_nobody(*argv) if ROOT else argv, stage.path("said"))
    until(lambda: os.path.exists(path), "the other's socket")
    monkeypatch.setattr(place, "_SYSTEM", Path(directory))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return path


def test_what_another_user_has_put_there(stage: Stage, others: str) -> None:
    """His socket is named, and not asked; by its path it is, while it is his own."""
    if ROOT:
        with pytest.raises(ControlError, match=r"control sockets of other users: .*/1\.control \(nobody\)$"):
            running()
        with pytest.raises(PermissionError, match="belongs to nobody"):
            place.default_endpoint()
        assert not os.path.exists(f"{others}.asked")
        assert Client(others).ask("GET", "faults") == []
        os.chown(others, 0, 0)
        os.unlink(f"{others}.asked")
        with pytest.raises(ControlError, match="its owner is not the one who listens there: that is nobody"):
            Client(others).ask("GET", "faults")
        assert not os.path.exists(f"{others}.asked")


def test_a_runtime_directory_of_somebody_else(stage: Stage, others: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root with another's $XDG_RUNTIME_DIR (sudo -E) neither looks there nor puts anything there; nor where a
    directory is writable by others, or a symbolic link."""
    mine = Path(stage.path("mine", "udsproxy"))
    monkeypatch.setattr(place, "_SYSTEM", mine)
    monkeypatch.setenv("XDG_RUNTIME_DIR", stage.path("run"))
    os.chown(stage.path("run"), NOBODY if ROOT else os.geteuid(), -1)
    if ROOT:
        assert str(place.default_endpoint()).startswith(str(mine.parent)) or os.path.isdir("/run/user/0")
        assert stage.path("run") not in place.looked_in()
        os.chown(stage.path("run"), 0, 0)
    assert stage.path("run") in place.looked_in()
    os.chmod(stage.path("run"), 0o777)
    assert stage.path("run") not in place.looked_in()
    os.symlink(stage.path("elsewhere", ""), stage.path("link"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", stage.path("link"))
    assert stage.path("link") not in place.looked_in()


# --- too much ---


def test_a_flood_of_connections(stage: Stage, proxy: Proxy, runtime: str) -> None:
    """Those who connect and say nothing, or half of something, take a bounded number of descriptors and little
    memory, and keep nobody from asking."""
    path = control_socket(runtime, proxy)
    assert faults() == "  no faults\n"
    idle, before = proxy.descriptors, peak_memory(proxy.pid)
    beginnings = [
        b"",
        b"GET /fau",
        b"POST /faults HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"\x16\x03\x01",
    ]
    with contextlib.ExitStack() as stack:
        for number in range(FLOOD):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(LIMIT_S)
            until(partial(is_let_in, sock, path), "room in the queue")
            with contextlib.suppress(ConnectionError):
                sock.sendall(beginnings[number % len(beginnings)])
            if number % 100 == 0:
                assert echoes(proxy.socket)
                assert proxy.descriptors <= idle + MAX_CONNECTIONS + SLACK
        assert faults() == "  no faults\n"
        assert echoes(proxy.socket)
    until(lambda: proxy.descriptors <= idle, "the descriptors to be closed")
    assert peak_memory(proxy.pid) - before < MEMORY
    assert proxy.said == ""


def is_let_in(sock: socket.socket, path: str) -> bool:
    with contextlib.suppress(BlockingIOError):
        sock.connect(path)
        return True
    return False


def test_requests_one_after_the_other(stage: Stage, proxy: Proxy, runtime: str) -> None:
    """Of a thousand that are sent at once the first is answered at most, and the connection closed; others are."""
    asked = b"GET /counters HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    got = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(control_socket(runtime, proxy))
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(asked)
        assert echoes(proxy.socket)
        with contextlib.suppress(ConnectionResetError):
            while data := sock.recv(65536):
                got += data
    assert got.count(b"HTTP/1.1 200 ") == got.count(b"HTTP/1.1 ") <= 1
    assert faults() == "  no faults\n"
    assert proxy.said == ""


def test_an_asker_that_does_not_read(stage: Stage, proxy: Proxy, runtime: str) -> None:
    """Its answers wait; others are answered, and the proxy ends when it is told to."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(control_socket(runtime, proxy))
        sock.setblocking(False)
        wrote = [True]

        def stuck() -> bool:
            """Nothing more is taken: it was not the last time either."""
            wrote.append(False)
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                while sock.send(b"GET /counters HTTP/1.1\r\nHost: x\r\n\r\n" * 100):
                    wrote[-1] = True
            return not any(wrote[-20:])

        until(stuck, "the proxy to take no more")
        assert faults() == "  no faults\n"
        assert proxy.stop() == 0


# --- nonsense ---

_CHUNKED = b"POST /faults HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
_GET = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_DELETE = b"DELETE %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def _post(body: bytes, more: bytes = b"") -> bytes:
    return b"POST /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s" % (
        more,
        len(body),
        body,
    )


NONSENSE = [
    # paths
    _GET % b"/faults/../../../etc/passwd",
    _GET % b"/%2e%2e/%2e%2e/etc/passwd",
    _DELETE % b"/faults/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    _DELETE % b"/faults/%00%1b%5b31m%0a%c2%9b",
    _DELETE % b"/faults/%ff%fe",
    _GET % (b"/proxies?proxy=" + b"%1b" * 3000),
    _GET % b"http://[::1/faults",
    _GET % b"//\\..\\faults",
    # bodies
    _post(b"[" * 15000),
    _post(b'{"fault":' * 1500 + b"1" + b"}" * 1500),
    _post(b'{"fault": "stal\x1b[31m\\u001b]0;x\\u0007\\u202e"}'),
    _post(b'{"fault": "\\ud800"}'),
    _post(b"\xff\xfe\x00"),
    _post(b'{"fault": NaN}'),
    _post(b'{"fault": ["close"], "proxy": "\\u0000"}'),
    _post(b'{"fault": ["refuse", "nonsense"]}'),
    _post(b'{"rule": {"fault": {"kind": "latency", "delay_s": 1e999}}}'),
    _post(b'{"rule": {"fault": {"kind": "latency", "delay_s": -1}}}'),
    _post(b'{"fault": "latency=99999999999999999999999999s for=-1s"}'),
    _post(b"x" * 17000),
    # framing
    b"POST /faults HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /faults HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /faults HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    _CHUNKED + b"ffffffffffffffff\r\n{",
    _CHUNKED + b"1\r\n{\r\n" * 20000 + b"0\r\n\r\n",
    b"POST /faults HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    b"GET /faults HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 50000 + b"\r\n",
    b"GET /faults HTTP/1.1\r\n" + b"A" * 200000,
    b"GET /faults HTTP/9.9\r\n\r\n",
    b"GET /faults HTTP/1.1\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    # other protocols
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + b"\xff" * 1000,
    b"GET /faults HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AA\r\n\r\n",
    b"GET /faults HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + b"\xff" * 1000,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x01\x01\x00\x01\x00\x08\x00\x00",
    b"\r\n" * 30000,
    b"",
]  # fmt: skip


def answer_to(path: str, data: bytes) -> bytes:
    """What is answered until the connection's end, which we make where the other side waits for more."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(LIMIT_S)
        sock.connect(path)
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


def test_nonsense(stage: Stage, proxy: Proxy, runtime: str) -> None:
    """Each is answered with an error in printable text, or not at all, and changes nothing."""
    path, before = control_socket(runtime, proxy), peak_memory(proxy.pid)
    fault("add", "latency=1ms name=mine")
    rules = Client(path).ask("GET", "faults")
    for data in NONSENSE:
        got = answer_to(path, data)
        if data.startswith((b"GET", b"DELETE", b"POST")) and got.startswith(b"HTTP/1.1 "):
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.split()[1] == b"501" or head.split()[1][:1] in (b"4", b"2"), (data[:100], got)
            if head.split()[1].startswith(b"2"):
                assert data.startswith((b"GET /faults", b"GET /proxies")), (data[:100], got)
            assert body.decode().replace("\n", "").isprintable(), (data[:100], got)
        assert Client(path).ask("GET", "faults") == rules, data[:100]
        assert echoes(proxy.socket)
    assert peak_memory(proxy.pid) - before < MEMORY
    assert proxy.said == ""


def test_mutated_requests(stage: Stage, proxy: Proxy, runtime: str) -> None:
    """Requests with bytes changed, left out and doubled at random: the proxy stays, and nothing of ours is said."""
    path, chance = control_socket(runtime, proxy), random.Random(12)
    good = [_post(b'{"fault": "latency=1ms name=mine"}'), _GET % b"/faults", _DELETE % b"/faults/mine"]
    for _ in range(MUTATIONS):
        data = bytearray(chance.choice([*good, *(each[:2000] for each in NONSENSE)]))
        for _ in range(chance.randrange(1, 8)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randrange(3)] = chance.choice(
                [b"", b"\r\n", b"\0", chance.randbytes(3), data[:at]]
            )
        try:
            answer_to(path, bytes(data[:200_000]))
        except TimeoutError:
            raise AssertionError(f"no answer, and no end: {bytes(data)!r}") from None
    assert fault("clear").startswith("removed ")
    assert echoes(proxy.socket)
    assert proxy.said == ""
    assert "Traceback" not in read(proxy.log)
