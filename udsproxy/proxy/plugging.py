"""The fault ``eagain``: our own queue is plugged, always or for a share of the time.

Rules: who waits when the plug goes in is taken first, for nobody may wait behind it; when it is out, whoever comes
is let in as ever.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from random import Random

import trio

from udsproxy.endpoints import Listener

TURN_S = 0.1
"""How long plugged and unplugged take together, about, where it is for a share of the time."""
_MOST_WAITING = 1000
"""So many of who waits are taken before the plug goes in, at most."""


class Plugging:
    """See the module. It goes on from `run` until `stop`."""

    def __init__(
        self,
        listener: Listener,
        take: Callable[[], bool],
        changed: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        """``take``: takes who waits, if anybody can be taken. ``changed``: the plug is in, or out. ``failed``: it
        could not be put in; that is tried again."""
        self._listener = listener
        self._take = take
        self._changed = changed
        self._failed = failed
        self._scope = trio.CancelScope()

    async def run(self, share: float, chance: Random) -> None:
        """Plug for this share of the time, in turns of random lengths."""
        with self._scope:
            while True:
                turn_s = TURN_S * chance.uniform(0.5, 1.5)
                await trio.sleep(turn_s * (1 - share))
                self._plug()
                # Where that failed, a plug for ever is tried again too.
                await trio.sleep(turn_s * share if share < 1 or not self._listener.plugged else math.inf)
                self._unplug()

    def stop(self) -> None:
        """Take the plug out, for good."""
        self._scope.cancel()
        self._unplug()

    def _plug(self) -> None:
        for _ in range(_MOST_WAITING):
            if not somebody_waits(self._listener) or not self._take():
                break
        if self._scope.cancel_called:
            return
        try:
            self._listener.plug()
        except OSError as error:
            self._failed(error)
        else:
            self._changed()

    def _unplug(self) -> None:
        if self._listener.plugged:
            self._listener.unplug()
            self._changed()


def somebody_waits(listener: Listener) -> bool:
    """Is there somebody in our queue?"""
    poll = select.poll()
    poll.register(listener.sock, select.POLLIN)
    return bool(poll.poll(0))
