"""udsproxy as root of a user namespace (a rootless container): who has no number there is served as ever.

Rules: server and clients are outside; only root can be several clients, so without root all are the one that the
namespace has a number for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.proxy import Running, StartProxy
from tests.e2e.tap import StartTap, aside_of
from tests.e2e.tools import LIMIT_S, until
from tests.stage import Stage
from tests.transparency.ends import OTHER_ID, ROOT, Credentials, as_somebody_else, peer_of, set_passcred
from tests.user_namespace import ALONE, FIRST, MANY, in_user_namespace

SELF = os.geteuid(), os.getegid()
OVERFLOW = 65534
MAPS = [ALONE, MANY] if ROOT else [ALONE]
SEEN = {ALONE: SELF, MANY: (FIRST + OVERFLOW - 1, FIRST + OVERFLOW - 1) if ROOT else SELF}
"""As whom the server sees a client that has no number: as the one with the number that stands for all these, where
that can be had."""


@contextlib.contextmanager
def served(path: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    """A server's listener, for all."""
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.settimeout(LIMIT_S)
        listener.bind(path)
        os.chmod(path, 0o666)
        if kind != socket.SOCK_DGRAM:
            listener.listen(10)
        yield listener


def exchange(path: str, listener: socket.socket) -> tuple[int, int]:
    """A client comes, asks, is answered; as whom the server sees it."""
    with socket.socket(socket.AF_UNIX, listener.type) as client:
        client.settimeout(LIMIT_S)
        client.connect(path)
        client.send(b"question")
        with listener.accept()[0] as server:
            assert server.recv(99) == b"question"
            server.send(b"answer")
            assert client.recv(99) == b"answer"
            return peer_of(server)


def told(running: Running) -> int:
    """How often it has said that it cannot be somebody."""
    return len(running.events("proxy_error", op="setresuid"))


@pytest.fixture(params=MAPS)
def mapped(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _for_all(stage: Stage) -> None:
    os.chmod(stage.directory, 0o777)


def test_client_without_a_number(stage: Stage, start_proxy: StartProxy, mapped: str) -> None:
    """It is served, and as near to what it is as can be; that it is not that is told once."""
    upstream = stage.path("server.sock")
    with served(upstream) as listener:
        proxy = start_proxy(stage.path("p.sock"), upstream, wrap=in_user_namespace(mapped))
        assert exchange(proxy.socket, listener) == SELF
        for _ in range(3):
            with as_somebody_else():
                assert exchange(proxy.socket, listener) == SEEN[mapped]
        assert exchange(proxy.socket, listener) == SELF
        if expected := mapped == ALONE and ROOT:
            proxy.wait_for("proxy_error", op="setresuid")
        assert told(proxy) == expected


def test_client_in_groups_without_a_number(stage: Stage, start_proxy: StartProxy) -> None:
    """Groups that cannot be had (setgroups(2) is denied there) are no reason not to serve it."""
    upstream = stage.path("server.sock")
    with served(upstream) as listener:
        proxy = start_proxy(stage.path("p.sock"), upstream, wrap=in_user_namespace(ALONE))
        groups = os.getgroups()
        if ROOT:
            os.setgroups([7, OVERFLOW, 100_005])
        try:
            for _ in range(3):
                assert exchange(proxy.socket, listener) == SELF
        finally:
            if ROOT:
                os.setgroups(groups)
        assert proxy.process.poll() is None


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_credentials_of_messages(stage: Stage, start_proxy: StartProxy, kind: socket.SocketKind) -> None:
    """What somebody sends who has no number arrives, also where the server asks who has sent it."""
    upstream = stage.path("server.sock")
    with served(upstream, kind) as listener, socket.socket(socket.AF_UNIX, kind) as client:
        set_passcred(listener)
        proxy = start_proxy(
            stage.path("p.sock"), upstream, "--credentials", "messages", wrap=in_user_namespace(ALONE)
        )
        with as_somebody_else():
            client.connect(proxy.socket)
            for data in (b"one", b"two"):
                client.send(data)
        server = listener if kind == socket.SOCK_DGRAM else listener.accept()[0]
        with server:
            room = socket.CMSG_SPACE(12)
            received, found = b"", []
            while len(received) < 6:
                data, ancillary, _, _ = server.recvmsg(3, room)
                received += data
                found += [Credentials(*memoryview(content).cast("i")) for _, _, content in ancillary]
            assert received == b"onetwo"
            assert {each[1:] for each in found} == {SEEN[ALONE]}


def test_server_without_a_number(stage: Stage, start_proxy: StartProxy, mapped: str) -> None:
    """A socket of somebody who has no number is copied as far as can be, and never open to more."""
    upstream = stage.path("server.sock")
    with served(upstream):
        if ROOT:
            os.chown(upstream, 12345, 12345)
        os.chmod(upstream, 0o660)
        wrap = in_user_namespace(mapped)
        proxy = start_proxy(stage.path("p.sock"), upstream, wrap=wrap)
        made = os.stat(proxy.socket)
        assert made.st_uid != OTHER_ID
        assert stat.S_IMODE(made.st_mode) & 0o007 == 0
        assert ("cannot be copied" in proxy.said) == (mapped == ALONE and ROOT)


def test_tap(stage: Stage, start_tap: StartTap) -> None:
    """A live socket is taken over, and given back."""
    path = stage.path("server.sock")
    with served(path) as listener:
        tap = start_tap(path, wrap=in_user_namespace(ALONE))
        with as_somebody_else():
            assert exchange(path, listener) == SEEN[ALONE]
        assert os.path.exists(aside_of(path))
        assert tap.stop() == 0
        with as_somebody_else() as user:
            assert exchange(path, listener) == user
    assert not os.path.exists(aside_of(path))


def test_client_of_the_namespace(stage: Stage, start_proxy: StartProxy, mapped: str) -> None:
    """Who has a number there is that one to the server."""
    upstream = stage.path("server.sock")
    with served(upstream) as listener:
        proxy = start_proxy(stage.path("p.sock"), upstream, wrap=in_user_namespace(mapped))
        code = (
            "import os, socket, sys; os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]));"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)"
        )
        number = FIRST + 32 if mapped == MANY else 0
        argv = [sys.executable, "-c", code, proxy.socket, str(number)]
        with subprocess.Popen(argv) as client:
            with listener.accept()[0] as server:
                assert peer_of(server) == ((number, number) if ROOT else SELF)
            assert client.wait(LIMIT_S) == 0
        until(lambda: proxy.events("open"), "the client")
        assert told(proxy) == 0


def test_sender_outside_the_pid_namespace(stage: Stage, start_proxy: StartProxy) -> None:
    """A proxy for which a sender has no pid (it is in a pid namespace of its own) sends on in its user's name."""
    upstream = stage.path("server.sock")
    with served(upstream, socket.SOCK_DGRAM) as listener, socket.socket(socket.AF_UNIX, listener.type) as client:
        set_passcred(listener)
        in_pid_namespace = ["unshare", *(() if ROOT else ("-r",)), "--pid", "--fork", "--kill-child"]
        proxy = start_proxy(stage.path("p.sock"), upstream, wrap=in_pid_namespace)
        with as_somebody_else() as user:
            client.connect(proxy.socket)
            client.send(b"hello")
        data, [(_, _, content)], _, _ = listener.recvmsg(9, socket.CMSG_SPACE(12))
        assert data == b"hello"
        assert Credentials(*memoryview(content).cast("i"))[1:] == user
        proxy.signal(signal.SIGKILL)  # (unshare takes no other, and its child ends with it)
