"""The guardian: a process that puts a path back when the proxy cannot.

It is started before a path is taken over, and told of each file of ours before that stands at the path. It reads
from a socket whose other end only the proxy has: when that ends, in whatever way, so has the proxy.

Rules:

* It must learn of the proxy's end before all else that this closes: until then nobody answers at the path.
* A file of ours is held open (O_PATH) for as long as we may have to know it again: so its inode number cannot be
  given to another. Files and directory come as descriptors, never as names.
* While the proxy stands still (stopped, or silent for a second) the path is the server's. The proxy takes it again
  by itself when it runs.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import time

from udsproxy.kernel.directory import Directory, Identity, identity_of
from udsproxy.kernel.files import reopen_log
from udsproxy.layout import fold
from udsproxy.takeover.names import Known, Names, put_back, stand_down
from udsproxy.terminal import width_reader

HELLO, ARM = b"hello", b"arm"
"""What the proxy sends: is it up; with three descriptors, the directory, a file of ours, and the real one."""
BEATS = struct.Struct("=QQ")
"""What both write into shared memory while they run: how often the proxy has looked, how often the guardian has."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTSTP)
"""Signals that do not end it; blocked while it starts."""
LOOK_S = 0.25
"""How often it is looked whether the proxy runs."""
_MAX_SILENT = 4
"""A proxy that has not run for so many looks stands still."""
_MAX_MESSAGE = 64


class _Watch:
    """Whether the proxy runs."""

    def __init__(self, pid: int, beats: mmap.mmap) -> None:
        self._beats = beats
        self._seen = -1
        self._silent = 0
        self._process = -1
        with contextlib.suppress(OSError):  # no /proc
            self._process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def begin(self) -> None:
        """Count from now on."""
        self._silent = 0

    def stands_still(self) -> bool:
        """Look once more; and show that we do."""
        proxy, guardian = BEATS.unpack_from(self._beats)
        struct.pack_into("=Q", self._beats, 8, guardian + 1)
        self._silent = 0 if proxy != self._seen else self._silent + 1
        self._seen = proxy
        return self._silent >= _MAX_SILENT or (self._silent > 0 and self._is_stopped())

    def _is_stopped(self) -> bool:
        with contextlib.suppress(OSError):
            fd = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._process)
            try:
                return os.read(fd, 4096).rpartition(b")")[2].split()[0] in (b"T", b"t")
            finally:
                os.close(fd)
        return False


class _Guard:
    """What is known of a path."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._ours: dict[Identity | None, int] = {}
        self._real: dict[Identity | None, int] = {}
        self.armed = False

    def arm(self, descriptors: list[int]) -> bytes:
        """Know these files; no longer those that stand nowhere any more. Returns the answer."""
        if len(descriptors) != 3:
            return b"three descriptors are needed"
        directory, ours, real = descriptors
        os.dup2(directory, self._names.directory.fd, inheritable=False)
        os.close(directory)
        in_use = {self._names.directory.identity(name) for name in (self._names.name, self._names.aside)}
        for known, fd in ((self._ours, ours), (self._real, real)):
            for gone in known.keys() - in_use:
                os.close(known.pop(gone))
            if known.setdefault(identity_of(fd), fd) != fd:
                os.close(fd)
        self.armed = True
        return b"ok"

    @property
    def _known(self) -> Known:
        return Known(self._ours.keys(), self._real.keys())

    def put_back(self) -> str | None:
        """Returns what was done, for people."""
        path = self._names.path
        try:
            return put_back(self._names, self._known)
        except OSError as error:
            return f"{path}: it could not be put back: {error.strerror}; udsproxy tap --restore {path} tries again"

    def stand_down(self) -> str | None:
        """Returns what was done, for people."""
        with contextlib.suppress(OSError):
            if stand_down(self._names, self._known):
                return f"{self._names.path}: the real socket is in its place until it runs again"
        return None


def main() -> None:
    """Stand by until the proxy has ended; then put the path back. The argument is a JSON object with the socket's
    name, the directory's path, the numbers of the descriptors, and how to tell of what was done.

    Standard input is the socket to the proxy.
    """
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    os.chdir("/")
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")
    told = json.loads(sys.argv[1])
    directory = Directory.inherited(told["directory"], told["directory_path"])
    guard = _Guard(Names(directory, told["name"]))
    with socket.socket(fileno=0) as proxy, mmap.mmap(told["beats"], BEATS.size) as beats:
        watch = _Watch(told["pid"], beats)
        poll = select.poll()
        poll.register(proxy, select.POLLIN)
        while True:
            if not poll.poll(LOOK_S * 1000):
                if watch.stands_still() and guard.armed and (done := guard.stand_down()) is not None:
                    _tell(f"the proxy stands still; {done}", told)
            elif not _answer(proxy, guard, watch):
                break
    done = guard.put_back() if guard.armed else None  # else nothing of ours has been at the path
    directory.remove_left(told["pid"])
    if done is not None:
        _tell(f"the proxy has died; {done}", told)


def _answer(proxy: socket.socket, guard: _Guard, watch: _Watch) -> bool:
    """Returns whether the proxy is still there."""
    try:
        asked, descriptors, _, _ = socket.recv_fds(proxy, _MAX_MESSAGE, 3)
    except OSError:
        return False
    if not asked:
        return False
    answer = b"ok"
    if asked == ARM:
        try:
            answer = guard.arm(descriptors)
        except OSError as error:
            answer = str(error.strerror).encode()
        watch.begin()
    with contextlib.suppress(OSError):
        proxy.send(answer)
    return True


def _tell(line: str, told: dict[str, object]) -> None:
    """Say it on standard error, and in the log."""
    log = told["log"]
    # (A name may be made to drive a terminal, or to forge a line.)
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    with contextlib.suppress(OSError):
        os.write(2, _folded(line, 2))
    if not isinstance(log, int):
        return
    file = told["file"]
    if isinstance(file, str):
        with contextlib.suppress(OSError):  # it may have been rotated
            there = reopen_log(log, file)
            log = log if there is None else there
    now = time.time_ns()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now // 1000 % 10**6:06}Z"
    event = {"ts": stamp, "event": "restored", "proxy": told["proxy"], "message": line}
    text = json.dumps(event, separators=(",", ":")) + "\n"
    with contextlib.suppress(OSError):
        os.write(log, (_end_of_line(log) + text).encode(errors="backslashreplace"))


def _folded(line: str, fd: int) -> bytes:
    """The line as a person reads it, for the terminal that the descriptor may be."""
    name = "udsproxy: "
    return f"{fold(name + line, width_reader(fd)(), len(name))}\n".encode(errors="backslashreplace")


def _end_of_line(fd: int) -> str:
    """What is missing at the end of a file: the proxy may have been killed in the middle of a line."""
    with contextlib.suppress(OSError):
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                file.seek(-1, os.SEEK_END)
                return "" if file.read(1) == b"\n" else "\n"
    return ""
