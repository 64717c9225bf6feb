"""When it is looked at a server's place: as soon as something changes there, and not much without."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import monotonic_ns

import pytest
import trio

from tests.e2e.tools import LIMIT_S
from tests.proxy.conftest import IdleTap
from tests.proxy.site import Site, accepted, running
from udsproxy.proxy import listener as accept_loop
from udsproxy.proxy import vigil as module
from udsproxy.proxy.relay import Relay
from udsproxy.proxy.vigil import Vigil


class Looks:
    """Notes when it is looked, at what was there."""

    def __init__(self, path: Path, relay: Relay) -> None:
        self.path = path
        self.at: list[int] = []
        self.seen: list[bool] = []
        self.vigil = Vigil(str(path), relay, self.look)

    def look(self) -> None:
        self.at.append(monotonic_ns())
        self.seen.append(self.path.exists())

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(LIMIT_S):
            while not condition():
                await trio.sleep(0.001)


@pytest.fixture
async def looks(tmp_path: Path) -> AsyncIterator[Looks]:
    """At a file in a directory, neither of which is there; the relay runs."""
    relay = Relay(IdleTap())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        made = Looks(tmp_path / "run" / "server" / "s.sock", relay)
        yield made
        nursery.cancel_scope.cancel()
    made.vigil.close()
    relay.close()


async def test_it_comes_with_its_directories(looks: Looks) -> None:
    """Each step on the way to the file has it looked."""
    looks.vigil.keep(is_gone=True)
    looks.path.parent.parent.mkdir()
    await looks.until(lambda: bool(looks.at))
    looks.path.parent.mkdir()
    looks.path.touch()
    await looks.until(lambda: looks.seen[-1])


async def test_it_is_looked_again_and_again_for_a_while(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and then with pauses that grow with what has passed, to their end."""
    monkeypatch.setattr(module, "_LAST_NS", 2_000_000)
    looks.path.parent.mkdir(parents=True)
    looks.vigil.keep(is_gone=True)
    began = monotonic_ns()
    looks.path.touch()
    await looks.until(lambda: bool(looks.at) and looks.vigil._due is None)
    assert len(looks.at) == 26
    for number, (before, after) in enumerate(zip(looks.at, looks.at[1:], strict=False)):
        assert after - before > 0.9 * 200_000 * 1.1**number
    assert all(looks.seen)
    assert looks.at[0] > began
    count = len(looks.at)
    (looks.path.parent / "other").touch()
    await trio.sleep(0.01)
    assert len(looks.at) == count, "another file is none of its business"


async def test_attributes_are_looked_at_once(looks: Looks) -> None:
    """Of a file that is there, one change is one look, and no more."""
    looks.path.parent.mkdir(parents=True)
    looks.path.touch()
    looks.vigil.keep(is_gone=False)
    looks.path.chmod(0o600)
    await looks.until(lambda: len(looks.at) == 1)
    looks.path.chmod(0o640)
    await looks.until(lambda: len(looks.at) == 2)
    assert looks.vigil._due is None


async def test_a_directory_that_goes_and_comes_again(looks: Looks) -> None:
    """As that of a service whose directory goes with it."""
    looks.path.parent.mkdir(parents=True)
    looks.vigil.keep(is_gone=True)
    for _ in range(3):
        looks.path.touch()
        await looks.until(lambda: looks.seen[-1:] == [True])
        looks.path.unlink()
        looks.path.parent.rmdir()
        await looks.until(lambda: looks.seen[-1:] == [False])
        looks.path.parent.mkdir()


async def test_without_watches(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none is to be had it does nothing, and they are had as soon as they can be."""

    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    looks.path.parent.mkdir(parents=True)
    with monkeypatch.context() as short:
        short.setattr(module, "Watch", none_left)
        looks.vigil.keep(is_gone=True)
    looks.vigil.keep(is_gone=True)
    looks.path.touch()
    await looks.until(lambda: looks.seen[-1:] == [True])


# --- in a proxy ---


@pytest.fixture
def unpolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks now and then."""
    monkeypatch.setattr(accept_loop, "RETRY_GONE_S", 1e6)


@contextlib.contextmanager
def bound(site: Site) -> Iterator[socket.socket]:
    """A server that has made its file, and does not listen."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(site.upstream.path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(site.upstream.path)
        listener.setblocking(False)
        yield listener


async def until_it_says(site: Site, number: int) -> None:
    with trio.fail_after(LIMIT_S):
        while site.try_to_connect() != number:
            await trio.sleep(0.001)


@pytest.mark.usefixtures("unpolled")
async def test_a_server_that_comes_back(site: Site) -> None:
    """It is found by what the kernel tells, time and again, and gets its clients and nobody else."""
    site.serve().close()
    async with running(site.server()):
        for _ in range(10):
            with contextlib.suppress(AssertionError, ConnectionError), site.connect() as client:
                await client.recv(1)
            os.unlink(site.upstream.path)
            with bound(site) as listener:
                await trio.sleep(0.003)
                listener.listen()
                with trio.fail_after(LIMIT_S):
                    while site.try_to_connect():
                        await trio.sleep(0.001)
                    with await accepted(listener):
                        pass
                await trio.sleep(0.003)
                with pytest.raises(BlockingIOError):
                    listener.accept()
                listener.close()


async def test_a_server_that_takes_its_time(site: Site) -> None:
    """Between bind() and listen() clients are refused, as there, and the server is not disturbed."""
    async with running(site.server()):
        await until_it_says(site, errno.ENOENT)
        with bound(site) as listener:
            await until_it_says(site, errno.ECONNREFUSED)
            listener.listen()
            await until_it_says(site, 0)
            with await accepted(listener):
                pass
            await trio.sleep(0.01)
            with pytest.raises(BlockingIOError):
                listener.accept()
