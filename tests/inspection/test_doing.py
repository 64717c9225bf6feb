"""What a process does, told of real ones: in which call they wait, on what, and who is behind that."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.e2e.tools import until
from tests.inspection.children import as_nobody, child, doing, wait_for
from tests.sockets import inode
from udsproxy.events import printable
from udsproxy.inspection.doing import Doer, tell, waits_at
from udsproxy.inspection.machine import Machine
from udsproxy.kernel import procfs
from udsproxy.kernel.procfs import Activity

ME = f"{printable(procfs.read_comm(os.getpid()) or '')}, pid {os.getpid()}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to be in, so that names are short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- TCP, UDP ---


@pytest.mark.parametrize(
    ("family", "host", "to"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "[::1]"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_a_tcp_connection(family: socket.AddressFamily, host: str, to: str) -> None:
    """The address and the process at the other end, accepted or not."""
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        code = f"s = socket.create_connection(({to.strip('[]')!r}, {port})); os.write(1, b'!'); s.recv(1)"
        with child(code) as pid:
            seen = wait_for(pid, lambda seen: seen.call == "recvfrom")
            assert (seen.what, seen.on, seen.who) == ("socket", f"tcp {to}:{port}", ME)
            assert replace(seen, local=None).text == f"recvfrom() on tcp {to}:{port} ({ME})"
            connection, (_, its_port, *_) = listener.accept()
            with connection:
                assert seen.local == f"{to}:{its_port}"
                assert seen.text == f"recvfrom() on tcp {to}:{its_port} → {to}:{port} ({ME})"
                assert doing(pid).who == ME


def test_an_address_elsewhere_is_not_ours() -> None:
    """A listener at all our addresses on the same port is not the server of a connection to another machine."""
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with contextlib.closing(Machine()) as machine:
            ours = machine.inet[inode(listener)]
            for remote, local, found in (
                ("203.0.113.9", "10.0.0.1", 0),
                ("127.0.0.9", "127.0.0.1", inode(listener)),
                ("10.0.0.1", "10.0.0.1", inode(listener)),
            ):
                sock = type(ours.sock)(1, 1, f"{local}:4000", f"{remote}:{port}", 0, 0, b"")
                assert machine.listener_of(type(ours)("tcp", socket.AF_INET, socket.IPPROTO_TCP, sock)) == found


def test_udp() -> None:
    """A socket that is not connected has its own address."""
    code = "s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0)); os.write(1, b'!'); s.recv(1)"
    with child(code) as pid:
        seen = wait_for(pid, lambda seen: seen.call == "recvfrom")
        assert seen.what == "socket"
        assert seen.on is not None
        assert seen.on.startswith("udp at 127.0.0.1:")


# --- Unix ---


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_a_unix_connection(here: Path, kind: socket.SocketKind) -> None:
    """Not accepted yet; accepted; its other end closed."""
    path = str(here / "s")
    with socket.socket(socket.AF_UNIX, kind) as listener:
        listener.bind("s")
        os.rename("s", "t")
        os.rename("t", "s")
        listener.listen(3)
        code = f"s = socket.socket(socket.AF_UNIX, {int(kind)}); s.connect({path!r}); os.write(1, b'!'); "
        with child(code + "s.recv(1)") as pid:
            seen = wait_for(pid, lambda seen: seen.call == "recvfrom")
            assert (seen.what, seen.on, seen.who) == ("socket", "unix s", f"not accepted yet by {ME}")
            with listener.accept()[0]:
                seen = doing(pid)
                assert (seen.what, seen.on, seen.who) == ("socket", "unix s", ME)
            until(lambda: procfs.read_comm(pid) is None or doing(pid).what == "ended", "the end")


@pytest.mark.parametrize("abstract", [False, True])
def test_connect_to_a_full_socket(here: Path, abstract: bool) -> None:
    """Which socket, who serves it, and how full it is; by a name that is relative, too."""
    name = f"\0udsproxy-{os.getpid()}" if abstract else "s"
    shown = f"unix @{name[1:]}" if abstract else "unix s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(name)
        listener.listen(0)
        first.connect(name)
        code = "s = socket.socket(socket.AF_UNIX); os.write(1, b'!'); s.connect(bytes.fromhex(sys.argv[1]))"
        with child(code, name.encode().hex()) as pid:
            seen = wait_for(pid, lambda seen: seen.call == "connect")
            assert (seen.what, seen.on, seen.who) == ("socket", shown, f"{ME}, queue full: 1 of 1")
            with contextlib.closing(Machine(diag=False)) as machine:
                less = Doer().doing(pid, machine, 0.0)
            assert less is not None
            assert less.on == shown


def test_datagrams(here: Path) -> None:
    """A receiver, and a sender to one who does not read."""
    assert here.is_dir()
    code = "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('r'); os.write(1, b'!'); s.recv(1)"
    with child(code) as pid:
        seen = wait_for(pid, lambda seen: seen.call == "recvfrom")
        assert (seen.what, seen.on) == ("socket", "unix datagrams at r")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("full")
        code = "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); os.write(1, b'!')"
        with child(f"{code}\nwhile True: s.sendto(b'x', 'full')") as pid:
            seen = wait_for(pid, lambda seen: seen.call == "sendto")
            assert (seen.what, seen.on, seen.who) == ("socket", "unix full", ME)


def test_accept(here: Path) -> None:
    """The listener's name; and that it waits at this one, not at another that it holds."""
    code = """
listeners = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
for number, each in enumerate(listeners):
    each.bind(f"l{number}")
    each.listen()
os.write(1, b"!")
listeners[1].accept()
"""
    assert here.is_dir()
    with child(code) as pid:
        seen = wait_for(pid, lambda seen: seen.call in ("accept", "accept4"))
        assert (seen.what, seen.on, seen.who) == ("accept", "unix l1", None)
        assert where_it_waits(pid) == [False, True]


