"""sock_diag in all network namespaces that we may enter, for one look.

Rule: what is opened is closed when the look is over (`udsproxy.kernel.namespaces`).
"""

from __future__ import annotations

import errno
from functools import cached_property

from udsproxy.kernel import namespaces
from udsproxy.kernel.namespaces import Namespace, Namespaces
from udsproxy.kernel.sock_diag import SockDiag


class Everywhere:
    """The namespaces other than ours."""

    def __init__(self, spaces: Namespaces | None) -> None:
        """``spaces``: where they were looked for before."""
        self._spaces = spaces
        self.closed = 0
        """How many we may not enter, as far as `diags` has tried."""

    @cached_property
    def diags(self) -> list[tuple[Namespace, SockDiag]]:
        """In each that may be entered."""
        found = []
        for space in (self._spaces or namespaces.look()).others:
            try:
                found.append((space, namespaces.diag_in(space)))
            except PermissionError:
                self.closed += 1
            except OSError:
                pass  # it has gone meanwhile
        return found

    def space(self, number: int) -> Namespace:
        """That one. Raises OSError: there is none, or it may not be entered."""
        for space, _ in self.diags:
            if space.number == number:
                return space
        raise OSError(errno.ENOENT, "no such network namespace")

    def close(self) -> None:
        for _, diag in self.__dict__.pop("diags", ()):
            diag.close()
