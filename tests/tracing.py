"""Who uses the kernel's tracing."""

from __future__ import annotations

import contextlib
import os


def traces(pid: int) -> bool:
    """Does this process have the kernel trace something?"""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        directory = f"/proc/{pid}/fd"
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"{directory}/{name}") == "anon_inode:[perf_event]":
                    return True
    return False
