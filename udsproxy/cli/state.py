"""``udsproxy state``: a socket's state, its queue, and who is behind it (socket_lines.py). No proxy is needed.

Rule: what is printed for people is lines that fit the terminal (tables.py). A name that is long, or made to
deceive, moves nothing but itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from udsproxy.cli import people
from udsproxy.cli.arguments import OTHER, Duration, FileName, option
from udsproxy.cli.common import DONE, FAILED, USAGE, Failure, address_argument, duration_option
from udsproxy.cli.socket_lines import MAX_NAMES, details, front, tap_line
from udsproxy.cli.tables import Table, folded
from udsproxy.events import printable
from udsproxy.inspection.abilities import CALLS, how_to_have
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.forwarding import Hop, follow, run_at
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.sockets import SocketState, survey
from udsproxy.inspection.taps import Tapped, tapped_at

_SHORTEST_S = 0.05
_OVERVIEW = Table(
    head=("QUEUE", "OF", "CONNECTED", "TYPE", "OWNER", "MODE", "HOLDER", "SOCKET"),
    right=frozenset(("QUEUE", "OF", "CONNECTED")),
    gives_way=({"OWNER": 0, "MODE": 0}, {"TYPE": 0}, {"HOLDER": 20}, {"CONNECTED": 0}, {"HOLDER": 12}),
    names_last=True,
)


class _Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    sockets: list[SocketState]
    not_seen: list[str]
    """What could not be seen, and why."""
    failed: list[str]
    """The PATHs of which nothing can be told, and why."""
    taps: list[Tapped]
    """What taps have to do with the paths."""
    forwarding: list[Hop]
    """What stands in front of a server; without PATH, every ``udsproxy run``."""


def state(
    *paths: Annotated[FileName, Parameter(name="PATH")],
    watch: Annotated[bool, option(OTHER, show_default=False)] = False,
    interval: Annotated[Duration, option(OTHER)] = "1s",
    json: Annotated[bool, option(OTHER, show_default=False)] = False,
) -> int:
    """Show a socket's accept queue, the processes behind it, and what each is doing.

    Without PATH it lists all listening Unix sockets, the fullest queue first. No proxy is needed, and nothing is
    changed. Run it as root to see the processes of other users.

    Parameters
    ----------
    paths
        A socket's path, @NAME, or either with unix: before it.
    watch
        Repeat until Ctrl-C.
    interval
        With --watch, how often.
    json
        Print one JSON object; with --watch, one per line.
    """
    every_s = duration_option("--interval", interval)
    if every_s < _SHORTEST_S:
        raise Failure(USAGE, f"--interval: {interval!r} is less than 50ms")
    addresses = [address_argument(path) for path in paths]
    doer = Doer()
    report = _look(addresses, doer)
    if not report.sockets and report.failed:
        raise Failure(FAILED, "; ".join(report.failed))
    if watch and not json and sys.stdout.isatty():
        _watch(addresses, doer, report, every_s)
    if watch and not json:
        people.show(_now())
    _print(report, addresses, json=json)
    while watch and not people.output_is_lost():
        time.sleep(every_s)
        report = _look(addresses, doer)
        if not json:
            people.show(f"\n{_now()}")
        _print(report, addresses, json=json)
        if not json and report.failed:
            people.tell("\n".join(map(printable, report.failed)))
    if report.failed:
        raise Failure(FAILED, "; ".join(report.failed))
    return DONE


def _look(paths: Sequence[str], doer: Doer) -> _Report:
    machine = Machine()
    try:
        report = _look_at(machine, paths, doer) if paths else _look_at_all(machine)
        assert machine.holders is not None  # so that it is known what could not be seen
        not_seen = machine.without
    finally:
        machine.close()
    doer.forget({process.pid for each in report.sockets for process in each.processes})
    if doer.hidden:
        not_seen.append(
            f"the system calls of {_counted(len(doer.hidden), 'process')} ({how_to_have([CALLS])} to see them)"
        )
    return msgspec.structs.replace(report, not_seen=not_seen)


def _look_at(machine: Machine, paths: Sequence[str], doer: Doer) -> _Report:
    report = _Report([], [], [], [], [])
    for path in paths:
        route = follow(machine, path, doer)
        report.sockets.extend((*route.fronts, *route.servers))
        report.forwarding.extend(route.hops)
        if route.tap is not None:
            report.taps.append(route.tap)
        if route.error is not None:
            how = [hop.text for hop in route.hops] or ([route.tap.text] if route.tap is not None else [])
            report.failed.append("; ".join([f"{route.address}: {route.error.strerror}", *how]))
    return report


def _look_at_all(machine: Machine) -> _Report:
    sockets = survey(machine)
    addresses = dict.fromkeys(each.address for each in sockets if each.address)
    taps = (tapped_at(machine, address) for address in addresses if address[:1] != "@")
    runs = (run_at(machine, each) for each in sockets)
    return _Report(
        sockets, [], [], [tap for tap in taps if tap is not None], [run for run in runs if run is not None]
    )


# --- printing ---


def _print(report: _Report, paths: Sequence[str], *, json: bool) -> None:
    if json:
        people.show(msgspec.json.encode(report).decode())
    elif sys.stdout.isatty():
        Console().print(Text("\n").join(_lines(report, paths, people.width())), soft_wrap=True)
    else:
        people.show("\n".join(line.plain for line in _lines(report, paths, None)))


def _watch(paths: Sequence[str], doer: Doer, report: _Report, every_s: float) -> None:
    """Until a signal: the terminal is given back as it was."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while not people.output_is_lost():
            lines = [Text(f"{_now()}  every {every_s:g} s; Ctrl-C ends it", style="dim")]
            lines += _lines(report, paths, console.width)
            failed = [Text(printable(line), style="red") for line in report.failed]
            lines += [part for line in failed for part in folded(line, console.width)]
            if len(lines) > console.height:
                hidden = len(lines) - console.height + 1
                lines[console.height - 1 :] = [Text(f"... {_counted(hidden, 'line')} more", style="dim")]
            for line in lines:
                line.no_wrap, line.overflow = True, "ellipsis"
            live.update(Group(*lines), refresh=True)
            time.sleep(every_s)
            report = _look(paths, doer)


