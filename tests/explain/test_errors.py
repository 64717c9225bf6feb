"""The table of errors: each errno of it is provoked on this kernel, on real sockets.

Rules: a provocation makes the call fail, and the errno that it fails with is compared. What changes its process
(another user, a limit, a mount, a signal) runs in a child. Root becomes somebody else where that is needed, and who
is not root takes namespaces where root is; two need the real root, and run with no one else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from udsproxy.explain.errors import CALLS, ELSEWHERE, TABLE, Call, Meaning, number_of
from udsproxy.explain.symptoms import SYMPTOMS
from udsproxy.faults.spelling import parse_rules

DOCS = Path(__file__).parents[2] / "docs"
LIBC = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534
STREAM, DATAGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
ROOT = os.geteuid() == 0
NEW_MOUNTS, NEW_USERS = 0x20000, 0x10000000
NEEDS_ROOT: set[tuple[Call, str]] = {("send", "ESRCH"), ("send", "ENOBUFS")}
"""CAP_SYS_ADMIN, to name another process at all; CAP_NET_ADMIN, for a send buffer of any size."""
UNMAPPED = 8
"""An address in the first page, which no process has."""

Provocation = Callable[[Path], None]
PROVOCATIONS: dict[tuple[Call, str], Provocation] = {}


def provokes(call: Call, name: str) -> Callable[[Provocation], Provocation]:
    """The function makes ``call`` fail with the errno of this name; it gets an empty directory."""

    def register(provocation: Provocation) -> Provocation:
        assert (call, name) not in PROVOCATIONS
        PROVOCATIONS[call, name] = provocation
        return provocation

    return register


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty one, whose name is short enough for a socket's."""
    with tempfile.TemporaryDirectory(prefix="udsproxy-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_all_are_provoked() -> None:
    """The table and the provocations are the same set, but for what says why not."""
    assert {(each.call, each.errno) for each in TABLE if not each.unprovoked} == set(PROVOCATIONS)


def test_no_entry_twice() -> None:
    """A call and an errno have one meaning."""
    assert len({(each.call, each.errno) for each in TABLE}) == len(TABLE)
    assert {each.call for each in TABLE} == set(CALLS)
    assert not {each.errno for each in TABLE} & set(ELSEWHERE)
    assert all(number_of(name) for name in ELSEWHERE)


@pytest.mark.parametrize("said", [*TABLE, *SYMPTOMS], ids=lambda said: getattr(said, "errno", said.words))
def test_what_is_said(said: Meaning) -> None:
    """Everything has a cause and a way to tell; its faults are faults; its pages are pages."""
    assert said.means.endswith(".")
    assert said.causes
    for cause in said.causes:
        assert cause.text.endswith(".")
        assert cause.check
        assert cause.check.count("`") % 2 == cause.do.count("`") % 2 == 0
    if said.fault is not None:
        assert parse_rules(said.fault)
    for page in said.see:
        name, _, anchor = page.partition("#")
        headings = [line.lstrip("# ") for line in (DOCS / name).read_text().splitlines() if line.startswith("#")]
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_short_fits() -> None:
    """The first sentence fits on a line of the overview."""
    assert not [meaning.means for meaning in TABLE if len(meaning.short) > 84]


# --- what the provocations are made of ---


def unix(kind: socket.SocketKind = STREAM) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.setblocking(False)
    return made


def listener(at: Path, backlog: int = 0) -> socket.socket:
    made = unix()
    made.bind(str(at))
    made.listen(backlog)
    return made


@contextlib.contextmanager
def pair(kind: socket.SocketKind = STREAM) -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


def raw(function: str, *arguments: object) -> None:
    """A call of libc's, which Python would not make like this. Raises `OSError`."""
    if getattr(LIBC, function)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def in_a_child(act: Callable[[], None]) -> None:
    """What ``act`` raises in a process of its own. Raises `OSError`."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From Python 3.12 on, where there are other threads; the child needs nothing that they may have locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            act()
        except OSError as error:
            os.write(writer, struct.pack("i", error.errno or 0))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as result:
        said = result.read()
    os.waitpid(child, 0)
    assert said, "the child has failed with no errno"
    (number,) = struct.unpack("i", said)
    raise OSError(number, os.strerror(number))


def as_nobody(act: Callable[[], None]) -> None:
    """In a child that is another user, without any privilege. Raises `OSError`."""

    def become_nobody() -> None:
        if ROOT:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        act()

    in_a_child(become_nobody)


def in_namespaces(flags: int, act: Callable[[], None]) -> None:
    """In a child that is root of such namespaces. Raises `OSError`."""

    def unshared() -> None:
        uid, gid = os.getuid(), os.getgid()
        raw("unshare", flags if ROOT else flags | NEW_USERS)
        if not ROOT:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        act()

    in_a_child(unshared)


def with_own_mount(at: Path, act: Callable[[], None], kind: bytes = b"tmpfs", options: bytes = b"") -> None:
    """In a child that has a filesystem of its own at ``at``. Raises `OSError`."""
    recursive, private = 0x4000, 0x40000

    def mounted() -> None:
        raw("mount", b"none", b"/", None, recursive | private, None)
        raw("mount", kind, bytes(at), kind, 0, options)
        act()

    in_namespaces(NEW_MOUNTS, mounted)


def remount_read_only(at: Path) -> None:
    read_only, remount = 1, 32
    raw("mount", b"tmpfs", bytes(at), None, read_only | remount, None)


def interrupted(act: Callable[[], None]) -> None:
    """In a child where a signal comes again and again, and calls are not restarted. Raises `OSError`."""

    def with_signals() -> None:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        act()

    in_a_child(with_signals)


def closed_descriptor() -> int:
    """A number that is open nowhere: the highest that may be."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1


def address(path: Path | str) -> tuple[bytes, int]:
    said = struct.pack("H", socket.AF_UNIX) + os.fsencode(path) + b"\0"
    return said, len(said)


# --- the same on several calls: paths ---


def _connect(path: Path) -> None:
    with unix() as client:
        client.connect(str(path))


def _send(path: Path) -> None:
    with unix(DATAGRAM) as client:
        client.sendto(b"x", str(path))


def _bind(path: Path) -> None:
    with unix() as server:
        server.bind(str(path))


WITH_PATH: tuple[tuple[Call, Provocation], ...] = (("connect", _connect), ("send", _send), ("bind", _bind))


def _provoke_paths(call: Call, act: Provocation) -> None:
    @provokes(call, "ENOENT")
    def no_directory(directory: Path) -> None:
        act(directory / "none" / "s")

    @provokes(call, "ENOTDIR")
    def file_on_the_way(directory: Path) -> None:
        (directory / "file").touch()
        act(directory / "file" / "s")

    @provokes(call, "ELOOP")
    def link_to_itself(directory: Path) -> None:
        (directory / "link").symlink_to("link")
        act(directory / "link" / "s")

    @provokes(call, "ENAMETOOLONG")
    def link_to_long_name(directory: Path) -> None:
        (directory / "link").symlink_to("x" * 256)
        act(directory / "link" / "s")

    @provokes(call, "EACCES")
    def closed_directory(directory: Path) -> None:
        directory.chmod(0)
        try:
            as_nobody(lambda: act(directory / "s"))
        finally:
            directory.chmod(0o755)

    @provokes(call, "EROFS")
    def read_only(directory: Path) -> None:
        def remounted() -> None:
            remount_read_only(directory)
            act(directory / "s" if call == "bind" else directory)

        with_own_mount(directory, remounted)


for _call, _act in WITH_PATH:
    _provoke_paths(_call, _act)


# --- the same on several calls: mistakes ---

MISTAKEN: dict[Call, Callable[[int], None]] = {
    "connect": lambda number: raw("connect", number, *address("/s")),
    "accept": lambda number: raw("accept", number, None, None),
    "send": lambda number: raw("send", number, b"x", 1, 0),
    "recv": lambda number: raw("recv", number, ctypes.create_string_buffer(1), 1, 0),
    "bind": lambda number: raw("bind", number, *address("/s")),
    "listen": lambda number: raw("listen", number, 1),
}


def _provoke_mistakes(call: Call, act: Callable[[int], None]) -> None:
    @provokes(call, "EBADF")
    def not_open(directory: Path) -> None:
        act(closed_descriptor())

    @provokes(call, "ENOTSOCK")
    def no_socket(directory: Path) -> None:
        with (directory / "file").open("w") as file:
            act(file.fileno())


for _call, _mistake in MISTAKEN.items():
    _provoke_mistakes(_call, _mistake)


@provokes("connect", "EFAULT")
def connect_to_unmapped(directory: Path) -> None:
    with unix() as client:
        raw("connect", client.fileno(), ctypes.c_void_p(UNMAPPED), 16)


@provokes("bind", "EFAULT")
def bind_to_unmapped(directory: Path) -> None:
    with unix() as server:
        raw("bind", server.fileno(), ctypes.c_void_p(UNMAPPED), 16)


@provokes("accept", "EFAULT")
def accept_into_unmapped(directory: Path) -> None:
    with listener(directory / "s") as server, unix() as client:
        client.connect(str(directory / "s"))
        raw("accept", server.fileno(), ctypes.c_void_p(UNMAPPED), ctypes.byref(ctypes.c_int(110)))


@provokes("send", "EFAULT")
def send_unmapped(directory: Path) -> None:
    with pair() as (one, _):
        raw("send", one.fileno(), ctypes.c_void_p(UNMAPPED), 1, 0)


@provokes("recv", "EFAULT")
def recv_into_unmapped(directory: Path) -> None:
    with pair() as (one, other):
        other.send(b"x")
        raw("recv", one.fileno(), ctypes.c_void_p(UNMAPPED), 1, 0)


# --- connect ---


@provokes("connect", "EAGAIN")
def connect_to_full(directory: Path) -> None:
    with listener(directory / "s", backlog=0), unix() as first, unix() as second:
        first.connect(str(directory / "s"))
        second.connect(str(directory / "s"))


@provokes("connect", "ECONNREFUSED")
def connect_to_nobody(directory: Path) -> None:
    listener(directory / "s").close()
    _connect(directory / "s")


@provokes("connect", "EPROTOTYPE")
def connect_to_another_type(directory: Path) -> None:
    with listener(directory / "s"), unix(DATAGRAM) as client:
        client.connect(str(directory / "s"))


@provokes("connect", "EISCONN")
def connect_again(directory: Path) -> None:
    with listener(directory / "s", backlog=1), unix() as client:
        client.connect(str(directory / "s"))
        client.connect(str(directory / "s"))


@provokes("connect", "EINVAL")
def connect_too_long(directory: Path) -> None:
    with unix() as client:
        raw("connect", client.fileno(), *address("/" + "x" * 108))


@provokes("connect", "EPERM")
def connect_to_connected(directory: Path) -> None:
    with unix(DATAGRAM) as receiver, unix(DATAGRAM) as friend, unix(DATAGRAM) as stranger:
        receiver.bind(str(directory / "receiver"))
        friend.bind(str(directory / "friend"))
        receiver.connect(str(directory / "friend"))
        stranger.connect(str(directory / "receiver"))


@provokes("connect", "EINTR")
def connect_interrupted(directory: Path) -> None:
    with listener(directory / "s", backlog=0), unix() as first, unix() as second:
        first.connect(str(directory / "s"))
        second.setblocking(True)
        interrupted(lambda: raw("connect", second.fileno(), *address(directory / "s")))


# --- accept ---


@provokes("accept", "EAGAIN")
def accept_nobody(directory: Path) -> None:
    with listener(directory / "s") as server:
        server.accept()


@provokes("accept", "EMFILE")
def accept_without_descriptors(directory: Path) -> None:
    with listener(directory / "s") as server, unix() as client:
        client.connect(str(directory / "s"))

        def accept() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
            server.accept()

        in_a_child(accept)


@provokes("accept", "EINVAL")
def accept_without_listen(directory: Path) -> None:
    with unix() as server:
        server.bind(str(directory / "s"))
        server.accept()


@provokes("accept", "EOPNOTSUPP")
def accept_datagram(directory: Path) -> None:
    with unix(DATAGRAM) as server:
        server.accept()


@provokes("accept", "EINTR")
def accept_interrupted(directory: Path) -> None:
    with listener(directory / "s") as server:
        server.setblocking(True)
        interrupted(lambda: raw("accept", server.fileno(), None, None))


# --- send ---


@provokes("send", "EPIPE")
def send_to_closed(directory: Path) -> None:
    with pair() as (one, other):
        other.close()
        one.send(b"x")


@provokes("send", "EAGAIN")
def send_to_full(directory: Path) -> None:
    with pair() as (one, _):
        while True:
            one.send(bytes(65536))


@provokes("send", "ECONNRESET")
def send_after_reset(directory: Path) -> None:
    with pair(SEQPACKET) as (one, other):
        one.send(b"unread")
        other.close()
        one.send(b"x")


@provokes("send", "ENOTCONN")
def send_to_nobody(directory: Path) -> None:
    with unix() as client:
        client.send(b"x")


@provokes("send", "ECONNREFUSED")
def send_to_receiver_that_left(directory: Path) -> None:
    with unix(DATAGRAM) as receiver:
        receiver.bind(str(directory / "s"))
    _send(directory / "s")


@provokes("send", "EMSGSIZE")
def send_too_long(directory: Path) -> None:
    with pair(DATAGRAM) as (one, _):
        one.send(bytes(one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)))


