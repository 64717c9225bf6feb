"""The route from a client to a server, and what a test does with its two ends.

Rules: sockets block, and give up with EAGAIN after `LIMIT_S`; whatever a route gave out is closed with it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import io
import os
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import pytest

from tests.e2e.proxy import Proxy
from tests.e2e.tools import LIMIT_S, until
from tests.stage import Stage
from udsproxy.kernel.sock_diag import SockDiag

T = TypeVar("T")

Burst = Callable[["Route"], contextlib.AbstractContextManager[None]]
"""The fixture ``burst``."""

BACKLOG = 128
"""Of a server where the test is not about that."""
KIB, MIB = 1 << 10, 1 << 20
LARGE = 100 * KIB
"""More than a page, less than what a socket takes at once."""
MOST_DESCRIPTORS = 253
"""In one message (SCM_MAX_FD)."""
ROOT = os.geteuid() == 0
OTHER_ID = 65534
"""Somebody else, on every system: nobody."""

OPEN = select.POLLOUT
HALF_CLOSED = select.POLLIN | select.POLLOUT | select.POLLRDHUP
CLOSED = HALF_CLOSED | select.POLLHUP
RESET = CLOSED | select.POLLERR
"""What poll() says of an end with nothing to read: as it was made; the peer has sent its last; has closed; has
closed without reading all."""

_CREDENTIALS = struct.Struct("=iII")
_SIOCATMARK = 0x8905
_MARKER = 16


class Credentials(NamedTuple):
    """struct ucred (unix(7))."""

    pid: int
    uid: int
    gid: int

    def pack(self) -> bytes:
        return _CREDENTIALS.pack(*self)


class Message(NamedTuple):
    """What one recvmsg() gave."""

    data: bytes
    files: list[io.FileIO]
    credentials: list[Credentials]
    flags: int


class Pipe(NamedTuple):
    """The reader never blocks."""

    reader: io.FileIO
    writer: io.FileIO


class OneWay(NamedTuple):
    """The ends of a connection, by what the test does with them."""

    sender: socket.socket
    receiver: socket.socket


class Route:
    """A server's place and the way there: its own path, or a proxy's."""

    listener: socket.socket
    """The server's: it listens, or receives datagrams."""

    def __init__(
        self, stage: Stage, kind: socket.SocketKind, *, proxied: bool, options: tuple[str, ...] = ()
    ) -> None:
        """``options``: of the proxy."""
        self.server_path = stage.path("server.sock")
        self.path = stage.path("proxy.sock") if proxied else self.server_path
        """Where clients connect."""
        self._stage = stage
        self._kind = kind
        self._options = options
        self._proxy: Proxy | None = None
        self._held = contextlib.ExitStack()
        self._names = 0
        os.chmod(stage.directory, 0o777)  # somebody else shall be client and server too

    # --- the server and the proxy ---

    def serve(self, backlog: int = BACKLOG) -> None:
        """Start the server, or start it anew."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.server_path)
        self.listener = limited(socket.socket(socket.AF_UNIX, self._kind))
        self.listener.bind(self.server_path)
        os.chmod(self.server_path, 0o666)
        if self._kind != socket.SOCK_DGRAM:
            self.listener.listen(backlog)

    def open(self) -> None:
        """Start the proxy, if there is one between."""
        if self.path != self.server_path:
            options = ("--control", "none", *self._options)
            self._proxy = Proxy(self._stage, self.path, self.server_path, *options, log=("--log", "none"))
            until(self._is_there, f"a socket at {self.path}")

    def _is_there(self) -> bool:
        self._stage.check_alive()
        return os.path.exists(self.path)

    def start(self, backlog: int = BACKLOG) -> None:
        """`serve` and `open`."""
        self.serve(backlog)
        self.open()

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """A proxy stands still meanwhile, and so meets all that happens at once."""
        if self._proxy is None:
            yield
            return
        self._proxy.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._proxy.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self._proxy.signal(signal.SIGCONT)

    def open_files(self) -> int:
        """How many descriptors the proxy has open."""
        assert self._proxy is not None
        return len(os.listdir(f"/proc/{self._proxy.pid}/fd"))

    def drain(self) -> None:
        """Take out what the tests before have left in the server's queue."""
        self._stage.check_alive()
        marker = os.urandom(_MARKER)
        with self.connect() as client:
            client.send(marker)
            until(lambda: self._next() == marker, "the connection after those that were left")

    def _next(self) -> bytes:
        if self._kind == socket.SOCK_DGRAM:
            return self.listener.recv(_MARKER)
        with contextlib.suppress(ConnectionError), self.accept() as server:
            return server.recv(_MARKER)
        return b""

    def clear(self) -> None:
        """Close what was given out."""
        self._held.close()

    def close(self) -> None:
        """Close all, and look at what the proxy has said."""
        self.clear()
        if hasattr(self, "listener"):
            self.listener.close()
        if self._proxy is not None:
            self._proxy.end()

    # --- the ends ---

    def new_path(self) -> str:
        """A path for a client's own socket."""
        self._names += 1
        return self._stage.path(f"client-{self._names}.sock")

    def client(self, kind: socket.SocketKind | None = None) -> socket.socket:
        """A socket that is not connected yet."""
        return limited(self._held.enter_context(socket.socket(socket.AF_UNIX, kind or self._kind)))

    def connect(self) -> socket.socket:
        client = self.client()
        client.connect(self.path)
        return client

    def try_connect(self, kind: socket.SocketKind | None = None) -> int:
        """The errno of a client's connect() that does not wait, or 0."""
        client = self.client(kind)
        client.setblocking(False)
        return client.connect_ex(self.path)

    def accept(self) -> socket.socket:
        return limited(self._held.enter_context(self.listener.accept()[0]))

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A client and its server."""
        client = self.connect()
        return client, self.accept()

    # --- files ---

    def hold(self, descriptor: int) -> io.FileIO:
        """A descriptor that is closed with the route, if not before."""
        return self._held.enter_context(io.FileIO(descriptor, "r+"))

    def pipe(self) -> Pipe:
        reader, writer = (self._held.enter_context(io.FileIO(*end)) for end in zip(os.pipe(), "rw", strict=True))
        os.set_blocking(reader.fileno(), False)
        return Pipe(reader, writer)

    def receive(self, sock: socket.socket, size: int, flags: int = 0, *, room: int = MOST_DESCRIPTORS) -> Message:
        """recvmsg() with room for so many descriptors, and for credentials where the socket wants them."""
        space = socket.CMSG_LEN(room * array.array("i").itemsize) if room else 0
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED):
            space += 2 * socket.CMSG_SPACE(_CREDENTIALS.size)
        data, ancillary, found, _ = sock.recvmsg(size, space, flags)
        message = Message(data, [], [], found)
        for _, kind, content in ancillary:
            if kind == socket.SCM_RIGHTS:
                message.files.extend(self.hold(each) for each in array.array("i", content))
            else:
                message.credentials.append(Credentials(*_CREDENTIALS.unpack(content)))
        return message


# --- sockets ---


def limited(sock: socket.socket) -> socket.socket:
    """``sock``, blocking for `LIMIT_S` at most."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        set_limit(sock, option, LIMIT_S)
    return sock


