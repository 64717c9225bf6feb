"""SIGSTOP of the proxy, its guardian, its observer and the server, in each order, under load: no request fails, and
while the server runs the path answers within 1.5 s of a stopped proxy.

Rules: nobody can put the path back while the guardian stands still, and nobody answers while the server does: then
clients wait, as they do without a tap. All four go on in the order in which they were stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence

from tests.e2e.load import Load
from tests.e2e.tap import File, StartTap, Tap, aside_of, beside
from tests.e2e.tools import read, until
from tests.stage import Stage
from udsproxy.kernel.procfs import read_parent

ORDERS = int(os.environ.get("UDSPROXY_STANDSTILLS", "3"))
"""How many of the 24 orders."""
BACK_S = 1.5
"""How soon the path answers when the proxy is stopped."""
STANDS_S = 1.2
"""How long all stand still: longer than what the guardian takes to see it."""
WHO = ("proxy", "guardian", "observer", "server")

ECHO_SERVER = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads, request_queue_size = True, 64
Server(sys.argv[1], Echo).serve_forever()
"""


def processes(tap: Tap, server: int) -> dict[str, int]:
    """Who can be stopped, as soon as all are there."""
    children = [int(name) for name in os.listdir("/proc") if name.isdigit() and read_parent(int(name)) == tap.pid]
    observers = [pid for pid in children if "udsproxy.inspection.observer" in read(f"/proc/{pid}/cmdline")]
    guardians = tap.guardians()
    if len(observers) != 1 or len(guardians) != 1:
        return {}
    return {"proxy": tap.pid, "guardian": guardians.pop(), "observer": observers[0], "server": server}


def state_of(pid: int) -> str:
    return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state_of(pid) == "T", "it to stop")


def await_answer(path: str, what: str) -> float:
    """How long it takes until a new client is answered. (Those of the load may wait in the tap.)"""
    began = time.monotonic()

    def answers() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(0.2)
            with contextlib.suppress(TimeoutError, BlockingIOError):
                sock.connect(path)
                sock.sendall(b"x")
                return sock.recv(1) == b"x"
        return False

    until(answers, what)
    return time.monotonic() - began


def stand_still(path: str, pids: dict[str, int], order: Sequence[str]) -> str:
    """Stop them, and let them go on. Returns what was seen, for people."""
    told = list[str]()
    for place, who in enumerate(order):
        stopped = order[:place]
        stop(pids[who])
        if "server" in (*stopped, who) or ("proxy" in (*stopped, who) and "guardian" in stopped):
            told.append(f"{who}: -")
            continue
        took_s = await_answer(path, f"an answer with {', '.join((*stopped, who))} stopped")
        told.append(f"{who}: answers after {took_s:.2f} s")
        assert who != "proxy" or took_s < BACK_S, told
    time.sleep(STANDS_S)
    for who in order:
        os.kill(pids[who], signal.SIGCONT)
    await_answer(path, "an answer when all go on")
    return ", ".join(told)


def test_whoever_stands_still(stage: Stage, start_tap: StartTap) -> None:
    """Each order, one after the other, of the same tap; at the end all is as it was."""
    path = stage.path("run", "s.sock")
    server = stage.spawn("echo", [sys.executable, "-c", ECHO_SERVER, path], stage.path("echo.out")).pid
    stage.await_socket(path)
    first, *orders = itertools.permutations(WHO)
    random.Random(ORDERS).shuffle(orders)
    before = beside(path)
    tap = start_tap(path)
    with Load(path) as load:
        for order in [first, *orders][:ORDERS]:
            pids = until(lambda: processes(tap, server), "the guardian and the observer")
            began = time.monotonic()
            told = stand_still(path, pids, order)
            until(lambda: is_standing(path, before["s.sock"]), "the tap to take the path again")
            tap.await_seen()
            print(f"{told}; the longest request {load.longest(began):.2f} s of {time.monotonic() - began:.2f} s")
    assert not load.failures
    assert tap.stop() == 0
    assert beside(path) == before


def is_standing(path: str, real: File) -> bool:
    return os.path.lexists(aside_of(path)) and File.at(aside_of(path)) == real
