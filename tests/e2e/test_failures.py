"""When things fail around the proxy: upstreams that die or never were, paths that are taken, signals, rights."""

from __future__ import annotations

import grp
import os
import pwd
import re
import signal
import socket
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.site import Front, Gate, Site, start_php_fpm, write_scripts
from tests.e2e.tools import (
    EchoServer,
    ask,
    cgi_params,
    connect,
    echoes,
    program,
    read,
    receive_all,
    run,
    udsproxy,
    until,
)
from tests.stage import Stage

ROOT = os.geteuid() == 0
OTHER_UID = OTHER_GID = 65534
"""Somebody else, on every system: nobody."""


# --- upstreams ---


def keep_asking(front: Front, stop: threading.Event) -> set[int]:
    """The statuses of many requests, one after the other."""
    statuses = set()
    while not stop.is_set():
        statuses.add(front.fetch("/hello.php").status)
    return statuses


@pytest.mark.parametrize(
    ("file_stays", "errno", "message"),
    [(True, "ECONNREFUSED", "Connection refused"), (False, "ENOENT", "No such file or directory")],
)
def test_service_resumes_when_php_fpm_is_back(fresh_site: Site, file_stays: bool, errno: str, message: str) -> None:
    """php-fpm is killed under load and started again on the same path: the proxy says in the kernel's words what
    connecting came to, requests that were under way are told as incomplete, and service resumes by itself."""
    site, gate, stop = fresh_site, fresh_site.gate(), threading.Event()
    with ThreadPoolExecutor() as pool:
        try:
            under_way = pool.submit(site.proxied.fetch, gate.script)
            gate.wait_until_started()
            load = [pool.submit(keep_asking, site.proxied, stop) for _ in range(3)]
            os.killpg(site.php_fpm.pid, signal.SIGKILL)
            site.php_fpm.wait()
            if not file_stays:
                os.unlink(site.upstream)
            error = site.proxy.wait_for("upstream_error", errno=errno)[0]
            assert (error["op"], error["message"]) == ("connect", message)
            assert under_way.result().status == 502
            start_php_fpm(site.stage, site.upstream)
            until(lambda: site.proxied.fetch("/hello.php").status == 200, "an answer from the new php-fpm")
        finally:
            stop.set()
        statuses = set().union(*(each.result() for each in load))
    assert statuses <= {200, 502}
    assert site.request_event(gate.script)["incomplete"] in ("upstream closed", "reset by upstream")
    assert {site.proxied.fetch(f"/hello.php?id={number}").status for number in range(20)} == {200}
    assert site.proxy.process.poll() is None


def test_an_upstream_that_is_not_there(stage: Stage, start_proxy: StartProxy) -> None:
    """The first client of an upstream that does not exist is reset, all others get ENOENT from connect() until it
    is there; that is told once. Then it is used."""
    proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
    with connect(proxy.socket) as sock, pytest.raises(ConnectionResetError):
        sock.recv(1)
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            connect(proxy.socket)
    (error,) = proxy.wait_for("upstream_error")
    assert (error["op"], error["errno"], error["message"]) == ("connect", "ENOENT", "No such file or directory")
    with EchoServer(stage.path("up.sock")):
        proxy.wait_for("listening", count=2)
        assert echoes(proxy.socket)


def test_an_upstream_without_permission(stage: Stage, start_proxy: StartProxy) -> None:
    """Where the upstream's socket may not be used, the first client is reset, the event says EACCES, and who is not
    root gets it too; with permission, it is used."""
    # For root everything is permitted until this capability is gone.
    setpriv = [program("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--"]
    with EchoServer(stage.path("up.sock")):
        os.chmod(stage.path("up.sock"), 0)
        proxy = start_proxy(f"{stage.path('p.sock')},mode=600", stage.path("up.sock"), wrap=setpriv if ROOT else [])
        proxy.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, proxy.pid, os.WSTOPPED)
        with connect(proxy.socket) as sock:
            # As root a proxy has to accept a client to know as whom to connect; then the kernel makes a reset only
            # where something was sent.
            sock.sendall(b"question")
            proxy.signal(signal.SIGCONT)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        (error,) = proxy.wait_for("upstream_error")
        assert (error["op"], error["errno"], error["message"]) == ("connect", "EACCES", "Permission denied")
        code = f"import socket; print(socket.socket(socket.AF_UNIX).connect_ex({proxy.socket!r}))"
        done = run([*(setpriv if ROOT else []), sys.executable, "-c", code])
        assert done.stdout == b"13\n"
        os.chmod(stage.path("up.sock"), 0o600)
        proxy.wait_for("listening", count=2)
        assert echoes(proxy.socket)


# --- where it listens ---


