"""Many starts of the command, each a process of its own, forked from one that has imported it (that takes time)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tests.e2e.tools import read
from tests.stage import REPOSITORY, Stage

Way = list[tuple[int, str | None]]
"""What becomes of descriptors: closed, a pipe without a reader (``|``), or a file."""

_STARTER = """
import json, os, sys
from udsproxy.cli import app, main
for name in app:
    app[name]  # it is imported
cases = json.load(sys.stdin)
for number, (words, way) in enumerate(cases):
    pid = os.fork()
    if not pid:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
for descriptor, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
for descriptor, what in way:
    if what is None:
        os.close(descriptor)
    elif what == "|":
        reader, writer = os.pipe()
        os.dup2(writer, descriptor)
        os.close(reader)
        os.close(writer)
    else:
        os.dup2(os.open(what, os.O_WRONLY), descriptor)
sys.argv[1:] = words
main()
"""


class Done(NamedTuple):
    """How one ended."""

    code: int
    output: str
    error: str


def start_each(stage: Stage, cases: list[tuple[list[str], Way]], wrap: Sequence[str] = ()) -> list[Done]:
    """One after the other: the words of the command line, and what becomes of its descriptors. ``wrap``: a command
    that runs all of them (unshare)."""
    directory = stage.path("starts", "")
    done = subprocess.run(
        [*wrap, sys.executable, "-c", _STARTER], input=json.dumps(cases).encode(), capture_output=True,
        cwd=directory, env={**os.environ, "PYTHONPATH": REPOSITORY}, timeout=300, check=False,
    )  # fmt: skip
    assert done.stderr == b""
    codes = done.stdout.split()
    assert len(codes) == len(cases)
    return [
        Done(int(code), read(f"{directory}/{number}.out"), read(f"{directory}/{number}.err"))
        for number, code in enumerate(codes)
    ]
