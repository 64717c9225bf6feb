"""Answers what is asked, beside the traffic, for as long as it is not cancelled.

Rules:

* A connection is for one request, which may take `_LIMIT_S`, its answer included.
* There are at most `MAX_CONNECTIONS` at a time; one more ends the oldest, so that those who connect and ask nothing
  keep nobody from asking.
* Who is neither root nor our own user gets no answer, whatever the rights of the file have become, unless these
  were asked for by name (``--control PATH,mode=660``).
* What goes wrong on a connection ends that connection only.
"""

from __future__ import annotations

import contextlib
import socket

import h11
import msgspec
import trio

from udsproxy.control import api, peers
from udsproxy.endpoints import Listener, UnixPath
from udsproxy.proxy.server import Server

MAX_CONNECTIONS = 64
"""Each takes a descriptor, which the traffic has one less of."""
MAX_BODY = 16 * 1024
_CHUNK = 16 * 1024
_AGAIN_S = 0.1
"""How soon it accepts again, where that failed (EMFILE)."""
_LIMIT_S = 30.0


async def serve(server: Server, listener: Listener) -> None:
    """Serve `udsproxy.control.api` on this socket."""
    await server.started.wait()
    connected: dict[socket.socket, trio.CancelScope] = {}

    async def attend(sock: socket.socket) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            with connected[sock], contextlib.suppress(Exception):  # the traffic goes on, whatever it is
                await _answer_one(server, stream)
        finally:
            connected.pop(sock, None)
            sock.close()

    async with trio.open_nursery() as nursery:
        while True:
            sock = await _accept(listener)
            if not _may_control(sock, listener):
                sock.close()
                continue
            if len(connected) >= MAX_CONNECTIONS:
                connected.pop(next(iter(connected))).cancel()
            connected[sock] = trio.CancelScope(deadline=trio.current_time() + _LIMIT_S)
            nursery.start_soon(attend, sock)


async def _answer_one(server: Server, stream: trio.SocketStream) -> None:
    """Raises what h11 and trio raise where there is nobody to answer any more, or nothing may be said (HEAD)."""
    http = h11.Connection(h11.SERVER)
    try:
        request = await _request(http, stream)
        if request is None:
            return
        status, said = api.answer(server, request)
    except h11.RemoteProtocolError as error:
        status, said = error.error_status_hint, api.error_of(str(error))
    body = msgspec.json.encode(said) + b"\n"
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
    await stream.send_all(http.send(h11.Response(status_code=status, headers=headers)) or b"")
    await stream.send_all(http.send(h11.Data(data=body)) or b"")


async def _request(http: h11.Connection, stream: trio.SocketStream) -> api.Request | None:
    """A whole one; None: the client has left. Raises h11.RemoteProtocolError: it is none, or too long."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                await stream.send_all(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            http.receive_data(await stream.receive_some(_CHUNK))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_BODY:
                raise h11.RemoteProtocolError(f"a request of more than {MAX_BODY} bytes", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return api.Request(head.method.decode("latin-1"), head.target.decode("latin-1"), bytes(body))
        else:  # closed
            return None


async def _accept(listener: Listener) -> socket.socket:
    """The next connection."""
    while True:
        await trio.lowlevel.wait_readable(listener.sock)
        try:
            sock, _ = listener.sock.accept()
        except BlockingIOError:
            continue
        except OSError:
            await trio.sleep(_AGAIN_S)
            continue
        sock.setblocking(False)
        return sock


def _may_control(sock: socket.socket, listener: Listener) -> bool:
    endpoint = listener.endpoint
    if isinstance(endpoint, UnixPath) and (endpoint.mode or 0) & 0o077:
        return True
    with contextlib.suppress(OSError):
        return peers.is_trusted(peers.uid_of(sock))
    return False
