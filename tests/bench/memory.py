"""``python -m tests.bench.memory``: how much memory `udsproxy run` takes, logging JSON to a file.

- idle: the resident set while it holds 2,000 connections on which nothing happens
- upload: what one FastCGI request with a body of 1 GiB adds to the resident set at its peak

Rules: each figure is taken from a process of its own that has served nothing before; memory is that of
/proc/PID/status (VmRSS, VmHWM), in MiB of 1024 x 1024 bytes. Client and server are threads of this process.
Exit status as of the speed benchmark: 0 measured, whatever the figures say.
"""

import re
import resource
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable

from tests.bench.command import main_guard
from tests.bench.contenders import udsproxy_argv, udsproxy_dropped
from tests.bench.layout import require
from tests.bench.report import machine
from tests.stage import Stage, StageError

CONNECTIONS = 2000
IDLE_TARGET_MIB = 150.0
UPLOAD_BYTES = 1 << 30
UPLOAD_TARGET_MIB = 20.0
# Two for each connection in udsproxy, two in this process, and some for everything else.
OPEN_FILES = 2 * CONNECTIONS + 500
SETTLE_SECONDS = 1.0
SAMPLE_SECONDS = 0.01

RECORD = struct.Struct("!BBHHBx")
BEGIN_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT = 1, 3, 4, 5, 6
LARGEST_RECORD = 65535
ANSWER = b"Content-Type: text/plain\r\n\r\nstored\n"

Handler = Callable[[socket.socket], None]


class Proxied:
    """A udsproxy before a server of this process that gives each connection to `handler`, in a thread."""

    def __init__(self, stage: Stage, name: str, handler: Handler) -> None:
        self.listen = stage.path(name, "in.sock")
        self.record = stage.path(name, "record.log")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(stage.path(name, "up.sock"))
        self._listener.listen(CONNECTIONS)  # they all come at once
        threading.Thread(target=self._serve, args=(handler,), daemon=True).start()
        self.process = self._start(stage, name)

    def _start(self, stage: Stage, name: str) -> subprocess.Popen[bytes]:
        options = ["--log", "json", "--log-file", self.record]
        argv = udsproxy_argv(self.listen, stage.path(name, "up.sock"), *options)
        process = stage.spawn(f"udsproxy ({name})", argv, stage.path(name, "output.log"))
        stage.await_socket(self.listen)
        time.sleep(SETTLE_SECONDS)
        return process

    def _serve(self, handler: Handler) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=handler, args=(connection,), daemon=True).start()

    def connect(self) -> socket.socket:
        """A connection through udsproxy."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.listen)
        return connection

    def mebibytes(self, field: str) -> float:
        """A memory field of udsproxy's /proc/PID/status, in MiB."""
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as file:
            found = re.search(rf"^{field}:\s+(\d+) kB", file.read(), re.MULTILINE)
        if found is None:
            raise StageError("udsproxy has ended")
        return int(found[1]) / 1024


def measure_idle(stage: Stage) -> str:
    """Hold the connections; return a line on the resident set."""
    held: list[socket.socket] = []
    proxied = Proxied(stage, "idle", held.append)
    before = proxied.mebibytes("VmRSS")
    probes = len(held)
    clients = [proxied.connect() for _ in range(CONNECTIONS)]
    _await(lambda: len(held) >= CONNECTIONS + probes, "not all connections reached the server")
    time.sleep(SETTLE_SECONDS)
    stage.check_alive()
    with_all = proxied.mebibytes("VmRSS")
    for connection in clients + held:
        connection.close()
    each = (with_all - before) * 1024 / CONNECTIONS
    detail = f"{before:.1f} MiB with none, {each:.1f} KiB for each connection"
    figure = f"{CONNECTIONS:,} idle connections: {with_all:.1f} MiB"
    return _verdict(figure, detail, with_all, IDLE_TARGET_MIB)


