"""Where the time went: what workers wait for is named rightly, and a pile-up is told as one incident.

Rules: nginx, php-fpm, and what the scripts wait for, are real; the database is a listener of the test's own. What
depends on the machine's speed is told (``pytest -s``), and has a limit that an environment variable sets.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.proxy import Proxy, Record, StartProxy
from tests.e2e.site import Front, start_nginx, start_php_fpm
from tests.e2e.tools import LIMIT_S, read, receive_all, until
from tests.stage import Stage

SLOW = ("--slow", "200ms")


class Database:
    """Answers each connection with a byte: at once, or when it stalls no longer."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._answers = threading.Event()
        self._answers.set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # who is in accept() does not notice a close()
        self._thread.join(LIMIT_S)
        self._listener.close()

    def stall(self) -> None:
        self._answers.clear()

    def go_on(self) -> None:
        self._answers.set()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        self._answers.wait(LIMIT_S)
        with connection:
            connection.sendall(b"x")


@pytest.fixture
def database() -> Iterator[Database]:
    with Database() as made:
        yield made


class Place:
    """nginx, a proxy, php-fpm."""

    def __init__(
        self,
        stage: Stage,
        start_proxy: StartProxy,
        *options: str,
        workers: int,
        backlog: int,
    ) -> None:
        upstream = stage.path("php.sock")
        start_php_fpm(stage, upstream, f"listen.backlog = {backlog}", workers=workers)
        self.proxy: Proxy = start_proxy(stage.path("p.sock"), upstream, *options)
        self.front: Front = start_nginx(stage, {"proxied": self.proxy.socket})["proxied"]

    def slow(self, uri: str, release: Callable[[], object]) -> tuple[Record, Record]:
        """The first event of a slow request that says since when it was so; then, released, its own."""
        with ThreadPoolExecutor() as pool:
            page = pool.submit(self.front.fetch, uri)
            try:
                found = self.proxy.wait_for("slow", uri=uri)[0]
            finally:
                release()
            assert page.result().status == 200
        [request] = self.proxy.wait_for("request", uri=uri)
        return found, request


@pytest.fixture
def place(stage: Stage, start_proxy: StartProxy) -> Place:
    return Place(stage, start_proxy, *SLOW, workers=4, backlog=20)


def is_of(snapshot: Record, uri: str, event: Record) -> None:
    """The snapshot is the worker's, and the request has it too."""
    assert snapshot["worker"]["comm"].startswith("php-fpm")
    assert event["uri"] == uri
    assert event["slow"][0]["doing"] == snapshot["doing"]
    assert event["accept_wait_s"] < event["ttfb_s"] <= event["total_s"]
    assert event["transfer_s"] == pytest.approx(event["total_s"] - event["ttfb_s"], abs=1e-6)


def test_a_stalled_database(place: Place, database: Database) -> None:
    """A script that waits for a TCP connection's answer: its address, and the process at the other end."""
    database.stall()
    uri = f"/database.php?at={database.address}"
    found, event = place.slow(uri, database.go_on)
    is_of(found["snapshot"], uri, event)
    doing = found["snapshot"]["doing"]
    assert (doing["what"], doing["on"]) == ("socket", f"tcp {database.address}")
    assert f"pid {os.getpid()}" in doing["who"]
    host, port = doing["local"].rsplit(":", 1)
    assert (host, int(port)) == (database.address.rsplit(":", 1)[0], int(port))


def test_a_locked_file(place: Place, tmp_path: Path) -> None:
    """A script that waits for a lock: the file, and who holds it."""
    file = tmp_path / "lock"
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        uri = f"/locked.php?file={file}"
        found, event = place.slow(uri, lambda: fcntl.flock(held, fcntl.LOCK_UN))
    is_of(found["snapshot"], uri, event)
    doing = found["snapshot"]["doing"]
    assert (doing["what"], doing["call"], doing["on"]) == ("lock", "flock", str(file))
    assert f"pid {os.getpid()}" in doing["who"]


def test_a_computation(place: Place, tmp_path: Path) -> None:
    """A script that computes: it runs."""
    done = tmp_path / "done"
    uri = f"/compute.php?until={done}"
    found, event = place.slow(uri, done.touch)
    is_of(found["snapshot"], uri, event)
    assert found["snapshot"]["doing"]["what"] == "cpu"


def test_a_sleep(place: Place) -> None:
    """A script that sleeps."""
    found, event = place.slow("/sleep.php", lambda: None)
    is_of(found["snapshot"], "/sleep.php", event)
    assert found["snapshot"]["doing"]["what"] == "sleep"


def test_nobody_has_accepted(place: Place, database: Database) -> None:
    """A request that waits in the accept queue has no worker, and says so; once answered, its wait is known."""
    database.stall()
    uri = f"/database.php?at={database.address}"
    socks = [place.front.begin(uri, close=True) for _ in range(4)]
    until(lambda: len(place.proxy.events("open")) == 4, "four requests")
    last = place.front.begin("/hello.php", close=True)
    queued = place.proxy.wait_for("slow", uri="/hello.php")[0]
    assert queued["snapshot"]["queued"]
    assert "worker" not in queued["snapshot"]
    database.go_on()
    for sock in [*socks, last]:
        with sock:
            assert receive_all(sock).startswith(b"HTTP/1.1 200")
    [event] = place.proxy.wait_for("request", uri="/hello.php")
    assert event["accept_wait_s"] > 0.1
    # (The one counts from connect(), the other from when the request was read, which may be a little later.)
    assert event["ttfb_s"] > 0.1
    assert place.proxy.wait_for("accepted", conn=event["conn"])[0]["accept_wait_s"] > 0.1
    first = place.proxy.wait_for("accepted", conn=1)[0]
    assert first["worker"]["comm"].startswith("php-fpm")


