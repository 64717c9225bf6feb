"""Network namespaces: found by their processes or their mounts, entered by a thread that is thrown away."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tools import program, until
from tests.inspection.children import as_nobody, child
from tests.namespaces import NEWNET, NEWPID, ROOT, in_own_mounts, mount, unshare
from tests.sockets import inode
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.sockets import state_of, survey
from udsproxy.kernel import namespaces
from udsproxy.kernel.namespaces import Namespace
from udsproxy.kernel.server_diag import NotShown, ServerDiag, is_bound

_ENTER = """
import ctypes
flags = 0x40000000 | (0x10000000 if os.geteuid() else 0)
assert ctypes.CDLL(None).unshare(flags) == 0
"""
SERVER = (
    _ENTER
    + """
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(int(sys.argv[2]))
os.chmod(sys.argv[1], 0o777)
if len(sys.argv) > 3:
    named = socket.socket(socket.AF_UNIX)
    named.bind("\\0" + sys.argv[3])
    named.listen(9)
    tcp = socket.socket()
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
os.write(1, b"!")
s.accept()
"""
)


@pytest.fixture
def here() -> Iterator[Path]:
    """A short directory that others may enter."""
    name = Path(f"/tmp/udsn-{os.getpid()}")
    name.mkdir()
    name.chmod(0o755)
    yield name
    subprocess.run(["rm", "-rf", name], check=True)


@pytest.fixture
def named() -> Iterator[Namespace]:
    """One that no process is in (ip-netns(8))."""
    name = f"udsproxy-none-{os.getpid()}"
    subprocess.run([program("ip"), "netns", "add", name], check=True)
    yield Namespace(0, f"/run/netns/{name}")
    subprocess.run([program("ip"), "netns", "delete", name], check=True)


def space_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def test_a_server_elsewhere(here: Path) -> None:
    """Its queue is seen by whoever may enter; others are told that it is not shown, which is not that nobody is
    there."""
    path = str(here / "s")
    with child(SERVER, path, "3") as pid, contextlib.closing(ServerDiag()) as diag:
        assert is_bound(path)
        if not ROOT:
            with pytest.raises(NotShown):
                diag.listener(path)
            return
        found = diag.listener(path)
        assert found is not None
        assert diag.own.unix_socket(found.inode) is None
        assert diag.namespace is not None
        assert diag.namespace.number == space_of(pid) != namespaces.own_number()
        assert diag.serves(found.inode)
        assert diag.queue_of(found.inode) == (0, 3)
        assert as_nobody(lambda: refused(path)).startswith("NotShown")
        assert "(unseen, None)" in as_nobody(lambda: look(path))
        pid_was = pid
    until(lambda: not os.path.exists(f"/proc/{pid_was}"), "its end")
    with ServerDiag() as diag:
        assert diag.listener(path) is None
    assert is_bound(path) is False


def refused(path: str) -> str:
    with ServerDiag() as diag:
        return f"{diag.listener(path)}"


def look(path: str) -> str:
    with contextlib.closing(Machine()) as machine:
        [found] = state_of(machine, path, Doer())
        return f"({found.state}, {found.inode})"


def test_who_asks_stays_where_it_is(here: Path) -> None:
    """The thread that has been elsewhere is gone, and this one has not moved."""
    before = os.readlink("/proc/thread-self/ns/net"), threading.active_count()
    with child(SERVER, str(here / "s"), "1") as pid:
        space = Namespace(space_of(pid), f"/proc/{pid}/ns/net", pid)
        if ROOT:
            there = namespaces.within(space, lambda: os.readlink("/proc/thread-self/ns/net"))
            assert there == f"net:[{space.number}]"
        else:
            with pytest.raises(PermissionError):
                namespaces.diag_in(space)
    with pytest.raises(OSError, match="No such"):
        namespaces.diag_in(space)
    assert (os.readlink("/proc/thread-self/ns/net"), threading.active_count()) == before


if ROOT:

    def test_one_without_a_process(here: Path, named: Namespace) -> None:
        """It is found by its mount; who holds a socket of it is somewhere else."""
        path = str(here / "s")
        with namespaces.within(named, lambda: socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(path)
            listener.listen(5)
            with ServerDiag() as diag:
                found = diag.listener(path)
                assert found is not None
                assert (found.inode, found.backlog) == (inode(listener), 5)
                assert diag.namespace is not None
                assert diag.namespace.path == named.path

    def test_all_that_is_seen(here: Path) -> None:
        """Sockets of all namespaces, and of each which it is of; an abstract name leads to another socket there."""
        path, name = str(here / "s"), f"udsproxy-spaces-{os.getpid()}"
        with child(SERVER, path, "7", name) as pid, socket.socket(socket.AF_UNIX) as ours:
            ours.bind(f"\0{name}")
            ours.listen(1)
            number = space_of(pid)
            with contextlib.closing(Machine()) as machine:
                found = {each.address: each for each in survey(machine) if each.namespace == number}
                assert found.keys() == {path, f"@{name}"}
                assert (found[path].backlog, found[path].file) == (7, "there")
                both = state_of(machine, f"@{name}", Doer())
                assert {each.namespace: each.backlog for each in both} == {None: 1, number: 9}
                assert [each.inode for each in machine.servers_at(f"\0{name}".encode(), os.getpid())] == [
                    inode(ours)
                ]
                assert machine.servers_at(f"\0{name}".encode(), pid)[0].inode != inode(ours)
                tcp = [each for each in machine.inet.values() if each.namespace == number]
                assert [each.sock.local.startswith("127.0.0.1:") for each in tcp] == [True]

    def test_a_namespace_is_not_kept(here: Path) -> None:
        """When its server has ended nothing of ours keeps it from going."""
        with child(SERVER, str(here / "s"), "1"), ServerDiag() as diag:
            found = diag.listener(str(here / "s"))
            assert found is not None
            held = len(os.listdir("/proc/self/fd"))
            with contextlib.closing(Machine()) as machine:
                assert found.inode in machine.unix
            assert len(os.listdir("/proc/self/fd")) == held
            with pytest.raises(FileNotFoundError):
                diag.listener(str(here / "none"))
            assert diag.queue_of(1) is None
            assert len(os.listdir("/proc/self/fd")) == held - 1

    def test_from_inside_another_container(here: Path) -> None:
        """Who does not see the server's processes is told that it is not shown."""
        path = str(here / "s")

        def look_from_inside() -> None:
            unshare(NEWPID | NEWNET)
            if (pid := os.fork()) == 0:
                try:
                    mount("-t", "proc", "none", "/proc")
                    refused(path)
                except NotShown:
                    os._exit(5)
                finally:
                    os._exit(6)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5

        with child(SERVER, path, "3"):
            in_own_mounts(look_from_inside)