@provokes("send", "EISCONN")
def send_to_address_on_stream(directory: Path) -> None:
    with pair() as (one, _):
        one.sendto(b"x", str(directory / "s"))


@provokes("send", "EOPNOTSUPP")
def send_urgent_datagram(directory: Path) -> None:
    with pair(DATAGRAM) as (one, _):
        one.send(b"x", socket.MSG_OOB)


@provokes("send", "EINVAL")
def send_too_many_descriptors(directory: Path) -> None:
    with pair() as (one, _):
        socket.send_fds(one, [b"x"], [one.fileno()] * 254)


def _credentials(pid: int, uid: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", pid, uid, os.getgid())


@provokes("send", "EPERM")
def send_credentials_of_root(directory: Path) -> None:
    with pair() as (one, _):

        def send() -> None:
            one.sendmsg([b"x"], [_credentials(os.getpid(), 0)])

        as_nobody(send)


@provokes("send", "ESRCH")
def send_credentials_of_no_process(directory: Path) -> None:
    with pair() as (one, _):
        one.sendmsg([b"x"], [_credentials(int(Path("/proc/sys/kernel/pid_max").read_text()) + 1, os.getuid())])


@provokes("send", "ETOOMANYREFS")
def send_descriptors_unread(directory: Path) -> None:
    with pair() as (one, other):

        def send() -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
            while True:
                socket.send_fds(one, [b"x"], [other.fileno()] * 32)

        as_nobody(send)


@provokes("send", "ENOBUFS")
def send_what_no_memory_holds_in_one_piece(directory: Path) -> None:
    so_sndbufforce = 32
    with pair(DATAGRAM) as (one, _):
        one.setsockopt(socket.SOL_SOCKET, so_sndbufforce, 32 << 20)
        one.send(bytes(32 << 20))


@provokes("send", "EINTR")
def send_interrupted(directory: Path) -> None:
    with pair() as (one, _):
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(65536))
        one.setblocking(True)
        interrupted(lambda: raw("send", one.fileno(), bytes(65536), 65536, 0))


