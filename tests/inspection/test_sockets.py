"""What is told of 200 sockets of all types: the same as ss and /proc say, as root and as nobody; and without
unix_diag."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests.e2e.tools import program, until
from tests.inspection.children import as_nobody, child
from tests.sockets import inode
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine, spelled
from udsproxy.inspection.sockets import SocketState, state_of, survey
from udsproxy.kernel import procfs

STREAM, SEQPACKET, DGRAM = socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM
SS_TYPES = {"u_str": "stream", "u_seq": "seqpacket", "u_dgr": "datagram"}
SOCKETS = 200


def look(address: str, *, diag: bool = True) -> list[SocketState]:
    with contextlib.closing(Machine(diag=diag)) as machine:
        return state_of(machine, address, Doer())


class Crowd:
    """Sockets of this process, of every sort."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.all: dict[int, socket.socket] = {}
        self.listeners: dict[int, socket.socket] = {}
        self._directory, self._stack = directory, stack
        self._random = random.Random(1)
        self.removed: set[int] = set()

    def new(self, kind: socket.SocketKind) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        self.all[inode(sock)] = sock
        return sock

    def name(self, number: int) -> bytes:
        style = number % 10
        if style == 0:
            return b"\0udsproxy-%d-%d" % (os.getpid(), number)
        if style == 1:
            return b"\0udsproxy-%d-%d \n\xff\0[red]" % (os.getpid(), number)
        path = {
            2: b"a space %d ",
            3: b"new\nline%d",
            4: b"\xff\xfe%d",
            5: b"[red]%d[blink]",
            6: b"\x1b[31m%d",
            7: b"x" * 100 + b"%03d",
        }.get(style, b"plain%d") % number
        return path if style in (7, 8) else os.fsencode(self._directory) + b"/" + path  # (two are relative)

    def grow(self, number: int) -> None:
        kind = (STREAM, STREAM, SEQPACKET, DGRAM)[number % 4]
        sock = self.new(kind)
        name = self.name(number)
        sock.bind(name)
        if kind == DGRAM:
            for _ in range(number % 3):
                with self.new(DGRAM) as sender:
                    del self.all[inode(sender)]
                    sender.sendto(b"x" * (number + 1), name)
            if number % 5 == 0:
                self.new(DGRAM).connect(name)
            return
        if number % 9 == 8:
            return  # bound, and nobody listens
        backlog = self._random.choice((0, 1, 3, 7, 128))
        sock.listen(backlog)
        self.listeners[inode(sock)] = sock
        clients = []
        for _ in range(self._random.randint(0, min(backlog + 1, 5))):
            client = self.new(kind)
            client.connect(name)
            clients.append(client)
        for client in clients[: number % 3]:
            accepted = self._stack.enter_context(sock.accept()[0])
            self.all[inode(accepted)] = accepted
            client.send(b"c" * number)
            accepted.send(b"s" * 2 * number)
        if clients and number % 4 == 1:
            gone = clients[-1]
            del self.all[inode(gone)]
            gone.close()
        if number % 7 == 6 and name[:1] != b"\0":
            os.unlink(name)
            self.removed.add(inode(sock))
        if number % 11 == 10:
            sock.shutdown(socket.SHUT_RDWR)
            del self.listeners[inode(sock)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short directory to be in that others may enter: a path has 107 bytes."""
    name = f"/tmp/udsi-{os.getpid()}"
    os.mkdir(name)
    os.chmod(name, 0o755)
    monkeypatch.chdir(name)
    yield Path(name)
    monkeypatch.chdir(tmp_path)
    for each in os.listdir(name):
        os.unlink(f"{name}/{each}")
    os.rmdir(name)


@pytest.fixture
def crowd(here: Path) -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        made = Crowd(here, stack)
        number = 0
        while len(made.all) < SOCKETS:
            made.grow(number)
            number += 1
        yield made


# --- ss ---


class Row(NamedTuple):
    """A line of ss."""

    type: str
    state: str
    received: int
    sent: int
    peer: int
    users: list[tuple[int, int]]


_START = re.compile(rb"^(?=u_\w+ +(?:LISTEN|ESTAB|UNCONN) )", re.MULTILINE)
_HEAD = re.compile(rb"(u_\w+) +(\S+) +(\d+) +(\d+) +")
_TAIL = re.compile(rb" (\d+) *(?:users:\(([^\n]*)\))? *\n$")
_USER = re.compile(rb"pid=(\d+),fd=(\d+)\)")


def ss(machine: Machine, *options: str) -> dict[int, Row]:
    """What ss says, by inode. (In a name there may be anything: which it is, `machine` knows.)"""
    done = subprocess.run([program("ss"), *options], capture_output=True, check=True, timeout=60)
    known = {ss_name(each.name) + b" %d " % each.inode: each.inode for each in machine.unix.values()}
    rows = {}
    for text in _START.split(done.stdout):
        head, tail = _HEAD.match(text), _TAIL.search(text)
        if head is None or tail is None:
            continue
        local = text[head.end() :]
        for prefix, number in known.items():
            if local.startswith(prefix):
                kind, state, received, sent = head.groups()
                rows[number] = Row(
                    SS_TYPES[kind.decode()], state.decode(), int(received), int(sent), int(tail[1]),
                    [(int(pid), int(fd)) for pid, fd in _USER.findall(tail[2] or b"")],
                )  # fmt: skip
    return rows


def ss_name(name: bytes | None) -> bytes:
    """As ss writes it: an abstract name's NULs as @, nothing as *."""
    if not name:
        return b"*"
    return name.replace(b"\0", b"@") if name[:1] == b"\0" else name.partition(b"\0")[0]


def test_the_same_as_ss(crowd: Crowd) -> None:
    """Type, state, queue, limit, name, peer and holders of every socket; of listeners as the command tells them."""
    with contextlib.closing(Machine()) as machine:
        rows, listening = ss(machine, "-xanpH"), ss(machine, "-xlpH")
        for number, sock in crowd.all.items():
            row, found = rows[number], machine.unix[number]
            assert row.peer == found.peer
            assert row.received == found.queue
            assert row.type == {STREAM: "stream", SEQPACKET: "seqpacket", DGRAM: "datagram"}[sock.type]
            assert sorted(row.users) == sorted(machine.holders[number])
            assert {1: "ESTAB", 7: "UNCONN", 10: "LISTEN"}[found.state] == row.state
        told = {each.inode: each for each in survey(machine)}
        assert crowd.listeners.keys() <= told.keys()
        for number in crowd.listeners:
            state, row, found = told[number], listening[number], machine.unix[number]
            assert (state.type, state.queue, state.backlog) == (row.type, row.received, row.sent)
            assert state.limit == row.sent + 1
            assert [(process.pid, process.fd) for process in state.processes] == row.users
            same_name = [each for each in machine.unix.values() if each.name == found.name]
            assert len(state.connections) == sum(rows[each.inode].state == "ESTAB" for each in same_name)


def check_files(crowd: Crowd, told: Sequence[SocketState]) -> None:
    """Owner and mode are the file's; what has been removed is said to have been."""
    by_inode = {each.inode: each for each in told}
    for number, sock in crowd.listeners.items():
        state, name = by_inode[number], os.fsencode(sock.getsockname())
        if number in crowd.removed:
            assert state.mode is None
            assert state.file == ("removed" if name[:1] == b"/" else None)
        elif name[:1] == b"\0":
            assert (state.file, state.mode) == (None, None)
        else:
            assert (state.file, state.mode) == ("there", f"{stat.S_IMODE(os.stat(name).st_mode):o}")


def test_files_and_connections(crowd: Crowd) -> None:
    """Of each socket at its address: file, queue, who waits in it, who has left, unread bytes of both ends."""
    me = f"{procfs.read_comm(os.getpid())}, pid {os.getpid()}"
    with contextlib.closing(Machine()) as machine:
        check_files(crowd, survey(machine))
        for number, sock in crowd.listeners.items():
            [state] = [each for each in state_of(machine, spell(sock), Doer()) if each.inode == number]
            waiting, gone = state.waiting or (), state.gone or 0
            assert state.queue == len(waiting) + gone
            assert set(waiting) <= {me}
            assert state.owner is None or state.owner.split(":")[0] == state.user
            for one in state.connections:
                found = machine.unix[one.inode]
                assert one.unread == found.queue
                assert one.server == me
                if found.peer:
                    assert one.client_unread == machine.unix[found.peer].queue
                    assert (one.client, one.client_left) == (me, False)
                else:
                    assert (one.client_unread, one.client, one.client_left) == (None, None, True)


def spell(sock: socket.socket) -> str:
    name = sock.getsockname()
    text = spelled(name if isinstance(name, bytes) else os.fsencode(name))
    assert text is not None
    return text


def test_as_nobody(crowd: Crowd) -> None:
    """The same queues, limits, connections and owners; no processes; and it says what is not seen, and why."""

    def tell() -> str:
        with contextlib.closing(Machine()) as machine:
            found = [each for each in survey(machine) if each.inode in crowd.listeners]
            return msgspec.json.encode((found, machine.without)).decode()

    ours, _ = msgspec.json.decode(tell(), type=tuple[list[SocketState], list[str]])
    theirs, not_seen = msgspec.json.decode(as_nobody(tell), type=tuple[list[SocketState], list[str]])
    if os.geteuid() == 0:
        # (Its own, with the descriptors that it was born with, it sees.)
        assert not any(process.pid == os.getpid() for each in theirs for process in each.processes)
        [line] = [line for line in not_seen if line.startswith("the sockets of ")]
        needs = "run udsproxy as root, or with CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"
        assert line.endswith(f"of other users ({needs} to see them)")
        assert {each.user for each in theirs} == {"root"}
    for mine, other in zip(ours, theirs, strict=True):
        assert [
            getattr(other, key) for key in ("address", "type", "state", "queue", "backlog", "gone", "user")
        ] == [getattr(mine, key) for key in ("address", "type", "state", "queue", "backlog", "gone", "user")]
        assert len(mine.connections) == len(other.connections)
        if mine.address and mine.address[0] == "/":
            assert (mine.file, mine.owner, mine.mode) == (other.file, other.owner, other.mode)


def test_a_directory_that_may_not_be_entered(here: Path) -> None:
    """File, owner and mode are not told, and that is said; the queue is."""
    os.mkdir("closed", 0o700)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(here / "closed" / "s"))
            listener.listen(2)

            def tell() -> str:
                with contextlib.closing(Machine()) as machine:
                    found = [each for each in survey(machine) if each.inode == inode(listener)]
                    return msgspec.json.encode((found, machine.without)).decode()

            if os.geteuid() != 0:
                os.chmod("closed", 0)
            said = as_nobody(tell)
            os.chmod("closed", 0o700)
            assert said.startswith("["), said
            [found], not_seen = msgspec.json.decode(said, type=tuple[list[SocketState], list[str]])
            assert (found.file, found.owner, found.mode, found.limit) == ("hidden", None, None, 3)
            # (There may be others of the kind on this machine.)
            [line] = [line for line in not_seen if line.startswith("owner and mode of ")]
            assert line.endswith(": the directory may not be entered")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink("closed/s")
        os.rmdir("closed")


