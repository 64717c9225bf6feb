"""Putting a path back, and the process that does it when the proxy has died.

The guardian is started before a path is taken over, and told of each file of ours before that stands at a path. It
reads from a socket whose other end only the proxy has: when that ends, in whatever way, so has the proxy.

Rules:

* Only the standard library is imported: the process is small, and up in some 20 ms.
* It must learn of the proxy's end before all else that this closes: until then nobody answers at the path.
* A file of ours is held open (O_PATH) for as long as we may have to know it again: so its inode number cannot be
  given to another.
* What to do is decided from what is there, not from what should be: so it can be done twice, or half.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Container

SUFFIX = ".udsproxy"
_ANSWER_S = 2.0
"""How long the guardian may take to answer; the traffic waits for that."""
_TRIES = 100
"""How often a path is put back, where a server removes or makes its file in that very moment."""
_HIGHEST = 4096
"""Descriptors from here on cost memory: the kernel's table of them has no holes."""
_HELLO = b"/"
"""Asks whether the guardian is up."""
_EXCHANGE, _NOREPLACE = 2, 1
_AT_FDCWD = -100


def aside_of(path: str) -> str:
    """Where the real socket is while we stand at ``path``."""
    return path + SUFFIX


def exchange(one: str, other: str) -> None:
    """Swap two names (renameat2(2)). Raises OSError; EINVAL: this file system cannot."""
    _rename(one, other, _EXCHANGE)


def _rename(old: str, new: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.EINVAL, "this C library has no renameat2")
    if libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old)


Identity = tuple[int, int]
"""Device and inode of a file."""


def identity(path: str) -> Identity | None:
    """Of what is there; None: nothing is."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def answers(path: str) -> bool:
    """Does somebody listen on, or receive from, the socket that is there?"""
    try:
        pinned = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not stat.S_ISSOCK(os.stat(f"/proc/self/fd/{pinned}").st_mode):
            return False
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
            with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
                found = probe.connect_ex(f"/proc/self/fd/{pinned}")
            if found != errno.EPROTOTYPE:
                return found != errno.ECONNREFUSED
        return False
    finally:
        os.close(pinned)


def put_back(path: str, ours: Container[Identity], alive: Callable[[str], bool] = answers) -> str | None:
    """Put the real socket back to ``path``, and remove what is ``ours``. Returns what was done; None: nothing.

    ``alive``: whether somebody listens on a socket. Raises OSError.
    """
    for _ in range(_TRIES - 1):
        with contextlib.suppress(FileNotFoundError):  # what was there has gone: it is another case now
            return _put_back(path, ours, alive)
    return _put_back(path, ours, alive)


def _put_back(path: str, ours: Container[Identity], alive: Callable[[str], bool]) -> str | None:
    aside = aside_of(path)
    here, there = identity(path), identity(aside)
    if there is None or there in ours:
        if there is not None:
            os.unlink(aside)
        if here is None or here not in ours:
            return None
        os.unlink(path)
        return f"{path}: the real socket is not there any more; ours is removed"
    if here in ours:
        exchange(path, aside)
        swapped = identity(aside)
        if swapped is not None and swapped not in ours:
            exchange(path, aside)  # somebody has put another there in that very moment
            return _drop_dead(path, aside, alive)
        os.unlink(aside)
        return f"{path}: the real socket is back in its place"
    if here is None and alive(aside):
        try:
            _rename(aside, path, _NOREPLACE)
        except FileExistsError:
            return _drop_dead(path, aside, alive)
        return f"{path}: the real socket is back in its place"
    return _drop_dead(path, aside, alive)


def _drop_dead(path: str, aside: str, alive: Callable[[str], bool]) -> str:
    """The server has removed its path, or put another socket there: the old one has no name any more."""
    if alive(aside):
        return f"{path}: somebody else has taken the path; the server that had it still answers at {aside}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside)
    return f"{path}: {aside} is removed, nobody listened on it"


# --- the proxy's side ---


class GuardianError(Exception):
    """There is no guardian. One line."""


class Guardian:
    """The process, as the proxy sees it."""

    def __init__(self, path: str, log: str | None, *, as_json: bool, proxy: str) -> None:
        """``log``: the file that it tells its deed in (None: standard output), ``as_json`` or as text; and on
        standard error. Raises `GuardianError`."""
        self._path = path
        self._telling = {"log": log and os.path.abspath(log), "as_json": as_json, "proxy": proxy}
        self._start()

    def _start(self) -> None:
        from udsproxy.kernel.own_processes import environment  # not at the top: the guardian runs this file alone

        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-S", os.path.abspath(__file__), self._path, json.dumps(self._telling)],
                stdin=its.fileno(),
                start_new_session=True,
                env=environment(),
            )
        except OSError as error:
            ours.close()
            raise GuardianError(f"the guardian cannot be started: {error.strerror}") from None
        finally:
            its.close()
        self._socket = _moved_up(ours)
        self._socket.settimeout(_ANSWER_S)
        self._ask(_HELLO)

    def _ask(self, asked: bytes) -> None:
        try:
            self._socket.send(asked)
            answer = self._socket.recv(1000)
        except OSError as error:
            answer = str(error).encode()
        if answer != b"ok":
            raise GuardianError(
                f"the guardian does not answer: {answer.decode(errors='replace') or 'it has ended'}"
            )

    def arm(self, file: str) -> None:
        """This file is ours, and will be at the path. Raises `GuardianError`."""
        self._ask(os.fsencode(file))

    def revive(self, file: str) -> bool:
        """Start another where it has died, which is told of ``file``. Was that so? Raises `GuardianError`."""
        if self._process.poll() is None:
            return False
        self._socket.close()
        self._start()
        self.arm(file)
        return True

    def dismiss(self) -> None:
        """It is not needed any more. (It looks once more, and finds nothing to do.)"""
        self._socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ANSWER_S)


def _moved_up(sock: socket.socket) -> socket.socket:
    """The same socket, as the highest descriptor.

    The descriptors of a process that is killed are closed from the highest down (kernel/task_work.c,
    task_work_run; since Linux 4.3). To close that of inotify(7) takes up to 40 ms (it waits for
    synchronize_srcu), and those of many connections take their time too.
    """
    try:
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        moved = fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, min(most, _HIGHEST) - 1)
    except OSError:
        return sock  # it is late to learn of our end then
    sock.close()
    return socket.socket(fileno=moved)


# --- the guardian's side ---


def main(path: str, telling: str) -> None:
    """Stand by until the proxy has ended; then put the path back."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("-1000")
    ours: dict[Identity, int] = {}
    armed = False
    with socket.socket(fileno=0) as proxy:
        while True:
            try:
                asked = proxy.recv(8192)
            except OSError:
                break
            if not asked:
                break
            answer = b"ok"
            if asked != _HELLO:
                armed = True
                answer = _pin(ours, asked, path)
            with contextlib.suppress(OSError):
                proxy.send(answer)
    if not armed:
        return  # nothing of ours has been at the path: what is there is another's business
    try:
        done = put_back(path, set(ours))
    except OSError as error:
        done = f"{path}: it could not be put back: {error.strerror}; udsproxy tap --restore {path} tries again"
    if done is not None:
        _tell(done, **json.loads(telling))


