"""Endpoints: how they are spelled, and the sockets that come of them. Real sockets, real files."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy import endpoints
from udsproxy.endpoints import Endpoint, EndpointError, ListenError, Tcp, UnixAbstract, UnixPath, parse


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short path: sun_path has 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="udst-", dir="/tmp") as made:
        yield Path(made)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("/run/p.sock", UnixPath("/run/p.sock")),
        ("p.sock", UnixPath("p.sock")),
        ("unix:/run/p.sock", UnixPath("/run/p.sock")),
        ("./a:b", UnixPath("./a:b")),
        ("unix:a:b", UnixPath("a:b")),
        ("unix:@name", UnixAbstract("name")),
        ("@name", UnixAbstract("name")),
        (r"\0name", UnixAbstract("name")),
        (r"unix:\x00name", UnixAbstract("name")),
        (r"@a\x00b\0", UnixAbstract("a\0b\0")),
        (r"@\xff\n\u202e\\", UnixAbstract("\udcff\n\u202e\\")),
        (r"@\xc3\xa9", UnixAbstract("\u00e9")),
        ("@a,b,c=d", UnixAbstract("a,b,c=d")),
        (r"@a\,mode=660", UnixAbstract("a,mode=660")),
        (r"/tmp/new\nline\xff,mode=600", UnixPath("/tmp/new\nline\udcff", 0o600)),
        ("/p,mode=660,owner=www-data,group=33", UnixPath("/p", 0o660, "www-data", "33")),
        (r"/a\,b,mode=600", UnixPath("/a,b", 0o600)),
        ("tcp:localhost:9000", Tcp("localhost", 9000)),
        ("tcp:[::1]:80", Tcp("::1", 80)),
    ],
)
def test_spellings(text: str, endpoint: Endpoint) -> None:
    """Every spelling that the documentation gives."""
    assert parse(text) == endpoint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "path is missing"),
        ("unix:", "path is missing"),
        ("unix:@", "abstract name"),
        ("unix:@" + "x" * 108, "abstract name"),
        ("udp:1.2.3.4:5", "unknown kind 'udp'"),
        ("tcp:localhost", "tcp:HOST:PORT"),
        ("tcp:a..b:80", "name of a host"),
        ("tcp:localhost:99999", "tcp:HOST:PORT"),
        ("tcp:localhost:http", "tcp:HOST:PORT"),
        ("tcp:::1:80", "brackets"),
        ("/p,mod=660", "did you mean 'mode'"),
        ("/p,fork", "unknown option 'fork'"),
        ("/p,mode", "needs a value"),
        ("/p,mode=999", "not octal"),
        ("/p,mode=7777", "not octal"),
        ("tcp:h:1,mode=600", "unknown option 'mode'"),
        ("unix:@a,mode=600", "unknown option 'mode'"),
        ("/a\0b", "NUL"),
        (r"/a\0b", "NUL"),
        (r"@\ud800", "cannot be encoded"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    """A mistake is an error of one line that says what was meant to stand there."""
    with pytest.raises(EndpointError) as error:
        parse(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text())
def test_parsing_never_fails_otherwise(text: str) -> None:
    """Whatever the text, the answer is an endpoint or an EndpointError."""
    with contextlib.suppress(EndpointError):
        assert str(parse(text))


@given(st.binary(min_size=1, max_size=107).map(lambda data: bytes(byte & 0x7F for byte in data)))
def test_what_is_printed_can_be_given_back(name: bytes) -> None:
    """An abstract name of ASCII, as it is printed, spells the same endpoint; a backslash is written twice."""
    endpoint = UnixAbstract(name.decode().replace("\\", "/").replace("=", "-"))
    assert str(endpoint).isprintable()
    assert parse(str(endpoint)) == endpoint
    assert parse(str(endpoint).replace("/", r"\\")) == UnixAbstract(endpoint.name.replace("/", "\\"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:@name", "@name"),
        (r"\x00name", "@name"),
        (r"unix:@a\0b", "@a\0b"),
        ("unix:/run/p.sock,mode=660", "/run/p.sock"),
        ("/run/a,b.sock", "/run/a,b.sock"),
        (r"@a\x00b", r"@a\x00b"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    """What the commands that look at a socket take: every spelling of an endpoint, and what they print."""
    assert endpoints.address_of(text) == address


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def client(path: Path) -> int:
    """The errno of connecting to a path; 0: connected."""
    with endpoints.unix_socket() as sock:
        return endpoints.connect(sock, UnixPath(str(path)))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o666, 0o400])
def test_mode_whatever_the_umask(directory: Path, umask: int, wanted: int) -> None:
    """The file has the mode that was asked for, exactly, under any umask."""
    before = os.umask(umask)
    try:
        listener = endpoints.Listener(UnixPath(str(directory / "p"), wanted))
    finally:
        os.umask(before)
    assert mode(directory / "p") == wanted
    listener.close()


def test_copies_the_upstream(directory: Path) -> None:
    """Without options a listening path has the upstream's mode and owner; with none to copy it is 600."""
    upstream = endpoints.Listener(UnixPath(str(directory / "up"), 0o640))
    if os.geteuid() == 0:
        os.chown(directory / "up", 33, 34)
    copied = endpoints.Listener(UnixPath(str(directory / "a")), like=UnixPath(str(directory / "up")))
    alone = endpoints.Listener(UnixPath(str(directory / "b")), like=UnixPath(str(directory / "missing")))
    told = endpoints.Listener(UnixPath(str(directory / "c"), 0o666), like=UnixPath(str(directory / "up")))
    up, a, c = ((directory / name).stat() for name in ("up", "a", "c"))
    assert (a.st_uid, a.st_gid, mode(directory / "a")) == (up.st_uid, up.st_gid, 0o640)
    assert (c.st_uid, c.st_gid, mode(directory / "c")) == (up.st_uid, up.st_gid, 0o666)
    assert mode(directory / "b") == 0o600
    for each in (upstream, copied, alone, told):
        each.close()


