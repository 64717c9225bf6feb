"""``udsproxy demo``: the failure, reproduced and seen, on this machine alone."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import trio

from udsproxy.cli.common import DONE, require_proc
from udsproxy.lab.demo import demo as run_demo


def demo() -> int:
    """Show requests being decoded, and then an accept queue overflowing.

    It takes a few seconds, needs no other program and no root, works in a temporary directory and removes it.
    """
    require_proc()
    return trio.run(_run_until_told)


async def _run_until_told() -> int:
    """All that the demonstration has made is tidied up, whichever signal ends it. Returns the exit code."""
    ended_by: list[int] = []

    async def heed(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            ended_by.append(number)
            scope.cancel()

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed, signals, nursery.cancel_scope)
            await run_demo()
            nursery.cancel_scope.cancel()
    return 128 + ended_by[0] if ended_by else DONE
