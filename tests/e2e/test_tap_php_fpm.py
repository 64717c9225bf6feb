"""``udsproxy tap`` between nginx and php-fpm, under load all the time: taps that come and go, that are killed, and
a php-fpm that is restarted, reloaded and killed while it is tapped.

Rule: how often each is done is a constant; an environment variable of that name (UDSPROXY_TAP_CYCLES, ..._KILLS,
..._RESTARTS) raises it for a longer run.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time

import pytest

from tests.e2e.site import Front, error_lines, run_php_fpm, start_nginx, start_php_fpm
from tests.e2e.tap import StartTap, Tap, beside
from tests.e2e.tools import LIMIT_S, program, read, until
from tests.stage import Stage

CYCLES = int(os.environ.get("UDSPROXY_TAP_CYCLES", "10"))
KILLS = int(os.environ.get("UDSPROXY_TAP_KILLS", "5"))
RESTARTS = int(os.environ.get("UDSPROXY_TAP_RESTARTS", "3"))

CLIENTS = 16
ROUNDS = 5
"""How often each client asks again, before it is looked whether requests still fail."""

# nginx goes on with a request of /patient/ when wrk leaves: the end of the load is no error.
PAGE = "/patient/brief.php"
CODE = '<?php usleep(2000); echo "brief\\n";'
"""Waits, so that php-fpm's workers are busy, and not the machine: half of the clients are in its queue."""


class Load:
    """wrk, which asks an nginx for a page all the time. It looks for nothing but its own requests."""

    def __init__(self, stage: Stage, front: Front) -> None:
        self._output = stage.path("wrk", "output")
        url = f"http://127.0.0.1:{front.port}{PAGE}"
        argv = [program("wrk"), "-c", str(CLIENTS), "-t", "2", "-d", "1h", "--timeout", f"{LIMIT_S:.0f}s", url]
        self._wrk = stage.spawn("wrk", argv, self._output)
        until(lambda: f'"uri":"{PAGE}"' in read(front.access_log), "the first page")

    def end(self) -> str:
        """End it. Returns what it has to say."""
        self._wrk.send_signal(signal.SIGINT)
        assert self._wrk.wait(LIMIT_S) == 0
        return read(self._output)


class Web:
    """A php-fpm, whose socket is alone in its directory, and an nginx that asks it."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.socket = stage.path("run", "php.sock")
        self._php_fpm = start_php_fpm(stage, self.socket)
        self._pages = 0
        self.front = start_nginx(stage, {"site": self.socket})["site"]
        stage.write(CODE, "www", os.path.basename(PAGE))
        self.load = Load(stage, self.front)

    @property
    def php_log(self) -> str:
        return read(self._stage.path("php", "log"))

    def requests(self) -> int:
        """Requests so far."""
        return read(self.front.access_log).count("\n")

    def failures(self) -> int:
        """Requests so far that were not answered as they should be."""
        accesses = read(self.front.access_log)
        return accesses.count("\n") - accesses.count('"status":"200"')

    def page(self) -> str:
        """The URI of a page that nobody has asked for."""
        self._pages += 1
        return f"{PAGE}?id={self._pages}"

    # --- what an administrator does to php-fpm ---

    def restart(self) -> None:
        """The orderly way."""
        self._php_fpm.send_signal(signal.SIGQUIT)
        self._php_fpm.wait(LIMIT_S)
        self._start()

    def reload(self) -> None:
        """It executes itself anew, and keeps its socket."""
        ready = self._times_ready()
        self._php_fpm.send_signal(signal.SIGUSR2)
        until(lambda: self._times_ready() > ready, "php-fpm to have reloaded")

    def kill(self) -> None:
        """It leaves its path; then it is started again."""
        os.killpg(self._php_fpm.pid, signal.SIGKILL)
        self._php_fpm.wait(LIMIT_S)
        self._start()

    def _start(self) -> None:
        conf, log = self._stage.path("php", "fpm.conf"), self._stage.path("php", "log")
        self._php_fpm = run_php_fpm(self._stage, conf, self.socket, log)

    def _times_ready(self) -> int:
        return self.php_log.count("ready to handle connections")


@pytest.fixture
def web(stage: Stage) -> Web:
    """All of it, under load."""
    return Web(stage)


def await_page(web: Web, tap: Tap | None) -> None:
    """Until a page is served; and where there is a tap, until that shows it."""
    uri, offset = web.page(), 0 if tap is None else os.path.getsize(tap.log)

    def served() -> bool:
        if web.front.fetch(uri).status != 200:
            return False
        return tap is None or f'"uri":"{uri}"'.encode() in read_from(tap.log, offset)

    until(served, f"a page of php-fpm{'' if tap is None else ' that the tap shows'}")


def await_requests(web: Web, count: int) -> None:
    """Until so many more requests have been answered."""
    enough = web.requests() + count
    until(lambda: web.requests() >= enough, f"{count} requests")


def read_from(path: str, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read()


def test_taps_that_come_and_go(web: Web, start_tap: StartTap) -> None:
    """Not one request fails while taps take php-fpm's place and give it back, again and again."""
    before = beside(web.socket)
    for _ in range(CYCLES):
        tap = start_tap(web.socket)
        await_page(web, tap)
        assert tap.stop() == 0
        assert beside(web.socket) == before
    said = web.load.end()
    print(f"{CYCLES} taps: {web.failures()} of {web.requests()} requests failed")
    assert re.search(r"Requests/sec: +[1-9]", said)
    assert "Non-2xx" not in said
    assert "Socket errors" not in said
    assert web.failures() == 0
    assert read(web.front.error_log) == ""


