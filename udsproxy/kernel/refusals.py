"""How often connect() has given a client EAGAIN: the kernel's tracing counts it, where we may use that (root).

A full queue leaves no trace with the server: net/unix/af_unix.c, unix_stream_connect, keeps no count. But the
kernel can tell of each system call that ends so (tracefs, events/syscalls/sys_exit_connect, filtered by result). On
AF_INET connect() does not end so.

Rules: it is on only for as long as it is asked for, in an instance of its own, which is removed at the end: while
it is on, every system call of the machine costs some 100 ns more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import Counter

from udsproxy.kernel import procfs

_TRACING = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_EVENT = "events/syscalls/sys_exit_connect"
_LINE = re.compile(rb".{16}-(\d+) +\[\d+\] ", re.DOTALL)
"""A name of 16 characters, and the number of a thread (kernel/trace/trace_output.c, trace_print_context)."""
_READ = 64 * 1024
_PREFIX = "udsproxy-"


class Refusals:
    """Raises OSError: tracing cannot be used."""

    def __init__(self) -> None:
        self._trace = -1
        self._on = False
        if not procfs.sees_all_processes():
            raise OSError(
                errno.EXDEV, "it tells the pids of the whole machine, and here (a container) they are others"
            )
        root = next((root for root in _TRACING if os.path.isdir(f"{root}/instances")), None)
        if root is None:
            raise OSError(errno.ENOENT, "tracefs is not mounted")
        _remove_orphans(f"{root}/instances")
        self._path = f"{root}/instances/{_PREFIX}{os.getpid()}"
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path, 0o700)
        try:
            self._write(f"{_EVENT}/filter", f"ret == -{errno.EAGAIN}")
            self._trace = os.open(f"{self._path}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise
        self._rest = b""

    def count(self, *, on: bool) -> None:
        """Count from now on, or no longer. Raises OSError."""
        if on != self._on:
            self._write(f"{_EVENT}/enable", "1" if on else "0")
            self._on = on

    def taken(self) -> Counter[int]:
        """How many there have been since this was last called, by process (its pid, or that of a thread)."""
        found: Counter[int] = Counter()
        while True:
            try:
                data = os.read(self._trace, _READ)
            except OSError:  # EAGAIN: that is all
                break
            if not data:
                break
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()[-_READ:]
            for line in lines:
                match = _LINE.match(line)
                if match:
                    found[int(match[1])] += 1
        return found

    def close(self) -> None:
        if self._trace >= 0:
            with contextlib.suppress(OSError):
                self.count(on=False)
            os.close(self._trace)
            self._trace = -1
        with contextlib.suppress(OSError):
            os.rmdir(self._path)

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._path}/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _remove_orphans(instances: str) -> None:
    """What a process that was killed has left on."""
    for name in os.listdir(instances):
        pid = name.removeprefix(_PREFIX)
        if name != pid and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _remove(f"{instances}/{name}")


def remove(pid: int) -> None:
    """What this process, which was killed, may have left on."""
    for root in _TRACING:
        if os.path.isdir(f"{root}/instances/{_PREFIX}{pid}"):
            _remove(f"{root}/instances/{_PREFIX}{pid}")


def _remove(instance: str) -> None:
    with contextlib.suppress(OSError), open(f"{instance}/{_EVENT}/enable", "w") as file:
        file.write("0")
    with contextlib.suppress(OSError):
        os.rmdir(instance)
