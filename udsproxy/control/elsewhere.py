"""The proxies that run although none of the control sockets that were found is theirs: they were started with
``--control PATH``, or they are another user's.

Rules: only those count that would do what we ask: our own user's, and for root everybody's. What a command line
says is a stranger's text: it may make us refuse to guess, and nothing else. ``$UDSPROXY_RUNTIME_DIR`` names the
only place that is meant: then nothing is looked for elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from udsproxy.endpoints.ownership import user_name
from udsproxy.events import printable
from udsproxy.kernel import process_table, procfs

_MAX_LISTED = 8


def running_elsewhere(known: Collection[int]) -> list[int]:
    """Processes that run proxies, besides those that are known."""
    if "UDSPROXY_RUNTIME_DIR" in os.environ:
        return []
    return [pid for pid in process_table.all_pids() if pid not in known and _is_ours(pid)]


def _is_ours(pid: int) -> bool:
    words = process_table.words_after(pid, "run", "tap")
    if words is None or _is_without_control(words):
        return False
    return os.geteuid() in (0, _uid(pid))


def _is_without_control(words: list[str]) -> bool:
    """It was started with ``--control none``."""
    return "--control none" in " ".join(words).replace("--control=", "--control ")


def _uid(pid: int) -> int | None:
    """None: it has ended."""
    ids = procfs.read_ids(pid)
    return None if ids is None else ids[0]


def listed(pids: Sequence[int]) -> str:
    """For people: ``udsproxy, pid 812 (user root)``."""
    names = []
    for pid in pids[:_MAX_LISTED]:
        uid = _uid(pid)
        names.append(f"pid {pid} (user {'?' if uid is None else printable(user_name(uid))})")
    more = len(pids) - _MAX_LISTED
    return f"udsproxy, {', '.join(names)}{f' and {more} more' if more > 0 else ''}"