def test_taps_that_are_killed(web: Web, start_tap: StartTap) -> None:
    """When the proxy is killed under load php-fpm has its path back, and from then on no request fails: only those
    that were in flight, and those that came until then. (How many that is depends on how quickly they fail.)"""
    before, failed = beside(web.socket), 0
    for number in range(KILLS):
        tap = start_tap(web.socket)
        await_page(web, tap)
        time.sleep(random.uniform(0, 0.3))  # a kill comes at any moment
        killed = time.monotonic()
        tap.signal(signal.SIGKILL)
        until(lambda: beside(web.socket) == before, "php-fpm's path to be given back")
        took_s = time.monotonic() - killed
        tap.kill()
        tap.await_restored()
        await_requests(web, ROUNDS * CLIENTS)  # those that began before are logged
        before_it, failed = failed, web.failures()
        print(f"kill {number + 1}: path back within {took_s * 1e3:.0f} ms, {failed - before_it} requests failed")
        await_requests(web, ROUNDS * CLIENTS)
        assert web.failures() == failed


def kinds(front: Front) -> set[str]:
    """What nginx has complained of. With what call it notices that a connection is lost under way is chance."""
    lines = [line.partition(", client: ")[0] for line in error_lines(front)]
    return {re.sub(r"(send|recv|writev|readv)\(\) failed \((32|104): .*", "lost", line) for line in lines}


def test_what_is_done_to_php_fpm_under_a_tap(web: Web, start_tap: StartTap) -> None:
    """A php-fpm that is restarted, reloaded, or killed and started comes up as without a tap, and is tapped again;
    nginx logs no error that it does not log without a tap."""

    def go_through_it(tap: Tap | None) -> set[str]:
        for action in (web.restart, web.reload, web.kill):
            for _ in range(RESTARTS):
                action()
                await_page(web, tap)
        return kinds(web.front)

    without = go_through_it(None)
    os.truncate(web.front.error_log, 0)
    tap = start_tap(web.socket)
    with_tap = go_through_it(tap)
    assert tap.stop() == 0
    assert beside(web.socket).keys() == {"php.sock"}
    print(f"nginx without a tap: {sorted(without)}; with a tap: {sorted(with_tap)}")
    assert "Another FPM instance" not in web.php_log
    assert with_tap <= without
