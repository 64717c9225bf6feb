"""Control of a running proxy: finding it, its faults, and requests that are not meant well."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.tools import UDSPROXY, EchoServer, connect, echoes, peak_memory, receive_all, udsproxy, until
from tests.stage import REPOSITORY, Stage
from udsproxy.cli.fault import list_faults
from udsproxy.control import finding, place
from udsproxy.control.client import ControlError
from udsproxy.kernel import process_table

MIB = 1024 * 1024


@pytest.fixture
def runtime(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> str:
    """The directory for what runs, and no other."""
    directory = stage.path("run", "udsproxy")
    monkeypatch.setenv("UDSPROXY_RUNTIME_DIR", directory)
    return directory


def fault(*words: str, code: int = 0) -> str:
    """What ``udsproxy fault`` says."""
    done = udsproxy("fault", *words)
    assert (done.returncode, done.stderr if code == 0 else b"") == (code, b""), done.stderr
    said = (done.stdout if code == 0 else done.stderr).decode()
    assert code == 0 or said.count("\n") == 1
    return said


def faults(*words: str) -> str:
    """What ``udsproxy fault list`` says of the only proxy, without the line that names it."""
    first, _, rest = fault("list", *words).partition("\n")
    assert re.fullmatch(r"\S+ \(.* -> .*, pid \d+, user \S+\)", first)
    return rest


def who() -> str:
    """Our user's name."""
    return pwd.getpwuid(os.getuid()).pw_name


def control_socket(runtime: str, proxy: Proxy) -> str:
    return os.path.join(runtime, f"{proxy.pid}.control")


