"""``udsproxy state``: a socket's state, its queue, and who is behind it. No proxy is needed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from udsproxy.cli.common import DONE, FAILED, Failure, duration_option
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.sockets import SocketState, state_of, survey
from udsproxy.sinks.text import duration

_MOST_ROWS = 40
"""Processes, and connections, of one socket that are shown (``--json`` has all)."""

_WIDTH = 160
"""Of lines that go to a file or another program."""


class _Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    sockets: list[SocketState]
    without: list[str]
    """What could not be seen, and why."""


def state(
    *paths: Annotated[str, Parameter(name="PATH")],
    watch: Annotated[bool, Parameter(negative="")] = False,
    interval: str = "1s",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Show a Unix socket's queue, who serves it and what each does now; without PATH, all that listen.

    No proxy is needed. Run it as root to see the processes of other users.

    Parameters
    ----------
    paths
        A socket's path, or @NAME.
    watch
        Again and again, until Ctrl-C.
    interval
        How often.
    json
        One JSON object, and then (with --watch) one a line.
    """
    every_s = max(0.05, duration_option("--interval", interval))
    doer = Doer()
    if not watch:
        _print(_look(paths, doer), json=json, console=_console())
        return DONE
    if json or not sys.stdout.isatty():
        while True:
            _print(_look(paths, doer), json=json, console=_console())
            sys.stdout.flush()
            time.sleep(every_s)
    with Live(_shown(_look(paths, doer), bool(paths)), auto_refresh=False, screen=True) as live:
        while True:
            live.update(_shown(_look(paths, doer), bool(paths)), refresh=True)
            time.sleep(every_s)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH)


def _look(paths: tuple[str, ...], doer: Doer) -> _Report:
    """Raises `Failure`."""
    machine = Machine()
    try:
        sockets = []
        for path in paths:
            try:
                found = state_of(machine, path, doer)
            except OSError as error:
                raise Failure(FAILED, f"{path}: {error.strerror}") from None
            if not found:
                raise Failure(FAILED, f"{path}: nobody has a socket of that name (in this network namespace)")
            sockets += found
        if not paths:
            sockets = survey(machine)
        assert machine.holders is not None  # so that it is known what could not be seen
        return _Report(sockets, machine.without)
    finally:
        machine.close()


def _print(report: _Report, *, json: bool, console: Console) -> None:
    if json:
        print(msgspec.json.encode(report).decode())
    else:
        console.print(_shown(report, several=len(report.sockets) != 1), soft_wrap=True)


def _shown(report: _Report, several: bool) -> Group:
    parts: list[Text | Table] = []
    if several and all(not each.processes or each.processes[0].doing is None for each in report.sockets):
        parts.append(_overview(report.sockets))
    else:
        for number, each in enumerate(report.sockets):
            if number:
                parts.append(Text(""))
            parts += _details(each)
    parts += [Text(f"not seen: {line}", style="dim") for line in report.without]
    return Group(*parts)


def _overview(sockets: list[SocketState]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("QUEUE", "OF", "CONNECTED"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("TYPE", "OWNER", "MODE", "SERVED BY", "SOCKET"):
        table.add_column(name, no_wrap=True)
    for each in sockets:
        style = "red" if each.fullness >= 1 else "yellow" if each.queue else ""
        table.add_row(
            str(each.queue or 0),
            "?" if each.limit is None else str(each.limit),
            str(len(each.connections)),
            each.type,
            each.owner or "",
            each.mode or "",
            Text(_served_by(each)),
            Text(each.address or "(no name)"),
            style=style,
        )
    return table


def _served_by(each: SocketState) -> str:
    names = Counter(process.comm for process in each.processes if not process.master)
    return ", ".join(name if count == 1 else f"{count} × {name}" for name, count in names.items()) or "?"


def _details(each: SocketState) -> list[Text | Table]:
    rights = f", {each.owner}, mode {each.mode}" if each.mode else ""
    head = Text(each.address or "(no name)", style="bold")
    head.append(f"  {each.type}, {each.state}{rights}", style="not bold")
    parts: list[Text | Table] = [head]
    if each.state == "stale":
        parts.append(Text("  nobody listens behind this file: clients get ECONNREFUSED"))
        return parts
    if each.state == "listening":
        parts.append(_queue_line(each))
    elif each.queue is not None:
        parts.append(Text(f"  {each.queue} bytes wait to be read"))
    masters = [f"{process.comm} (pid {process.pid})" for process in each.processes if process.master]
    if masters:
        parts.append(Text(f"  master: {', '.join(masters)}"))
    workers = [process for process in each.processes if not process.master]
    busy = [process for process in workers if process.doing is not None and process.doing.what != "accept"]
    if workers:
        parts.append(Text(f"  {len(busy)} of {len(workers)} busy"))
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="dim")
        for name in ("PID", "PROCESS", "DOES"):
            table.add_column(name)
        shown = sorted(workers, key=lambda process: process not in busy)[:_MOST_ROWS]
        for process in shown:
            doing = process.doing
            since = f", {duration(doing.for_s)}" if doing is not None and doing.for_s else ""
            table.add_row(str(process.pid), process.comm, Text("?" if doing is None else doing.text + since))
        parts.append(table)
        if len(workers) > len(shown):
            parts.append(Text(f"    and {len(workers) - len(shown)} more"))
    parts += _connection_rows(each)
    return parts


def _queue_line(each: SocketState) -> Text:
    if each.limit is None:
        return Text(f"  queue {each.queue or 0} of ?")
    line = f"  queue {each.queue} of {each.limit} (backlog {each.backlog})"
    if each.gone:
        line += f"; {each.gone} of them {'has' if each.gone == 1 else 'have'} left, and will be served all the same"
    if each.fullness >= 1:
        line += "; full: the next client gets EAGAIN, or waits in connect()"
    return Text(line, style="red" if each.fullness >= 1 else "")


def _connection_rows(each: SocketState) -> list[Text | Table]:
    if not each.connections:
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="dim")
    for name in ("SERVER", "CLIENT"):
        table.add_column(name)
    table.add_column("UNREAD BY SERVER", justify="right")
    table.add_column("BY CLIENT", justify="right")
    for one in each.connections[:_MOST_ROWS]:
        client = one.client or ("?" if one.client_unread is not None else "has left")
        unread = "" if one.client_unread is None else str(one.client_unread)
        table.add_row(one.server or "?", client, str(one.unread), unread)
    parts: list[Text | Table] = [Text(f"  {len(each.connections)} connected"), table]
    if len(each.connections) > _MOST_ROWS:
        parts.append(Text(f"    and {len(each.connections) - _MOST_ROWS} more"))
    return parts