def _now() -> str:
    return time.strftime("%H:%M:%S")


def _lines(report: _Report, paths: Sequence[str], width: int | None) -> list[Text]:
    lines: list[Text] = []
    taps = {each.path: each for each in report.taps}
    hops = {each.inode: each for each in report.forwarding}
    if paths:
        for number, each in enumerate(report.sockets):
            lines += [Text("")] if number else []
            tap = taps.pop(_real(each.address), None)
            hop = hops.get(each.inode)
            lines += details(each, tap, width) if hop is None else front(each, hop)
        lines += [tap_line(each, "") for each in taps.values()]
    elif report.sockets:
        lines += _overview(report.sockets, taps, hops, width)
    else:
        lines.append(Text("no Unix socket listens"))
    lines += [Text(f"not seen: {line}", style="dim") for line in report.not_seen]
    return [part for line in lines for part in folded(line, width)]


def _overview(
    sockets: list[SocketState], taps: Mapping[str, Tapped], hops: Mapping[int | None, Hop], width: int | None
) -> list[Text]:
    rows, lost = [], list[SocketState]()
    for each in sockets:
        limit = "?" if each.limit is None else str(each.limit)
        name = each.address or "(no name)"
        tap, hop = taps.get(_real(each.address)), hops.get(each.inode)
        if hop is not None and hop.to is not None:
            name += f"  (udsproxy run, forwards to {hop.to})"
        if tap is not None and tap.case == "standing":
            name += "  (a tap's)" if each.file == "there" else "  (a tap stands in front of it)"
        elif tap is not None and tap.case == "given back" and each.file == "aside":
            name += "  (a tap's, which stands still)"
        elif tap is not None and tap.server_is_aside:
            name += f"  (not at its path, a tap was killed: {tap.restore})"
            lost.append(each)
        elif each.file == "aside":
            name += "  (a tap has put its file aside)"
        elif each.file in ("removed", "replaced"):
            name += f"  (its file has been {each.file})"
        if each.namespace is not None:
            name += f"  (network namespace {each.namespace})"
        numbers = str(each.queue or 0), limit, str(len(each.connections))
        rows.append((*numbers, each.type or "?", each.owner or "", each.mode or "", _held_by(each), name))
    styles = ["red" if each.full or each in lost else "yellow" if each.queue else "" for each in sockets]
    return _OVERVIEW.lines(rows, width, head_style="bold", styles=styles)


def _held_by(each: SocketState) -> str:
    """``9 php-fpm``. Where no process is seen, who made the socket."""
    names = Counter(process.comm for process in each.processes).most_common()
    if not names:
        return f"user {each.user}" if each.user else "?"
    text = ", ".join(name if count == 1 else f"{count} {name}" for name, count in names[:MAX_NAMES])
    text += ", ..." if len(names) > MAX_NAMES else ""
    stopped = sum(process.stopped is not None for process in each.processes)
    if not stopped:
        return text
    return f"{text} (stopped)" if stopped == len(each.processes) else f"{text} ({stopped} stopped)"


def _real(address: str | None) -> str:
    return "" if address is None else os.path.realpath(address)


def _counted(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"
