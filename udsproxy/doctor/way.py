"""The way to a socket: its file, and the directories above it, with owner, mode and ACL of each.

Rule: it is looked at as a process with some root directory finds it.
"""

from __future__ import annotations

import contextlib
import os
import stat

from udsproxy.doctor.facts import Entry
from udsproxy.doctor.reading import shown
from udsproxy.doctor.rights import parse_acl
from udsproxy.endpoints.ownership import group_name, user_name
from udsproxy.kernel.roots import Root

_ACL = "system.posix_acl_access"


def way_to(root: Root, path: str) -> tuple[Entry, ...]:
    """Directories from the root on, and the file. Raises OSError, ValueError."""
    return tuple(entry_of(root, each) for each in (*above(path), path))


def above(path: str) -> list[str]:
    """The directories above it, from the root on."""
    found = []
    while (parent := os.path.dirname(path)) != path:
        found.append(parent)
        path = parent
    return found[::-1]


def entry_of(root: Root, path: str) -> Entry:
    """Raises OSError, ValueError."""
    fd = root.pin(path)
    try:
        seen = os.fstat(fd)
        acl = b""
        with contextlib.suppress(OSError):
            acl = os.getxattr(f"/proc/self/fd/{fd}", _ACL)
    finally:
        os.close(fd)
    owner = f"{user_name(seen.st_uid)}:{group_name(seen.st_gid)}"
    return Entry(shown(path), seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode), parse_acl(acl), owner)
