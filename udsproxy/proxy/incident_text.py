"""The sentence that tells an incident.

Rules: it has no clock time in it (its event has two, in UTC; who prints it has a time of its own). What is not
known is not said.
"""

from __future__ import annotations

from udsproxy.events import Incident, InFlight, WaitingOn, is_long_wait

_MAX_NAME = 200
_MAX_ERRORS = 3
_SAID_S = 0.001
"""What was shorter is said to be of no length."""


def sentence(event: Incident) -> str:
    """``it lasted 3.0 s; the queue grew to 9 of 9 (283 connect() got EAGAIN); 8 of 8 workers busy ...``"""
    parts = []
    if event.total_s is not None and event.total_s >= _SAID_S:
        parts.append(f"it lasted {_short(event.total_s)}")
    parts.append(_what(event))
    if event.workers:
        parts.append(_busy(event.busy or 0, event.workers, event.waiting_on or ()))
    if event.gone_running:
        parts.append(f"{event.gone_running} of them for clients that have left")
    if event.slowest is not None:
        parts.append(f"the oldest is {named(event.slowest)}, {_age(event.slowest)}")
    if event.began_with is not None and event.phase == "close":
        parts.append(f"it began with {named(event.began_with)}")
    if event.gone_waiting:
        parts.append(f"{event.gone_waiting} in the queue have left")
    return "; ".join(parts)


def named(exchange: InFlight) -> str:
    """``GET /report.php``."""
    what = (exchange.script or exchange.uri or f"connection {exchange.conn}")[:_MAX_NAME]
    return f"{exchange.method} {what}" if exchange.method else what


def _age(exchange: InFlight) -> str:
    """``6.0 s (5.9 s of it in the queue)``."""
    age, wait_s = _short(exchange.age_s), exchange.accept_wait_s or 0.0
    return f"{age} ({_short(wait_s)} of it in the queue)" if is_long_wait(wait_s, exchange.age_s) else age


def _what(event: Incident) -> str:
    of = "" if event.backlog is None else f" of {event.backlog + 1}"
    met = [f"{event.refused} connect() got EAGAIN"] if event.refused else []
    met += [f"nginx logged {count} × error {number}" for number, count in (event.nginx or {}).items()]
    errors = sorted((event.errors or {}).items(), key=lambda each: -each[1])
    met += [f"{count} × {what}" for what, count in errors[:_MAX_ERRORS]]
    if event.queue:
        what = f"the queue grew to {event.queue}{of}"
    elif (event.refused or event.nginx) and not errors:
        what = "clients were refused"
    else:
        what = "clients met errors" if met else "clients waited"
    return f"{what} ({', '.join(met)})" if met else what


def _busy(busy: int, workers: int, waiting_on: tuple[WaitingOn, ...]) -> str:
    said = f"{busy} of {workers} workers busy"
    if not waiting_on:
        return said
    first = waiting_on[0]
    doing = f"in {first.doing}" if "()" in first.doing else first.doing
    return f"{said}, {first.workers} of them {doing}" if first.workers < busy else f"{said}, all {doing}"


def _short(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"
