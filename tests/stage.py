"""The stage: a temporary directory and the processes that live in it.

Rules: every process is started through a stage and leads a process group of its own; leaving the stage,
however that happens, ends all groups and removes the directory. SIGTERM and SIGHUP leave it as Ctrl-C does.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

READY_SECONDS = 20.0
END_SECONDS = 2.0
LEAVING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class StageError(Exception):
    """It can't go on; the text is one line for the user."""


class MissingError(StageError):
    """A program that the chosen measurements need is not there."""


@dataclass(frozen=True)
class Member:
    """A process of the stage: what to call it, and the file that holds what it prints."""

    name: str
    process: subprocess.Popen[bytes]
    output: str


class Stage:
    """Holds the directory and the processes; a context manager."""

    def __init__(self) -> None:
        # Directly in /tmp: TMPDIR may be long, and the path of a Unix socket has only 107 bytes.
        self.directory = tempfile.mkdtemp(prefix="udsb-", dir="/tmp")
        self._processes: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave half of it behind.
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in LEAVING}
        self._clear()
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def _clear(self) -> None:
        for member in self._processes:
            member.process.terminate()
        limit = time.monotonic() + END_SECONDS
        for member in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                member.process.wait(max(0.0, limit - time.monotonic()))
        for member in self._processes:
            # A group outlives its leader while a child of socat is left in it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(member.process.pid, signal.SIGKILL)
            member.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, *parts: str) -> str:
        """A path in the directory, its parent directories made."""
        path = os.path.join(self.directory, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def write(self, text: str, *parts: str) -> str:
        """Write a file (a configuration) and return its path."""
        path = self.path(*parts)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def spawn(self, name: str, argv: list[str], output: str) -> subprocess.Popen[bytes]:
        """Start a process with stdout and stderr appended to the file `output`."""
        # Appending, so that the file can be emptied under a process that goes on writing.
        with open(output, "ab") as file:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=REPOSITORY,
                start_new_session=True,
            )
        self._processes.append(Member(name, process, output))
        return process

    def check_alive(self) -> None:
        """Raise StageError if a process has ended."""
        for member in self._processes:
            if (status := member.process.poll()) is not None:
                raise StageError(f"{member.name} ended with status {status}: {_last_line(member.output)}")

    def await_socket(self, address: str | tuple[str, int]) -> None:
        """Return when connect() succeeds on a Unix path, or a TCP host and port."""
        limit = time.monotonic() + READY_SECONDS
        while not _accepts(address):
            self.check_alive()
            if time.monotonic() > limit:
                raise StageError(f"nothing accepts on {address} after {READY_SECONDS:.0f} s")
            time.sleep(0.02)


def _accepts(address: str | tuple[str, int]) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError:
            return False
        return True


def _last_line(path: str) -> str:
    """The last line that is not blank of a file, for an error message."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
