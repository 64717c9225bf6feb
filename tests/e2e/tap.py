"""A running ``udsproxy tap``, and what the tests look at besides: the socket's directory, the guardian."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tests.e2e.proxy import Running
from tests.e2e.tools import echoes, read, until
from tests.stage import Stage
from udsproxy.kernel.procfs import read_parent


class Tap(Running):
    """One ``udsproxy tap``. Its ``socket`` is the path as it was told, which may lead to the socket."""

    def __init__(
        self,
        stage: Stage,
        path: str,
        *options: str,
        command: Sequence[str] = (),
        log: Sequence[str] | None = None,
        wrap: Sequence[str] = (),
    ) -> None:
        """See `Running`."""
        super().__init__(stage, path, ["tap", path, *options], command=command, log=log, wrap=wrap)
        self._looks = 0

    def await_seen(self) -> None:
        """Until an echo server answers at the path, and this shows that."""
        self._looks += 1
        question = bytes(1000 + self._looks)  # nobody else's has this length

        def seen() -> bool:
            is_served(self.socket, question)
            return bool(self.events("close", c2s_bytes=len(question), s2c_bytes=len(question)))

        until(seen, f"a connection that the tap of {self.socket} shows")

    def kill(self) -> None:
        """End it as nobody should."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def await_restored(self) -> None:
        """Until the guardian tells in the log what it has done. (A killed proxy's last line may have no end.)"""
        until(lambda: '"event":"restored"' in read(self.log), "the guardian's event")

    def guardians(self) -> set[int]:
        """Its guardian's pid. None, or two, would be there for a moment only."""
        return guardians_of(self.pid)


class StartTap(Protocol):
    """The fixture ``start_tap``: `Tap`, on the test's stage."""

    def __call__(
        self, path: str, *options: str, command: list[str] = ..., log: list[str] = ..., wrap: list[str] = ...
    ) -> Tap: ...


def guardians_of(proxy: int) -> set[int]:
    """The children of a tap that are guardians."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {pid for pid in pids if read_parent(pid) == proxy and _is_guardian(pid)}


def _is_guardian(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        return "\0udsproxy.takeover.guardian_process\0" in read(f"/proc/{pid}/cmdline")
    return False


def is_armed(guardian: int, path: str) -> bool:
    """Does it know the file at the path? (It holds that open.)"""
    directory = f"/proc/{guardian}/fd"
    with contextlib.suppress(FileNotFoundError):  # while it starts it opens and closes many
        return path in [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
    return False


# --- the socket's directory ---


class File(NamedTuple):
    """Which file it is, and its rights."""

    inode: int
    mode: int
    uid: int
    gid: int

    @classmethod
    def at(cls, path: str) -> File:
        found = os.lstat(path)
        return cls(found.st_ino, found.st_mode, found.st_uid, found.st_gid)


def aside_of(path: str) -> str:
    """Where the server's own socket is meanwhile."""
    return f"{path}.udsproxy"


def beside(path: str) -> dict[str, File]:
    """All that is in the path's directory, the path itself too."""
    directory, files = os.path.dirname(path), {}
    for name in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):  # it has gone meanwhile
            files[name] = File.at(os.path.join(directory, name))
    return files


def is_served(path: str, data: bytes = b"hello") -> bool:
    """Whether an echo server answers there; it need not."""
    try:
        return echoes(path, data)
    except OSError:
        return False