def test_without_unix_diag(crowd: Crowd) -> None:
    """From /proc/net/unix: the same but for backlog, peers, bytes and user, and it says so."""
    with contextlib.closing(Machine()) as machine:
        more = {each.inode: each for each in survey(machine) if each.inode in crowd.listeners}
    with contextlib.closing(Machine(diag=False)) as machine:
        # (One that was shut down looks as any other there.)
        less = {each.inode: each for each in survey(machine) if each.inode in crowd.listeners}
        assert "unix_diag" in machine.without[0]
    assert less.keys() == more.keys()
    for number, one in more.items():
        other = less[number]
        assert (one.type, one.queue) == (other.type, other.queue)
        if one.address and one.address[0] == "/":
            assert (one.file, one.owner, one.mode) == (other.file, other.owner, other.mode)
        assert [process.pid for process in one.processes] == [process.pid for process in other.processes]
        assert (other.backlog, other.limit, other.gone, other.waiting, other.user) == (None,) * 5
        assert {(each.unread, each.client, each.client_left) for each in other.connections} <= {(None, None, False)}
        if b"\0" not in os.fsencode(crowd.listeners[number].getsockname())[1:]:
            assert one.address == other.address
            assert len(one.connections) == len(other.connections)


# --- one by one ---


def test_a_client_that_has_left_is_no_server(here: Path) -> None:
    """What was accepted has its listener's name: it is a connection, also when its client is gone."""
    path = str(here / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            accepted = listener.accept()[0]
            client.sendall(b"bye")
        with accepted:
            [found] = look(path)
            [one] = found.connections
            assert (found.state, found.queue) == ("listening", 0)
            assert (one.inode, one.unread, one.client_left, one.client) == (inode(accepted), 3, True, None)
            listener.close()
            [found] = look(path)
            assert (found.state, len(found.connections)) == ("stale", 1)


def test_a_file_that_was_replaced(here: Path) -> None:
    """Two listeners of one name: each has its own connections, and one has lost its file."""
    path = str(here / "s")
    with contextlib.ExitStack() as stack:
        listeners, accepted = [], []
        for number in range(2):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen(number)
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(path)
            accepted.append(stack.enter_context(listener.accept()[0]))
            listeners.append(inode(listener))
            if number == 0:
                os.unlink(path)
        [found] = look(path)
        assert (found.inode, found.file, [each.inode for each in found.connections]) == (
            listeners[1], "there", [inode(accepted[1])],
        )  # fmt: skip
        with contextlib.closing(Machine()) as machine:
            [old] = [each for each in survey(machine) if each.inode == listeners[0]]
        assert (old.file, [each.inode for each in old.connections]) == ("replaced", [inode(accepted[0])])
        os.unlink(path)
        assert {each.file for each in look(path)} == {"removed"}


def test_what_is_at_an_address(here: Path) -> None:
    """Relative or not, renamed, linked, of each type, stale; and what is none."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX, DGRAM) as datagrams:
        listener.bind("s")
        listener.listen(4)
        os.symlink("s", "link")
        for address in ("s", "./s", "link", str(here / "s"), f"{here}/../{here.name}/s"):
            [found] = look(address)
            assert (found.inode, found.backlog) == (inode(listener), 4)
        os.rename("s", "t")
        [found] = look("t")
        assert (found.inode, found.address) == (inode(listener), str(here / "t"))
        datagrams.bind("d")
        with socket.socket(socket.AF_UNIX, DGRAM) as sender:
            assert look("d")[0].next_nbytes == 0
            sender.sendto(b"x" * 9, "d")
            sender.sendto(b"x" * 90, "d")
        [found] = look("d")
        assert (found.type, found.state, found.queue, found.next_nbytes) == ("datagram", "bound", None, 9)
    [found] = look("t")
    assert (found.state, found.inode, found.processes) == ("stale", None, ())
    for address, error in (
        ("s", FileNotFoundError),
        ("s\0", OSError),
        ("/etc/passwd", OSError),
        ("@udsproxy-none", OSError),
        ("x" * 5000, OSError),
    ):
        with pytest.raises(error):
            look(address)


MASTER = """
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
children = [pid for pid in (os.fork() for _ in range(2)) if pid]
if len(children) == 2 and sys.argv[2] == "prefork":
    os.write(1, b"!")
    os.wait()
elif len(children) == 2:
    os.write(1, b"!")
    s.accept()
elif sys.argv[2] == "prefork":
    s.accept()
else:
    time.sleep(1000)
"""


@pytest.mark.parametrize("kind", ["prefork", "alone"])
def test_masters(here: Path, kind: str) -> None:
    """A process whose children serve is a master. One that accepts itself, and whose children hold the socket by
    chance, is none."""
    path = str(here / "s")
    # (The first child forks, too: the second's parent is not always the first of all.)
    with child(MASTER, path, kind) as pid:

        def settled() -> bool:
            processes = look(path)[0].processes
            whats = sorted(each.doing.what for each in processes if each.doing is not None)
            return len(whats) == 4 and "cpu" not in whats and "unknown" not in whats

        if kind == "prefork":
            until(lambda: sum(bool(each.waits) for each in look(path)[0].processes) >= 2, "children that accept")
            [found] = look(path)
            assert [each.master for each in found.processes if each.pid == pid] == [True]
            assert not any(each.master and each.waits for each in found.processes)
        else:
            until(settled, "all to wait")
            [found] = look(path)
            [parent] = [each for each in found.processes if each.pid == pid]
            assert (parent.waits, parent.master) == (True, False)


def test_a_socket_held_by_two_descriptors(here: Path) -> None:
    """Its process is told once."""
    with socket.socket(socket.AF_UNIX) as listener, listener.dup() as other:
        listener.bind("s")
        listener.listen()
        [process] = look("s")[0].processes
        assert (process.pid, process.fd) == (os.getpid(), min(listener.fileno(), other.fileno()))
        assert process.waits is not True
        assert here.is_dir()


def test_where_the_holder_has_another_root(here: Path) -> None:
    """The file is found under the root directory of who holds the socket. (A user namespace allows chroot().)"""
    os.mkdir("root")
    code = """
if os.geteuid():
    import ctypes
    ctypes.CDLL(None).unshare(0x10000000)
os.chroot(sys.argv[1])
s = socket.socket(socket.AF_UNIX)
s.bind("/inside")
s.listen()
os.write(1, b"!")
s.accept()
"""
    try:
        with child(code, str(here / "root")):
            with contextlib.closing(Machine()) as machine:
                [found] = [each for each in survey(machine) if each.address == "/inside"]
            assert found.file == "there"
    finally:
        os.unlink("root/inside")
        os.rmdir("root")
