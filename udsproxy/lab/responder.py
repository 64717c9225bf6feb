"""A small pre-forking FastCGI responder, with the shape that php-fpm has: a master that listens, W workers that
each accept one connection at a time and hold it until it is answered. Whoever comes when all are busy waits in
the accept queue; whoever comes when that is full gets EAGAIN.

Rules: `Conversation` is sans-I/O. Workers are plain processes with blocking sockets, so that the queue behaves
as it does for such servers. They die with their master. Nothing that a client sends ends a worker.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

from udsproxy.endpoints import Listener
from udsproxy.events import printable
from udsproxy.protocols import fastcgi as wire

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""

_MAX_PARAMS = 1024 * 1024
"""Parameters of one request; more is answered with status 431 and the connection closed."""


@dataclass(slots=True)
class _Request:
    keep_conn: bool
    params: list[tuple[bytes, bytes]] = field(default_factory=list)
    params_bytes: int = 0
    reader: wire.PairReader = field(default_factory=wire.PairReader)
    body_bytes: int = 0
    body_hash: hashlib._Hash = field(default_factory=hashlib.sha256)


class Conversation:
    """The server's side of one connection: records in, answers out. One request at a time."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._records = wire.RecordReader()
        self._open: dict[int, _Request] = {}
        self.finished = False
        """The connection is to be closed: its last request asked for that (spec 5.1)."""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """What to send, and whether it is the answer to a request (which a delay comes before).

        Raises ValueError where the stream is not FastCGI.
        """
        for record in self._records.feed(data):
            answer = self._take(record)
            if answer is not None:
                yield answer

    def _take(self, record: wire.Record) -> tuple[bytes, bool] | None:
        kind, request_id, content = record
        if request_id == 0:
            return self._manage(kind, content), False
        if kind == wire.BEGIN_REQUEST:
            if self._open:
                return wire.encode_end(request_id, protocol_status=1), False  # CANT_MPX_CONN
            role, flags = wire.BEGIN_BODY.unpack(content[:8].ljust(8, b"\0"))
            self._open[request_id] = _Request(keep_conn=bool(flags & wire.KEEP_CONN))
            if role != wire.RESPONDER:
                return self._end(request_id, protocol_status=3), False  # UNKNOWN_ROLE
            return None
        request = self._open.get(request_id)
        if request is None:
            return None
        if kind == wire.ABORT_REQUEST:
            return self._end(request_id), False
        if kind == wire.PARAMS:
            request.params_bytes += len(content)
            request.params += request.reader.feed(content)
            if request.params_bytes > _MAX_PARAMS:
                self.finished = True
                head = b"Status: 431 Request Header Fields Too Large\r\n\r\n"
                return wire.encode_stream(wire.STDOUT, request_id, head) + self._end(request_id), False
        elif kind == wire.STDIN and content:
            request.body_bytes += len(content)
            request.body_hash.update(content)
        elif kind == wire.STDIN:
            return self._answer(request_id, request), True
        return None

    def _answer(self, request_id: int, request: _Request) -> bytes:
        lines = [f"{printable(name)}={printable(value)}" for name, value in request.params]
        lines += [
            f"body: {request.body_bytes} bytes, sha256 {request.body_hash.hexdigest()}",
            f"worker: {os.getpid()}",
        ]
        page = "Content-Type: text/plain; charset=utf-8\r\n\r\n" + "\n".join(lines) + "\n"
        return wire.encode_stream(wire.STDOUT, request_id, page.encode()) + self._end(request_id)

    def _end(self, request_id: int, *, protocol_status: int = wire.REQUEST_COMPLETE) -> bytes:
        self.finished = self.finished or not self._open.pop(request_id).keep_conn
        return wire.encode_end(request_id, protocol_status=protocol_status)

    def _manage(self, kind: int, content: bytes) -> bytes:
        """Management records (spec 4)."""
        if kind != wire.GET_VALUES:
            return wire.encode_record(wire.UNKNOWN_TYPE, 0, bytes((kind,)) + bytes(7))
        workers = str(self._workers).encode()
        values = {b"FCGI_MAX_CONNS": workers, b"FCGI_MAX_REQS": workers, b"FCGI_MPXS_CONNS": b"0"}
        asked = [(name, values[name]) for name, _ in wire.PairReader().feed(content) if name in values]
        return wire.encode_record(wire.GET_VALUES_RESULT, 0, wire.encode_pairs(asked))


class _Stop(BaseException):
    """A signal came that ends us."""


_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Those that end us wait until `serve` takes them: from before there is a socket's file."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(listener: Listener, *, workers: int, delay_s: float) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; then end the workers and close the listener.

    A worker that dies is replaced. Raises OSError where none can be forked.
    """
    listener.sock.setblocking(True)
    for number in _ENDING:
        signal.signal(number, _raise_stop)
    pids: set[int] = set()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        while True:
            while len(pids) < workers:
                with held_signals():  # what a handler raises within a hook of fork() (os.register_at_fork) is lost
                    pids.add(_fork(listener.sock, workers, delay_s))
            pid, _ = os.wait()
            pids.discard(pid)
    except _Stop:
        pass
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        # One that has just died may have been waited for already.
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        listener.close()


def _raise_stop(number: int, frame: FrameType | None) -> NoReturn:
    raise _Stop


def _fork(sock: socket.socket, workers: int, delay_s: float) -> int:
    master = os.getpid()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's go to all; the master ends us
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        while os.getppid() == master:
            connection, _ = sock.accept()
            with connection:
                _answer_connection(connection, workers, delay_s)
    finally:
        os._exit(1)


def _answer_connection(connection: socket.socket, workers: int, delay_s: float) -> None:
    conversation = Conversation(workers)
    try:
        while not conversation.finished:
            data = connection.recv(65536)
            if not data:
                return
            for answer, after_delay in conversation.feed(data):
                if after_delay:
                    time.sleep(delay_s)
                connection.sendall(answer)
    except (OSError, ValueError):
        return  # the client left, or speaks something else: that is its connection's end and nothing more
