"""The mounts that a process sees (``/proc/PID/mountinfo``, proc(5)).

Rule: never raises because it cannot be read: then there are none.
"""

from __future__ import annotations

import contextlib
import os
import re

import msgspec

_LINE = re.compile(r"^(\d+) \d+ (\d+):(\d+) (\S+) (\S+) .*? - (\S+) \S+ (\S*)", re.MULTILINE)
_DELETED = "//deleted"
"""What the kernel puts behind the name of a directory or file that is there no more (fs/d_path.c)."""


class Mount(msgspec.Struct, frozen=True):
    """A line of it."""

    id: int
    device: int
    """As sock_diag writes it: major << 20 | minor."""
    root: str
    """What of its file system is mounted: ``/``, or the directory, or the file, of a bind mount."""
    point: str
    """Where."""
    kind: str
    """``ext4``, ``overlay``, ``tmpfs``."""
    options: str = ""
    """Of the file system."""

    @property
    def is_replaced(self) -> bool:
        """What was mounted has been removed since, or something else was put in its place."""
        return self.root.endswith(_DELETED)

    @property
    def source(self) -> str:
        """The path, within its file system, of what was mounted."""
        return self.root.removesuffix(_DELETED)

    @property
    def layers(self) -> list[str]:
        """Of an overlay: the directories that it is made of, the upper one first."""
        found: dict[str, list[str]] = {"upperdir": [], "lowerdir": []}
        for option in re.split(r"(?<!\\),", self.options):
            key, _, value = option.partition("=")
            if (key := key.rstrip("+")) in found:
                found[key] += [each.replace("\\:", ":") for each in re.split(r"(?<!\\):", value) if each]
        return [*found["upperdir"], *found["lowerdir"]]


def parse(text: str) -> list[Mount]:
    """All that it lists."""
    return [
        Mount(int(number), int(major) << 20 | int(minor), _plain(root), _plain(point), kind, _plain(options))
        for number, major, minor, root, point, kind, options in _LINE.findall(text)
    ]


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """Those of a process."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return parse(os.fsdecode(file.read()))
    return []


def _plain(text: str) -> str:
    """Without its escapes."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 0xFF]), os.fsencode(text)))
