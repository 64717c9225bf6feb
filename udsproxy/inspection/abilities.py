"""What we may see of other processes, what that needs, and what is lost without it.

Rules:

* `ABILITIES` is the only place that knows which capability (capabilities(7)) is for what. Each row was tried, with
  setpriv(1) and a php-fpm whose workers are www-data. To be www-data is not enough there: a process that has
  changed its user is not dumpable (prctl(2), PR_SET_DUMPABLE), so that its /proc files are root's.
* Capabilities alone do not decide: a server of our own user is seen without any, and one outside of our container
  is not seen with all. So the server is looked at.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import NamedTuple

from udsproxy.kernel.procfs import holders_of, read_activity, read_capabilities
from udsproxy.kernel.server_diag import NotShown, ServerDiag

Capability = tuple[str, tuple[int, ...]]
"""Its name, and the numbers of those of which any one will do."""

_READ: Capability = "CAP_DAC_READ_SEARCH", (2, 1)
_TRACE: Capability = "CAP_SYS_PTRACE", (19,)
_PERFMON: Capability = "CAP_PERFMON", (38, 21)


class Ability(NamedTuple):
    """What is not shown without it, and the capabilities that it needs."""

    lost: str
    needs: tuple[Capability, ...]


WORKERS = Ability("which worker has a request", (_READ, _TRACE))
"""``/proc/PID/fd`` is to be listed, and its links are to be read."""
CALLS = Ability("what it waits for", (_READ, _TRACE))
"""``/proc/PID/syscall`` is to be opened and read. (Yama may forbid that to the same user, too.)"""
REFUSALS = Ability("how many clients were refused", (_READ, _PERFMON))
"""tracefs is to be entered, and perf_event_open(2) to be called for all processors."""
ABILITIES = (WORKERS, CALLS, REFUSALS)

_FIRST = {"user": 0xEFFFFFFD, "pid": 0xEFFFFFFC}
"""The numbers of the machine's first namespaces (include/linux/proc_ns.h), in which no container is."""


def lost(servers: Sequence[str | bytes], capabilities: int | None = None) -> list[Ability]:
    """What will not be seen of these servers (paths; abstract names as bytes). Nothing where all of them are seen,
    or are not there. ``capabilities``: in place of our own."""
    held = read_capabilities() if capabilities is None else capabilities
    if all(_has(held, ability) for ability in ABILITIES) and not _is_contained():
        return []
    missing = [ability for server in servers for ability in _unseen_of(server)]
    if missing and not _has(held, REFUSALS):
        missing.append(REFUSALS)  # (alone it is not worth a line at the start: an incident tells of it)
    return [ability for ability in ABILITIES if ability in missing]


def how_to_have(abilities: Sequence[Ability], capabilities: int | None = None, uid: int | None = None) -> str:
    """``run udsproxy as root, or with CAP_SYS_PTRACE``. ``uid``: in place of our own."""
    held = read_capabilities() if capabilities is None else capabilities
    names = dict.fromkeys(
        name for ability in abilities for name, numbers in ability.needs if not _any(held, numbers)
    )
    if not names:
        return "run udsproxy as root, outside of this container"
    is_root = (os.geteuid() if uid is None else uid) == 0
    return f"run udsproxy {'' if is_root else 'as root, or '}with {_listed(list(names))}"


def lines_of(servers: Sequence[str | bytes]) -> list[str]:
    """What to say of that at the start: two lines, or none."""
    missing = lost(servers)
    if not missing:
        return []
    return [f"not shown: {_listed([ability.lost for ability in missing])}", f"to see it, {how_to_have(missing)}"]


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _has(held: int, ability: Ability) -> bool:
    return all(_any(held, numbers) for _, numbers in ability.needs)


def _any(held: int, numbers: tuple[int, ...]) -> bool:
    return any(held >> number & 1 for number in numbers)


def _unseen_of(server: str | bytes) -> list[Ability]:
    """Of one that is there."""
    with contextlib.suppress(OSError), ServerDiag() as diag:
        try:
            found = diag.server(server)
        except NotShown:
            return [WORKERS, CALLS]
        if found is None:
            return []
        pids = holders_of(found.inode)
        if not pids:
            return [WORKERS, CALLS]
        seen = [activity for pid in pids if (activity := read_activity(pid)) is not None]
        return [CALLS] if all(activity.hidden for activity in seen) else []
    return []


def _is_contained() -> bool:
    """A user or pid namespace is between us and the machine."""
    try:
        return any(os.stat(f"/proc/self/ns/{kind}").st_ino != number for kind, number in _FIRST.items())
    except OSError:
        return True
