"""Findings about who stands at the path, and about what stands still: a tap, a server that is stopped, workers that
stay with idle connections. Pure."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator

from udsproxy.doctor.facts import Facts, Process
from udsproxy.doctor.finding import Finding
from udsproxy.inspection.forwarding import Hop
from udsproxy.inspection.taps import Tapped

_MAX_NAMES = 3
_MAX_PIDS = 32
"""In one command."""


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    if facts.tap is not None:
        yield _tap(facts.tap)
    for number, hop in enumerate(facts.hops):
        if number or hop.kind != "tap":
            yield _hop(hop)
    yield from _stopped(facts.servers, "clients wait", "its clients wait")
    for each in facts.nginx:
        yield from _stopped(each.workers, "it asks nobody", "its clients wait")
    if facts.idle:
        yield _idle(facts)


def _tap(tap: Tapped) -> Finding:
    look = f"ls -l {shlex.quote(tap.path)} {shlex.quote(tap.aside)}"
    restore = tap.restore
    stands = tap.stands
    if tap.case in ("killed", "moved"):
        server = "The server" if tap.server is None else f"The server ({tap.server.text})"
        killed = tap.case == "killed"
        return Finding(
            "problem",
            "a tap was killed, and its guardian too: clients get ECONNREFUSED"
            if killed
            else "nothing is at this path, which a tap has had: clients get ENOENT",
            f"{server} still answers at {tap.aside}; "
            + ("nobody does at what the tap has left here." if killed else "its path was removed meanwhile."),
            restore,
            look,
        )
    if tap.case == "left":
        return Finding(
            "warning",
            f"{tap.aside} is left from a tap that was killed",
            "Nobody listens on it, and no client comes to it. Another tap of this path is refused.",
            f"{restore} removes it.",
            look,
        )
    if tap.case == "beside":
        return Finding(
            "warning",
            f"{tap.whose} listens at {tap.aside}",
            "That is where a tap puts the server's socket. It was killed, and the server has been started anew, or "
            "this is an old one. No client of this path comes to it.",
            f"End it; then {restore} removes the file.",
            f"udsproxy state {shlex.quote(tap.path)} {shlex.quote(tap.aside)}",
        )
    if tap.case == "given back":
        still = "stopped" if tap.stopped else "silent"
        return Finding(
            "warning",
            f"{tap.who} is {still}: its guardian has given the path back to {tap.whom}",
            "New clients come to the server itself. What is connected through the tap waits for it.",
            f"{tap.go_on} (it takes its place again), or end it.",
            f"ps -o pid,stat,wchan,cmd -p {tap.tap.pid}" if tap.tap else "",
        )
    if not tap.stopped:
        why = f"The server's own socket is {tap.aside} meanwhile: server and queue here are of that one."
        return Finding("note", stands, why, check=f"udsproxy state {shlex.quote(tap.path)}")
    return Finding(
        "problem",
        f"{stands}; it is stopped: clients wait",
        "A tap that was stopped (SIGSTOP, a debugger) hands nothing on. Its guardian gives the path back to the "
        "server within a second; where that does not come, the guardian is stopped, too, or was killed.",
        f"{tap.go_on}; or end it (kill -KILL), and then {restore}.",
        look,
    )


def _idle(facts: Facts) -> Finding:
    number, clients = len(facts.workers), Counter(facts.idle)
    names = ", ".join(name for name, _ in clients.most_common(_MAX_NAMES)) + (
        ", ..." if len(clients) > _MAX_NAMES else ""
    )
    hold = "holds an idle connection" if number == 1 else "hold idle connections"
    can_grow = facts.most_workers is not None and facts.most_workers > number
    do = "Have the clients keep fewer connections open than there are workers, or close them after each request."
    if facts.php_fpm is not None:
        do = (
            "fastcgi_keep_conn off; or a keepalive in the upstream block that is, times nginx's worker processes, "
            "less than pm.max_children. (A php-fpm worker stays with its connection until that is closed.)"
        )
    return Finding(
        "warning" if can_grow and not facts.queue else "problem",
        f"{number} of {number} workers {hold} of {names}",
        "Each waits for the next request on a connection that is kept open (keep-alive), or for the rest of one. "
        "Meanwhile it accepts nobody: whoever connects waits in the queue, although no worker works.",
        do,
        f"udsproxy state {shlex.quote(facts.path)}",
    )


def _hop(hop: Hop) -> Finding:
    check = f"udsproxy state {shlex.quote(hop.path)}"
    if not hop.stopped:
        if hop.to is None:
            why = "So its server is not looked at."
        elif hop.to.startswith("tcp:"):
            why = "That is no Unix socket, and is not looked at."
        else:
            why = "Server and queue here are those of that socket."
        return Finding("note", hop.text, why, check=check)
    assert hop.process is not None
    assert hop.process.stopped is not None
    title = f"{hop.name}, is stopped ({hop.process.stopped.text}): clients wait"
    why = "It hands nothing on, and whoever connects waits. The server behind it is not at fault."
    return Finding("problem", title, why, _LET_GO[hop.process.stopped.how].format(pids=hop.process.pid), check)


def _stopped(processes: tuple[Process, ...], all_of_them: str, one_of_them: str) -> Iterator[Finding]:
    stopped = [each for each in processes if each.stopped is not None]
    if not stopped:
        return
    serving = [each for each in processes if not each.master]
    halted = [each for each in stopped if not each.master]
    whole = bool(halted) and len(halted) == len(serving)
    how = ", ".join(dict.fromkeys(each.stopped.text for each in stopped if each.stopped is not None))
    first = stopped[0]
    who = f"{first.comm}, pid {first.pid}, is"
    if not halted:
        waits = "it starts no workers"
    else:
        waits = all_of_them if whole else one_of_them
        if len(halted) > 1:
            who = f"{'all' if whole else f'{len(halted)} of'} {len(serving)} workers ({first.comm}) are"
            waits = waits.replace("it asks", "they ask").replace("its", "their")
    pids = [str(each.pid) for each in stopped][:_MAX_PIDS]
    by = {each.stopped.how for each in stopped if each.stopped is not None}
    yield Finding(
        "problem" if whole else "warning",
        f"{who} stopped ({how}): {waits}",
        "Nothing goes on there: who is connected waits, and so does who is accepted next."
        if halted
        else "Those that it has started serve on; none that ends is replaced, and no reload is done.",
        _LET_GO[min(by)].format(pids=" ".join(pids)),
        f"ps -o pid,stat,wchan,cmd -p {','.join(pids)}",
    )


_LET_GO = {
    "freezer": "Let its control group go on: docker unpause, or systemctl thaw UNIT.",
    "signal": "kill -CONT {pids}",
    "tracer": "Let it go on in the debugger, or end that.",
}
