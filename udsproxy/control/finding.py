"""Finding the proxies that run, and the one that is meant.

Rules: what several could be meant by is not guessed: `choose` names them all. What another process says of itself
is a stranger's text.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from udsproxy.control import place
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


def running(control: str | None = None) -> tuple[list[Running], list[str]]:
    """The proxies of the process with this control socket, or of all; and a line on each process that does not
    answer as it should. Raises `ControlError`: there are none."""
    if control is not None:
        paths = [control]
    else:
        running_here, others = place.running()
        paths = [each.path for each in running_here]
        if not paths:
            besides = f"; others' that run: {printable(', '.join(others))}" if others else ""
            raise ControlError(
                f"no udsproxy that runs was found in {place.looked_in()}; --control PATH (of run, too) is another"
                f"{besides}"
            )
    found: list[Running] = []
    silent: list[str] = []
    for path in paths:
        client = Client(path)
        try:
            found += _proxies_of(client)
        except ControlError as error:
            if control is not None or os.path.exists(path):  # else it has ended meanwhile
                silent.append(str(error))
    if not found:
        raise ControlError("; ".join(silent) or "the udsproxy that ran has ended")
    return found, silent


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
    there, silent = running(control)
    if wanted is not None and "/" in wanted:
        at = [each for each in there if os.path.realpath(wanted) == os.path.realpath(each.client.path)]
        if at:
            return at
    found = there if wanted is None else [each for each in there if _is_meant(each, wanted)]
    if not found:
        besides = "".join(f"; {line}" for line in silent)
        raise ControlError(f"no proxy is called {printable(wanted or '')!r}; there is {listed(there)}{besides}")
    if silent and wanted is None:
        raise ControlError(
            f"several run, and one does not answer ({silent[0]}); choose one with --proxy NAME or PATH, or "
            f"--control PATH: {listed(there)}"
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
