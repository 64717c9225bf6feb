"""What connection faults do to the connections that they apply to.

A connection whose beginning a fault delays, or that it ends, belongs here until then; it counts as open.

Rules: what is done is told (`Fault`), with the connection's number; a socket that is here is closed at the end.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from time import monotonic_ns
from typing import assert_never

from udsproxy.endpoints import Socket
from udsproxy.events import Close
from udsproxy.faults import kinds
from udsproxy.faults.rules import Rule
from udsproxy.protocols.tap import Tap
from udsproxy.proxy.relay import Relay

_SPEECHLESS_NS = 5_000_000_000
"""A client that says nothing for so long cannot be reset, and is closed."""
_READ = 64 * 1024


class Mishap:
    """One accepted connection, until it begins or has ended. ``begin`` makes an ordinary connection of it, ``over``
    says that there will be none."""

    def __init__(
        self,
        proxy: str,
        number: int,
        client: Socket,
        upstream: Socket,
        relay: Relay,
        tap: Tap,
        begin: Callable[[], None],
        over: Callable[[], None],
        rest: Callable[[float], None],
    ) -> None:
        """``rest``: no one else is to be accepted for so long (s)."""
        self._proxy = proxy
        self._number = number
        self._client = client
        self._upstream = upstream
        self._relay = relay
        self._tap = tap
        self._begin = begin
        self._over = over
        self._rest = rest
        self._came_at = monotonic_ns()
        self._done = False

    def apply(self, rules: list[Rule]) -> None:
        """Let them happen. The first that ends the connection is the last to happen to it; delays add up."""
        delay_s = 0.0
        for rule in rules:
            fault = rule.fault
            if isinstance(fault, kinds.AcceptDelay):
                self._tell(rule, f"nobody else is accepted for {fault.delay_s:g} s")
                self._rest(fault.delay_s)
            elif isinstance(fault, kinds.ConnectDelay):
                self._tell(rule, f"begins {fault.delay_s:g} s later")
                delay_s += fault.delay_s
            elif isinstance(fault, kinds.Close):
                self._tell(rule, "closed")
                self._close()
                return
            elif isinstance(fault, kinds.Reset):
                self._tell(rule, "reset")
                self._reset()
                return
            elif isinstance(fault, kinds.Gate):
                raise AssertionError("a gate fault applies to no connection")
            else:
                assert_never(fault)
        if delay_s:
            self._relay.call_at(self._came_at + int(delay_s * 1e9), self._go_on)
        else:
            self._go_on()

    def abandon(self) -> None:
        """End it now."""
        self._end(None)

    def _go_on(self) -> None:
        if not self._done:
            self._done = True
            self._begin()

    def _close(self) -> None:
        """An end, and what the client still sends is read: unread, close() would make a reset of it."""
        with contextlib.suppress(OSError):  # ENOTCONN: it has left
            self._client.shutdown(socket.SHUT_WR)
        self._await_client(self._read_on, self.abandon)

    def _read_on(self) -> None:
        try:
            ended = not self._client.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._end(None)

    def _reset(self) -> None:
        """close() with unread data is a reset; so the client must have said something."""
        self._await_client(self._reset_now, self._reset_now)

    def _reset_now(self) -> None:
        self._end("ECONNRESET")

    def _await_client(self, spoken: Callable[[], None], speechless: Callable[[], None]) -> None:
        """There will be no upstream: call one when the client has said something, the other when it has not."""
        self._upstream.close()
        try:
            self._relay.watch(self._client, spoken)
        except OSError:  # ENOMEM, ENOSPC: the kernel has no room to watch it
            self._end(None)
        else:
            self._relay.call_at(self._came_at + _SPEECHLESS_NS, speechless)

    def _end(self, errno: str | None) -> None:
        if self._done:
            return
        self._done = True
        self._relay.unwatch(self._client)
        self._client.close()
        self._upstream.close()
        at = monotonic_ns()
        total_s = (at - self._came_at) / 1e9
        self._tap.put(
            Close(
                at=at,
                proxy=self._proxy,
                conn=self._number,
                by="fault",
                errno=errno,
                c2s_bytes=0,
                s2c_bytes=0,
                total_s=total_s,
                requests=0,
            )
        )
        self._over()

    def _tell(self, rule: Rule, detail: str) -> None:
        self._tap.put(rule.event(monotonic_ns(), self._proxy, detail, self._number))