def where_it_waits(pid: int) -> list[bool | None]:
    """Of each socket that it holds, by descriptor."""
    sockets = procfs.sockets_of(pid)
    assert sockets is not None
    return [waits_at(pid, inode, {number}) for inode, number in sorted(sockets.items(), key=lambda item: item[1])]


# --- several at once ---

SEVERAL = """
pairs = [socket.socketpair() for _ in range(2)]
socks = [one for pair in pairs for one in pair][::2]
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0udsproxy-several-%d" % os.getpid())
listener.listen()
os.write(1, b"!")
"""
POLLERS = {
    "poll": "p = select.poll(); [p.register(s, select.POLLIN) for s in LIST]; p.poll()",
    "select": "select.select(LIST, [], [])",
    "epoll": "p = select.epoll(); [p.register(s, select.EPOLLIN) for s in LIST]; p.poll()",
}
POLLS = {"poll", "ppoll", "select", "pselect6", "epoll_wait", "epoll_pwait"}


@pytest.mark.parametrize("kind", POLLERS)
def test_several_descriptors(kind: str) -> None:
    """A listener among them: it waits for a connection. None: the first are named, and how many more there are."""
    with child(SEVERAL + POLLERS[kind].replace("LIST", "socks + [listener]")) as pid:
        seen = wait_for(pid, lambda seen: seen.call in POLLS)
        assert (seen.what, seen.on) == ("accept", f"unix @udsproxy-several-{pid}")
        assert where_it_waits(pid) == [True, False, True, False, True]
    with child(SEVERAL + POLLERS[kind].replace("LIST", "socks + [os.pipe()[0]]")) as pid:
        seen = wait_for(pid, lambda seen: seen.call in POLLS)
        python = procfs.read_comm(pid)
        name = f"a unix socket without a name ({python}, pid {pid})"
        assert (seen.what, seen.on) == ("socket", f"{name}, {name} and 1 more")
        assert where_it_waits(pid)[-1] is False


def test_a_listener_of_another_thread() -> None:
    """It is the process that waits for connections, whichever of its threads does."""
    code = SEVERAL.replace('os.write(1, b"!")', "") + (
        "t = threading.Thread(target=listener.accept); t.start(); os.write(1, b'!'); t.join()"
    )
    with child(code) as pid:
        until(lambda: where_it_waits(pid)[-1], "a thread in accept()")
        seen = wait_for(pid, lambda seen: seen.call == "futex")
        assert (seen.what, seen.threads) == ("thread", 2)
        assert where_it_waits(pid) == [False] * 4 + [True]


