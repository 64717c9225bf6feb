"""Containers: php-fpm in network, process and mount namespaces of its own and nginx outside, and the other way
round. All is as where both are outside.

Rules: namespaces are real (unshare(1), ip-netns(8)); what is told is compared with what the same burst comes to
without a proxy.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import pytest

from tests.e2e.proxy import Record, Running, StartProxy
from tests.e2e.site import Front, start_nginx, start_php_fpm
from tests.e2e.tap import File, StartTap
from tests.e2e.test_backlog import REFUSED
from tests.e2e.tools import UDSPROXY, program, read, receive_all, udsproxy, until
from tests.stage import REPOSITORY, Stage
from udsproxy.kernel.procfs import read_inner_pid, read_parent

WORKERS = BACKLOG = 2
BURST = 12
SERVED = WORKERS + BACKLOG + 1
ROOT = os.geteuid() == 0
# (Whoever is not root needs a user namespace for the others.)
_USER = [] if ROOT else ["--user", "--map-root-user"]
CONTAINER = ["unshare", *_USER, "--net", "--pid", "--mount", "--fork", "--kill-child"]
ROOTLESS = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--mount", "--fork", "--kill-child"]
COUNTED = 3
"""Requests that come when refusals are counted already."""
SLOW_S = 0.3
SLOW = ("--slow", f"{SLOW_S}s")
SEES_REFUSALS = os.access("/sys/kernel/tracing/instances", os.W_OK)


class Place(NamedTuple):
    """A path, and who is behind and before it."""

    path: str
    php_fpm: int
    """Of who started it: itself, or unshare."""
    nginx: Callable[[dict[str, str]], dict[str, Front]]


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of a network namespace in which 127.0.0.1 is up."""
    name = f"udsproxy-{os.getpid()}"
    subprocess.run([program("ip"), "netns", "add", name], check=True)
    try:
        subprocess.run([program("ip"), "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run([program("ip"), "netns", "delete", name], check=True)


@contextlib.contextmanager
def container(
    stage: Stage, path: str, backlog: int = BACKLOG, wrap: Sequence[str] = CONTAINER
) -> Iterator[subprocess.Popen[bytes]]:
    """php-fpm in one; killed at the end, all of it."""
    process = start_php_fpm(stage, path, f"listen.backlog = {backlog}", workers=WORKERS, wrap=wrap)
    try:
        yield process
    finally:
        process.kill()  # (unshare takes no other signal while it waits; what it has started dies with it)
        process.wait()


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def place(request: pytest.FixtureRequest, stage: Stage, stack: contextlib.ExitStack) -> Place:
    path = stage.path("run", "php.sock")
    if request.param == "nginx inside":
        name = request.getfixturevalue("netns")
        process = start_php_fpm(stage, path, f"listen.backlog = {BACKLOG}", workers=WORKERS)
        wrap = [program("ip"), "netns", "exec", name, "unshare", "--pid", "--fork", "--kill-child"]
        return Place(path, process.pid, lambda ups: start_nginx(stage, ups, wrap, f"/run/netns/{name}"))
    process = stack.enter_context(
        container(stage, path, wrap=CONTAINER if request.param == "php-fpm inside" else ROOTLESS)
    )
    return Place(path, process.pid, lambda ups: start_nginx(stage, ups))


def burst(place: Place, front: Front, hold: Callable[[], None] = lambda: None) -> Counter[int]:
    """A request for each worker, and when both are at work as many more as make it `BURST`: all wait at a gate. It
    opens when who finds no room has been refused, and ``hold`` has returned. How many got which status."""
    name, refused = f"{place.path}.{front.port}.{len(os.listdir(os.path.dirname(place.path)))}", read_refused(front)
    scripts = [f"/gate.php?started={name}.{number}&gate={name}" for number in range(BURST)]
    with contextlib.ExitStack() as stack:
        socks = []
        for number, script in enumerate(scripts):
            socks.append(stack.enter_context(front.begin(script, close=True)))
            if number < WORKERS:
                until(lambda number=number: os.path.exists(f"{name}.{number}"), "a worker to take it")  # type: ignore[misc]
        until(lambda: read_refused(front) - refused >= BURST - SERVED, "refusals")
        hold()
        open(name, "x").close()
        return Counter(int(receive_all(sock).split(b" ", 2)[1]) for sock in socks)


def read_refused(front: Front) -> int:
    return read(front.error_log).count(REFUSED)


def tell_story(place: Place, running: Running, front: Front) -> None:
    """The burst comes to the same as without udsproxy, and all of it is told."""
    workers = inner_pids(place)
    held: list[Record] = []

    def accepted() -> list[Record]:
        found = [event for event in running.events("slow") if not event["snapshot"].get("queued")]
        return found if len(found) >= 2 * WORKERS else []

    def hold() -> None:
        held.extend(until(accepted, "what the workers do, seen twice"))
        for _ in range(COUNTED):
            with front.begin("/hello.php", close=True) as sock:
                assert receive_all(sock).split(b" ", 2)[1] == b"502"

    assert burst(place, front, hold) == {200: SERVED, 502: BURST - SERVED}
    for event in held:
        worker = event["snapshot"]["worker"]
        assert workers[worker["pid"]] == worker.get("inner_pid")
    [over, *_] = running.wait_for("incident", phase="close")
    assert (over["queue"], over["backlog"]) == (BACKLOG + 1, BACKLOG)
    assert over["workers"] == over["busy"] == WORKERS
    assert f"{WORKERS} of {WORKERS} workers busy" in over["what"]
    if SEES_REFUSALS:
        assert over["refused"] == COUNTED + BURST - SERVED
    requests = running.wait_for("request", count=SERVED, status=200)
    assert sum(event["accept_wait_s"] > SLOW_S for event in requests) == BACKLOG + 1
    assert not running.events("proxy_error")


def inner_pids(place: Place) -> dict[int, int | None]:
    """Of all that runs in php-fpm's container, or of php-fpm."""
    parents = {int(name): read_parent(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    found = {place.php_fpm}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: read_inner_pid(pid) for pid in found}


@pytest.mark.parametrize("place", ["php-fpm inside", "nginx inside"], indirect=True)
def test_run(place: Place, stage: Stage, start_proxy: StartProxy) -> None:
    """The same number of EAGAINs, for the same reason; who waited, for how long, and the workers by both pids."""
    proxy = start_proxy(stage.path("p.sock"), place.path, *SLOW)
    fronts = place.nginx({"direct": place.path, "proxied": proxy.socket})
    assert burst(place, fronts["direct"]) == {200: SERVED, 502: BURST - SERVED}
    tell_story(place, proxy, fronts["proxied"])


@pytest.mark.parametrize("place", ["php-fpm inside", "php-fpm rootless", "nginx inside"], indirect=True)
def test_tap(place: Place, start_tap: StartTap) -> None:
    """The same, in place; at the end the server's file is at the path."""
    [front] = place.nginx({"direct": place.path}).values()
    assert burst(place, front) == {200: SERVED, 502: BURST - SERVED}
    file = File.at(place.path)
    tap = start_tap(place.path, *SLOW)
    tell_story(place, tap, front)
    tap.end()
    assert File.at(place.path) == file


def test_state_and_doctor(stage: Stage, stack: contextlib.ExitStack) -> None:
    """Both tell of a container's socket as of any other, and that it is a container's."""
    path = stage.path("run", "php.sock")
    process = stack.enter_context(container(stage, path))
    number = os.stat(f"/proc/{process.pid}/ns/net").st_ino
    workers = inner_pids(Place(path, process.pid, lambda _: {}))
    del workers[process.pid]

    def state() -> str:
        return udsproxy("state", path).stdout.decode()

    until(lambda: "2 of them waiting for a connection" in state(), "idle workers")
    text = state()
    assert f"network namespace: {number}, not ours" in text
    assert "queue: 0 of 3 (backlog 2)" in text
    for pid, inner in workers.items():
        assert f"{pid} ({inner} in its container)  php-fpm" in text
    [line] = [line for line in udsproxy("state").stdout.decode().splitlines() if path in line]
    assert line.endswith(f"{path}  (network namespace {number})")
    done = udsproxy("doctor", path)
    assert done.returncode == 0, done.stdout
    assert f"its server is in another network namespace ({number})".encode() in done.stdout
    assert b"ECONNREFUSED" not in done.stdout


@pytest.mark.parametrize("command", ["run", "tap"])
def test_a_server_that_is_started_anew(
    stage: Stage, start_tap: StartTap, start_proxy: StartProxy, command: str
) -> None:
    """The next container has another network namespace, and its server is found there."""
    path = stage.path("run", "php.sock")
    running: Running
    with container(stage, path, BACKLOG):
        running = start_tap(path) if command == "tap" else start_proxy(stage.path("p.sock"), path)
        assert running.wait_for("listening")[0]["backlog"] == BACKLOG
        held = running.descriptors
    # (Who keeps a socket in its namespace keeps that.)
    until(lambda: running.descriptors < held, "the container to be let go")
    with socket.socket(socket.AF_UNIX) as client:  # (`run` learns by that)
        client.connect_ex(running.socket)
    running.wait_for("upstream_error", op="connect")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with container(stage, path, BACKLOG + 3):
        running.wait_for("listening", backlog=BACKLOG + 3)
        assert not running.events("proxy_error")
        running.end()


def test_without_the_right(stage: Stage, start_proxy: StartProxy, stack: contextlib.ExitStack) -> None:
    """Who may not enter the namespace is told so, by each command; `run` forwards all the same, and the server gets
    no connection that nobody asked for."""
    path = stage.path("run", "php.sock")
    stack.enter_context(container(stage, path))
    drop = [program("setpriv"), "--bounding-set=-sys_admin,-sys_ptrace,-net_admin", "--"] if ROOT else []
    for command, code in (("state", 0), ("doctor", 0), ("tap", 4)):
        done = subprocess.run(
            [*drop, *UDSPROXY, command, path], capture_output=True, cwd=REPOSITORY, timeout=60, check=False
        )
        assert done.returncode == code, done
        assert b"another network namespace (a container)" in done.stdout + done.stderr
        assert b"root" in done.stdout + done.stderr
    proxy = start_proxy(stage.path("p.sock"), path, wrap=drop)
    [error] = proxy.wait_for("proxy_error", op="sock_diag")
    assert "another network namespace" in error["message"]
    [front] = start_nginx(stage, {"proxied": proxy.socket}).values()
    assert front.fetch("/hello.php").status == 200
