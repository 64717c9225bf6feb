"""Control of a running proxy: finding it, its faults, and requests that are not meant well."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import time
from pathlib import Path

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.tools import EchoServer, connect, echoes, peak_memory, receive_all, udsproxy, until
from tests.stage import Stage
from udsproxy.control import place
from udsproxy.control.client import Client, ControlError

MIB = 1024 * 1024


@pytest.fixture
def runtime(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> str:
    """The directory for what runs."""
    directory = stage.path("run", "")
    monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
    return directory


def fault(*words: str, code: int = 0) -> str:
    """What ``udsproxy fault`` says."""
    done = udsproxy("fault", *words)
    assert (done.returncode, done.stderr if code == 0 else b"") == (code, b""), done.stderr
    said = (done.stdout if code == 0 else done.stderr).decode()
    assert code == 0 or said.count("\n") == 1
    return said


def control_socket(runtime: str, proxy: Proxy) -> str:
    return os.path.join(runtime, "udsproxy", f"{proxy.pid}.control")


def test_faults_while_it_runs(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """The one that runs is found; faults are added, listed, switched and taken away; open connections meet them."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"), "--seed", "7")
        assert fault("list") == "no faults\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(proxy.socket)
            client.settimeout(20)
            added = fault("add", "stall", "latency=1ms±1ms if uid=* name=late")
            assert added == "stall  p  stall@s2c\nlate   p  latency=0.001s±0.001s@s2c if uid='*' name=late\n"
            client.sendall(b"hello")
            proxy.wait_for("fault", rule="stall", conn=1)
            assert fault("list").splitlines()[0] == "stall  p  stall@s2c"
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(10)
            client.settimeout(20)
            assert fault("disable", "stall") == "changed: 1\n"
            assert client.recv(10) == b"hello"
            assert fault("list").splitlines()[0] == "stall  p  stall@s2c  (off)"
            assert fault("remove", "stall", "late") == "removed: 1\nremoved: 1\n"
        listed = fault("add", "close p=0.5 for=1h")
        assert json.loads(fault("list", "--json"))[0]["rule"]["for_s"] == 3600
        assert listed.startswith("close  p  close p=0.5 for=3600s")
        assert re.fullmatch(r"close  p  close p=0.5 for=3600s  \(3[56]\d\d s left\)\n", fault("list"))
        assert fault("clear") == "removed: 1\n"
        assert fault("list") == "no faults\n"
        assert echoes(proxy.socket)
        details = [event["detail"] for event in proxy.events("fault") if "conn" not in event]
        assert details == [
            "in force: stall@s2c",
            "in force: latency=0.001s±0.001s@s2c if uid='*' name=late; seed 7",
            "switched off",
            "taken away",
            "in force: close p=0.5 for=3600s; seed 7",
            "taken away",
        ]