# --- the rest ---


def test_a_lock_that_another_holds(tmp_path: Path) -> None:
    """The file, and who holds it: flock() as PHP's sessions do, and fcntl()."""
    path = tmp_path / "sess_1"
    for call in ("flock", "lockf"):
        with path.open("w") as file:
            getattr(fcntl, call)(file, fcntl.LOCK_EX)
            with child(
                f"f = open(sys.argv[1], 'w'); os.write(1, b'!'); fcntl.{call}(f, fcntl.LOCK_EX)", str(path)
            ) as pid:
                seen = wait_for(pid, lambda seen: seen.what == "lock")
                assert (seen.on, seen.who) == (str(path), ME)
                assert seen.text == f"{'flock' if call == 'flock' else 'fcntl'}() on {path} (held by {ME})"


@pytest.mark.parametrize(
    ("code", "what", "on"),
    [
        ("time.sleep(1000)", "sleep", None),
        ("select.poll().poll()", "sleep", None),
        ("os.read(os.pipe()[0], 1)", "pipe", "a pipe"),
        ("os.fork() or time.sleep(1000); os.wait()", "child", None),
        ("\nwhile True: pass", "cpu", None),
        ("os.kill(os.getpid(), 19)", "stopped", None),
        ("os._exit(0)", "ended", None),
    ],
)
def test_other_waits(code: str, what: str, on: str | None) -> None:
    """Each is told from the others."""
    with child(f"os.write(1, b'!'); {code}") as pid:
        seen = wait_for(pid, lambda seen: seen.what == what)
        assert (seen.what, seen.on, seen.who) == (what, on, None)
        assert seen.text


def test_for_how_long(here: Path) -> None:
    """From the second look on, as long as it is the same wait."""
    assert here.is_dir()
    code = "os.write(1, b'!')\nfor _ in range(2): signal.pause()"
    with child("import signal; signal.signal(signal.SIGUSR1, lambda *_: None); " + code) as pid:
        wait_for(pid, lambda seen: seen.call == "pause")
        doer = Doer()
        with contextlib.closing(Machine()) as machine:

            def since(now: float) -> float | None:
                seen = doer.doing(pid, machine, now)
                assert seen is not None
                return seen.for_s

            assert [since(1.0), since(2.0), since(4.5)] == [None, 1.0, 3.5]
            before = procfs.read_activity(pid)
            assert before is not None
            os.kill(pid, signal.SIGUSR1)

            def waits_again() -> bool:
                seen = procfs.read_activity(pid)
                return seen is not None and seen.call == "pause" and seen.switches != before.switches

            until(waits_again, "the second pause()")
            assert [since(6.0), since(7.0)] == [None, 1.0]
            doer.forget(set())
            assert since(8.0) is None


def test_who_may_not_look_is_told_less() -> None:
    """Where the system call may not be read, the rest is told: that it waits, and no error."""
    not_dumpable = "import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); "  # for whoever is not root
    with child(not_dumpable + "os.write(1, b'!'); time.sleep(1000)") as pid:

        def tell() -> str:
            seen = doing(pid)
            return repr((seen.what, seen.call, seen.text, waits_at(pid, 1, {1})))

        until(lambda: as_nobody(tell) == repr(("unknown", None, "waiting", None)), "a process that waits")


def test_a_process_that_is_gone() -> None:
    """None."""
    with child("os.write(1, b'!')") as pid:
        pass
    with contextlib.closing(Machine()) as machine:
        assert Doer().doing(pid, machine, 0.0) is None
    assert waits_at(pid, 1, {1}) is None


def test_accept_on_what_is_no_socket(tmp_path: Path) -> None:
    """A server that was started by hand, and takes its descriptor 0 for a socket: that is said."""
    with (tmp_path / "terminal").open("w") as file, closing(Machine()) as machine:
        seen = Activity(os.getpid(), "x", "S", 0, 0, "accept", (file.fileno(), 0, 0, 0, 0, 0), None, False)
        what, call, target = tell(os.getpid(), seen, machine)
        assert target is not None
        assert (what, call) == ("unknown", "accept")
        assert target.text == f"{tmp_path}/terminal, which is no socket: ENOTSOCK"
