"""Our end of the observer, with a real one: one that is stopped, killed, or cannot be started."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import pytest
import trio
import trio.lowlevel

from tests.e2e.tools import LIMIT_S
from udsproxy.inspection.workers import Ask
from udsproxy.kernel import own_processes
from udsproxy.kernel.procfs import read_comm
from udsproxy.proxy import observer as module
from udsproxy.proxy.observer import Observer


class Run:
    """An observer, and what it tells."""

    def __init__(self) -> None:
        self.observer = Observer()
        self.told: list[str] = []
        self.expected: list[float] = []
        """When a child was expected."""
        self.observer.tell_failure = lambda message, errno: self.told.append(f"{message} ({errno})")

    @property
    def pid(self) -> int:
        assert self.observer._process is not None
        return self.observer._process.pid

    async def answers(self) -> bool:
        return await self.observer.ask(Ask(number=0)) is not None

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(LIMIT_S):
            while not condition():
                await trio.sleep(0.01)

    async def until_it_answers(self) -> None:
        with trio.fail_after(LIMIT_S):
            while not await self.answers():
                await trio.sleep(0.01)


@asynccontextmanager
async def running() -> AsyncIterator[Run]:
    run = Run()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.observer.run, lambda: run.expected.append(monotonic()))
            await trio.lowlevel.checkpoint()
            yield run
            nursery.cancel_scope.cancel()
    finally:
        run.observer.reap()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AGAIN_S", 0.02)


async def test_answers() -> None:
    """One question after the other, also when several ask at once."""
    async with running() as run:
        await run.until_it_answers()
        found: list[bool] = []

        async def ask() -> None:
            found.append(await run.answers())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert found == [True] * 5
        assert not run.told


async def test_stopped_observer_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is dropped and told, once; nobody waits for it any more; when it goes on it is asked again."""
    async with running() as run:
        await run.until_it_answers()
        pid = run.pid
        monkeypatch.setattr(module, "_ANSWER_S", 0.1)
        os.kill(pid, signal.SIGSTOP)
        assert not await run.answers()
        with trio.fail_after(LIMIT_S):
            for _ in range(1000):
                assert not await run.answers()
        assert run.told == ["the observer has not answered for 0 s (ETIMEDOUT)"]
        monkeypatch.setattr(module, "_ANSWER_S", LIMIT_S)
        os.kill(pid, signal.SIGCONT)
        await run.until_it_answers()
        assert run.pid == pid
        assert len(run.told) == 1
        assert not run.expected


async def test_who_asks_is_cancelled() -> None:
    """The answer to the question before is not taken for that to the next."""
    async with running() as run:
        await run.until_it_answers()
        for _ in range(20):
            with trio.move_on_after(0):
                await run.answers()
            await run.until_it_answers()
        assert not run.told


async def test_killed_observer_is_started_again() -> None:
    """Whoever asks meanwhile gets no answer at once; nothing is left open of it; the relay is told before."""
    async with running() as run:
        await run.until_it_answers()
        descriptors = len(os.listdir("/proc/self/fd"))
        for number in range(1, 4):
            before = run.pid
            os.kill(before, signal.SIGKILL)
            await run.until(lambda number=number: len(run.told) == number)  # type: ignore[misc]
            await run.until_it_answers()
            assert run.pid != before
            assert read_comm(before) is None
            assert len(run.expected) == number
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert set(run.told) == {"the observer has ended; it is started again (ESRCH)"}


async def test_killed_while_it_is_asked() -> None:
    """Who waits for its answer learns that there is none."""
    async with running() as run:
        await run.until_it_answers()
        os.kill(run.pid, signal.SIGSTOP)
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.answers)
                await run.until(lambda: bool(run.observer._owed))
                os.kill(run.pid, signal.SIGKILL)
        await run.until_it_answers()


async def test_it_is_not_started_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends at once is started again after twice as long each time, and that is told once."""
    monkeypatch.setattr(own_processes, "command", lambda *_: ["/bin/true"])
    async with running() as run:
        await run.until(lambda: len(run.expected) >= 5)
        gaps = [after - before for before, after in zip(run.expected, run.expected[1:], strict=False)]
        assert all(gap >= 0.02 * 2**number for number, gap in enumerate(gaps, 1))
        assert not await run.answers()
        assert run.told == ["the observer has ended; it is started again (ESRCH)"]


async def test_it_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is told once to who asks, with the file that it failed for, and tried again."""
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nonexistent")
        made = Run()
        for _ in range(2):
            assert not await made.answers()
            made.observer._start()
    try:
        assert made.told == ["the observer was not started: /nonexistent: No such file or directory (ENOENT)"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.observer.run, lambda: None)
            await made.until_it_answers()
            nursery.cancel_scope.cancel()
    finally:
        made.observer.reap()
