"""``udsproxy doctor``: what will go wrong at a socket. No proxy is needed."""

from __future__ import annotations

import math
import os
import stat
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from udsproxy.cli import people
from udsproxy.cli.arguments import INPUT, OTHER, Duration, FileName, option
from udsproxy.cli.common import DONE, FAILED, USAGE, Failure, address_argument, duration_option
from udsproxy.cli.tables import folded
from udsproxy.doctor import gathering, seen, sizing
from udsproxy.doctor.about_load import Load
from udsproxy.doctor.facts import Facts
from udsproxy.doctor.finding import LEVELS, Finding, Level, plural
from udsproxy.doctor.findings import examine
from udsproxy.doctor.seen import Traffic
from udsproxy.events import printable
from udsproxy.layout import fold_command

_MAX_WIDTH = 100
"""Lines that are longer are hard to read, on however wide a terminal."""
_INDENT = len("    check: ")
_STYLES: dict[Level, str] = {"problem": "bold red", "warning": "bold yellow", "note": "bold", "fine": "green"}


class _Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    path: str
    findings: list[Finding]
    load: Load
    facts: Facts
    unseen: tuple[str, ...]
    """What could not be read, and why."""


def doctor(
    path: Annotated[FileName, Parameter(name="PATH")],
    /,
    *,
    client: Annotated[str | None, option(OTHER, "USER")] = None,
    json: Annotated[bool, option(OTHER, show_default=False)] = False,
    log: Annotated[FileName | None, option(INPUT)] = None,
    rate: Annotated[float | None, option(INPUT, "NUMBER")] = None,
    time: Annotated[Duration | None, option(INPUT)] = None,
    stall: Annotated[Duration, option(INPUT)] = "1s",
) -> int:
    """Find what will go wrong at a socket: backlog, permissions, workers, nginx.

    It reads the settings of php-fpm and nginx, too. It connects to nothing and changes nothing. Run it as root to
    see the processes of other users. The exit status is 1 if there is a problem.

    Parameters
    ----------
    path
        The socket's path, @NAME, or either with unix: before it.
    client
        The user who connects. Default: the user of nginx's workers.
    json
        Print one JSON object.
    log
        A log that udsproxy wrote with --log json. The rate and the times are taken from it.
    rate
        How many requests come per second at the busiest time.
    time
        How long a request occupies a worker on average, for example 50ms.
    stall
        Compute whether the queue holds what comes while no worker becomes free for this long, for example because
        of a lock or a database.
    """
    path = address_argument(path)
    if path in ("", "@"):
        raise Failure(USAGE, "PATH is empty")
    user = None
    if client is not None:
        user = gathering.find_user(client)
        if user is None:
            raise Failure(USAGE, f"--client {client}: this machine has no such user")
    load = _load(path, log, rate, time, stall)
    facts = gathering.gather(path, user)
    found = examine(facts, load)
    if json:
        people.show(msgspec.json.encode(_Report(facts.path, found, load, facts, facts.unseen)).decode())
    else:
        _print(facts, found)
    return FAILED if any(each.level == "problem" for each in found) else DONE


def _load(path: str, log: str | None, rate: float | None, time: str | None, stall: str) -> Load:
    """Raises `Failure`."""
    if rate is not None and not (math.isfinite(rate) and rate > 0):
        raise Failure(USAGE, f"--rate {rate}: how many requests a second, more than 0")
    time_s = None if time is None else duration_option("--time", time)
    if time_s == 0:
        raise Failure(USAGE, "--time 0: how long a request takes, more than 0")
    traffic = None if log is None else _traffic(log, path)
    source = "as given"
    if traffic is not None:
        assert log is not None
        source = printable(log)
        if traffic.is_enough:
            rate = traffic.busiest_rate if rate is None else rate
            time_s = max(traffic.mean_s, 1e-7) if time_s is None else time_s
    if rate is not None and time_s is not None and rate * time_s > sizing.MOST_LOAD:
        raise Failure(
            USAGE, f"--rate and --time: {rate * time_s:.3g} workers busy at once is beyond what is computed"
        )
    stall_s = duration_option("--stall", stall)
    if rate is not None and rate * stall_s > 1e15:
        raise Failure(USAGE, "--rate and --stall: so many requests are beyond what is computed")
    return Load(rate=rate, time_s=time_s, stall_s=stall_s, source=source, traffic=traffic)


def _traffic(log: str, path: str) -> Traffic:
    """Raises `Failure`."""
    wanted = path if path.startswith("@") else os.path.realpath(path)

    def is_here(endpoint: str) -> bool:
        at = endpoint.removeprefix("unix:")
        return at in (path, printable(path)) or (
            at.startswith("/") and len(at) < 4096 and "\0" not in at and os.path.realpath(at) == wanted
        )

    try:
        with open(log, "rb") as file:
            if stat.S_ISDIR(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(0, "it is a directory")
            found = seen.read(file, is_here)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no name of a file"
        raise Failure(FAILED, f"--log {log}: {why}") from None
    if found is None:
        raise Failure(FAILED, f"--log {log}: there is no request in it (udsproxy tap PATH --log json writes them)")
    return found


def _print(facts: Facts, found: list[Finding]) -> None:
    # Its width is ours to heed: rich does not fold what is longer.
    console, terminal = Console(highlight=False), people.width()
    width = None if terminal is None else min(_MAX_WIDTH, terminal)

    def show(line: Text, indent: int) -> None:
        for part in folded(line, width, indent):
            console.print(part, soft_wrap=True)

    for each in found:
        show(
            Text.assemble(
                (f"{each.level}: ", _STYLES[each.level]), (each.title, "" if each.level == "fine" else "bold")
            ),
            len(each.level) + 2,
        )
        for name, text in (("why", each.why), ("do", each.do)):
            if text:
                show(Text(f"    {name}:".ljust(_INDENT) + text), _INDENT)
        if each.check:
            check = fold_command(each.check, width, _INDENT + 4, "    check: ")
            console.print(Text(check), soft_wrap=True)
    for line in facts.unseen:
        show(Text(f"not seen: {line}", style="dim"), len("not seen: "))
    counts = {level: sum(each.level == level for each in found) for level in LEVELS}
    told = [plural(counts[level], level) for level in LEVELS[:-1] if counts[level]]
    show(Text(f"{', '.join(told) or 'nothing to mend'}; {counts['fine']} fine"), 0)
