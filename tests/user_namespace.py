"""Runs a command as root of a user namespace of its own: ``python -m tests.user_namespace MAP COMMAND...``
(user_namespaces(7)).

Rule: who writes the maps is outside, and the command is the process that was started.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
ALONE = "alone"
"""A map for ourselves alone, and setgroups() is denied: as ``unshare -Ur`` has it, or a rootless container that has
no subordinate ids."""
MANY = "many"
"""65,536 others besides, none of whom anybody outside is: as most rootless containers have it. It takes root."""
FIRST = 100_000
"""Who is 1 there."""


def in_user_namespace(mapped: str) -> list[str]:
    """A command that runs the one behind it so."""
    return [sys.executable, "-m", "tests.user_namespace", mapped]


def main(mapped: str, *command: str) -> None:
    ours, theirs = os.pipe(), os.pipe()
    process = Path(f"/proc/{os.getpid()}")
    if os.fork() == 0:
        os.close(ours[1])
        os.read(ours[0], 1)  # it has unshared
        if mapped == ALONE:
            (process / "setgroups").write_text("deny")
        for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
            (process / name).write_text(f"0 {own} 1" + (f"\n1 {FIRST} 65536" if mapped == MANY else ""))
        os.write(theirs[1], b"!")
        os._exit(0)
    if ctypes.CDLL(None).unshare(_CLONE_NEWUSER):
        sys.exit("no user namespace can be had")
    os.write(ours[1], b"!")
    os.wait()
    os.close(theirs[1])
    if not os.read(theirs[0], 1):
        sys.exit("the map cannot be written")
    os.execvp(command[0], command)  # noqa: S606 - it is the test's


if __name__ == "__main__":
    main(*sys.argv[1:])