def refused(stage: Stage, listen: str) -> str:
    """The line with which the proxy refuses to listen; exit code 4 says so too."""
    done = udsproxy("run", listen, stage.path("up.sock"))
    assert done.returncode == 4
    assert done.stdout == b""
    line, end = done.stderr.decode().split("\n")
    assert end == ""
    assert line.startswith("udsproxy: ")
    return line


def test_a_file_that_is_no_socket_is_left_alone(stage: Stage) -> None:
    """Where a plain file is at LISTEN the proxy ends with exit code 4 and a line that names it; the file stays."""
    path = stage.write("precious", "file")
    assert path in refused(stage, path)
    assert read(path) == "precious"


def test_a_live_listener_is_left_alone(stage: Stage) -> None:
    """Where somebody listens at LISTEN the proxy ends with exit code 4; the other goes on."""
    path = stage.path("taken.sock")
    with EchoServer(path):
        before = os.stat(path)
        assert path in refused(stage, path)
        assert os.stat(path).st_ino == before.st_ino
        assert echoes(path)


def test_a_proxy_does_not_replace_another(stage: Stage, start_proxy: StartProxy) -> None:
    """A second proxy on the same path ends with exit code 4, and the first goes on."""
    with EchoServer(stage.path("up.sock")):
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        assert proxy.socket in refused(stage, proxy.socket)
        assert echoes(proxy.socket)


@pytest.mark.parametrize(
    ("listen", "complaint"),
    [
        ("{directory}/not/there/p.sock", "No such file or directory"),
        ("{directory}/p.sock,owner=no-such-user", "no-such-user"),
        ("{directory}/p.sock,group=no-such-group", "no-such-group"),
        ("/proc/p.sock", "/proc/p.sock"),
    ],
)
def test_what_cannot_be_listened_on(stage: Stage, listen: str, complaint: str) -> None:
    """Where listening fails the line says why, the exit code is 4, and no file is left."""
    assert complaint in refused(stage, listen.format(directory=stage.directory))
    assert os.listdir(stage.directory) == []


