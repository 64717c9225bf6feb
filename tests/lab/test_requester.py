"""The FastCGI client, against servers that a test plays."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing

from udsproxy.endpoints import Tcp, UnixPath
from udsproxy.lab import requester
from udsproxy.lab.requester import Answer, RequestFailed, ask, load, make_params
from udsproxy.protocols import fastcgi as wire

REPLY = (
    wire.encode_record(wire.STDERR, 1, b"oops")
    + wire.encode_stream(wire.STDOUT, 1, b"Status: 404 Not Found\r\n\r\nnothing")
    + wire.encode_end(1, app_status=7)
)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with TemporaryDirectory(prefix="udst-", dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as made:
        made.bind(str(Path(directory) / "s"))
        made.listen(2)
        yield made


def path(listener: socket.socket) -> UnixPath:
    return UnixPath(listener.getsockname())


async def play(listener: socket.socket, reply: bytes, *, read: bool = True) -> None:
    """Answer everybody with the same bytes, and close."""
    while True:
        await trio.lowlevel.wait_readable(listener.fileno())
        with trio.socket.from_stdlib_socket(listener.accept()[0]) as sock:
            if read:
                reader = wire.RecordReader()
                done = False
                while not done:
                    done = any(
                        r.kind == wire.STDIN and not r.content for r in reader.feed(await sock.recv(1 << 20))
                    )
            view = memoryview(reply)
            while view:
                view = view[await sock.send(view) :]


async def test_an_answer(listener: socket.socket, nursery: trio.Nursery) -> None:
    """The answer has both streams, the statuses and the times."""
    nursery.start_soon(play, listener, REPLY)
    answer = await ask(path(listener), make_params("/a.php?b=1"), bytes(1_000_000))
    assert (answer.status, answer.stderr, answer.app_status) == (404, b"oops", 7)
    assert answer.stdout.endswith(b"\r\n\r\nnothing")
    assert 0 <= answer.connect_s <= answer.ttfb_s <= answer.total_s


async def test_an_answer_before_the_body_is_read(listener: socket.socket, nursery: trio.Nursery) -> None:
    """A server that answers and closes without reading has still answered."""
    nursery.start_soon(lambda: play(listener, REPLY, read=False))
    assert (await ask(path(listener), make_params("/"), bytes(10_000_000))).status == 404


async def test_over_tcp(nursery: trio.Nursery) -> None:
    """The server may be on TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nursery.start_soon(play, listener, REPLY)
        assert (await ask(Tcp(*listener.getsockname()), make_params("/"))).status == 404
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("reply", "name"), [(REPLY[:-8], "EOF"), (b"", "EOF"), (b"HTTP/1.1 200 OK\r\n", "EPROTO")])
async def test_no_whole_answer(listener: socket.socket, nursery: trio.Nursery, reply: bytes, name: str) -> None:
    """An answer that is cut short, or none, or another protocol, is a failure that says which."""
    nursery.start_soon(play, listener, reply)
    with pytest.raises(RequestFailed) as failure:
        await ask(path(listener), make_params("/"))
    assert (failure.value.op, failure.value.name) == ("recv", name)


async def test_nobody_there(listener: socket.socket) -> None:
    """Connecting fails with the kernel's errno: no file, a full queue."""
    with pytest.raises(RequestFailed, match=r"connect: No such file or directory \(ENOENT\)"):
        await ask(UnixPath("/nonexistent/s"), make_params("/"))
    listener.listen(0)
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(listener.getsockname())
        with pytest.raises(RequestFailed, match="EAGAIN"):
            await ask(path(listener), make_params("/"))


async def test_a_load(listener: socket.socket, nursery: trio.Nursery) -> None:
    """A load counts every request, as an answer by its status or as a failure by call and errno."""
    nursery.start_soon(play, listener, REPLY)
    seen = await load(path(listener), make_params("/"), b"", requests=20, concurrency=2)
    assert seen.statuses == {404: 20}
    assert not seen.failures
    assert 0 < seen.percentile(50) <= seen.percentile(100)
    nursery.cancel_scope.cancel()
    failed = await load(UnixPath("/nonexistent/s"), make_params("/"), b"", requests=5, concurrency=10)
    assert failed.failures == {"connect: ENOENT": 5}
    assert failed.percentile(99) == 0


def test_parameters() -> None:
    """The parameters are a web server's: method by body, query from the script, the root before the file."""
    params = make_params("/a.php?b=1", root="/srv", body_bytes=3, extra={"X": "y", "SERVER_SOFTWARE": "mine"})
    assert params[b"REQUEST_METHOD"] == b"POST"
    assert params[b"QUERY_STRING"] == b"b=1"
    assert params[b"SCRIPT_FILENAME"] == b"/srv/a.php"
    assert params[b"REQUEST_URI"] == b"/a.php?b=1"
    assert (params[b"X"], params[b"SERVER_SOFTWARE"]) == (b"y", b"mine")
    assert make_params("/")[b"REQUEST_METHOD"] == b"GET"


@pytest.mark.parametrize(
    ("stdout", "status"),
    [
        (b"Status: 503\r\n\r\n", 503),
        (b"A: b\nstatus:  201 x\n\nStatus: 404", 201),
        (b"\r\n\r\nStatus: 404", 200),
        (b"", 200),
    ],
)
def test_statuses(stdout: bytes, status: int) -> None:
    """The status is what the CGI headers say, and 200 where they say nothing."""
    assert Answer(stdout=stdout).status == status


def test_params_have_no_default_that_is_shared() -> None:
    """Asking twice gives equal, separate parameters."""
    first = requester.make_params("/")
    first[b"X"] = b"y"
    assert b"X" not in requester.make_params("/")
