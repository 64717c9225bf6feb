"""The accept loop of one proxy.

Rules:

* The upstream is connected before the client is accepted: a client whose upstream's queue is full stays in our
  queue, and nothing pretends to it that it was served. (TCP has no such answer to give and can wait: there the
  client is accepted first and the upstream connected by a task with a timeout.)
* Accepting is a call that the relay makes when somebody waits in our queue. Where it cannot go on (upstream
  full, no descriptors left) it *parks*: the task takes the socket out of the epoll, waits, and puts it back.
* An upstream that is not there, or not permitted, costs its client the connection and nobody else anything.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from time import monotonic_ns

import trio

from udsproxy import endpoints
from udsproxy.config import ProxyConfig
from udsproxy.endpoints import Listener, Socket, Tcp
from udsproxy.events import Listening, ProxyError, UpstreamError, errno_message, errno_name, printable
from udsproxy.protocols.tap import Tap
from udsproxy.proxy.connection import Connections
from udsproxy.proxy.relay import Relay

RETRY_FULL_S = 0.002
"""How soon a full upstream is tried again. EAGAIN on AF_UNIX is never pollable."""
RETRY_STARVED_S = 0.1
"""How long accepting rests where we ran out of something. accept() at the limit leaves the listener readable."""

_STARVED = {
    errno.EMFILE: "raise the limit on open files of this process (ulimit -n)",
    errno.ENFILE: "raise the system's limit on open files (fs.file-max)",
    errno.ENOMEM: "the kernel is out of memory",
    errno.ENOBUFS: "the kernel is out of buffers",
    errno.ENOSPC: "raise fs.epoll.max_user_watches",
}


class AcceptLoop:
    """Accepts for one proxy, until cancelled."""

    def __init__(self, config: ProxyConfig, listener: Listener, relay: Relay, tap: Tap) -> None:
        self.connections = Connections(config.name, relay, tap, unix_clients=listener.is_unix)
        self.listener = listener
        self._config = config
        self._relay = relay
        self._tap = tap
        self._dial: Callable[[Socket], int] | None = None
        """connect() to the upstream, where that never waits."""
        if not isinstance(config.upstream, Tcp):
            self._dial = endpoints.dialer(config.upstream)
        self._spare: Socket | None = None
        """For the next client: a socket for its upstream connection, new or still to be tried again."""
        self._spare_connect_s: float | None = None
        """It is connected, which took so long, but its client could not be accepted yet."""
        self._connecting = 0
        """Clients that wait for a TCP upstream."""
        self._upstream_full = False
        self._starved = False
        self._parked = trio.Event()
        self._park_s = 0.0
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        self._tell_listening()
        sock = self.listener.sock
        try:
            async with trio.open_nursery() as self._nursery:
                self._relay.watch(sock, self._ready)
                while True:
                    await self._parked.wait()
                    await trio.sleep(self._park_s)
                    self._parked = trio.Event()
                    self._relay.resume(sock)
        finally:
            self._relay.unwatch(sock)
            if self._spare is not None:
                self._spare.close()

    async def drain(self) -> None:
        """Take what is still in our queue. Ends when it is empty; where there is no file to remove first, so that
        nobody new can come, that may never be."""
        poll = select.poll()
        poll.register(self.listener.sock, select.POLLIN)
        while poll.poll(0) or self._connecting:
            await trio.sleep(RETRY_FULL_S)

    # --- calls from the relay ---

    def _ready(self) -> None:
        """Somebody waits in our queue."""
        try:
            if self._dial is None:
                self._accept_then_connect()
            else:
                self._connect_then_accept(self._dial)
        except OSError as error:
            # EAGAIN, ECONNABORTED: it has left. (On TCP a client may, before it is accepted.)
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self._starve(error)

    def _connect_then_accept(self, dial: Callable[[Socket], int]) -> None:
        """Raises OSError: EAGAIN where nobody waits after all, or what we ran out of."""
        spare = self._spare
        if spare is None:
            spare = self._spare = endpoints.plain_socket()
        connect_s = self._spare_connect_s
        if connect_s is None:
            began = monotonic_ns()
            failed = dial(spare)
            if failed:
                self._not_connected(failed)
                return
            connect_s = self._spare_connect_s = (monotonic_ns() - began) / 1e9
        client = self.listener.accept()
        self._upstream_full = self._starved = False
        self._spare = self._spare_connect_s = None
        self.connections.open(client, spare, self.connections.number(), connect_s)

    def _not_connected(self, failed: int) -> None:
        """The upstream cannot be reached: who waits for it waits on, or is closed. Raises OSError as above."""
        if failed == errno.EAGAIN:
            self._full()
            return
        if failed in _STARVED:
            raise OSError(failed, errno_message(failed))
        client = self.listener.accept()
        self._upstream_full = self._starved = False
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        client.close()
        self._tell_upstream_error("connect", failed, self.connections.number())

    def _accept_then_connect(self) -> None:
        """Raises OSError, as `_connect_then_accept`."""
        client = self.listener.accept()
        assert self._nursery is not None
        self._nursery.start_soon(self._connect_tcp, client, self.connections.number())

    async def _connect_tcp(self, client: Socket, number: int) -> None:
        upstream, timeout_s = self._config.upstream, self._config.connect_timeout_s
        assert isinstance(upstream, Tcp)
        began = monotonic_ns()
        self._connecting += 1
        try:
            with trio.move_on_after(timeout_s) as scope:
                server = await endpoints.connect_tcp(upstream)
            if scope.cancelled_caught:
                self._tell_upstream_error("connect", errno.ETIMEDOUT, number)
                return
            self._starved = False
            self.connections.open(client, server, number, (monotonic_ns() - began) / 1e9)
            client = None  # type: ignore[assignment]  # the relay's now
        except socket.gaierror as error:
            self._tell_upstream_error("getaddrinfo", error.errno or 0, number, str(error.strerror))
        except OSError as error:
            if error.errno in _STARVED:
                self._tell_starved(error, "connect")
            else:
                self._tell_upstream_error("connect", error.errno or 0, number)
        finally:
            self._connecting -= 1
            if client is not None:
                client.close()

    # --- parking ---

    def _park(self, seconds: float) -> None:
        self._relay.pause(self.listener.sock)
        self._park_s = seconds
        self._parked.set()

    def _full(self) -> None:
        if not self._upstream_full:
            self._upstream_full = True
            self._tell_upstream_error("connect", errno.EAGAIN, None)
        self._park(RETRY_FULL_S)

    def _starve(self, error: OSError) -> None:
        self._tell_starved(error, "accept")
        self._park(RETRY_STARVED_S)

    # --- telling ---

    def _tell_listening(self) -> None:
        self._tap.put(
            Listening(
                at=monotonic_ns(),
                proxy=self._config.name,
                listen=printable(str(self.listener.endpoint)),
                upstream=printable(str(self._config.upstream)),
                backlog=self.listener.backlog,
                mode=self.listener.mode,
                owner=self.listener.owner,
            )
        )

    def _tell_upstream_error(self, op: str, number: int, conn: int | None, message: str | None = None) -> None:
        self._tap.put(
            UpstreamError(
                at=monotonic_ns(),
                proxy=self._config.name,
                conn=conn,
                op=op,
                errno="EAI" if message else errno_name(number),
                message=message or errno_message(number),
            )
        )

    def _tell_starved(self, error: OSError, op: str) -> None:
        """Once, until something has worked again."""
        if self._starved:
            return
        self._starved = True
        number = error.errno or 0
        self._tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self._config.name,
                op=op,
                errno=errno_name(number),
                message=errno_message(number),
                hint=_STARVED.get(number),
            )
        )
