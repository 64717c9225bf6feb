"""What has become of the file of a socket, which may be found, or gone, or another one's by now."""

from __future__ import annotations

import os
from typing import Literal

from udsproxy.events import printable
from udsproxy.inspection.machine import Machine
from udsproxy.kernel.diag_codec import UnixSocket
from udsproxy.kernel.socket_file import SocketFile

SUFFIX = ".udsproxy"
"""What is put behind a path to name the socket that a tap has put aside (udsproxy.takeover)."""

File = Literal["there", "aside", "removed", "replaced", "hidden", "unsure"]
"""The file of a socket with an absolute path. ``aside``: it is at PATH.udsproxy, where a tap has put it
(`udsproxy.inspection.taps`). Else nothing is there any more, or it is another one's by now, or its directory may
not be entered, or it cannot be told whether it is another one's."""


def file_of(
    machine: Machine, sock: UnixSocket, path: str | None, pids: list[int]
) -> tuple[File | None, os.stat_result | None]:
    """What became of the file. A relative name is one in the directory of who holds the socket, most likely."""
    if path is None:
        return None, None
    absolute = os.path.isabs(path)
    seen: File | None = None
    # (The last: where its holder has another root directory, or other mounts, in a container.)
    for pid in [None, *pids[:1]] if absolute else pids:
        try:
            file = SocketFile.at(path, pid)
        except PermissionError:
            if pid is None:
                machine.closed_directories.add(printable(path))
                seen = "hidden"
        except (OSError, ValueError):
            if pid is None:
                seen = "removed"
        else:
            known = machine.is_file_of(sock, file)
            if known is not False:
                return "there" if known else "unsure", file.stat
            seen = "replaced" if pid is None else seen
    if seen not in ("removed", "replaced"):
        return seen, None
    if (aside := _put_aside(machine, sock, path, pids)) is not None:
        return "aside", aside
    if not pids and machine.namespace_of(sock) is not None:
        return None, None  # it was bound where we cannot look
    return seen, None


def _put_aside(machine: Machine, sock: UnixSocket, path: str, pids: list[int]) -> os.stat_result | None:
    """The socket's file, where that is at the name that a tap gives it, as we or its holder find that."""
    for name, pid in ((os.path.realpath(path), None), *((path, pid) for pid in pids[:1])):
        try:
            file = SocketFile.at(name + SUFFIX, pid)
        except (OSError, ValueError):
            continue
        if file.is_socket and machine.is_file_of(sock, file):
            return file.stat
    return None
