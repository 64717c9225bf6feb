"""``udsproxy state``: a socket's state, its queue, and who is behind it. No proxy is needed.

Rule: what is printed for people is lines that fit the terminal (tables.py). A name that is long, or made to
deceive, moves nothing but itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from udsproxy.cli import people
from udsproxy.cli.arguments import OTHER, Duration, FileName, option
from udsproxy.cli.common import DONE, FAILED, USAGE, Failure, address_argument, duration_option
from udsproxy.cli.tables import Table, folded
from udsproxy.events import pid_text, printable
from udsproxy.inspection.abilities import CALLS, how_to_have
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.forwarding import Hop, follow, run_at
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.sockets import Process, SocketState, survey
from udsproxy.inspection.taps import Tapped, tapped_at
from udsproxy.sinks.text import duration

_MOST_ROWS = 40
"""Processes, and connections, of one socket that are shown (``--json`` has all)."""
_MOST_COMMS = 3
"""Names of programs in one line."""
_SHORTEST_S = 0.05
_OVERVIEW = Table(
    head=("QUEUE", "OF", "CONNECTED", "TYPE", "OWNER", "MODE", "HELD BY", "SOCKET"),
    right=frozenset(("QUEUE", "OF", "CONNECTED")),
    gives_way=({"OWNER": 0, "MODE": 0}, {"TYPE": 0}, {"HELD BY": 20}, {"CONNECTED": 0}, {"HELD BY": 12}),
    names_last=True,
)
_PROCESSES = Table(head=("PID", "PROCESS", "NOW"), right=frozenset(("PID",)), indent="    ")
_CONNECTIONS = Table(
    head=("UNREAD BY SERVER", "BY CLIENT", "CLIENT", "SERVER"),
    right=frozenset(("UNREAD BY SERVER", "BY CLIENT")),
    gives_way=({"BY CLIENT": 0}, {"UNREAD BY SERVER": 0}),
    indent="    ",
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
    _print(report, addresses, json=json)
    while watch and not people.output_is_lost():
        time.sleep(every_s)
        report = _look(addresses, doer)
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
            lines = _lines(report, paths, console.width)
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


def _lines(report: _Report, paths: Sequence[str], width: int | None) -> list[Text]:
    lines: list[Text] = []
    taps = {each.path: each for each in report.taps}
    hops = {each.inode: each for each in report.forwarding}
    if paths:
        for number, each in enumerate(report.sockets):
            lines += [Text("")] if number else []
            tap = taps.pop(_real(each.address), None)
            hop = hops.get(each.inode)
            lines += _details(each, tap, width) if hop is None else _front(each, hop)
        lines += [_tap_line(each, "") for each in taps.values()]
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
    text = ", ".join(name if count == 1 else f"{count} {name}" for name, count in names[:_MOST_COMMS])
    text += ", ..." if len(names) > _MOST_COMMS else ""
    stopped = sum(process.stopped is not None for process in each.processes)
    if not stopped:
        return text
    return f"{text} (stopped)" if stopped == len(each.processes) else f"{text} ({stopped} stopped)"


# --- one socket ---


def _real(address: str | None) -> str:
    return "" if address is None else os.path.realpath(address)


def _tap_line(tap: Tapped, indent: str) -> Text:
    bad = tap.case in ("killed", "moved") or (tap.case == "standing" and tap.stopped)
    return Text(indent + tap.text, style="red" if bad else "yellow" if tap.case != "standing" else "")


def _head(each: SocketState) -> Text:
    rights = f", {each.owner}, mode {each.mode}" if each.mode else f", of user {each.user}" if each.user else ""
    kind = f"{each.type}, " if each.type else ""
    head = Text(each.address or "(no name)", style="bold")
    return head.append(f"  {kind}{each.state}{rights}", style="not bold")


def _front(each: SocketState, hop: Hop) -> list[Text]:
    """The socket of a udsproxy, of which only what is its own is of interest: the server is told of behind it."""
    lines = [_head(each), Text(f"  {hop.text}", style="red" if hop.stopped else "")]
    if each.waiting:
        # (Each has its place in the server's queue, too: what is told there are these.)
        lines.append(Text(f"  waiting: {_names(each.waiting)}"))
    clients = ["one that has left" if one.client_left else one.client or "?" for one in each.connections]
    if clients:
        lines.append(Text(f"  connected: {_names(clients)}"))
    return lines


def _names(clients: Iterable[str]) -> str:
    """``2 of nginx, pid 7, redis-cli, pid 9``."""
    counts = Counter(clients).most_common(_MOST_COMMS + 1)
    names = ", ".join(name if count == 1 else f"{count} of {name}" for name, count in counts[:_MOST_COMMS])
    return f"{names}, ..." if len(counts) > _MOST_COMMS else names


def _details(each: SocketState, tap: Tapped | None, width: int | None) -> list[Text]:
    lines = [_head(each)]
    if tap is not None:
        lines.append(_tap_line(tap, "  "))
    if each.state == "stale" and each.mounted is not None and each.mounted.is_sure:
        lines.append(Text(f"  {each.mounted.text}: clients get ECONNREFUSED", style="red"))
        lines.append(Text(f"  {each.mounted.cure}"))
    elif each.state == "stale":
        lines.append(Text("  nobody listens behind this file: clients get ECONNREFUSED", style="red"))
        if each.mounted is not None:
            lines.append(Text(f"  {each.mounted.text}"))
    elif each.state == "unseen":
        why = "its server is in another network namespace (a container), and to look there takes root"
        lines.append(Text(f"  somebody has a socket here, and it is not shown: {why}", style="yellow"))
    elif each.state == "shut":
        lines.append(Text("  its server has called shutdown(): clients get ECONNREFUSED", style="red"))
    elif each.state == "bound" and each.type != "datagram":
        lines.append(Text("  its owner has not called listen(): clients get ECONNREFUSED", style="red"))
    if each.file == "removed":
        lines.append(Text("  its file has been removed: clients get ENOENT", style="red"))
    elif each.file == "replaced":
        lines.append(Text("  its file has been replaced: clients there do not come to this socket", style="red"))
    if not each.sure:
        maybe = "it may be another one's: this file system has numbers twice (run as root to be told)"
        lines.append(Text(f"  not sure: the file's number is this socket's, and {maybe}", style="yellow"))
    if each.namespace is not None:
        whose = "" if each.namespace_pid is None else f" (pid {each.namespace_pid} is in it)"
        unreached = ", whose name only clients there can use" if (each.address or "").startswith("@") else ""
        lines.append(Text(f"  network namespace: {each.namespace}, not ours{whose}{unreached}"))
    if each.unit is not None:
        lines.append(Text(f"  systemd: {each.unit.text} ({each.unit.file})"))
    lines += _queue_lines(each)
    lines += _process_lines(each, width)
    return lines + _connection_lines(each, width)


def _queue_lines(each: SocketState) -> list[Text]:
    if each.next_nbytes is not None:
        waits = f"a datagram of {each.next_nbytes} bytes waits to be read" if each.next_nbytes else "none waits"
        return [Text(f"  queue: {waits}")]
    if each.queue is None:
        return []
    if each.limit is None:
        return [Text(f"  queue: {each.queue} of ?")]
    line = f"  queue: {each.queue} of {each.limit} (backlog {each.backlog})"
    if each.full:
        line += ", full: the next client gets EAGAIN, or waits in connect()"
    lines = [Text(line, style="red" if each.full else "yellow" if each.queue else "")]
    if each.waiting:
        lines.append(Text(f"    waiting: {_names(each.waiting)}"))
    if each.gone:
        lines.append(Text(f"    {each.gone} of them {_has(each.gone)} left, and will be served all the same"))
    return lines


def _process_lines(each: SocketState, width: int | None) -> list[Text]:
    if not each.processes:
        return [] if each.state in ("stale", "unseen") else [Text("  processes: none that may be seen")]
    servers = each.servers
    waiting = sum(1 for process in servers if process.waits)
    line = f"  processes: {len(each.processes)}"
    known = all(process.waits is not None for process in servers)
    # More than one may be an event loop's, or hold the socket by chance: only what is seen is told.
    if each.activator is not None and not servers:
        starts = "its service" if each.unit is None else each.unit.service
        when = "for each connection" if each.unit is not None and each.unit.accept else "when somebody connects"
        line += f", no worker yet: systemd (pid {each.activator.pid}) starts {starts} {when}"
    elif known or waiting:
        what = "datagram" if each.type == "datagram" else "connection"
        how_many = f"{waiting or 'none'} of them " if len(each.processes) > 1 else "" if waiting else "not "
        line += f", {how_many}waiting for a {what}"
    order = sorted(each.processes, key=lambda process: (not process.serves, bool(process.waits), process.pid))
    rows = [
        (pid_text(process.pid, process.inner_pid), process.comm, _now(process)) for process in order[:_MOST_ROWS]
    ]
    table = _PROCESSES.lines(rows, width, head_style="dim")
    return [Text(line), *_stop_lines(servers), *_idle_lines(servers), *table, *_more(len(each.processes))]


def _stop_lines(servers: list[Process]) -> list[Text]:
    """Of those that serve."""
    stopped = [process for process in servers if process.stopped is not None]
    if not stopped:
        return []
    how = ", ".join(dict.fromkeys(process.stopped.text for process in stopped if process.stopped is not None))
    number = "it is" if len(servers) == 1 else f"{len(stopped)} of {len(servers)} that serve are"
    wait = "clients wait" if len(stopped) == len(servers) else "whom they have accepted waits"
    by_signal = [process.pid for process in stopped if process.stopped and process.stopped.how == "signal"]
    let = f"; kill -CONT {' '.join(map(str, by_signal[:_MOST_ROWS]))}" if by_signal else ""
    return [Text(f"    {number} stopped ({how}): {wait}{let}", style="red")]


def _idle_lines(servers: list[Process]) -> list[Text]:
    """Where none of those that serve would accept anybody, although none works."""
    clients = [process.idle_client for process in servers if process.idle_client is not None]
    if not clients:
        return []
    number = len(servers)
    hold = "holds an idle connection" if number == 1 else "hold idle connections"
    names = _names(clients) if len(set(clients)) > 1 else clients[0]
    pinned = f"{number} of {number} workers {hold} of {names}"
    return [Text(f"    {pinned}: whoever connects waits, although none of them works", style="red")]


def _now(process: Process) -> str:
    if process.doing is None:
        return "?"
    text = process.doing.text + (f", {duration(process.doing.for_s)}" if process.doing.for_s else "")
    if process.doing.threads:
        waits = "one waits here, " if process.waits and process.doing.what != "accept" else ""
        text += f" ({process.doing.threads} threads: {waits}this is the main one)"
    if process.master:
        return f"holds it for its children; {text}"
    if process.activator:
        return f"holds it for the service that it starts; {text}"
    return f"inherited it from a worker; {text}" if process.heir else text


def _connection_lines(each: SocketState, width: int | None) -> list[Text]:
    if not each.connections:
        return []
    rows = []
    for one in each.connections[:_MOST_ROWS]:
        client = one.client or ("has left" if one.client_left else "?")
        unread = ["" if nbytes is None else str(nbytes) for nbytes in (one.unread, one.client_unread)]
        rows.append((*unread, client, one.server or "?"))
    table = _CONNECTIONS.lines(rows, width, head_style="dim")
    return [Text(f"  connected: {len(each.connections)}"), *table, *_more(len(each.connections))]


def _more(rows: int) -> list[Text]:
    """That not all rows are shown."""
    return [Text(f"    and {rows - _MOST_ROWS} more")] if rows > _MOST_ROWS else []


def _counted(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"
