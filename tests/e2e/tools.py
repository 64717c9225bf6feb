"""What all end-to-end tests share: finding programs, running them, waiting for conditions, FastCGI by hand.

Rules: waiting is always for a condition and always has the same generous limit; a failure says what it waited for.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self, TypeVar

import pytest

from tests.stage import REPOSITORY
from udsproxy.protocols import fastcgi as wire

T = TypeVar("T")

LIMIT_S = 30.0
"""The longest that a test waits for one thing. Nothing is expected to take so long."""

UDSPROXY = (sys.executable, "-m", "udsproxy")

# The search path of an ordinary user often lacks the directories that hold servers; PostgreSQL's is in none.
SEARCH_PATH = os.pathsep.join(
    [
        os.environ.get("PATH", os.defpath),
        *("/usr/local/sbin", "/usr/sbin", "/sbin"),
        *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True),
    ]
)

_PACKAGES = {
    "bash": "bash",
    "bindfs": "bindfs",
    "curl": "curl",
    "dbus-daemon": "dbus",
    "dbus-send": "dbus",
    "fish": "fish",
    "groff": "groff-base",
    "head": "coreutils",
    "initdb": "postgresql",
    "ip": "iproute2",
    "logger": "bsdutils",
    "mandoc": "mandoc",
    "mkfs.btrfs": "btrfs-progs",
    "nsenter": "util-linux",
    "nginx": "nginx",
    "pgbench": "postgresql",
    "php-fpm": "php-fpm",
    "postgres": "postgresql",
    "psql": "postgresql",
    "redis-benchmark": "redis-tools",
    "redis-cli": "redis-tools",
    "redis-server": "redis-server",
    "setpriv": "util-linux",
    "socat": "socat",
    "ss": "iproute2",
    "unshare": "util-linux",
    "wrk": "wrk",
    "zsh": "zsh",
}
"""The programs that the tests run, and the Debian packages that have them."""


@functools.cache
def program(name: str) -> str:
    """The path of a program. One that is missing fails the test."""
    found = _php_fpm() if name == "php-fpm" else shutil.which(name, path=SEARCH_PATH)
    if found is None:
        pytest.fail(f"{name} is missing: install the Debian package {_PACKAGES[name]}", pytrace=False)
    return found


def _php_fpm() -> str | None:
    """php-fpm under whatever name a release gives it (php-fpm8.2, php-fpm8.4), the newest of them."""
    places = [glob.escape(place) for place in SEARCH_PATH.split(os.pathsep) if place]
    found = [path for place in places for path in glob.glob(f"{place}/php-fpm*") if os.access(path, os.X_OK)]
    return max(found, key=_version_in_name, default=None)


def _version_in_name(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", os.path.basename(path))]


def until(condition: Callable[[], T], what: str) -> T:
    """Poll until ``condition`` returns something true, and return that. Raises AssertionError at the limit."""
    limit = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < limit, f"waited {LIMIT_S:.0f} s in vain for: {what}"
        time.sleep(0.01)
    return found


def run(argv: Sequence[str], *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end."""
    return subprocess.run(argv, input=stdin, capture_output=True, cwd=REPOSITORY, timeout=LIMIT_S, check=False)


def udsproxy(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run udsproxy to its end."""
    return run([*UDSPROXY, *arguments], stdin=stdin)


def with_output(path: str, stream: int = 1) -> list[str]:
    """A command that runs another with its standard output (1) or error (2) in that file."""
    return ["/bin/sh", "-c", f'exec "$@" {stream}>{path}', "sh"]


def called(command: Callable[..., int], *words: str, **options: bool) -> tuple[int, str]:
    """A command, in this process (a tenth of the time): its exit code, and what it says."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = command(*words, **options)
    return code, said.getvalue()


def read(path: str) -> str:
    """A text file; what is not there yet is empty."""
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def peak_memory(pid: int) -> int:
    """The most memory that a process had resident so far, in bytes."""
    match = re.search(r"VmHWM:\s*(\d+) kB", read(f"/proc/{pid}/status"))
    assert match is not None
    return int(match[1]) * 1024


# --- sockets ---


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect(path: str) -> socket.socket:
    """A connection to a Unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(LIMIT_S)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def receive_all(sock: socket.socket) -> bytes:
    """What comes until the end, be it a close or a reset."""
    received = []
    try:
        while data := sock.recv(1 << 20):
            received.append(data)
    except ConnectionResetError:
        pass
    return b"".join(received)


def receive_exactly(sock: socket.socket, nbytes: int) -> bytes:
    """So many bytes."""
    received = bytearray()
    while len(received) < nbytes:
        data = sock.recv(nbytes - len(received))
        assert data, f"the connection ended after {len(received)} of {nbytes} bytes"
        received += data
    return bytes(received)


def echoes(path: str, data: bytes = b"hello") -> bool:
    """Whether an echo server answers on a socket."""
    with connect(path) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock) == data


class SocketServer:
    """Listens, and answers each connection in a thread. A context manager."""

    def __init__(self, path: str, answer: Callable[[socket.socket], object]) -> None:
        """``answer``: called with each connection, which is closed after that. It may raise OSError."""
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(16)
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown() wakes who waits in accept() and recv(); close() would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(LIMIT_S)
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT_S)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._answer(connection)


def echo(connection: socket.socket) -> None:
    """Send what comes back, chunk by chunk."""
    while data := connection.recv(1 << 20):
        connection.sendall(data)


class EchoServer(SocketServer):
    """Answers each connection with what it sends. A context manager."""

    def __init__(self, path: str) -> None:
        super().__init__(path, echo)


# --- FastCGI ---


def cgi_params(script: str, *, root: str = "", body: bytes = b"") -> dict[bytes, bytes]:
    """The parameters that php-fpm needs to run ``root`` + ``script``."""
    name, _, query = script.partition("?")
    params = {
        "SCRIPT_FILENAME": root + name,
        "SCRIPT_NAME": name,
        "QUERY_STRING": query,
        "REQUEST_URI": script,
        "REQUEST_METHOD": "POST" if body else "GET",
        "CONTENT_LENGTH": str(len(body)) if body else "",
    }
    return {key.encode(): value.encode() for key, value in params.items()}


def ask(path: str, params: Mapping[bytes, bytes], body: bytes = b"") -> bytes:
    """One FastCGI request; returns the page, without its headers."""
    with connect(path) as sock:
        sock.sendall(wire.encode_request(params, body))
        return page_of(receive_all(sock))


def page_of(response: bytes) -> bytes:
    """The page in a whole FastCGI response."""
    records = wire.RecordReader().feed(response)
    assert records, "no answer"
    assert records[-1].kind == wire.END_REQUEST, "the answer has no end"
    stdout = b"".join(record.content for record in records if record.kind == wire.STDOUT)
    return stdout.partition(b"\r\n\r\n")[2]
