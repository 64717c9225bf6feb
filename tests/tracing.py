"""The kernel's tracing (tracefs), mounted for who is run so, and for nobody else; and who uses it."""

from __future__ import annotations

import contextlib
import os

TRACED = (
    (
        *("unshare", "--mount", "sh", "-c"),
        'test -e /sys/kernel/tracing/events || mount -t tracefs tracefs /sys/kernel/tracing; exec "$@"',
        "sh",
    )
    if os.geteuid() == 0
    else ()
)
"""A command that runs the one behind it so."""


def traces(pid: int) -> bool:
    """Does this process have the kernel trace something?"""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        directory = f"/proc/{pid}/fd"
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{directory}/{name}") == "anon_inode:[perf_event]":
                    return True
    return False