@provokes("send", "EPROTOTYPE")
def send_to_another_type(directory: Path) -> None:
    with listener(directory / "s"):
        _send(directory / "s")


# --- recv ---


@provokes("recv", "ECONNRESET")
def recv_after_reset(directory: Path) -> None:
    with pair() as (one, other):
        one.send(b"unread")
        other.close()
        one.recv(1)


@provokes("recv", "EAGAIN")
def recv_nothing(directory: Path) -> None:
    with pair() as (one, _):
        one.recv(1)


@provokes("recv", "ENOTCONN")
def recv_from_nobody(directory: Path) -> None:
    with unix(SEQPACKET) as client:
        client.recv(1)


@provokes("recv", "EINVAL")
def recv_from_nobody_on_stream(directory: Path) -> None:
    with unix() as client:
        client.recv(1)


@provokes("recv", "EOPNOTSUPP")
def recv_urgent_datagram(directory: Path) -> None:
    with pair(DATAGRAM) as (one, _):
        one.recv(1, socket.MSG_OOB)


@provokes("recv", "EMSGSIZE")
def recv_into_too_many(directory: Path) -> None:
    with pair() as (one, _):
        one.recvmsg_into([bytearray(1) for _ in range(os.sysconf("SC_IOV_MAX") + 1)])


