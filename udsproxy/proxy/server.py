"""A process full of proxies, from its start to its end.

Rules:

* First the output, then the listening sockets, then the traffic; and back in the opposite order, whatever
  happens: a socket file of ours never outlives the process that can end itself.
* `Server.stop`, called once, stops accepting and lets connections finish; called again, it ends at once.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic_ns

import msgspec
import trio
from msgspec.structs import replace

from udsproxy.config import LogConfig, ProxyConfig
from udsproxy.endpoints import Endpoint, Listener, ListenError, Tcp, UnixPath
from udsproxy.events import ProxyError, Summary, printable
from udsproxy.faults.rules import Book
from udsproxy.protocols.secrets import Masking
from udsproxy.protocols.tap import Tap
from udsproxy.proxy.connection import ConnectionState
from udsproxy.proxy.listener import AcceptLoop
from udsproxy.proxy.nginx_log import NginxLog
from udsproxy.proxy.observer import Observer
from udsproxy.proxy.relay import Relay
from udsproxy.proxy.running_faults import RunningFaults
from udsproxy.proxy.socket_types import require_fit, type_of
from udsproxy.sinks import STANDARD_OUTPUT, make_sinks
from udsproxy.sinks.sink import TextSink
from udsproxy.units import ConfigError

_LAST_WORK_NS = 3_000_000_000
"""How long the end goes on decoding and rendering what has been seen."""
_LAST_UNITS = 100
_LAST_WRITES_S = 1.0
"""How long the end waits for output that is stalled."""


class ProxyState(msgspec.Struct, frozen=True):
    """A proxy, as it is now."""

    name: str
    listen: str
    upstream: str
    backlog: int
    """Of our own queue."""
    mirrors: bool
    """That limit follows the upstream's queue."""
    active: int
    """Connections that are open."""
    connections: int
    """That there have been."""