def test_none_runs(stage: Stage, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says where it was looked for."""
    monkeypatch.setattr(place, "_SYSTEM", Path(stage.path("nowhere")))
    with pytest.raises(ControlError, match=f"no udsproxy that runs was found in {runtime}"):
        Client()


def test_finding_it(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """One, several; one that was killed is no more than a file, which the next one removes."""
    with EchoServer(stage.path("up")):
        one = start_proxy(stage.path("one"), stage.path("up"))
        directory = os.path.join(runtime, "udsproxy")
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(control_socket(runtime, one)).st_mode) == 0o600
        other = start_proxy(stage.path("other"), stage.path("up"))
        said = fault("list", code=1)
        assert "several run; choose one with --control PATH" in said
        assert control_socket(runtime, other) in said
        assert fault("add", "refuse", "--control", control_socket(runtime, other)).startswith("refuse  other")
        assert fault("list", "--control", control_socket(runtime, one)) == "no faults\n"
        other.process.kill()
        other.process.wait()
        assert fault("list") == "no faults\n"
        start_proxy(stage.path("third"), stage.path("up"), "--control", "none")
        assert fault("list") == "no faults\n"
        assert len(os.listdir(directory)) == 2
        fourth = start_proxy(stage.path("fourth"), stage.path("up"))
        assert sorted(os.listdir(directory)) == sorted(f"{each.pid}.control" for each in (one, fourth))
        assert one.stop() == fourth.stop() == 0
        assert os.listdir(directory) == []


def test_connections_that_were_open_before(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """Adding a rule for requests says how many it does not apply to."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(proxy.socket)
            proxy.wait_for("open")
            done = udsproxy("fault", "add", "fcgi-status=503")
            assert done.returncode == 0
            assert done.stderr.endswith(b"do not apply to connections that were open before: 1\n")
            assert udsproxy("fault", "add", "stall").stderr == b""


def test_mistakes(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """One line each, and nothing is changed."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"), "--fault", "latency=1ms")
        assert "did you mean 'stall'?" in fault("add", "stal", code=1)
        assert "no fault is called 'latncy'; did you mean 'latency'?" in fault("remove", "latncy", code=1)
        assert "no fault is called" in fault("disable", "x", code=1)
        fault("add", "latency=1ms name=mine")
        assert "a fault is called 'mine' already" in fault("add", "stall name=mine", code=1)
        assert "no proxy is called 'q'" in fault("clear", "--proxy", "q", code=1)
        assert "no proxy of that name" in fault("add", "close if proxy=q", code=1)
        assert "cannot depend on uid" in fault("add", "close", "refuse if uid=0", code=1)
        assert f"{stage.path('x')}: No such file or directory" in fault(
            "list", "--control", stage.path("x"), code=1
        )
        assert "what answers there is no udsproxy" in fault("list", "--control", stage.path("up"), code=1)
        second = udsproxy("run", stage.path("q"), stage.path("up"), "--control", control_socket(runtime, proxy))
        assert second.returncode == 4
        assert b"somebody already listens there" in second.stderr
        assert second.stderr.count(b"\n") == 1
        assert not os.path.exists(stage.path("q"))
        assert echoes(proxy.socket)


REQUESTS = [
    (b"nonsense\r\n\r\n", (b"400",)),
    (b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (b"404",)),
    (b"PUT /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", (b"405",)),
    (b"POST /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\n{", (b"400",)),
    (
        b'POST /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 18\r\n\r\n{"fault": "stal"}\n',
        (b"400",),
    ),
    (
        b'POST /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 43\r\n\r\n'
        b'{"rule": {"fault": {"kind": "x"}, "a": 1}}\n',
        (b"400",),
    ),
    (b"GET /" + b"x" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n", (b"400", b"414", b"431")),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "statuses"), REQUESTS)
def test_bad_requests(
    stage: Stage, start_proxy: StartProxy, runtime: str, request_: bytes, statuses: tuple[bytes, ...]
) -> None:
    """Each is answered, or the connection ends; the traffic goes on, and nothing changes."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(control_socket(runtime, proxy))
            got = b""
            try:
                sock.sendall(request_)
                while piece := sock.recv(65536):
                    got += piece
            except ConnectionError:
                pass  # it did not want to read all of that
        assert not got or got.split()[1] in statuses
        assert fault("list") == "no faults\n"
        assert echoes(proxy.socket)
        assert proxy.said == ""


def test_a_request_of_100_mib(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """It is refused once it is too long, takes no memory, and the traffic goes on meanwhile."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        fault("list")
        before = peak_memory(proxy.pid)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(control_socket(runtime, proxy))
            sock.sendall(b"POST /faults HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (100 * MIB))
            sent = 0
            try:
                while sent < 100 * MIB:
                    sent += sock.send(bytes(MIB))
                    if sent % (10 * MIB) == 0:
                        assert echoes(proxy.socket)
            except ConnectionError:
                pass
            try:
                answer = sock.recv(65536)
            except ConnectionError:
                answer = b""
        assert not answer or answer.split()[1] == b"413"
        assert peak_memory(proxy.pid) - before < 20 * MIB
        assert fault("list") == "no faults\n"
        assert proxy.said == ""


def test_many_idle_askers(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """Connections that ask nothing keep nobody from asking, and nobody from ending it."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        socks = []
        for _ in range(100):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(control_socket(runtime, proxy))
            socks.append(sock)
        assert fault("list") == "no faults\n"
        began = time.monotonic()
        assert proxy.stop() == 0
        until(lambda: not os.path.exists(control_socket(runtime, proxy)), "the control socket's end")
        assert time.monotonic() - began < 20
        for sock in socks:
            sock.close()


def test_an_answer_is_the_last(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """A connection is closed when its request is answered, whether its client asked for that or not: kept for more
    it would be kept for who has closed it, too."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"))
        with connect(control_socket(runtime, proxy)) as sock:
            sock.sendall(b"GET /faults HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = receive_all(sock).lower().partition(b"\r\n\r\n")
            assert b"\r\nconnection: close" in head
            assert body == b"[]\n"
