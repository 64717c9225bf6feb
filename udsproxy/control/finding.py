"""Finding the proxies that run, and the one that is meant.

Rules: where several could be meant, none is guessed: `choose` names them all. A proxy whose control socket is not
known could be meant, too. What another process says of itself is a stranger's text.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from udsproxy.control import elsewhere, place
from udsproxy.control.client import Client, ControlError
from udsproxy.endpoints.ownership import user_name
from udsproxy.events import printable


class Running(msgspec.Struct, frozen=True):
    """A proxy that runs: one of those of its process, perhaps."""

    client: Client
    name: str
    listen: str
    upstream: str

    def __str__(self) -> str:
        between = f"tap of {self.listen}" if self.listen == self.upstream else f"{self.listen} -> {self.upstream}"
        return f"{self.name} ({between}, pid {self.client.pid}, user {printable(user_name(self.client.uid))})"


class Found(msgspec.Struct, frozen=True):
    """What runs."""

    proxies: tuple[Running, ...]
    """At least one."""
    silent: tuple[str, ...]
    """A line for each process that does not answer as it should."""
    hidden: tuple[int, ...]
    """Processes that run proxies and whose control sockets are not known."""


def running(control: str | None = None) -> Found:
    """The proxies of the process with this control socket; None: of all processes. Raises `ControlError`: there are
    none."""
    here, others = ([], []) if control is not None else place.running()
    clients = [Client(path) for path in ([each.path for each in here] if control is None else [control])]
    proxies: list[Running] = []
    silent: list[str] = []
    for client in clients:
        try:
            proxies += _proxies_of(client)
        except ControlError as error:
            if control is not None or os.path.exists(client.path):  # else it has ended meanwhile
                silent.append(str(error))
    hidden = [] if control is not None else elsewhere.running_elsewhere({client.pid for client in clients})
    if not proxies:
        raise ControlError("; ".join(silent) or _none_was_found(hidden, others))
    return Found(tuple(proxies), tuple(silent), tuple(hidden))


def _none_was_found(hidden: list[int], others: list[str]) -> str:
    """``others``: control sockets of other users."""
    line = f"no running udsproxy was found in {place.looked_in()}"
    if hidden:
        line += f"; not asked: {elsewhere.listed(hidden)}; name its control socket with --control PATH"
    else:
        line += "; one that was started with --control PATH is found with the same option"
    return f"{line}; control sockets of other users: {printable(', '.join(others))}" if others else line


def _proxies_of(client: Client) -> list[Running]:
    """Raises `ControlError`."""
    states: Any = client.ask("GET", "proxies")
    try:
        return [
            Running(client, *(printable(str(each[key])) for key in ("name", "listen", "upstream")))
            for each in states
        ]
    except (TypeError, KeyError):
        raise client.stranger() from None


def choose(control: str | None, wanted: str | None) -> list[Running]:
    """Those that are meant: one, or (nothing is ``wanted``) all of the only process that there is.

    ``wanted``: a proxy's name, or the path of its socket, of its server's, or of the control socket. Raises
    `ControlError`: none is, or several could be.
    """
    running_now = running(control)
    there, silent, hidden = list(running_now.proxies), running_now.silent, running_now.hidden
    if wanted is not None and "/" in wanted:
        at = [each for each in there if os.path.realpath(wanted) == os.path.realpath(each.client.path)]
        if at:
            return at
    found = there if wanted is None else [each for each in there if _is_meant(each, wanted)]
    if not found:
        besides = "".join(f"; {line}" for line in silent)
        if hidden:
            besides += f"; not asked: {elsewhere.listed(hidden)} (--control PATH)"
        raise ControlError(f"no proxy is called {printable(wanted or '')!r}; there is {listed(there)}{besides}")
    if silent and wanted is None:
        raise ControlError(
            f"several run, and one does not answer ({silent[0]}); choose one with --proxy NAME or PATH, or "
            f"--control PATH: {listed(there)}"
        )
    if hidden and wanted is None:
        raise ControlError(
            f"several run, some with a control socket elsewhere ({elsewhere.listed(hidden)}); choose one with "
            f"--proxy NAME or PATH, or --control PATH: {listed(there)}"
        )
    if len({each.client.path for each in found}) > 1 or (wanted is not None and len(found) > 1):
        which = "several proxies run" if wanted is None else f"several proxies are meant by {printable(wanted)!r}"
        raise ControlError(f"{which}; choose one with --proxy NAME or PATH, or --control PATH: {listed(found)}")
    return found


def _is_meant(each: Running, wanted: str) -> bool:
    if wanted == each.name:
        return True
    names = {wanted, f"unix:{wanted}"}
    if "/" in wanted:
        names = {printable(name) for name in (wanted, os.path.abspath(wanted), os.path.realpath(wanted))}
    return bool(names & {each.listen, each.upstream})


def listed(found: list[Running]) -> str:
    """For people: all that tells them apart."""
    return "; ".join(f"{each}, control {printable(each.client.path)}" for each in found)
