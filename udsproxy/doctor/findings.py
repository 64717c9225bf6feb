"""From facts to findings, the worst first. Pure."""

from __future__ import annotations

from itertools import chain

from udsproxy.doctor import (
    about_clients,
    about_load,
    about_log,
    about_nginx,
    about_php_fpm,
    about_socket,
    about_standstill,
    about_systemd,
)
from udsproxy.doctor.about_load import Load
from udsproxy.doctor.facts import Facts
from udsproxy.doctor.finding import LEVELS, WHEN, Finding, dated


def examine(facts: Facts, load: Load) -> list[Finding]:
    """All that follows, the worst first, and of that what is so at this moment; else who stands at the path and the
    socket come first."""
    found = chain(
        dated("now", about_standstill.findings(facts)),
        about_socket.findings(facts),
        about_systemd.findings(facts),
        dated("before", about_log.findings(facts)),
        about_clients.findings(facts),
        about_php_fpm.findings(facts),
        about_nginx.findings(facts),
        about_load.findings(facts, load),
    )
    return sorted(found, key=lambda each: (LEVELS.index(each.level), WHEN.index(each.when)))
