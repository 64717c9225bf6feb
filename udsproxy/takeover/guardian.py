"""The guardian, as the proxy sees it (`udsproxy.takeover.guardian_process`).

Rule: a guardian that has died, or does not run, is replaced: without one the path is lost when we are killed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable

from udsproxy.events import errno_name
from udsproxy.kernel.own_processes import command, environment
from udsproxy.takeover.guardian_process import ARM, BEATS, HELLO, IGNORED
from udsproxy.takeover.names import Names

_ANSWER_S = 2.0
"""How long the guardian may take to answer; the traffic waits for that."""
_MAX_SILENT = 300
"""A guardian that has not looked while we have looked so often (every 10 ms) does not run."""
_HIGHEST = 4096
"""Descriptors from here on cost memory: the kernel's table of them has no holes."""


class GuardianError(Exception):
    """There is no guardian. One line."""


class Guardian:
    """The process. Close it by `dismiss`."""

    def __init__(
        self,
        names: Names,
        *,
        log: int | None,
        file: str | None,
        proxy: str,
        before_start: Callable[[], None] = lambda: None,
    ) -> None:
        """``log``: a descriptor to write JSON lines to about what it does, besides standard error; ``file``: its
        path, where it is a file. ``before_start`` is called before a process is started. Raises `GuardianError`."""
        self._names = names
        self._before_start = before_start
        self._beats_fd = os.memfd_create("udsproxy-beats", os.MFD_CLOEXEC)
        os.ftruncate(self._beats_fd, BEATS.size)
        self._beats = mmap.mmap(self._beats_fd, BEATS.size)
        self._log = log
        self._told = {
            "name": names.name,
            "directory_path": names.directory.path,
            "log": log,
            "file": file,
            "proxy": proxy,
            "beats": self._beats_fd,
            "pid": os.getpid(),
        }
        self._count = 0
        self._seen, self._seen_at = 0, 0
        self._start()

    def _start(self) -> None:
        self._before_start()
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        told = self._told | {"directory": self._names.directory.fd}
        passed = [fd for fd in (self._names.directory.fd, self._beats_fd, self._log) if fd is not None and fd > 2]
        # What is sent to all of us (Ctrl-C, the end of a service) is not to end it before it ignores that.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                command("udsproxy.takeover.guardian_process", json.dumps(told), installed=False),
                stdin=its.fileno(),
                pass_fds=passed,
                start_new_session=True,
                env=environment(),
            )
        except OSError as error:
            ours.close()
            what = f"{error.filename or sys.executable}: {error.strerror} ({errno_name(error.errno or errno.EIO)})"
            raise GuardianError(f"the guardian cannot be started: {what}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            its.close()
        self._socket = _moved_up(ours)
        self._socket.settimeout(_ANSWER_S)
        self._ask(HELLO, [])
        self._seen_at = self._count

    def _ask(self, asked: bytes, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._socket, [asked], descriptors)
            answer = self._socket.recv(1000)
        except OSError as error:
            answer = str(error).encode()
        if answer != b"ok":
            raise GuardianError(
                f"the guardian does not answer: {answer.decode(errors='replace') or 'it has ended'}"
            )

    def arm(self, file: int, real: int) -> None:
        """Tell it that ``file`` is ours and will stand at the path, in place of ``real`` (O_PATH descriptors).

        Raises `GuardianError`.
        """
        try:
            self._arm(file, real)
        except GuardianError:
            self._replace(file, real)

    def _arm(self, file: int, real: int) -> None:
        self._ask(ARM, [self._names.directory.fd, file, real])

    def look(self, file: int, real: int) -> None:
        """Show it that we run; where it has died, or does not run, start another, armed with these. To be called
        every 10 ms. Raises `GuardianError`.
        """
        self._count += 1
        struct.pack_into("=Q", self._beats, 0, self._count)
        (seen,) = struct.unpack_from("=Q", self._beats, 8)
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._count
        if self._count - self._seen_at > _MAX_SILENT or self._process.poll() is not None:
            self._replace(file, real)

    def _replace(self, file: int, real: int) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()
        self._start()
        self._arm(file, real)

    def dismiss(self) -> None:
        """It is not needed any more. (It looks once more, and finds nothing to do.)"""
        self._socket.close()
        try:
            self._process.wait(_ANSWER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # it is stopped
            self._process.wait()
        self._beats.close()
        os.close(self._beats_fd)
        if self._log is not None and self._log > 2:
            os.close(self._log)


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
