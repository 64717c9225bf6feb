"""Whether somebody still reads what we show: a pager that was quit (``| less``, ``| head``), a terminal that
has gone.

Rule: it is seen without anything being written: a tap of a quiet socket ends with its reader, too.
"""

from __future__ import annotations

import select
from collections.abc import Callable

import trio

_GONE = select.POLLERR | select.POLLHUP
_LOOK_S = 1.0
"""Where a wait would not end: a terminal that hangs up wakes only who waits to read or to write (drivers/tty)."""


def is_unread(fd: int) -> bool:
    """The other end of this descriptor is gone. (Of a file that can never be said.)"""
    poll = select.poll()
    poll.register(fd, 0)
    return any(seen & _GONE for _, seen in poll.poll(0))


async def until_unread(fd: int, is_known: Callable[[], bool]) -> None:
    """Returns when nobody reads it any more. ``is_known``: whether that was met when something was written."""
    with select.epoll() as epoll:
        try:
            epoll.register(fd, 0)  # an error and a hang-up are told unasked (epoll_ctl(2))
        except PermissionError:  # a file cannot be watched
            await trio.sleep_forever()
        while not (is_known() or is_unread(fd)):
            with trio.move_on_after(_LOOK_S):
                await trio.lowlevel.wait_readable(epoll.fileno())
