"""``udsproxy demo``: the failure, reproduced and seen, on this machine alone."""

from __future__ import annotations

import trio

from udsproxy.cli.common import DONE, require_proc
from udsproxy.lab.demo import demo as run_demo


def demo() -> int:
    """See requests decoded, then a full accept queue, on this machine alone; takes a few seconds."""
    require_proc()
    trio.run(run_demo)
    return DONE
