"""What a tap has to do with a path: told from what stands at PATH and at PATH.udsproxy, and from who holds that.

While a tap stands at PATH the server's own socket is at PATH.udsproxy; while a tap stands still its guardian has
exchanged the two. Where a tap was killed, and its guardian with it, both files are left as they were.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from typing import Literal

import msgspec

from udsproxy.events import printable
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.socket_files import SUFFIX as SUFFIX
from udsproxy.inspection.sockets import SocketState, state_of
from udsproxy.inspection.stops import Stop
from udsproxy.kernel import process_table

Case = Literal["standing", "given back", "killed", "moved", "left", "beside"]
"""``standing``: in front of the server. ``given back``: the tap stands still, and the server is at its path.
``killed``: a dead socket is at the path, and the server at the other name. ``moved``: nothing is at the path, and
the server at the other name. ``left``: a dead socket is at the other name. ``beside``: somebody else listens
there."""

_TITLE = re.compile(r"(?:^|[/ ])udsproxy tap(?: |$)")


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process that has one of the two sockets."""

    pid: int
    comm: str
    stopped: Stop | None = None

    @property
    def text(self) -> str:
        return f"{self.comm}, pid {self.pid}"


class Tapped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What there is at a path and beside it. Absent: it is not there, or may not be seen."""

    path: str
    aside: str
    """The other name."""
    case: Case
    tap: Holder | None = None
    server: Holder | None = None
    """Of ``beside``: who listens at the other name."""

    @property
    def server_is_aside(self) -> bool:
        """What is to be told of the server is told of the socket at the other name."""
        return self.case in ("standing", "killed", "moved")

    @property
    def who(self) -> str:
        """The tap, before what it does: ``udsproxy (tap), pid 7,``."""
        return "a tap" if self.tap is None else f"udsproxy (tap), pid {self.tap.pid},"

    @property
    def stands(self) -> str:
        """Of ``standing``: ``tapped by udsproxy, pid 7, in front of php-fpm, pid 9``."""
        pid = "" if self.tap is None else f", pid {self.tap.pid}"
        return f"tapped by udsproxy{pid}, in front of {self.whom}"

    @property
    def whom(self) -> str:
        """The server: ``php-fpm8.2, pid 9``."""
        return "its server" if self.server is None else self.server.text

    @property
    def whose(self) -> str:
        """The server, before what it does."""
        return "somebody" if self.server is None else f"{self.server.text},"

    @property
    def text(self) -> str:
        """One line of it: who stands there, what comes of that, and what to do."""
        aside, restore = self.aside, self.restore
        if self.case == "standing":
            stands = f"{self.stands}; the server's own socket is {aside}"
            return f"{stands}; it is stopped: clients wait; {self.go_on}" if self.stopped else stands
        if self.case == "given back":
            still = "is stopped" if self.stopped else "does not answer"
            return f"{self.who} {still}: its guardian has given the path back to {self.whom}; {self.go_on}"
        if self.case == "left":
            return f"{aside} is left from a tap that was killed, and nobody listens on it; {restore} removes it"
        if self.case == "beside":
            return f"{self.whose} listens at {aside}, where no client of this path comes to it"
        here = "a tap was killed, and nobody listens on what it has left" if self.case == "killed" else "nothing is"
        return f"{here} at this path; {self.whose} still answers at {aside}: {restore}"

    @property
    def stopped(self) -> bool:
        """The tap is."""
        return self.tap is not None and self.tap.stopped is not None

    @property
    def restore(self) -> str:
        """The command that puts things right."""
        return f"udsproxy tap --restore {shlex.quote(self.path)}"

    @property
    def go_on(self) -> str:
        """What lets the tap go on."""
        assert self.tap is not None
        return f"kill -CONT {self.tap.pid}"


def tapped_at(machine: Machine, path: str) -> Tapped | None:
    """None: no tap has to do with it."""
    path = os.path.realpath(path)
    aside = path + SUFFIX
    if not _is_socket(aside) or (os.path.lexists(path) and not _is_socket(path)):
        return None
    here, there = _serving(machine, path), _serving(machine, aside)
    tap_here, tap_there = _tap_of(machine, here), _tap_of(machine, there)
    case: Case
    if tap_here is not None or (here and there and not _are_seen(here)):
        case, tap, server = "standing", tap_here, _server_of(there)
    elif tap_there is not None:
        case, tap, server = "given back", tap_there, _server_of(here)
    elif not there:
        case, tap, server = "left", None, _server_of(here)
    else:
        case = "beside" if here else "killed" if os.path.lexists(path) else "moved"
        tap, server = None, _server_of(there)
    return Tapped(path=printable(path), aside=printable(aside), case=case, tap=tap, server=server)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _serving(machine: Machine, path: str) -> list[SocketState]:
    """The sockets behind a file with which somebody can speak."""
    if not _is_socket(path):
        return []
    try:
        found = state_of(machine, path, None)
    except OSError:
        return []
    return [each for each in found if each.state not in ("stale", "shut") and not _is_mute(each)]


def _is_mute(state: SocketState) -> bool:
    """Nobody has called listen()."""
    return state.state == "bound" and state.type != "datagram"


def _are_seen(states: list[SocketState]) -> bool:
    return any(each.processes for each in states)


def _tap_of(machine: Machine, states: list[SocketState]) -> Holder | None:
    for each in states:
        for process in each.processes:
            if _TITLE.search(process_table.read_title(process.pid)):
                return Holder(process.pid, process.comm, process.stopped)
    return None


def _server_of(states: list[SocketState]) -> Holder | None:
    """The first of them, which is a master mostly; not who has made the socket for it (systemd)."""
    processes = [process for each in states for process in each.processes]
    chosen = next((each for each in processes if each.pid != 1), processes[0] if processes else None)
    return None if chosen is None else Holder(chosen.pid, chosen.comm)