def test_a_stale_socket_is_replaced(stage: Stage, start_proxy: StartProxy) -> None:
    """The socket that a killed proxy left does not keep the next one from listening."""
    with EchoServer(stage.path("up.sock")):
        killed = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        killed.signal(signal.SIGKILL)
        killed.wait()
        assert stat.S_ISSOCK(os.stat(killed.socket).st_mode)
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        assert echoes(proxy.socket)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "/tmp/a"],
        ["run", "/tmp/a", "/tmp/b", "/tmp/c"],
        ["run", "/tmp/a", "/tmp/b", "--no-such-option"],
        ["run", "/tmp/a,mode=888", "/tmp/b"],
        ["run", "/tmp/a,mod=660", "/tmp/b"],
        ["run", "/tmp/a", "/tmp/b,mode=660"],
        ["run", "ftp:a", "/tmp/b"],
        ["run", "/tmp/a", "tcp:localhost"],
        ["run", "/tmp/a", "/tmp/b", "--log", "xml"],
        ["run", "/tmp/a", "/tmp/b", "--grace", "soon"],
        ["run", "/tmp/a", "/tmp/b", "--hexdump", "much"],
        ["run", "/tmp/a", "/tmp/b", "--backlog", "-1"],
        ["serve", "/tmp/a", "--workers", "0"],
        ["request", "/tmp/a", "--param", "no-value"],
        ["no-such-command"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Wrong usage is exit code 2 and one line on standard error, nothing on standard output, and no traceback."""
    done = udsproxy(*arguments)
    assert done.returncode == 2
    assert done.stdout == b""
    assert re.fullmatch(r"udsproxy: [^\n]+\n", done.stderr.decode())


# --- ending ---


class Held:
    """A proxy before php-fpm, with a request under way that waits to be let through."""

    def __init__(self, stage: Stage, start_proxy: StartProxy, pool: ThreadPoolExecutor, grace: str) -> None:
        start_php_fpm(stage, stage.path("php.sock"))
        self.gate = Gate(stage.path("gate"))
        self.proxy: Proxy = start_proxy(stage.path("p.sock"), stage.path("php.sock"), "--grace", grace)
        params = cgi_params(self.gate.script, root=write_scripts(stage))
        self.answer = pool.submit(ask, self.proxy.socket, params)
        self.gate.wait_until_started()

    def wait_for_no_file(self) -> None:
        until(lambda: not os.path.exists(self.proxy.socket), "the end of the socket's file")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(stage: Stage, start_proxy: StartProxy, number: signal.Signals) -> None:
    """After SIGTERM or Ctrl-C nobody new can connect, the request under way gets its whole answer, and then the
    proxy ends with exit code 0, its socket file gone."""
    with ThreadPoolExecutor() as pool:
        held = Held(stage, start_proxy, pool, "10m")
        held.proxy.signal(number)
        held.wait_for_no_file()
        with pytest.raises(FileNotFoundError):
            connect(held.proxy.socket)
        assert held.proxy.process.poll() is None
        held.gate.open()
        assert held.answer.result() == b"through\n"
    assert held.proxy.wait() == 0
    (event,) = held.proxy.events("request")
    assert "incomplete" not in event
    assert held.proxy.events()[-1]["event"] == "summary"
    assert not os.path.exists(held.proxy.socket)


@pytest.mark.parametrize(("grace", "signals"), [("10m", 2), ("10ms", 1)])
def test_what_ends_requests(stage: Stage, start_proxy: StartProxy, grace: str, signals: int) -> None:
    """A second signal, or the end of the grace time, ends what is still under way; exit code and files are as after
    one signal, and the request's event says who ended it."""
    with ThreadPoolExecutor() as pool:
        held = Held(stage, start_proxy, pool, grace)
        held.proxy.signal()
        held.wait_for_no_file()
        for _ in range(signals - 1):
            held.proxy.signal()
        assert held.proxy.wait() == 0
        with pytest.raises(AssertionError, match="no answer"):
            held.answer.result()
        held.gate.open()
    (event,) = held.proxy.events("request")
    assert event["incomplete"] == "proxy stopped"
    (event,) = held.proxy.events("close")
    assert event["by"] == "proxy"
    (event,) = held.proxy.events("summary")
    assert (event["connections"], event["requests"], event["incomplete"]) == (1, 1, 1)


def test_a_file_that_another_process_put_there_stays(stage: Stage, start_proxy: StartProxy) -> None:
    """If another process has taken the path over, the proxy leaves that file when it ends."""
    with EchoServer(stage.path("up.sock")), EchoServer(stage.path("new.sock")):
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        os.rename(stage.path("new.sock"), proxy.socket)
        assert proxy.stop() == 0
        assert echoes(proxy.socket)


# --- rights ---

UMASKS = pytest.mark.parametrize("umask", ["077", "000"])


def with_umask(umask: str) -> list[str]:
    """A command that runs another with that umask."""
    return ["/bin/sh", "-c", f'umask {umask}; exec "$@"', "sh"]


def rights(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid


@UMASKS
def test_the_socket_has_the_rights_of_php_fpms(stage: Stage, start_proxy: StartProxy, umask: str) -> None:
    """Mode, owner and group are copied from the upstream's socket, whatever the umask is."""
    settings = ["listen.mode = 0660"]
    if ROOT:
        settings.append(f"listen.owner = {pwd.getpwuid(OTHER_UID).pw_name}")
        settings.append(f"listen.group = {grp.getgrgid(OTHER_GID).gr_name}")
    start_php_fpm(stage, stage.path("php.sock"), *settings)
    proxy = start_proxy(stage.path("p.sock"), stage.path("php.sock"), wrap=with_umask(umask))
    wanted = (0o660, OTHER_UID, OTHER_GID) if ROOT else (0o660, os.getuid(), os.getgid())
    assert rights(stage.path("php.sock")) == wanted
    assert rights(proxy.socket) == wanted
    (listening,) = proxy.events("listening")
    assert listening["mode"] == "660"
    owner, group = pwd.getpwuid(wanted[1]).pw_name, grp.getgrgid(wanted[2]).gr_name
    assert listening["owner"] == f"{owner}:{group}"


@UMASKS
def test_the_socket_has_the_rights_that_it_was_told(stage: Stage, start_proxy: StartProxy, umask: str) -> None:
    """mode=, owner= and group= of LISTEN are obeyed, whatever the upstream has and whatever the umask is."""
    uid, gid = (OTHER_UID, OTHER_GID) if ROOT else (os.getuid(), os.getgid())
    with EchoServer(stage.path("up.sock")):
        os.chmod(stage.path("up.sock"), 0o777)
        listen = f"{stage.path('p.sock')},mode=642,owner={uid},group={gid}"
        proxy = start_proxy(listen, stage.path("up.sock"), wrap=with_umask(umask))
        assert rights(proxy.socket) == (0o642, uid, gid)


@UMASKS
def test_without_an_upstream_the_socket_is_ours_alone(stage: Stage, start_proxy: StartProxy, umask: str) -> None:
    """Where there is nothing to copy and nothing was told, nobody else may connect."""
    proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), wrap=with_umask(umask))
    assert rights(proxy.socket) == (0o600, os.getuid(), os.getgid())
    with connect(proxy.socket) as sock, socket.socket(socket.AF_UNIX) as other:
        assert receive_all(sock) == b""
        assert other.connect_ex(stage.path("up.sock")) != 0