@provokes("recv", "EINTR")
def recv_interrupted(directory: Path) -> None:
    with pair() as (one, _):
        one.setblocking(True)
        interrupted(lambda: raw("recv", one.fileno(), ctypes.create_string_buffer(1), 1, 0))


# --- bind ---


@provokes("bind", "EADDRINUSE")
def bind_to_leftover(directory: Path) -> None:
    listener(directory / "s").close()
    _bind(directory / "s")


@provokes("bind", "EINVAL")
def bind_again(directory: Path) -> None:
    with unix() as server:
        server.bind(str(directory / "s"))
        server.bind(str(directory / "t"))


@provokes("bind", "EPERM")
def bind_where_no_socket_can_be(directory: Path) -> None:
    with_own_mount(directory, lambda: _bind(directory / "s"), kind=b"devpts")


@provokes("bind", "ENOSPC")
def bind_without_an_inode(directory: Path) -> None:
    def bind() -> None:
        _bind(directory / "first")
        _bind(directory / "second")

    with_own_mount(directory, bind, options=b"nr_inodes=2")


# --- listen ---


@provokes("listen", "EINVAL")
def listen_without_bind(directory: Path) -> None:
    with unix() as server:
        server.listen(1)


@provokes("listen", "EOPNOTSUPP")
def listen_datagram(directory: Path) -> None:
    with unix(DATAGRAM) as server:
        server.bind(str(directory / "s"))
        server.listen(1)


