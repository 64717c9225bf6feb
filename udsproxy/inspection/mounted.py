"""Why nobody may be behind a socket's file although its server runs: how the file is mounted.

connect() finds a socket by the inode that its path leads to (net/unix/af_unix.c, unix_find_bsd). So a bind mount
of the file keeps leading to the old socket when a server makes its file anew; an overlay has inodes of its own for
what is in its layers; and on a file system that another machine or process serves, a socket's file is only a file.
"""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec

from udsproxy.events import printable
from udsproxy.inspection.machine import Machine, spelled
from udsproxy.kernel.diag_codec import UnixSocket
from udsproxy.kernel.mounts import Mount
from udsproxy.kernel.socket_file import SocketFile

_REMOTE = re.compile(r"nfs4?|cifs|smb3|9p|virtiofs|ceph|fuse(blk|\..*)?|glusterfs|lustre|beegfs")
_MAX_MOUNTS = 2000

Why = Literal["replaced", "overlay", "layer", "remote"]
"""``replaced``: a bind mount of a file that is there no more. ``overlay``: the file is in a layer of an overlay.
``layer``: the file is in a layer, and the server made it through the overlay. ``remote``: see the module."""


class Mounted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a file is mounted behind which nobody is."""

    why: Why
    kind: str
    """Of the file system."""
    path: str | None = None
    """Where the server has its socket, or the path within its file system of what was mounted."""
    server: str | None = None
    """``php-fpm, pid 9``; absent: none is seen."""

    @property
    def is_sure(self) -> bool:
        """This is why nobody is reached; else it may be."""
        return self.why == "replaced" or self.server is not None

    @property
    def text(self) -> str:
        """What has happened, or may have, in a line."""
        if self.why == "replaced":
            now = f"; {self.server}, listens at {self.path} now" if self.server else ""
            return f"a stale bind mount: the file that is mounted here, {self.path}, was removed or replaced{now}"
        if self.why == "remote":
            return f"it is on {self.kind}: a server on another machine (or in a VM) is not reached through that"
        if self.server is None:
            return "it is on an overlay: a server that listens in one of its layers is not reached through it"
        which = "a layer of this overlay" if self.why == "overlay" else "in an overlay that this is a layer of"
        return (
            f"its server ({self.server}) listens at {self.path}, {which}: connect() does not lead there from here"
        )

    @property
    def cure(self) -> str:
        """What to do."""
        if self.why == "replaced":
            directory = f" {os.path.dirname(self.path)}" if self.server and self.path else ""
            return f"Mount the directory{directory} instead of the socket's file, and restart the container."
        if self.why == "remote":
            return "A Unix socket connects processes of one kernel: use TCP, or a socket on this machine."
        return "Share the directory of the socket by a bind mount (a volume)."


def mounted(machine: Machine, file: SocketFile, path: str) -> Mounted | None:
    """Of a file that nobody has a socket at; None: that is not because of how it is mounted."""
    mount = file.mount
    if mount is None:
        return None
    real = os.path.realpath(path)
    if mount.point == real:
        if not mount.is_replaced:
            return None
        now = [each for each in machine.servers if each.listening and _was_made_at(each, mount)]
        name = spelled(now[0].name) if len(now) == 1 else None
        return Mounted(
            why="replaced",
            kind=mount.kind,
            path=name or printable(mount.source),
            server=machine.who_holds(now[0].inode) if len(now) == 1 else None,
        )
    if mount.kind == "overlay":
        inside = os.path.normpath(f"{mount.root}/{os.path.relpath(real, mount.point)}").lstrip("/")
        below = _served(machine, [os.path.join(layer, inside) for layer in mount.layers])
        return Mounted(why="overlay", kind=mount.kind) if below is None else _at(machine, "overlay", mount, *below)
    if _REMOTE.fullmatch(mount.kind):
        return Mounted(why="remote", kind=mount.kind)
    for overlay in [each for each in file.mounts if each.kind == "overlay"][:_MAX_MOUNTS]:
        above = _served(
            machine,
            [
                os.path.join(overlay.point, os.path.relpath(real, layer))
                for layer in overlay.layers
                if real.startswith(f"{layer}/")
            ],
        )
        if above is not None:
            return _at(machine, "layer", overlay, *above)
    return None


def _at(machine: Machine, why: Why, mount: Mount, path: str, sock: UnixSocket) -> Mounted:
    return Mounted(why=why, kind=mount.kind, path=printable(path), server=machine.who_holds(sock.inode))


def _was_made_at(sock: UnixSocket, mount: Mount) -> bool:
    """Is this a socket with the same path within the same file system?"""
    name = b"" if sock.name is None else sock.name.partition(b"\0")[0]
    return sock.file is not None and sock.file[0] == mount.device and name.endswith(os.fsencode(mount.source))


def _served(machine: Machine, paths: list[str]) -> tuple[str, UnixSocket] | None:
    """The first of these paths at which somebody listens."""
    for path in paths:
        try:
            found = machine.at(SocketFile.at(path))[0]
        except (OSError, ValueError):
            continue
        if listening := [each for each in found if each.listening]:
            return path, listening[0]
    return None
