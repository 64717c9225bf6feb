"""When it is to be looked at the place of a server's socket.

A server makes its file (bind(2)), which inotify tells, and listens a moment later (listen(2)), which nothing tells.
So where the server is gone it is looked as soon as the file has come, or a directory on the way to it, and again
and again for a while, at first every 0.2 ms: each pause is a tenth of what has passed, so that a server that takes
its time is found late by a tenth of that. Where it is there, it is looked when its file gets other attributes.

Rules: these are calls from the relay, since trio's own sleep is a millisecond too long. They only tell when: there
may be no watches to be had.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from time import monotonic_ns
from typing import cast

from udsproxy.endpoints import Socket
from udsproxy.kernel.inotify import Watch
from udsproxy.proxy.relay import Due, Relay

_FIRST_NS = 200_000
_SHARE = 10
_LAST_NS = 50_000_000
"""Pauses that are longer are for who looks without being told."""


class Vigil:
    """See the module."""

    def __init__(self, path: str, relay: Relay, look: Callable[[], None]) -> None:
        """``path``: of the server's file. ``look``: is called, and is not to raise."""
        self._path = path
        self._relay = relay
        self._look = look
        self._watch: Watch | None = None
        self._is_gone = False
        self._due: Due | None = None
        self._pause_ns = _FIRST_NS
        self._changed_at = 0

    @property
    def age_ns(self) -> int:
        """How long ago something has changed there."""
        return monotonic_ns() - self._changed_at

    def keep(self, *, is_gone: bool) -> None:
        """From now on for its return, or for what becomes of it. (To be called again, now and then: a watch may
        have been refused.)"""
        self._is_gone = is_gone
        with contextlib.suppress(OSError):
            if self._watch is None:
                self._watch = Watch()
                # (Of which it needs fileno() only.)
                self._relay.watch(cast("Socket", self._watch), self._notice)
            if is_gone:
                self._watch.of_name(*self._way())
            else:
                self._watch.of_file(self._path)

    def _way(self) -> tuple[str, str]:
        """The last directory on the way to the path that is there, and the next name."""
        directory, name = os.path.split(os.path.realpath(self._path))
        while not os.path.isdir(directory) and directory != "/":
            directory, name = os.path.split(directory)
        return directory, name

    def close(self) -> None:
        if self._due is not None:
            self._relay.cancel(self._due)
            self._due = None
        if self._watch is not None:
            self._relay.unwatch(cast("Socket", self._watch))
            self._watch.close()
            self._watch = None

    def _notice(self) -> None:
        if self._watch is None or not self._watch.has_changed():
            return
        self.keep(is_gone=self._is_gone)
        self.stir()

    def stir(self) -> None:
        """Something has changed there, or may have: look."""
        self._changed_at = monotonic_ns()
        self._pause_ns = _FIRST_NS
        if self._due is None:
            self._try(self._changed_at)

    def _try(self, _: int) -> None:
        self._due = None
        self._look()
        if self._is_gone and self._watch is not None and self._pause_ns < _LAST_NS:
            self._due = self._relay.call_at(monotonic_ns() + self._pause_ns, self._try)
            self._pause_ns += self._pause_ns // _SHARE