def test_one_clock(stage: Stage, start_proxy: StartProxy, database: Database) -> None:
    """A request that waits in our own queue is told of there, by the number that its connection will have; once
    accepted it is as old as its client's connect(), and so it is when it ends."""
    place = Place(stage, start_proxy, *SLOW, workers=1, backlog=2)
    database.stall()
    first = place.front.begin(f"/database.php?at={database.address}", close=True)
    place.proxy.wait_for("open")
    second = place.front.begin("/sleep.php", close=True)
    queued = place.proxy.wait_for("slow", count=2, request=None, uri=None)[1]
    assert queued["snapshot"]["queued"]
    assert queued["snapshot"]["at_s"] >= 0.4
    database.go_on()
    for sock in (first, second):
        with sock:
            assert receive_all(sock).startswith(b"HTTP/1.1 200")
    [request] = place.proxy.wait_for("request", uri="/sleep.php")
    assert request["conn"] == queued["conn"]
    assert request["accept_wait_s"] + request["accept_error_s"] >= 0.4
    assert request["total_s"] >= request["accept_wait_s"] + 1.5
    for slow in place.proxy.events("slow", uri="/sleep.php"):
        waited_s = request["accept_wait_s"] - request["accept_error_s"]
        assert waited_s <= slow["snapshot"]["at_s"] <= request["total_s"]
        assert slow["snapshot"]["accept_wait_s"] == pytest.approx(request["accept_wait_s"], abs=0.05)


def test_a_worker_for_a_client_that_has_left(stage: Stage, start_proxy: StartProxy, database: Database) -> None:
    """A client leaves before its answer, while another waits: one worker of one works for somebody who has left."""
    place = Place(stage, start_proxy, workers=1, backlog=2)
    database.stall()
    uri = f"/database.php?at={database.address}"
    with place.front.begin(uri):
        place.proxy.wait_for("open")
    place.proxy.wait_for("request", uri=uri, incomplete="client left")
    with place.front.begin("/hello.php", close=True) as second:
        opened = place.proxy.wait_for("incident", phase="open")[0]
        database.go_on()
        assert receive_all(second).startswith(b"HTTP/1.1 200")
    assert (opened["busy"], opened["workers"], opened["gone_running"]) == (1, 1, 1)
    assert "1 of them for clients that have left" in opened["what"]


# --- the whole story ---

LATE_S = float(os.environ.get("UDSPROXY_LATE_S", "1"))
"""A machine that is busy with something else may be so late to see it begin. On one that is not, 0.1 s."""
WORKERS = BACKLOG = 8
APART_S = 0.01
STALL_S = 3.0


def load(front: Front, uri: str, stop: threading.Event) -> list[socket.socket]:
    """A request every so long, until told to stop. (The arrivals are the experiment.)"""
    socks = []
    at = time.monotonic()
    while not stop.is_set():
        socks.append(front.begin(uri, close=True))
        at += APART_S
        time.sleep(max(0.0, at - time.monotonic()))
    return socks


def test_the_whole_story(stage: Stage, start_proxy: StartProxy, database: Database) -> None:
    """A database stalls for three seconds under a steady load: one incident, which names its address, begins when
    the stall does, and counts as many EAGAINs as nginx logs."""
    place = Place(stage, start_proxy, workers=WORKERS, backlog=BACKLOG)
    uri, stop = f"/database.php?at={database.address}", threading.Event()
    with ThreadPoolExecutor() as pool:
        running = pool.submit(load, place.front, uri, stop)
        place.proxy.wait_for("request", count=50)
        stalled_at = time.time()
        database.stall()
        time.sleep(STALL_S)  # the stall is the experiment
        database.go_on()
        stop.set()
        for sock in running.result():
            with sock:
                receive_all(sock)
    over = place.proxy.wait_for("incident", phase="close")[0]
    opened, closed = place.proxy.events("incident")
    assert (opened["phase"], closed) == ("open", over)
    assert opened["what"] != closed["what"]
    for incident in (opened, closed):
        assert f"tcp {database.address}" in incident["what"]
        assert f"{WORKERS} of {WORKERS} workers busy" in incident["what"]
        began_at = datetime.fromisoformat(incident["since"]).timestamp()
        assert abs(began_at - stalled_at) < LATE_S
    assert over["queue"] == BACKLOG + 1
    assert over["slowest"]["script"] == over["began_with"]["script"] == "/database.php"
    assert over["slowest"]["age_s"] > STALL_S / 2
    refused = len(re.findall(r"failed \(11: ", read(place.front.error_log)))
    assert refused > 0
    if os.geteuid() == 0:
        assert over["refused"] == refused
    else:
        assert "refused" not in over
        assert "EAGAINs are not counted" in over["unseen"]
    late = f"{(began_at - stalled_at) * 1e3:.0f} ms after the stall"
    print(f"\n{over['what']}\nbegan {late}; nginx has logged error 11 {refused} times")