def _pin(ours: dict[Identity, int], file: bytes, path: str) -> bytes:
    """Know this file again, and no longer those that stand nowhere any more."""
    in_use = {identity(path), identity(aside_of(path))}
    for gone in ours.keys() - in_use:
        os.close(ours.pop(gone))
    try:
        fd = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return os.strerror(error.errno or 0).encode()
    found = os.fstat(fd)
    known = ours.setdefault((found.st_dev, found.st_ino), fd)
    if known != fd:
        os.close(fd)
    return b"ok"


def _tell(done: str, log: str | None, as_json: bool, proxy: str) -> None:
    # (A name may be made to drive a terminal, or to forge a line.)
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"the proxy has died; {done}")
    if as_json:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 10**9)) + f".{now // 1000 % 10**6:06}Z"
        event = {"ts": stamp, "event": "restored", "proxy": proxy, "message": line}
        text = json.dumps(event, separators=(",", ":")) + "\n"
    else:
        text = f"udsproxy: {line}\n"
    with contextlib.suppress(OSError):
        sys.stderr.write(f"udsproxy: {line}\n")
        sys.stderr.flush()
    if as_json or log is not None:
        with contextlib.suppress(OSError):
            fd = 1 if log is None else _open_log(log)
            os.write(fd, (_end_of_line(fd) + text).encode(errors="backslashreplace"))


def _open_log(log: str) -> int:
    """Raises OSError."""
    sys.path.insert(0, os.path.abspath(os.path.join(__file__, "..", "..", "..")))
    from udsproxy.kernel.files import open_log

    return open_log(log)


def _end_of_line(fd: int) -> str:
    """What is missing at the end of a file: the proxy may have been killed in the middle of a line."""
    with contextlib.suppress(OSError):
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode) and found.st_size:
            with open(f"/proc/self/fd/{fd}", "rb") as file:
                file.seek(-1, os.SEEK_END)
                return "" if file.read(1) == b"\n" else "\n"
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
