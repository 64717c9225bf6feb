"""Findings about a socket that systemd holds: for which unit, with which backlog, and who serves it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from udsproxy.doctor.about_socket import in_ss
from udsproxy.doctor.facts import Facts
from udsproxy.doctor.finding import Finding, dated


def findings(facts: Facts) -> Iterator[Finding]:
    """All of them."""
    if facts.systemd is None:
        return
    unit, who = facts.unit, f"systemd, pid {facts.systemd}"
    if unit is None:
        yield Finding(
            "note",
            f"{who}, holds this socket",
            "The unit is not found: none of the files that we see has this ListenStream=.",
            check="systemctl list-sockets",
        )
    else:
        yield Finding(
            "note",
            f"{who}, holds this socket: {unit.text}",
            f"It is configured in {unit.file}" + (f" and {unit.backlog_file}." if _has_dropin(facts) else "."),
            check=f"systemctl cat {unit.name}",
        )
        yield from _backlog(facts)
    if not facts.workers and facts.state == "listening":
        yield from dated("now", [_nobody_yet(facts)])


def _has_dropin(facts: Facts) -> bool:
    unit = facts.unit
    return unit is not None and unit.backlog_file not in (None, unit.file)


def _nobody_yet(facts: Facts) -> Finding:
    service = "the service" if facts.unit is None else facts.unit.service
    if not facts.queue:
        why = "The first connection waits in the queue until the service has started."
        return Finding("note", f"no worker runs yet: systemd starts {service} when somebody connects", why)
    return Finding(
        "warning",
        f"{facts.queue} wait in the queue, and {service} does not run",
        "systemd starts it when somebody connects: it is just starting, or it does not come up.",
        "See why it does not start.",
        f"systemctl status {service}; journalctl -u {service} -n 50",
    )


def _backlog(facts: Facts) -> Iterator[Finding]:
    unit, has, most = facts.unit, facts.backlog, facts.somaxconn
    if unit is None or unit.backlog is None or has is None:
        return
    restart = f"systemctl daemon-reload; systemctl restart {unit.name}"
    check = f"{in_ss(facts)}   (the second number is what the kernel has)"
    if most is not None and unit.backlog > most and has == most:
        yield Finding(
            "problem",
            f"Backlog={unit.backlog} is cut to {has}",
            f"The kernel silently cuts it to net.core.somaxconn ({most}) when listen() is called.",
            f"sysctl -w net.core.somaxconn={unit.backlog} (and in /etc/sysctl.d), then {restart}.",
            check,
        )
    elif unit.backlog != has:
        yield Finding(
            "problem" if unit.backlog > has else "warning",
            f"Backlog={unit.backlog} is not in force: the kernel has {has}",
            f"{unit.backlog_file} was changed since systemd opened the socket, or the service has called listen() "
            "with another backlog.",
            f"{restart}.",
            check,
        )
