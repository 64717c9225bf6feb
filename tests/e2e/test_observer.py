"""The observer, the process that looks at workers, is killed, alone and with its proxy: it comes back, or leaves
nothing.

Rules: it looks because a queue is full, and that has it count refusals, which takes root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.tools import connect, read, until
from tests.stage import Stage
from tests.tracing import traces

ROOT = os.geteuid() == 0


def observer_of(proxy: Proxy) -> int:
    """Its pid; 0: there is none. (A child belongs to the thread that has started it.)"""
    with contextlib.suppress(FileNotFoundError):
        for thread in os.listdir(f"/proc/{proxy.pid}/task"):
            for pid in read(f"/proc/{proxy.pid}/task/{thread}/children").split():
                return int(pid)
    return 0


def is_at_work(pid: int) -> bool:
    """It counts; or, without the right to, it is there."""
    return traces(pid) if ROOT else bool(pid)


@pytest.fixture
def crowded(stage: Stage, start_proxy: StartProxy) -> Iterator[Proxy]:
    """A proxy of a server that has a full queue."""
    upstream = stage.path("server.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(upstream)
        listener.listen(0)
        proxy = start_proxy(stage.path("p.sock"), upstream, "--incident", "50ms")
        with connect(proxy.socket):
            yield proxy


def test_killed_observer_comes_back(crowded: Proxy) -> None:
    """Another takes its place, and counts; what was lost is told."""
    first = until(lambda: observer_of(crowded), "an observer")
    until(lambda: is_at_work(first), "it to count")
    os.kill(first, signal.SIGKILL)
    assert "it is started again" in crowded.wait_for("proxy_error", op="observe")[0]["message"]
    second = until(lambda: (pid := observer_of(crowded)) not in (0, first) and pid, "another observer")
    until(lambda: is_at_work(second), "it to count")
    assert not traces(first)


@pytest.mark.parametrize("order", ["the proxy", "both", "the observer first"])
def test_nothing_is_left_of_who_was_killed(crowded: Proxy, order: str) -> None:
    """Proxy and observer are killed while the kernel traces for them: it does so no longer."""
    observer = until(lambda: observer_of(crowded), "an observer")
    until(lambda: is_at_work(observer), "it to count")
    victims = {"the proxy": [crowded.pid], "both": [crowded.pid, observer]}.get(order, [observer, crowded.pid])
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    crowded.wait()
    until(lambda: not os.path.exists(f"/proc/{observer}"), "the observer's end")
    assert not traces(observer)
