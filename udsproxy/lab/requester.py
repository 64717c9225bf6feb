"""A FastCGI client: one request, or a load of them.

Rules: it connects as nginx does, with a connect() that does not wait: EAGAIN from a full accept queue is an
answer, not a reason to try again. Every failure names the call and the errno.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from udsproxy import endpoints
from udsproxy.endpoints import Endpoint, Tcp
from udsproxy.events import errno_message, errno_name
from udsproxy.protocols import fastcgi as wire

_PIECE = 64 * 1024
_STATUS = re.compile(rb"(?:^|\n)Status:[ \t]*(\d{3})", re.IGNORECASE)


class RequestFailed(Exception):
    """No whole answer. ``op`` is the call that failed, ``name`` the errno's name or a word for what happened."""

    def __init__(self, op: str, name: str, message: str) -> None:
        super().__init__(f"{op}: {message} ({name})")
        self.op = op
        self.name = name


@dataclass(slots=True)
class Answer:
    """A whole response. Times are seconds since before connect()."""

    stdout: bytes = b""
    stderr: bytes = b""
    app_status: int = 0
    protocol_status: int = wire.REQUEST_COMPLETE
    connect_s: float = 0.0
    ttfb_s: float = 0.0
    total_s: float = 0.0

    @property
    def status(self) -> int:
        """The HTTP status that the CGI headers mean; 200 where they give none (RFC 3875, section 6.3.3)."""
        match = _STATUS.search(re.split(rb"\r?\n\r?\n", self.stdout, maxsplit=1)[0])
        return int(match[1]) if match else 200


def make_params(
    script: str,
    *,
    root: str = "",
    method: str | None = None,
    body_bytes: int = 0,
    extra: Mapping[str, str] = {},
) -> dict[bytes, bytes]:
    """The parameters that a web server would send for ``script``, which may have a query after ``?``.

    ``root`` is put before the script's name to make SCRIPT_FILENAME; ``extra`` adds and replaces.
    """
    name, _, query = script.partition("?")
    params = {
        "QUERY_STRING": query,
        "REQUEST_METHOD": method or ("POST" if body_bytes else "GET"),
        "CONTENT_LENGTH": str(body_bytes) if body_bytes else "",
        "SCRIPT_NAME": name,
        "SCRIPT_FILENAME": root + name,
        "REQUEST_URI": script,
        "DOCUMENT_URI": name,
        "DOCUMENT_ROOT": root,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "udsproxy",
        **extra,
    }
    return {os.fsencode(key): os.fsencode(value) for key, value in params.items()}


async def ask(upstream: Endpoint, params: Mapping[bytes, bytes], body: bytes = b"") -> Answer:
    """Send one request and take its answer. Raises `RequestFailed`."""
    began = trio.current_time()
    sock = await _connect(upstream)
    answer = Answer(connect_s=trio.current_time() - began)
    with sock:
        async with trio.open_nursery() as nursery:
            # A server may answer before it has read the body: send and receive side by side.
            sending = _Sending()
            nursery.start_soon(sending.run, sock, wire.encode_request(params, body))
            failed = await _receive(sock, answer, began)
            nursery.cancel_scope.cancel()
    failed = failed and (sending.failed or failed)
    if failed:
        raise failed
    answer.total_s = trio.current_time() - began
    return answer


async def _connect(upstream: Endpoint) -> trio.socket.SocketType:
    if isinstance(upstream, Tcp):
        try:
            return trio.socket.from_stdlib_socket(await endpoints.connect_tcp(upstream))
        except OSError as error:
            raise _failed("connect", error) from None
    sock = endpoints.unix_socket()
    number = endpoints.connect(sock, upstream)
    if number:
        sock.close()
        raise RequestFailed("connect", errno_name(number), errno_message(number))
    return trio.socket.from_stdlib_socket(sock)


class _Sending:
    def __init__(self) -> None:
        self.failed: RequestFailed | None = None

    async def run(self, sock: trio.socket.SocketType, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[await sock.send(view[:_PIECE]) :]
        except OSError as error:
            self.failed = _failed("send", error)


async def _receive(sock: trio.socket.SocketType, answer: Answer, began: float) -> RequestFailed | None:
    reader, first = wire.RecordReader(), True
    pieces: dict[int, list[bytes]] = {wire.STDOUT: [], wire.STDERR: []}
    try:
        while data := await sock.recv(_PIECE):
            if first:
                answer.ttfb_s, first = trio.current_time() - began, False
            for kind, _, content in reader.feed(data):
                if kind in pieces:
                    pieces[kind].append(content)
                elif kind == wire.END_REQUEST:
                    answer.app_status, answer.protocol_status = wire.END_BODY.unpack(content[:8].ljust(8, b"\0"))
                    answer.stdout, answer.stderr = (
                        b"".join(pieces[wire.STDOUT]),
                        b"".join(pieces[wire.STDERR]),
                    )
                    return None
    except OSError as error:
        return _failed("recv", error)
    except ValueError as error:
        return RequestFailed("recv", "EPROTO", f"no FastCGI: {error}")
    return RequestFailed("recv", "EOF", "the server closed without a whole answer")


def _failed(op: str, error: OSError) -> RequestFailed:
    number = error.errno or errno.EIO
    return RequestFailed(op, errno_name(number), errno_message(number))


@dataclass(slots=True)
class Load:
    """What came of many requests."""

    statuses: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """``connect: EAGAIN`` and the like."""
    latencies_s: list[float] = field(default_factory=list)
    total_s: float = 0.0

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the answers took at most; 0 where there were none."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else 0.0


async def load(
    upstream: Endpoint, params: Mapping[bytes, bytes], body: bytes, *, requests: int, concurrency: int
) -> Load:
    """Send ``requests`` requests, ``concurrency`` at a time, each on a connection of its own."""
    seen, left = Load(), requests
    began = trio.current_time()

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            try:
                answer = await ask(upstream, params, body)
            except RequestFailed as failure:
                seen.failures[f"{failure.op}: {failure.name}"] += 1
                await trio.lowlevel.checkpoint()  # a full queue fails at once; let the others on
            else:
                seen.statuses[answer.status] += 1
                seen.latencies_s.append(answer.total_s)

    async with trio.open_nursery() as nursery:
        for _ in range(min(concurrency, requests)):
            nursery.start_soon(worker)
    seen.total_s = trio.current_time() - began
    return seen