def test_faults_while_it_runs(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """The one that runs is found; faults are added, listed, switched and taken away; open connections meet them."""
    with EchoServer(stage.path("up")):
        proxy = start_proxy(stage.path("p"), stage.path("up"), "--seed", "7")
        assert faults() == "  no faults\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(proxy.socket)
            client.settimeout(20)
            which = f"p ({proxy.socket} -> {stage.path('up')}, pid {proxy.pid}, user {who()})"
            added = fault("add", "stall", "latency=1ms±1ms if uid=* name=late")
            assert added == (
                "stall  p  stall@s2c\n"
                "late   p  latency=0.001s±0.001s@s2c if uid='*' name=late\n"
                f"added 2 faults to {which}\n"
            )
            client.sendall(b"hello")
            proxy.wait_for("fault", rule="stall", conn=1)
            assert faults().splitlines()[0] == "  stall  p  stall@s2c"
            client.settimeout(0.2)
            with pytest.raises(TimeoutError):
                client.recv(10)
            client.settimeout(20)
            assert fault("disable", "stall") == f"switched off 1 fault of {which}\n"
            assert client.recv(10) == b"hello"
            assert faults().splitlines()[0] == "  stall  p  stall@s2c  (off)"
            assert fault("remove", "stall", "late") == f"removed 1 fault from {which}\n" * 2
        listed = fault("add", "close p=0.5 for=1h")
        assert json.loads(fault("list", "--json"))[0]["rule"]["for_s"] == 3600
        assert listed.startswith("close  p  close p=0.5 for=3600s")
        assert re.fullmatch(r"  close  p  close p=0.5 for=3600s  \(3[56]\d\d s left\)\n", faults())
        assert fault("clear") == f"removed 1 fault from {which}\n"
        assert faults() == "  no faults\n"
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


def test_none_runs(runtime: str) -> None:
    """One line that says where it was looked for."""
    assert f"no running udsproxy was found in {runtime}; " in fault("list", code=1)


def test_where_it_is_looked_for(stage: Stage, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all places where this user's may be: what is in one of them does not hide what is in another."""
    monkeypatch.delenv("UDSPROXY_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", stage.path("user", ""))
    monkeypatch.setattr(place, "_SYSTEM", Path(stage.path("system")))
    with EchoServer(stage.path("up")):
        one = start_proxy(stage.path("one"), stage.path("up"))
        start_proxy(stage.path("other"), stage.path("up"), "--control", stage.path("system", "x.control"))
        expected = {stage.path("user", "udsproxy", f"{one.pid}.control"), stage.path("system", "x.control")}
        assert expected <= {each.path for each in place.running()[0]}


def test_finding_it(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """One, several; one that was killed is no more than a file, which the next one removes."""
    with EchoServer(stage.path("up")):
        one = start_proxy(stage.path("one"), stage.path("up"))
        directory = runtime
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert stat.S_IMODE(os.stat(control_socket(runtime, one)).st_mode) == 0o600
        other = start_proxy(stage.path("other"), stage.path("up"))
        said = fault("clear", code=1)
        assert said.startswith(
            "udsproxy: several proxies run; choose one with --proxy NAME or PATH, or --control PATH: "
        )
        for each in (one, other):
            assert f"({each.socket} -> {stage.path('up')}, pid {each.pid}, user {who()})" in said
            assert control_socket(runtime, each) in said
        assert fault("add", "refuse", "--control", control_socket(runtime, other)).startswith("refuse  other")
        assert faults("--control", control_socket(runtime, one)) == "  no faults\n"
        other.process.kill()
        other.process.wait()
        assert faults() == "  no faults\n"
        start_proxy(stage.path("third"), stage.path("up"), "--control", "none")
        assert faults() == "  no faults\n"
        assert len(os.listdir(directory)) == 2
        fourth = start_proxy(stage.path("fourth"), stage.path("up"))
        assert sorted(os.listdir(directory)) == sorted(f"{each.pid}.control" for each in (one, fourth))
        assert one.stop() == fourth.stop() == 0
        assert os.listdir(directory) == []


def test_one_that_is_controlled_elsewhere(
    stage: Stage, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The list says that it runs, and a change that could be meant for it is refused, unless --proxy or --control
    says which one is meant. One that cannot be controlled (--control none) is not meant."""
    monkeypatch.delenv("UDSPROXY_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", stage.path("user", ""))
    control = stage.path("mine.control")
    with EchoServer(stage.path("up")):
        deaf = start_proxy(stage.path("deaf"), stage.path("up"), "--control", "none")
        mine = start_proxy(stage.path("mine"), stage.path("up"), "--control", control)
        pids = [os.getpid(), deaf.pid, mine.pid]
        monkeypatch.setattr(process_table, "all_pids", lambda: pids)  # (others may run on this machine)
        monkeypatch.setattr(place, "_directories", lambda: [Path(stage.path("user", "udsproxy"))])
        hidden = f"udsproxy, pid {mine.pid} (user {who()})"
        with pytest.raises(ControlError, match=re.escape(f"not asked: {hidden}; name its control socket")):
            finding.running()
        other = start_proxy(stage.path("other"), stage.path("up"))
        pids.append(other.pid)
        list_faults()
        said = capfd.readouterr()
        assert said.out.startswith(f"other ({other.socket} -> ")
        assert said.err == f"udsproxy: not listed: {hidden}; name its control socket with --control PATH\n"
        with pytest.raises(ControlError, match=re.escape(f"some with a control socket elsewhere ({hidden})")):
            finding.choose(None, None)
        for asked in ((None, "other"), (control, None), (control, "mine")):
            (chosen,) = finding.choose(*asked)
            assert chosen.name == ("other" if asked[0] is None else "mine")


def test_choosing_one(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """By its name, or the path of its socket, of its server's, of its control socket; what is meant by none, or by
    two, is refused, and nothing is changed."""
    with EchoServer(stage.path("up")), EchoServer(stage.path("up2")):
        one = start_proxy(stage.path("one"), stage.path("up"))
        other = start_proxy(stage.path("other"), stage.path("up2"))
        os.symlink(other.socket, stage.path("link"))
        relative = os.path.relpath(other.socket, REPOSITORY)
        for wanted in ("other", relative, stage.path("link"), stage.path("up2"), control_socket(runtime, other)):
            said = fault("add", "hold for=1h", "--proxy", wanted).splitlines()[-1]
            assert said.startswith(
                f"added 1 fault to other ({other.socket} -> {stage.path('up2')}, pid {other.pid}, "
            )
        assert (
            fault("clear", "--proxy", other.socket)
            == said.replace("added 1 fault to", "removed 5 faults from") + "\n"
        )
        for wanted in ("oter", stage.path("elsewhere")):
            assert f"no proxy is called {wanted!r}; there is one (" in fault(
                "add", "hold", "--proxy", wanted, code=1
            )
        third = start_proxy(stage.path("third"), stage.path("up"), "--name", "other")
        assert "several proxies are meant by 'other'" in fault("add", "hold", "--proxy", "other", code=1)
        assert "several proxies are meant by" in fault("add", "hold", "--proxy", stage.path("up"), code=1)
        listed = fault("list")
        for name, proxy in (("one", one), ("other", other), ("other", third)):
            assert f"{name} ({proxy.socket} -> " in listed
        assert listed.count("\n  no faults\n") == 3


def test_one_that_does_not_answer(stage: Stage, start_proxy: StartProxy, runtime: str) -> None:
    """It could be the one that is meant: that the other answers is no reason to change that."""
    with EchoServer(stage.path("up")):
        one = start_proxy(stage.path("one"), stage.path("up"))
        other = start_proxy(stage.path("other"), stage.path("up"))
        other.signal(signal.SIGSTOP)
        try:
            said = fault("clear", code=1)
            assert f"several run, and one does not answer ({control_socket(runtime, other)}: timed out)" in said
            assert f"one ({one.socket} -> " in said
            assert fault("clear", "--control", control_socket(runtime, one)).startswith(
                "removed no faults from one ("
            )
        finally:
            other.signal(signal.SIGCONT)


def test_several_in_one_process(stage: Stage, runtime: str) -> None:
    """A fault is added to the one that is named, or to those that it names itself; what is taken away is taken from
    all of the process, and it is said from which."""
    text = '[log]\nformat = "none"\n'
    for name in ("a", "b"):
        text += f'[[proxy]]\nname = "{name}"\nlisten = "{stage.path(name)}"\nupstream = "{stage.path("up")}"\n'
    with EchoServer(stage.path("up")):
        stage.spawn("run", [*UDSPROXY, "run", "--config", stage.write(text, "c.toml")], stage.path("said"))
        stage.await_socket(stage.path("b"))
        said = fault("add", "refuse", code=1)
        assert "write proxy=NAME in the fault" in said
        assert f"a ({stage.path('a')} -> " in said
        assert f"b ({stage.path('b')} -> " in said
        assert fault("list").count("\n  no faults\n") == 2
        assert (
            fault("add", "hold", "--proxy", "b")
            .splitlines()[-1]
            .startswith(f"added 1 fault to b ({stage.path('b')}")
        )
        assert fault("add", "hold proxy=a").splitlines()[-1].startswith(f"added 1 fault to a ({stage.path('a')}")
        assert "; b (" in fault("add", "accept-delay=1ms proxy=*")
        assert re.fullmatch(r"removed 2 faults from a \(.*\); b \(.*\)\n", fault("remove", "hold"))
        assert fault("clear", "--proxy", "b").startswith("removed 1 fault from b (")
        assert re.fullmatch(r"removed 1 fault from a \([^;]*\)\n", fault("clear"))


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
        assert "no fault is called 'x'; there is latency" in fault("disable", "x", code=1)
        fault("add", "refuse for=1ms name=brief")
        proxy.wait_for("fault", rule="brief", detail="taken away")
        assert "no fault is called 'brief' any more: its time is over" in fault("remove", "brief", code=1)
        fault("add", "latency=1ms name=mine")
        assert "there is already a fault called 'mine'; remove that first" in fault(
            "add", "stall name=mine", code=1
        )
        assert "no proxy is called 'q'" in fault("clear", "--proxy", "q", code=1)
        assert "no proxy of that name" in fault("add", "close if proxy=q", code=1)
        assert "cannot depend on uid" in fault("add", "close", "refuse if uid=0", code=1)
        assert f"{stage.path('x')}: No such file or directory" in fault(
            "list", "--control", stage.path("x"), code=1
        )
        assert "what answers there is not a udsproxy" in fault("list", "--control", stage.path("up"), code=1)
        second = udsproxy("run", stage.path("q"), stage.path("up"), "--control", control_socket(runtime, proxy))
        assert second.returncode == 4
        assert b"somebody already listens there" in second.stderr
        assert second.stderr.count(b"\n") == 1
        assert not os.path.exists(stage.path("q"))
        assert echoes(proxy.socket)


REQUESTS = [
    (b"nonsense\r\n\r\n", (b"400",)),
    (b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (b"404",)),
    (b"HEAD /faults HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (b"405",)),
    (
        b"POST /faults HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 17000\r\n\r\n" + b" " * 17000,
        (b"100", b"413"),
    ),
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
        assert faults() == "  no faults\n"
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
        assert faults() == "  no faults\n"
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
        assert faults() == "  no faults\n"
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