def measure_upload(stage: Stage) -> str:
    """Make the upload; return a line on what it added to the resident set."""
    received: list[int] = []
    proxied = Proxied(stage, "upload", lambda connection: _fastcgi_sink(connection, received))
    before = proxied.mebibytes("VmRSS")
    reset = _reset_peak(proxied.process.pid)
    started = time.perf_counter()
    upload = threading.Thread(target=_upload, args=(proxied,), daemon=True)
    upload.start()
    peak = before
    while upload.is_alive():
        peak = max(peak, proxied.mebibytes("VmRSS"))
        upload.join(SAMPLE_SECONDS)
    took = time.perf_counter() - started
    if received != [UPLOAD_BYTES]:
        raise StageError(f"the server got {received} bytes")
    if reset:  # samples may miss a short peak, the kernel's own mark does not
        peak = max(peak, proxied.mebibytes("VmHWM"))
    time.sleep(SETTLE_SECONDS)  # until the record is written
    detail = (
        f"from {before:.1f} to {peak:.1f} MiB, {UPLOAD_BYTES / 1e6 / took:,.0f} MB/s, "
        f"{udsproxy_dropped(proxied.record):,} chunks not observed"
    )
    added = peak - before
    return _verdict(f"1 GiB upload adds {added:.1f} MiB", detail, added, UPLOAD_TARGET_MIB)


def _verdict(figure: str, detail: str, value: float, target: float) -> str:
    return f"  {'met' if value < target else 'MISSED':6}  {figure} ({detail}); target < {target:g} MiB"


def _await(condition: Callable[[], bool], complaint: str) -> None:
    limit = time.monotonic() + 60
    while not condition():
        if time.monotonic() > limit:
            raise StageError(complaint)
        time.sleep(0.05)


def _reset_peak(pid: int) -> bool:
    """Set VmHWM back to VmRSS; tell whether the kernel let us."""
    try:
        with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _record(kind: int, content: bytes = b"") -> bytes:
    return RECORD.pack(1, kind, 1, len(content), 0) + content


def _pair(name: bytes, value: bytes) -> bytes:
    return bytes([len(name), len(value)]) + name + value


def _upload(proxied: Proxied) -> None:
    """Send the request and wait for the end of the answer."""
    params = [
        _pair(b"REQUEST_METHOD", b"POST"),
        _pair(b"REQUEST_URI", b"/upload"),
        _pair(b"SCRIPT_FILENAME", b"/srv/upload.php"),
        _pair(b"CONTENT_LENGTH", str(UPLOAD_BYTES).encode()),
    ]
    begin = _record(BEGIN_REQUEST, struct.pack("!HB5x", 1, 0))
    with proxied.connect() as connection:
        connection.sendall(begin + _record(PARAMS, b"".join(params)) + _record(PARAMS))
        full = _record(STDIN, b"x" * LARGEST_RECORD)
        for _ in range(UPLOAD_BYTES // LARGEST_RECORD):
            connection.sendall(full)
        connection.sendall(_record(STDIN, b"x" * (UPLOAD_BYTES % LARGEST_RECORD)) + _record(STDIN))
        while connection.recv(LARGEST_RECORD):
            pass


def _fastcgi_sink(connection: socket.socket, received: list[int]) -> None:
    """Read a request to its end, note the size of its body, answer."""
    total = 0
    buffer = bytearray(LARGEST_RECORD + 255)
    with connection:
        while len(head := connection.recv(RECORD.size, socket.MSG_WAITALL)) == RECORD.size:
            _, kind, _, size, padding = RECORD.unpack(head)
            if size + padding:  # recv_into takes 0 as "fill the buffer"
                connection.recv_into(buffer, size + padding, socket.MSG_WAITALL)
            if kind == STDIN and not size:
                received.append(total)
                end = _record(END_REQUEST, bytes(8))
                connection.sendall(_record(STDOUT, ANSWER) + _record(STDOUT) + end)
                return
            total += size if kind == STDIN else 0


def _allow_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= OPEN_FILES:
        return
    try:
        # Only root may raise the hard limit.
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(hard, OPEN_FILES)))
    except (OSError, ValueError):
        raise StageError(f"needs {OPEN_FILES} open files, the limit is {hard} (ulimit -Hn)") from None


def main() -> None:
    """Measure and print."""
    require(["udsproxy"])
    _allow_open_files()
    print(machine([]), flush=True)
    for measure in (measure_idle, measure_upload):
        with Stage() as stage:
            print(measure(stage), flush=True)


if __name__ == "__main__":
    main_guard(main)