def test_copies_the_acl(directory: Path) -> None:
    """An access ACL is copied with the mode, whose group bits are only its mask (acl(5))."""
    up = directory / "up"
    upstream = endpoints.Listener(UnixPath(str(up), 0o600))
    # version 2; user::rw-, user:33:rw-, group::---, mask::rw-, other::---
    entries = ((1, 6, -1), (2, 6, 33), (4, 0, -1), (16, 6, -1), (32, 0, -1))
    os.setxattr(
        up, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *e) for e in entries)
    )
    copied = endpoints.Listener(UnixPath(str(directory / "a")), like=UnixPath(str(up)))
    told = endpoints.Listener(UnixPath(str(directory / "b"), 0o600), like=UnixPath(str(up)))
    acl = os.getxattr(up, "system.posix_acl_access")
    assert os.getxattr(directory / "a", "system.posix_acl_access") == acl
    assert mode(directory / "b") == 0o600
    for each in (upstream, copied, told):
        each.close()


def test_unknown_owner(directory: Path) -> None:
    """An owner that does not exist is an error, and leaves no file behind."""
    with pytest.raises(ListenError, match="no such user"):
        endpoints.Listener(UnixPath(str(directory / "p"), owner="nobody-has-this-name"))
    assert not list(directory.iterdir())


def test_stale_socket_is_replaced(directory: Path) -> None:
    """A socket file that nobody listens on is replaced; the new one works."""
    path = directory / "p"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert client(path) == errno.ECONNREFUSED
    listener = endpoints.Listener(UnixPath(str(path)))
    assert client(path) == 0
    listener.close()
    assert not path.exists()


def test_live_socket_is_left_alone(directory: Path) -> None:
    """A path where somebody listens, also with a full queue or of another type, is an error and stays theirs."""
    for kind, backlog in ((socket.SOCK_STREAM, 5), (socket.SOCK_STREAM, 0), (socket.SOCK_SEQPACKET, 5)):
        path = directory / "p"
        with socket.socket(socket.AF_UNIX, kind) as live, socket.socket(socket.AF_UNIX, kind) as waiting:
            live.bind(str(path))
            live.listen(backlog)
            waiting.connect(str(path))
            with pytest.raises(ListenError, match="already listens"):
                endpoints.Listener(UnixPath(str(path)))
        path.unlink()


