"""Children of this process in namespaces of their own (unshare(2)): what they mount or make is gone with them.

Rule: as another user than root they are root of a user namespace, and may mount what that may.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import traceback
from collections.abc import Callable

NEWNS, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
ROOT = os.geteuid() == 0


def unshare(flags: int) -> None:
    """This process, from here on."""
    uid, gid = os.geteuid(), os.getegid()
    more = 0 if uid == 0 else NEWUSER
    assert ctypes.CDLL(None).unshare(flags | more) == 0
    if more:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def in_own_mounts(function: Callable[[], None]) -> None:
    """Call it in a child whose mounts nobody else sees. What it raises fails the test."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        text = ""
        try:
            unshare(NEWNS | (0 if ROOT else NEWNET))
            mount("--make-rprivate", "/")
            function()
        except BaseException:
            text = traceback.format_exc()
        finally:
            with open(writer, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as file:
        said = file.read()
    os.waitpid(pid, 0)
    assert not said, said


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
