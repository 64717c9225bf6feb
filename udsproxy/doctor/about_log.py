"""Findings from nginx's error log: what it has met at this socket, and how often. Pure.

ngx_event_connect.c logs a full queue (error 11) and a refusal (111) at level `error`, all else that connect() says
at `crit`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import NamedTuple

from udsproxy.doctor.facts import ErrorLog, Facts, Logged
from udsproxy.doctor.finding import Finding, Level, plural

_HIDES_11 = ("crit", "alert", "emerg")


class _Meaning(NamedTuple):
    level: Level
    why: str
    do: str


_QUEUE_WAS_FULL = (
    "The queue was full: for a moment no worker accepted, and each client that came meanwhile was refused."
)
_UDSPROXY = "a udsproxy before it (a tap, a run) was killed"
_WHO_ENDED = (
    "Look for SIGSEGV, SIGKILL and `execution timed out` in php-fpm's error_log at that time. "
    "Where a udsproxy ran, see when it ended."
)
_MEANINGS = {
    "connect 11": _Meaning("problem", _QUEUE_WAS_FULL, ""),
    "connect 2": _Meaning(
        "warning",
        "There was no such path: the server was not there. php-fpm and `udsproxy run` remove their sockets when "
        "they stop, and make them when they start.",
        "Reload the server instead of restarting it; see its own log for why it stopped.",
    ),
    "connect 13": _Meaning(
        "warning",
        "nginx's user may not connect: no write permission on the socket, or no x on a directory above it.",
        "Compare the times with changes of owner and mode. Whether nginx may connect now is a finding of its own.",
    ),
    "connect 111": _Meaning(
        "warning",
        "The file was there, and nobody listened: the server had been killed, or a udsproxy at this path (a tap "
        "together with its guardian).",
        "See the server's own log, and dmesg (the OOM killer), at that time.",
    ),
    "recv 104": _Meaning(
        "warning",
        "The connection was closed before what nginx had sent on it was read: a worker was killed, the server was "
        f"stopped while requests waited in its queue, or {_UDSPROXY}.",
        _WHO_ENDED,
    ),
    "timed out 110": _Meaning(
        "warning",
        "No answer came within nginx's *_read_timeout: the request waited in the queue, or its worker was stuck. "
        "(A connect timeout never applies to a Unix socket.)",
        "Find what the workers wait for: udsproxy state PATH while it happens, php-fpm's slowlog.",
    ),
    "closed": _Meaning(
        "warning",
        "The connection was closed before a whole answer had come: a worker crashed or was killed, or "
        f"{_UDSPROXY}.",
        _WHO_ENDED,
    ),
    "no live upstreams": _Meaning(
        "problem",
        "After failures nginx had left out all servers of the block: every request was a 502 for a while.",
        "max_fails=0 on each `server unix:...` of the block.",
    ),
}
_BEFORE_RUN = {
    "connect 2": _Meaning(
        "note",
        "udsproxy run was not there: it makes its socket when it starts, and removes it when it ends.",
        "Start udsproxy run before nginx is told to connect to it, and name the server's own socket again before "
        "udsproxy ends.",
    ),
    "connect 111": _Meaning(
        "note",
        "The file was there, and nobody listened: an earlier udsproxy run had been killed.",
        "See dmesg (the OOM killer), and who sent it SIGKILL, at that time.",
    ),
}
"""What they mean where a ``udsproxy run`` listens at the path, and was started later."""
_PASSED_ON = "Clients of udsproxy run get the error that it gets from the socket behind it"
_OF_A_SERVER = ("connect 11", "recv 104", "timed out 110", "closed")
"""Kinds that tell of a server which was there."""
_OTHER = _Meaning("warning", "", "udsproxy explain tells what such a line means.")


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    for nginx in facts.nginx:
        for log in nginx.logs:
            for logged in log.logged:
                yield _logged(facts, log, logged)
            if not log.logged and log.begin and log.level not in _HIDES_11:
                yield Finding(
                    "fine",
                    f"nginx's error log has no failure of this socket since {_at(log, log.begin)} ({log.path})",
                )
            if log.level in _HIDES_11:
                yield Finding(
                    "note",
                    f"error_log {log.path} {log.level}: error 11 is not in it",
                    "nginx logs a full queue, and a refusal, at level error.",
                    f"error_log {log.path} error;",
                    "nginx -T | grep error_log",
                )


def _logged(facts: Facts, log: ErrorLog, logged: Logged) -> Finding:
    meaning = _meaning(facts, logged)
    who = "the server" if facts.run is None else "udsproxy run"
    number = logged.kind.rpartition(" ")[2]
    what = f"error {number}" if number.isdecimal() else f"`{logged.words}`"
    level, do = meaning.level, meaning.do
    last = f"last at {_at(log, logged.last)}"
    if logged.since_start:
        when = f"{plural(logged.since_start, 'time')} since {who} was started, {last}"
    else:
        when = f"{plural(logged.count, 'time')}, {last}"
        if logged.since_start is not None:
            level, when = "note", f"{when}, before {who} was started"
        elif facts.has_no_server and logged.kind in _OF_A_SERVER:
            level, when = "note", f"{when}, while there was a server"
    part = "" if log.is_whole else f" Only its end was read, from {_at(log, log.begin) or 'some time'} on."
    line = f"`{logged.words}` in {log.path}.{part}"
    if logged.kind == "connect 11":
        do = _room(facts)
    return Finding(
        level,
        f"nginx logged {what} for this socket {when}",
        f"{meaning.why} {line}".strip(),
        do,
        _search(log, logged),
    )


def _meaning(facts: Facts, logged: Logged) -> _Meaning:
    meaning = _MEANINGS.get(logged.kind, _OTHER)
    if facts.run is None or not logged.kind.startswith("connect "):
        return meaning
    if logged.since_start == 0:
        return _BEFORE_RUN.get(logged.kind, meaning)
    either = ", or it was not there itself" if logged.since_start is None and logged.kind in _BEFORE_RUN else ""
    return meaning._replace(why=f"{_PASSED_ON}{either}. {meaning.why}".strip())


def _at(log: ErrorLog, time: str) -> str:
    """A time of nginx's, with its zone."""
    return f"{time} {log.zone}".strip() if time else ""


def _search(log: ErrorLog, logged: Logged) -> str:
    """The command that shows these lines, and no others."""
    files = log.files or (log.path,)
    command = f"grep {'-hF' if len(files) > 1 else '-F'} {shlex.quote(logged.words)} {shlex.join(files)}"
    return f"{command}{f' | grep -F {shlex.quote(logged.upstream)}' if logged.upstream else ''} | tail"


def _room(facts: Facts) -> str:
    """What to do about a full queue."""
    find = "Find what held the workers then (udsproxy tap shows it with each request)"
    has, pool = facts.backlog, facts.pool
    if has is None or (pool is None and facts.systemd is None):
        return f"{find}; then a longer queue."
    where = "Backlog= of its unit" if pool is None or facts.systemd is not None else "listen.backlog"
    at = "" if pool is None or facts.systemd is not None else f" ({pool.at('listen.backlog')})"
    return f"{find}. {has + 1} may wait now: a larger {where}{at}, and a restart, lets more wait where they failed."