def set_limit(sock: socket.socket, option: int, seconds: float) -> None:
    """SO_RCVTIMEO or SO_SNDTIMEO."""
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


def set_passcred(sock: socket.socket) -> None:
    """Have the sender's credentials come with what is received."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """The other end's uid and gid. (Its pid cannot be the same.)"""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(found))[1:]


def waiting(sock: socket.socket) -> int:
    """How many bytes are there to be read (FIONREAD)."""
    return _ioctl(sock, termios.FIONREAD)


def is_at_mark(sock: socket.socket) -> bool:
    """Is the next byte the urgent one (SIOCATMARK)?"""
    return bool(_ioctl(sock, _SIOCATMARK))


def _ioctl(sock: socket.socket, request: int) -> int:
    answer = array.array("i", [0])
    fcntl.ioctl(sock, request, answer)
    return answer[0]


def await_waiting(sock: socket.socket, nbytes: int) -> None:
    """Until so many bytes are there to be read."""
    until(lambda: waiting(sock) == nbytes, f"{nbytes} bytes to read")


def polled(sock: socket.socket) -> int:
    """What poll() says now."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP)
    return dict(poll.poll(0)).get(sock.fileno(), 0)


def await_polled(sock: socket.socket, flags: int) -> None:
    """Until poll() says just this."""
    until(lambda: polled(sock) == flags, f"poll() to say {flags:#x}")


def await_queue(path: str, length: int, backlog: int) -> None:
    """Until so many wait in the accept queue at ``path`` and that is its limit, in each of several looks."""

    def found() -> tuple[int, int] | None:
        listener = diag.listener(path)
        return None if listener is None else (listener.queue, listener.backlog)

    def is_settled() -> bool:
        for _ in range(5):
            if found() != (length, backlog):
                return False
            time.sleep(0.01)
        return True

    with SockDiag() as diag:
        until(is_settled, f"{length} in a queue of backlog {backlog}")


# --- sending and receiving ---


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes before the end; a reset is an error."""
    return b"".join(iter(lambda: sock.recv(MIB), b""))