class Server:
    """Proxies of one process: `open` it, then `run` it to its end."""

    def __init__(
        self,
        proxies: Sequence[ProxyConfig],
        log: LogConfig,
        *,
        grace_s: float = 5.0,
        seed: int = 0,
        listen: Callable[[ProxyConfig], Listener] | None = None,
        shown_on: int = STANDARD_OUTPUT,
    ) -> None:
        """``seed``: of the faults' chance. ``listen``: how a proxy listens, where not on a socket of its own.
        ``shown_on``: the descriptor for what is shown."""
        self._listen = listen or _listen
        self.shown_on = shown_on
        self._seed = seed
        self._proxies = proxies
        self._log = log
        self._grace_s = grace_s
        self._began = 0
        self._sinks: list[TextSink] = []
        self._listeners: list[Listener] = []
        self._loops: list[AcceptLoop] = []
        self._tap: Tap | None = None
        self._observer: Observer | None = None
        self._nginx_logs: dict[str, NginxLog] = {}
        """Of the proxies that have one."""
        self._relay: Relay | None = None
        self.started = trio.Event()
        """It has begun to accept; `faults` is there."""
        self.left = trio.Event()
        """Nobody new comes to it any more; what is open goes on."""
        self.faults: RunningFaults
        self._stopping = trio.Event()
        self._ending = trio.CancelScope()
        self.failures: list[str] = []
        """What of the output went wrong, a line each; complete when `run` has returned."""

    def open(self) -> list[Listener]:
        """Open the output, listen. From then on clients can connect, and wait until `run` takes them.

        Raises `udsproxy.endpoints.ListenError`; `ConfigError`: a setting does not fit the upstream's socket; and
        OSError where the log file cannot be opened.
        """
        raise_fd_limit()
        self._began = monotonic_ns()
        try:
            self._sinks = make_sinks(self._log, several=len(self._proxies) > 1, fd=self.shown_on)
            watched = [p for p in self._proxies if p.is_watched and not isinstance(p.upstream, Tcp)]
            if self._sinks and watched:
                self._observer = Observer(counts=any(p.incident_s is not None for p in watched))
            for proxy in self._proxies:
                if proxy.nginx_log is not None:
                    self._nginx_logs[proxy.name] = _nginx_log(proxy.nginx_log, proxy.listen)
                listener = self._listen(proxy)
                self._listeners.append(listener)
                require_fit(proxy, proxy.faults, listener.kind)
        except BaseException:
            self._close()
            raise
        return self._listeners

    def expect_child(self) -> None:
        """A child process is about to be started (`udsproxy.proxy.relay.Relay.expect_child`)."""
        if self._relay is not None:
            self._relay.expect_child()

    async def rest(self) -> None:
        """Give back the paths that were taken over, because we are about to be stopped; `resume` ends that.

        Raises OSError.
        """
        for loop in self._loops:
            await loop.rest()

    def resume(self) -> None:
        """We run again: take the paths again."""
        for loop in self._loops:
            loop.resume()

    def stop(self) -> None:
        """Stop accepting, let connections finish for the grace time; the second time, end at once."""
        if self._stopping.is_set():
            self._ending.cancel()
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """It has been told to."""
        return self._stopping.is_set()

    @property
    def is_unread(self) -> bool:
        """The reader of what it shows has gone."""
        return any(sink.is_shown and sink.reader_has_gone for sink in self._sinks)

    def change(self, proxies: Sequence[ProxyConfig]) -> list[str]:
        """Put the faults of these proxies in force, in place of those that are. Returns what else differs, a line
        each: that takes a restart. Raises `ConfigError`: a fault cannot be meant, and nothing is changed."""
        wanted = {proxy.name: proxy for proxy in proxies}
        for name in wanted.keys() & {proxy.name for proxy in self._proxies}:
            self.faults.check(name, wanted[name].faults)
        lines = [f"a new proxy takes a restart: {name}" for name in wanted.keys() - {p.name for p in self._proxies}]
        for proxy in self._proxies:
            if (new := wanted.get(proxy.name)) is None:
                lines.append(f"to end a proxy takes a restart: {proxy.name}")
                continue
            if replace(new, faults=()) != replace(proxy, faults=()):
                lines.append(f"other sockets or settings take a restart: {proxy.name}")
            self.faults.set(proxy.name, new.faults)
        return sorted(lines)

    def states(self) -> list[ProxyState]:
        """The proxies, as they are now."""
        return [
            ProxyState(
                name=proxy.name,
                listen=_shown(proxy.listen),
                upstream=_shown(proxy.upstream),
                backlog=loop.listener.backlog,
                mirrors=loop.mirrors,
                active=loop.connections.active,
                connections=loop.connections.count,
            )
            for proxy, loop in zip(self._proxies, self._loops, strict=True)
        ]

    def open_connections(self) -> list[ConnectionState]:
        """The connections that are open now."""
        now = monotonic_ns()
        return [state for loop in self._loops for state in loop.connections.states(now)]

    def counters(self) -> Summary:
        """What has been seen so far."""
        assert self._tap is not None
        now = monotonic_ns()
        return self._tap.so_far((now - self._began) / 1e9, now)

    async def run(self) -> Summary:
        """Serve until `stop`, then close everything."""
        tap = Tap(
            list(self._sinks),
            name=self._proxies[0].name if len(self._proxies) == 1 else "all",
            decode={proxy.name: proxy.decode for proxy in self._proxies},
            verbosity=2 if self._log.shown == "socat" else self._log.verbosity,
            masking=None if self._log.show_secrets else Masking(self._log.redact, self._log.show),
        )
        self._tap = tap
        if self._observer is not None:
            self._observer.tell_failure = partial(self._tell_unobserved, tap)
        self._relay = relay = Relay(tap)
        tap.wake = relay.wake
        try:
            with contextlib.closing(relay), self._ending:
                await self._serve(tap, relay)
        finally:
            tap.wake = _nobody
            for listener in self._listeners:
                listener.close()
            ended = monotonic_ns()
            while tap.work(_LAST_UNITS) and monotonic_ns() - ended < _LAST_WORK_NS:
                pass
            summary = tap.finish((ended - self._began) / 1e9, ended)
            self._close()
        return summary

    def _tell_unobserved(self, tap: Tap, why: str, errno_: str) -> None:
        tap.put(
            ProxyError(
                at=monotonic_ns(),
                proxy=self._proxies[0].name,
                op="observe",
                errno=errno_,
                message=f"the workers cannot be seen: {why}",
            )
        )

    async def _serve(self, tap: Tap, relay: Relay) -> None:
        pairs = zip(self._proxies, self._listeners, strict=True)
        loops = [AcceptLoop(proxy, listener, relay, tap, Book(proxy.name, self._seed)) for proxy, listener in pairs]
        self._loops = loops
        async with trio.open_nursery() as nursery:
            self.faults = RunningFaults(list(zip(self._proxies, loops, strict=True)), nursery)
            nursery.start_soon(relay.run)
            if self._observer is not None:
                nursery.start_soon(self._observer.run, relay.expect_child)
            for loop in loops:
                log = self._nginx_logs.get(loop.connections.proxy)
                if self._observer is not None and (watch := loop.watched_by(self._observer, log)) is not None:
                    nursery.start_soon(watch.run)
            await self._accept_until_stopped(loops)
            nursery.cancel_scope.cancel()

    async def _accept_until_stopped(self, loops: list[AcceptLoop]) -> None:
        """Returns when nobody is connected any more, or the grace time is over."""
        for proxy in self._proxies:
            self.faults.set(proxy.name, proxy.faults)
        async with trio.open_nursery() as accepting:
            for loop in loops:
                accepting.start_soon(loop.run)
            self.started.set()
            await self._stopping.wait()
            for listener in self._listeners:
                listener.remove_file()
            with trio.move_on_after(self._grace_s) as grace:
                async with trio.open_nursery() as draining:
                    for loop in loops:
                        draining.start_soon(loop.drain)
            accepting.cancel_scope.cancel()
        for listener in self._listeners:
            listener.close()
        self.left.set()
        with trio.CancelScope(deadline=grace.deadline):
            for loop in loops:
                await loop.connections.drained()

    def _close(self) -> None:
        for listener in self._listeners:
            listener.close()
        if self._observer is not None:
            self._observer.reap()
        for log in self._nginx_logs.values():
            log.close()
        for sink in self._sinks:
            sink.close(_LAST_WRITES_S)
            if sink.failure is not None:
                self.failures.append(f"log {sink.failure}")


def _listen(proxy: ProxyConfig) -> Listener:
    """On a socket of the type that the upstream's has. Raises `ListenError`."""
    kind = None if isinstance(proxy.upstream, Tcp) else type_of(proxy.upstream)
    if kind is None:
        kind = socket.SOCK_STREAM
    if isinstance(proxy.listen, Tcp) and kind != socket.SOCK_STREAM:
        raise ListenError(f"cannot listen on {proxy.listen}: {proxy.upstream} takes messages, and TCP has none")
    return Listener(proxy.listen, like=proxy.upstream, backlog=proxy.backlog, kind=kind)


def _nginx_log(path: str, listen: Endpoint) -> NginxLog:
    """Raises `ConfigError`."""
    try:
        return NginxLog(path, listen)
    except OSError as error:
        raise ConfigError(f"nginx's log {path} cannot be read: {error.strerror}") from None


def _shown(endpoint: Endpoint) -> str:
    """For who is in another directory."""
    shown = str(endpoint)
    return printable(os.path.abspath(shown) if isinstance(endpoint, UnixPath) else shown)


def _nobody() -> None:
    """The relay has gone; nobody is to be woken."""


def raise_fd_limit() -> None:
    """RLIMIT_NOFILE to its hard limit: two descriptors a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
