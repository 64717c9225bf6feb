"""A pool that stalls and recovers under waves of clients, with and without the proxy: as many are refused.

The same schedule of arrivals and stalls is played on both. The pool is stopped and let go on by signals.
"""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import time
from collections import Counter

from tests.e2e.proxy import StartProxy
from tests.e2e.tools import UDSPROXY
from tests.stage import Stage
from udsproxy import endpoints
from udsproxy.endpoints import UnixPath
from udsproxy.events import errno_name
from udsproxy.protocols import fastcgi as wire

CLIENTS = 2000
REQUEST = wire.encode_request({b"REQUEST_METHOD": b"GET", b"REQUEST_URI": b"/wave"})

Schedule = list[tuple[float, str]]
"""When (s), and what: a client comes, the pool stops, it goes on."""


def make_schedule(seed: int) -> Schedule:
    chance = random.Random(seed)
    at, comes = 0.0, Schedule()
    while len(comes) < CLIENTS:
        apart = chance.choice([0.0005, 0.001, 0.002])
        for _ in range(chance.randint(5, 60)):
            comes.append((at, "client"))
            at += apart
        at += chance.random() * 0.05
    schedule, stall = comes[:CLIENTS], 0.2
    while stall < at:
        end = stall + chance.uniform(0.02, 0.15)
        schedule += [(stall, "stop"), (end, "go on")]
        stall = end + chance.uniform(0.1, 0.5)
    return sorted(schedule)


def play(schedule: Schedule, path: str, pool: int) -> Counter[str]:
    """What the clients' connect() came to: the errno's name, or ``answered`` where an answer came too."""
    came_to: Counter[str] = Counter()
    began, turn = time.monotonic(), 0
    with selectors.DefaultSelector() as selector:
        while turn < len(schedule) or selector.get_map():
            now = time.monotonic() - began
            if turn < len(schedule) and schedule[turn][0] <= now:
                what = schedule[turn][1]
                turn += 1
                if what != "client":
                    os.killpg(pool, signal.SIGSTOP if what == "stop" else signal.SIGCONT)
                    continue
                sock = endpoints.unix_socket()
                if failed := endpoints.connect(sock, UnixPath(path)):
                    came_to[errno_name(failed)] += 1
                    sock.close()
                else:
                    sock.send(REQUEST)
                    selector.register(sock, selectors.EVENT_READ, b"")
            wait = schedule[turn][0] - now if turn < len(schedule) else 1.0
            for key, _ in selector.select(max(0.0, min(wait, 0.001))):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                data = client.recv(65536)
                if data:
                    selector.modify(client, selectors.EVENT_READ, data)
                else:
                    came_to["answered" if key.data else "no answer"] += 1
                    selector.unregister(client)
                    client.close()
    os.killpg(pool, signal.SIGCONT)
    return came_to


def test_waves_on_a_pool_that_stalls(stage: Stage, start_proxy: StartProxy) -> None:
    """Of 2,000 clients, those who get EAGAIN directly and through the proxy differ by no more than 2 % of the
    clients; all others are answered."""
    path = stage.path("pool.sock")
    options = ["--workers", "8", "--backlog", "16", "--delay", "10ms"]
    pool = stage.spawn("pool", [*UDSPROXY, "serve", path, *options], stage.path("pool.out"))
    stage.await_socket(path)
    proxy = start_proxy(stage.path("p.sock"), path)
    schedule = make_schedule(1)
    direct, proxied = (play(schedule, each, pool.pid) for each in (path, proxy.socket))
    for came_to in (direct, proxied):
        assert set(came_to) == {"answered", "EAGAIN"}
        assert came_to.total() == CLIENTS
    assert abs(direct["EAGAIN"] - proxied["EAGAIN"]) <= 0.02 * CLIENTS, (direct, proxied)