# --- the runner ---


def possible() -> list[tuple[Call, str]]:
    return [each for each in PROVOCATIONS if ROOT or each not in NEEDS_ROOT]


@pytest.mark.parametrize(("call", "name"), possible())
def test_the_errno(call: Call, name: str, directory: Path) -> None:
    """This kernel returns it, for what the provocation does."""
    with pytest.raises(OSError, match=os.strerror(number_of(name))):
        PROVOCATIONS[call, name](directory)


# --- what the texts say besides ---


def _bind_to_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")
    _bind(path)


def _connect_to_file(path: Path) -> None:
    path.touch()
    _connect(path)


def _connect_to_listener_that_was_shut_down(path: Path) -> None:
    with listener(path) as server:
        server.shutdown(socket.SHUT_RD)
        _connect(path)


def _accept_on_listener_that_was_shut_down(path: Path) -> None:
    with listener(path) as server:
        server.shutdown(socket.SHUT_RD)
        server.setblocking(True)
        server.accept()


def _send_to_full_datagrams(path: Path) -> None:
    with unix(DATAGRAM) as receiver:
        receiver.bind(str(path))
        while True:
            _send(path)


def _recv_with_urgent_flag(path: Path) -> None:
    with pair() as (one, _):
        one.recv(1, socket.MSG_OOB)


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (_bind_to_link_to_nowhere, "EADDRINUSE"),
        (_connect_to_file, "ECONNREFUSED"),
        (_connect_to_listener_that_was_shut_down, "ECONNREFUSED"),
        (_accept_on_listener_that_was_shut_down, "EINVAL"),
        (_send_to_full_datagrams, "EAGAIN"),
        (_recv_with_urgent_flag, "EINVAL"),
    ],
)
def test_other_causes(act: Provocation, name: str, directory: Path) -> None:
    """Causes that the table names besides the one that is provoked."""
    with pytest.raises(OSError, match=os.strerror(number_of(name))):
        act(directory / "s")


def test_a_datagram_receiver_that_left_disconnects() -> None:
    """ECONNREFUSED once, and ENOTCONN from then on."""
    with pair(DATAGRAM) as (one, other):
        other.close()
        with pytest.raises(ConnectionRefusedError):
            one.send(b"x")
        with pytest.raises(OSError, match="not connected"):
            one.send(b"x")
