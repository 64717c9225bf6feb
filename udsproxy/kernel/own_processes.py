"""Our own processes: where the code of those that we start comes from, what they inherit, who ends first when
memory runs out, and that none of them leaves its memory behind.

Rules: a child is isolated (python -I): neither the current directory, nor PYTHONPATH, nor what a user has installed
for himself can put a module in the place of ours. It has no descriptor besides its standard three (subprocess sees
to that), and of the environment only `KEPT`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path

import udsproxy

KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "NO_COLOR", "TERM")
"""What the interpreter may need to start, and what says how text and times are written."""

_START = """
import sys
from importlib import import_module
sys.path.insert(0, sys.argv[1])
module = sys.argv[2]
del sys.argv[1:3]
import_module(module).main()
"""
_PR_SET_DUMPABLE = 4
_FIRST = 900
"""Of 1000 (proc(5), oom_score_adj)."""


def command(module: str, *arguments: str, installed: bool = True) -> list[str]:
    """What runs ``main()`` of a module of ours as a process. ``installed``: it needs more than the standard library
    and our own code; without that it starts sooner."""
    flags = [] if installed else ["-S"]
    root = str(Path(udsproxy.__file__).parent.parent)
    return [sys.executable, "-I", *flags, "-c", _START, root, module, *arguments]


def environment() -> dict[str, str]:
    """A child's."""
    return {name: os.environ[name] for name in KEPT if name in os.environ}


def forbid_dumps() -> None:
    """From now on nobody who is not root can have a core dump of this process, read its memory, or trace it: what
    passes through it are other people's passwords."""
    with contextlib.suppress(OSError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def end_first() -> None:
    """Where memory runs out, the kernel is to take this process before others."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(_FIRST))