def test_plain_file_is_left_alone(directory: Path) -> None:
    """A file, a directory or a link at the path is an error; it is not touched."""
    (directory / "file").write_text("keep")
    (directory / "link").symlink_to(directory / "file")
    (directory / "dir").mkdir()
    for name in ("file", "link", "dir"):
        with pytest.raises(ListenError, match="not a socket"):
            endpoints.Listener(UnixPath(str(directory / name)))
    assert (directory / "file").read_text() == "keep"


def test_missing_directory(directory: Path) -> None:
    """Where the directory is missing, the error says so and what to do."""
    with pytest.raises(ListenError, match=r"ENOENT.*make the directory"):
        endpoints.Listener(UnixPath(str(directory / "no" / "p")))


def test_long_paths(directory: Path) -> None:
    """Paths far over 107 bytes can be listened on and connected to, and are removed at the end."""
    deep = directory / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    path = deep / ("s" * 250)
    listener = endpoints.Listener(UnixPath(str(path)))
    assert client(path) == 0
    assert [each.name for each in deep.iterdir()] == [path.name]
    listener.close()
    assert not list(deep.iterdir())
    assert client(path) == errno.ENOENT


def test_a_file_that_is_not_ours_any_more_stays(directory: Path) -> None:
    """If somebody put another socket at the path meanwhile, closing ours leaves theirs alone."""
    path = directory / "p"
    ours = endpoints.Listener(UnixPath(str(path)))
    path.unlink()
    theirs = endpoints.Listener(UnixPath(str(path)))
    ours.close()
    assert client(path) == 0
    theirs.close()


def test_abstract_and_tcp() -> None:
    """Abstract names and TCP ports can be listened on and connected to."""
    name = UnixAbstract(f"udsproxy-test-{os.getpid()}")
    listener = endpoints.Listener(name)
    with endpoints.unix_socket() as sock:
        assert endpoints.connect(sock, name) == 0
        listener.accept().close()
    with pytest.raises(ListenError, match="EADDRINUSE"):
        endpoints.Listener(name)
    listener.close()
    tcp = endpoints.Listener(Tcp("127.0.0.1", 0))
    assert isinstance(tcp.endpoint, Tcp)
    assert tcp.endpoint.port > 0
    tcp.close()


async def test_connecting_by_tcp() -> None:
    """A TCP connection arrives, with nothing held back (TCP_NODELAY); nobody there is ECONNREFUSED."""
    listener = endpoints.Listener(Tcp("127.0.0.1", 0))
    assert isinstance(listener.endpoint, Tcp)
    for each in (await endpoints.connect_tcp(listener.endpoint), listener.accept()):
        assert each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not os.get_blocking(each.fileno())
        each.close()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        await endpoints.connect_tcp(listener.endpoint)


def test_the_backlog_is_the_kernels(directory: Path) -> None:
    """A backlog of N lets N + 1 clients wait; the next one gets EAGAIN, and may try again on the same socket."""
    path = directory / "p"
    listener = endpoints.Listener(UnixPath(str(path)), backlog=1)
    waiting = [endpoints.unix_socket() for _ in range(3)]
    assert [endpoints.connect(each, UnixPath(str(path))) for each in waiting] == [0, 0, errno.EAGAIN]
    listener.accept().close()
    assert endpoints.connect(waiting[2], UnixPath(str(path))) == 0
    for each in waiting:
        each.close()
    listener.close()


def test_a_backlog_past_the_systems_limit(directory: Path) -> None:
    """listen() would cut it silently; the listener says what it became (net.core.somaxconn)."""
    listener = endpoints.Listener(UnixPath(str(directory / "p")), backlog=2**31 - 1)
    assert listener.backlog == int(Path("/proc/sys/net/core/somaxconn").read_text())
    listener.close()