def send_eventfully(sock: socket.socket, data: bytes) -> None:
    """As programs with an event loop do: what is taken at once, and the rest when poll() says so."""
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    left = memoryview(data)
    while left:
        assert poll.poll(LIMIT_S * 1000), f"not writable again with {len(left)} bytes left"
        with contextlib.suppress(BlockingIOError):
            left = left[sock.send(left) :]


def send_until_full(send: Callable[[], int], sock: socket.socket, most: int) -> int:
    """Send on a socket that does not block until it takes nothing more for a moment; how much it took."""
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    taken, is_full = 0, False
    while taken < most and not is_full:
        try:
            taken += send()
        except BlockingIOError:
            is_full = not poll.poll(200)
    return taken


def send_files(
    sock: socket.socket, data: bytes, *files: io.FileIO | socket.socket, to: str | bytes | None = None
) -> None:
    """One message with descriptors. ``to``: an address, where the socket is not connected."""
    rights = array.array("i", [file.fileno() for file in files])
    assert sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], 0, to) == len(data)


def send_as(sock: socket.socket, data: bytes, credentials: Credentials) -> None:
    """One message with credentials that the sender says itself."""
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials.pack())])


def same(files: Iterable[io.FileIO], others: Iterable[io.FileIO]) -> bool:
    """Are they the same files, in this order?"""
    pairs = zip(files, others, strict=True)
    return all(os.path.sameopenfile(one.fileno(), other.fileno()) for one, other in pairs)


def await_unheld(pipe: Pipe) -> None:
    """Until nobody anywhere holds the writing end."""
    pipe.writer.close()
    until(lambda: pipe.reader.read(1) == b"", "the end of the pipe, so that its other end is closed everywhere")


def assert_reset(sock: socket.socket) -> None:
    """ECONNRESET once, then the end."""
    with pytest.raises(ConnectionResetError):
        sock.recv(1)
    assert sock.recv(1) == b""


def await_broken_pipe(send: Callable[[], object]) -> None:
    """Until sending fails with EPIPE."""

    def is_broken() -> bool:
        try:
            send()
        except BrokenPipeError:
            return True
        except BlockingIOError:
            pass
        return False

    until(is_broken, "EPIPE")


def outcome(call: Callable[[], object]) -> int:
    """The errno of a call, or 0."""
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def refusal(route: Route) -> int:
    """The errno that connect() comes to, after one client at most that got in and was sent away."""
    first = route.client()
    failed = outcome(lambda: first.connect(route.path))
    if not failed:
        assert outcome(lambda: first.recv(1)) in (0, errno.ECONNRESET)
        failed = route.try_connect()
    return failed


# --- the world ---


@contextlib.contextmanager
def meanwhile(call: Callable[..., T], *arguments: object) -> Iterator[Future[T]]:
    """A call that goes on in a thread; what it raises is raised at the end of the block."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call, *arguments)
        yield future
        future.result(LIMIT_S)


@contextlib.contextmanager
def as_somebody_else() -> Iterator[tuple[int, int]]:
    """Be another user, where that is allowed (as root). Gives uid and gid."""
    if not ROOT:
        yield os.geteuid(), os.getegid()
        return
    # The real ones too: the kernel says these with messages, and the effective ones with connections.
    os.setresgid(OTHER_ID, OTHER_ID, 0)
    os.setresuid(OTHER_ID, OTHER_ID, 0)
    try:
        yield OTHER_ID, OTHER_ID
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
