"""What `state` and `doctor` say of a path where a udsproxy listens: they go through it to the server behind.

Rule: the commands are called in this process, which takes a tenth of the time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.proxy import Running, StartProxy
from tests.e2e.site import start_php_fpm
from tests.e2e.tap import StartTap, aside_of
from tests.e2e.tools import EchoServer, called, connect, program, read, until
from tests.stage import Stage
from udsproxy.cli.common import Failure
from udsproxy.cli.doctor import doctor as doctor_command
from udsproxy.cli.state import state as state_command

POOL = ("listen.backlog = 5", "pm.max_requests = 1000", "request_terminate_timeout = 30s")


@pytest.fixture
def served(stage: Stage) -> Iterator[str]:
    """Of a socket with an echo server."""
    path = stage.path("server", "s.sock")
    with EchoServer(path):
        yield path


def look(path: str) -> dict[str, Any]:
    """The report of ``state --json``, whatever the exit code."""
    report: dict[str, Any] = json.loads(called(state_command, path, json=True)[1])
    return report


def hops(path: str) -> list[tuple[str, str, int, str]]:
    """Kind, path, pid and target of each udsproxy on the way."""
    return [(each["kind"], each["path"], each["process"]["pid"], each["to"]) for each in look(path)["forwarding"]]


def examine(path: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(called(doctor_command, path, json=True)[1])
    return report


def titles(path: str, *levels: str) -> list[str]:
    return [each["title"] for each in examine(path)["findings"] if each["level"] in levels]


def test_a_pool_behind_a_run(stage: Stage, start_proxy: StartProxy) -> None:
    """Its queue, its workers and its backlog are what is told and judged; a worker is named, and udsproxy."""
    path, front = stage.path("php.sock"), stage.path("front.sock")
    php_fpm = start_php_fpm(stage, path, *POOL, workers=2)
    proxy = start_proxy(front, path)
    name = read(f"/proc/{php_fpm.pid}/comm").strip()

    def at_rest() -> bool:
        return called(state_command, front)[1].count("accept() on") == 2

    until(at_rest, "both workers to wait")
    text = called(state_command, front)[1]
    assert text.splitlines()[1] == f"  udsproxy run, pid {proxy.pid}, forwards to {path}"
    assert f"\n{path}  stream, listening" in text
    assert "queue: 0 of 6 (backlog 5)" in text
    assert "processes: 3, 2 of them waiting for a connection" in text
    report = examine(front)
    facts = report["facts"]
    assert (facts["backlog"], facts["pool"]["name"], facts["php_fpm"]) == (5, "e2e", php_fpm.pid)
    assert {each["comm"] for each in facts["servers"]} == {name}
    assert f"udsproxy run, pid {proxy.pid}, forwards to {path}" in titles(front, "note")
    assert titles(front, "problem") == []
    stage.write(read(stage.path("php", "fpm.conf")).replace("backlog = 5", "backlog = 9"), "php", "fpm.conf")
    assert "listen.backlog = 9 is not in force: the kernel has 5" in titles(front, "problem")


def test_chains(stage: Stage, served: str, start_proxy: StartProxy, start_tap: StartTap) -> None:
    """A run behind a run, a tap over a run, a run of a tapped path: each is named in its order, and the server."""
    one, two = stage.path("one.sock"), stage.path("two.sock")
    first = start_proxy(one, served)
    second = start_proxy(f"unix:{two},mode=600", one)
    assert hops(two) == [("run", two, second.pid, one), ("run", one, first.pid, served)]
    server = start_tap(served)
    middle = start_tap(one)
    chain = [
        ("run", two, second.pid, one),
        ("tap", one, middle.pid, aside_of(one)),
        ("run", aside_of(one), first.pid, served),
        ("tap", served, server.pid, aside_of(served)),
    ]
    assert hops(two) == chain
    assert hops(one) == chain[1:]
    assert look(two)["sockets"][-1]["processes"][0]["pid"] == os.getpid()
    assert titles(two, "problem") == []
    lines = called(state_command)[1].splitlines()
    assert not [line for line in lines if stage.directory in line and ("replaced" in line or "removed" in line)]
    [line] = [line for line in lines if f"{two}  " in line]
    assert line.endswith(f"{two}  (udsproxy run, forwards to {one})")


def test_a_run_of_a_file(stage: Stage, served: str) -> None:
    """Several proxies in one process: the file that its command line names says which goes where."""
    paths = [stage.path(f"{name}.sock") for name in ("a", "b")]
    other = stage.path("other.sock")
    tables = [
        f'[[proxy]]\nlisten = "{listen}"\nupstream = "{to}"\n'
        for listen, to in zip(paths, (served, other), strict=True)
    ]
    log = f'[log]\nformat = "json"\nfile = "{stage.path("log")}"\n'
    with EchoServer(other):
        proxy = Running(stage, paths[0], ["run", "--config", stage.write(log + "".join(tables), "c.toml")], log=())
        until(lambda: all(map(os.path.exists, paths)), "both to listen")
        assert [hops(path)[0] for path in paths] == [
            ("run", paths[0], proxy.pid, served),
            ("run", paths[1], proxy.pid, other),
        ]


def test_where_it_cannot_be_told(stage: Stage, served: str) -> None:
    """A configuration that has gone: nothing is guessed; a connection that is open shows where it goes."""
    path, config = stage.path("p.sock"), stage.path("c.toml")
    log = f'[log]\nformat = "json"\nfile = "{stage.path("log")}"\n'
    stage.write(f'{log}[[proxy]]\nlisten = "{path}"\nupstream = "{served}"\n', "c.toml")
    proxy = Running(stage, path, ["run", "--config", config], log=())
    until(lambda: os.path.exists(path), "it to listen")
    os.unlink(config)
    line = f"udsproxy run, pid {proxy.pid}; where it forwards to cannot be seen while nobody is connected"
    assert f"  {line}\n" in called(state_command, path)[1] + "\n"
    assert line in titles(path, "note")
    assert titles(path, "problem") == []
    with connect(path) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert hops(path) == [("run", path, proxy.pid, served)]


def test_other_ends(stage: Stage, served: str, start_proxy: StartProxy) -> None:
    """TCP behind it is named and not judged; an abstract name is followed; what has gone is said with its path."""
    tcp, abstract, gone = (stage.path(f"{name}.sock") for name in ("tcp", "abstract", "gone"))
    name = f"@udsproxy-{os.getpid()}-behind"
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        start_proxy(tcp, f"tcp:127.0.0.1:{port}")
        assert hops(tcp)[0][3] == f"tcp:127.0.0.1:{port}"
        assert titles(tcp, "problem", "warning") == []
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(f"\0{name[1:]}")
        named.listen(3)
        start_proxy(abstract, name)
        assert hops(abstract)[0][3] == f"unix:{name}"
        assert examine(abstract)["facts"]["backlog"] == 3
    with EchoServer(stage.path("away.sock")):
        proxy = start_proxy(gone, stage.path("away.sock"))
        proxy.freeze()
        os.unlink(stage.path("away.sock"))
        [problem] = [each for each in titles(gone, "problem") if "no such path" in each]
        assert problem == f"no such path at {stage.path('away.sock')}, behind udsproxy: clients get ENOENT"
    with pytest.raises(Failure) as failure:
        called(state_command, gone)
    line = f"udsproxy run, pid {proxy.pid}, forwards to {stage.path('away.sock')}; it is stopped: clients wait"
    line = f"{line}; kill -CONT {proxy.pid}"
    assert str(failure.value) == f"{stage.path('away.sock')}: No such file or directory; {line}"
    assert f"udsproxy run, pid {proxy.pid}, is stopped (SIGSTOP or Ctrl-Z): clients wait" in titles(gone, "problem")
    proxy.signal(signal.SIGCONT)


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount is made")
def test_a_run_with_mounts_of_its_own(stage: Stage, served: str) -> None:
    """Where it forwards to is looked up as it finds that path, which leads elsewhere, or nowhere, here."""
    path, inside = stage.path("front.sock"), stage.path("inside", "s.sock")
    script = f'mount --bind {os.path.dirname(served)} {os.path.dirname(inside)} && exec "$@"'
    wrap = [program("unshare"), "-m", "sh", "-c", script, "sh"]
    options = ("--control", "none")
    proxy = Running(stage, path, ["run", path, inside, *options], log=("--log", "none"), wrap=wrap)
    until(lambda: os.path.exists(path), "it to listen")
    assert not os.path.exists(inside)
    assert hops(path) == [("run", path, proxy.pid, inside)]
    assert look(path)["sockets"][-1]["processes"][0]["pid"] == os.getpid()
    assert titles(path, "problem") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount is made")
def test_a_tap_of_a_server_with_mounts_of_its_own(stage: Stage, start_tap: StartTap) -> None:
    """In the list it is not said that the server's file has been replaced, though it knows that by another path."""
    path, inside = stage.path("outside", "s.sock"), stage.path("inside", "s.sock")
    for directory in (path, inside):
        os.makedirs(os.path.dirname(directory), exist_ok=True)
    script = f'mount --bind {os.path.dirname(path)} {os.path.dirname(inside)} && exec "$@"'
    server = [program("socat"), f"UNIX-LISTEN:{inside},fork", "EXEC:cat"]
    stage.spawn("server", [program("unshare"), "-m", "sh", "-c", script, "sh", *server], stage.path("said"))
    until(lambda: os.path.exists(path), "it to listen")
    with EchoServer(inside):  # (another server has that path here)
        start_tap(path)
        lines = [line for line in called(state_command)[1].splitlines() if "  socat  " in line and inside in line]
        assert [line.partition(inside)[2] for line in lines] == ["  (a tap has put its file aside)"]
        assert hops(path)[0][0] == "tap"
        assert look(path)["sockets"][-1]["processes"][0]["comm"] == "socat"


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's process is started")
def test_the_word_of_another_user(stage: Stage, served: str) -> None:
    """What another user's process says of itself is told as that, until a connection of its confirms it."""
    path = stage.path("others", "p.sock")
    for directory in (stage.directory, os.path.dirname(served)):
        os.chmod(directory, 0o755)
    os.chmod(os.path.dirname(path), 0o777)
    os.chmod(served, 0o666)
    wrap = [program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    proxy = Running(stage, path, ["run", path, served, "--control", "none"], log=("--log", "none"), wrap=wrap)
    until(lambda: os.path.exists(path), "it to listen")
    line = f"udsproxy run, pid {proxy.pid}, forwards to {served}"
    assert f"  {line} (as it says itself)\n" in called(state_command, path)[1]
    with connect(path) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert f"  {line}\n" in called(state_command, path)[1]
    may = f"(udsproxy run, pid {proxy.pid}) may connect to {served}"
    assert [title for title in titles(path, "fine") if title.endswith(may)]
    os.chmod(served, 0o600)
    cannot = f"(udsproxy run, pid {proxy.pid}) cannot connect to {served}: EACCES (13: Permission denied)"
    assert [title for title in titles(path, "problem") if title.endswith(cannot)]
