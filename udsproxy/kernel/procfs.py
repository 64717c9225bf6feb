"""What /proc says of a process (proc(5)).

Rules: never raises because a process is gone or hidden: then the answer is None.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def read_comm(pid: int) -> str | None:
    """``/proc/PID/comm``: the first 15 bytes of the process's name."""
    if pid <= 0:
        return None  # a process outside our pid namespace (pid_namespaces(7))
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n").decode("utf-8", "backslashreplace")
    except OSError:
        return None


def read_capabilities() -> int:
    """Our own effective capabilities (capabilities(7)), a bit each; 0 where it cannot be told."""
    with contextlib.suppress(OSError), open("/proc/thread-self/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def read_ids(pid: int) -> tuple[int, int, tuple[int, ...]] | None:
    """Effective user and group, and the supplementary groups, of ``/proc/PID/status``."""
    found: dict[str, list[int]] = {}
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, values = line.partition(":")
                if key in ("Uid", "Gid", "Groups"):
                    found[key] = [int(value) for value in values.split()]
        return found["Uid"][1], found["Gid"][1], tuple(found["Groups"])
    except (OSError, ValueError, LookupError):
        return None


def read_parent(pid: int) -> int | None:
    """The parent's pid: the second field after the name in ``/proc/PID/stat``."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def holders_of(inode: int) -> list[int]:
    """The processes that hold this socket, as far as their ``/proc/PID/fd`` may be read: all for root, else
    those of the same user. Looks at every descriptor of every process: not for the traffic's path."""
    wanted = f"socket:[{inode}]"
    return [pid for pid in _pids() if wanted in _descriptors(pid)]


def listener_of(inode: int) -> int | None:
    """Who probably called listen() on a socket: the process that holds it and whose parent does not."""
    holders = holders_of(inode)
    return next((pid for pid in sorted(holders) if read_parent(pid) not in holders), None)


def servers_of(inode: int) -> int:
    """How many processes serve a listening socket: those that hold it, less the masters that only gave it to their
    children. 0 where it cannot be told."""
    holders = holders_of(inode)
    masters = {read_parent(pid) for pid in holders}
    return len([pid for pid in holders if pid not in masters])


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _descriptors(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{name}")
