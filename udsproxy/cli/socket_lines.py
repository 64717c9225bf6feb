"""One socket, as ``udsproxy state`` tells it to people: lines, which are folded where they are printed.

Rule: a name that is long, or made to deceive, moves nothing but itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.text import Text

from udsproxy.cli.tables import Table
from udsproxy.events import pid_text
from udsproxy.inspection.forwarding import Hop
from udsproxy.inspection.sockets import Process, SocketState
from udsproxy.inspection.taps import Tapped
from udsproxy.sinks.text import duration, size

MAX_ROWS = 40
"""Processes, and connections, of one socket that are shown (``--json`` has all)."""
MAX_NAMES = 3
"""Names of programs in one line."""
_PROCESSES = Table(head=("PID", "PROCESS", "NOW"), right=frozenset(("PID",)), indent="    ")
_CONNECTIONS = Table(
    head=("UNREAD BY SERVER", "UNREAD BY CLIENT", "CLIENT", "SERVER"),
    right=frozenset(("UNREAD BY SERVER", "UNREAD BY CLIENT")),
    gives_way=({"UNREAD BY CLIENT": 0}, {"UNREAD BY SERVER": 0}),
    indent="    ",
)


def tap_line(tap: Tapped, indent: str) -> Text:
    """What a tap has to do with a path."""
    bad = tap.case in ("killed", "moved") or (tap.case == "standing" and tap.stopped)
    return Text(indent + tap.text, style="red" if bad else "yellow" if tap.case != "standing" else "")


def _head(each: SocketState) -> Text:
    rights = f", {each.owner}, mode {each.mode}" if each.mode else f", of user {each.user}" if each.user else ""
    kind = f"{each.type}, " if each.type else ""
    head = Text(each.address or "(no name)", style="bold")
    return head.append(f"  {kind}{each.state}{rights}", style="not bold")


def front(each: SocketState, hop: Hop) -> list[Text]:
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
    counts = Counter(clients).most_common(MAX_NAMES + 1)
    names = ", ".join(name if count == 1 else f"{count} of {name}" for name, count in counts[:MAX_NAMES])
    return f"{names}, ..." if len(counts) > MAX_NAMES else names


def details(each: SocketState, tap: Tapped | None, width: int | None) -> list[Text]:
    """All that is known of a server's socket. ``width``: of the terminal; None: there is none."""
    lines = [_head(each)]
    if tap is not None:
        lines.append(tap_line(tap, "  "))
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
    rows = [(pid_text(process.pid, process.inner_pid), process.comm, _now(process)) for process in order[:MAX_ROWS]]
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
    let = f"; kill -CONT {' '.join(map(str, by_signal[:MAX_ROWS]))}" if by_signal else ""
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
    for one in each.connections[:MAX_ROWS]:
        client = one.client or ("(gone)" if one.client_left else "?")
        unread = ["" if nbytes is None else size(nbytes) for nbytes in (one.unread, one.client_unread)]
        rows.append((*unread, client, one.server or "?"))
    table = _CONNECTIONS.lines(rows, width, head_style="dim")
    return [Text(f"  connected: {len(each.connections)}"), *table, *_more(len(each.connections))]


def _more(rows: int) -> list[Text]:
    """That not all rows are shown."""
    return [Text(f"    and {rows - MAX_ROWS} more")] if rows > MAX_ROWS else []


def _has(number: int) -> str:
    return "has" if number == 1 else "have"
