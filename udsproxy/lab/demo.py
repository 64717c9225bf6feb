"""The demonstration: requests decoded live, then the failure that the project is about, on this machine alone.

Rules: all that it makes is in one temporary directory, which goes at the end, whatever the end is. What it says
of clients is what these clients got, counted, not what they should have got.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from udsproxy.config import LogConfig, ProxyConfig
from udsproxy.endpoints import UnixPath, connect, unix_socket
from udsproxy.kernel import own_processes
from udsproxy.lab import requester
from udsproxy.layout import fold, fold_command
from udsproxy.proxy.server import Server
from udsproxy.sinks.text import duration
from udsproxy.terminal import width_of

WORKERS, BACKLOG, BURST = 2, 2, 12
SLOW_S = 0.5
_APART_S = 0.005
"""Clients of the burst come one after the other, so that a worker that is free has taken its client before the
next one comes: what each client gets is then a matter of counting, not of scheduling."""
_START_S = 10.0
_SETTLE_S = 0.15
"""Time for the log's thread to write, so that the proxy's lines and ours stay in order."""

_SEEN = (
    "What you saw:",
    "  nginx would have answered 502 for each EAGAIN, and logged:",
    "    connect() to unix:... failed (11: Resource temporarily unavailable)",
    "  {workers} workers and a backlog of {backlog} have room for {workers} + {backlog} + 1 clients:",
    "  those that are served, and those that wait, one more than the backlog says.",
    "",
    "What to do next:",
    "  Look at a socket of your own. Nothing has to be configured or restarted:",
    "    sudo udsproxy tap /run/php/php8.2-fpm.sock",
    "  Or put udsproxy in front of it, and change nginx's fastcgi_pass:",
    "    udsproxy run /run/php/seen.sock /run/php/php8.2-fpm.sock",
    "  -v shows every FastCGI record, -vv the bytes. --log json is for programs.",
    "  docs/tap.md and docs/nginx-php-fpm.md have the setup, step by step;",
    "  docs/events.md says what each key means.",
    "",
)
"""Line by line: short ones, because nothing is folded where the output is no terminal."""
_MAX_WIDTH = 100


async def demo() -> None:
    """Show it. Raises trio.TooSlowError where the server does not come up."""
    with tempfile.TemporaryDirectory(prefix="udsproxy-demo-", dir="/tmp") as directory:
        server, proxy = os.path.join(directory, "server.sock"), os.path.join(directory, "proxy.sock")

        _title("1. A server, a proxy in front of it, and three requests")
        _command("serve", server)
        _command("run", proxy, server)
        _command("request", proxy, "--script", "'/index.php?page=1'")
        async with _server(server, "--workers", str(WORKERS)), _proxy(proxy, server):
            for script, method, body in (
                ("/index.php?page=1", "GET", b""),
                ("/form.php", "POST", b"name=value" * 1000),
                ("/health", "HEAD", b""),
            ):
                params = requester.make_params(script, method=method, body_bytes=len(body))
                await requester.ask(UnixPath(proxy), params, body)
            await trio.sleep(_SETTLE_S)

        _title(f"2. The same server, slow and small: {BURST} clients at once, {WORKERS} workers, backlog {BACKLOG}")
        slow = ("--workers", str(WORKERS), "--backlog", str(BACKLOG), "--delay", f"{SLOW_S * 1000:.0f}ms")
        _command("serve", server, *slow)
        async with _server(server, *slow):
            _say("without a proxy:")
            _tell(await _burst(UnixPath(server)))
            _say("\nthrough udsproxy, whose queue is full when the server's is (--backlog mirror, the default):")
            _command("run", proxy, server)
            async with _proxy(proxy, server):
                outcomes = await _burst(UnixPath(proxy))
                await trio.sleep(_SETTLE_S)
                _tell(outcomes)
    _say("")
    for line in _SEEN:
        _say(line.format(workers=WORKERS, backlog=BACKLOG), hang=0)


@asynccontextmanager
async def _server(path: str, *options: str) -> AsyncIterator[None]:
    process = subprocess.Popen(  # noqa: S603, ASYNC220 - ourselves, and Popen does not wait
        own_processes.command("udsproxy.cli", "serve", path, *options),
        stdout=subprocess.DEVNULL,
        env=own_processes.environment(),
    )
    try:
        with trio.fail_after(_START_S):
            while not _listens(path) and process.poll() is None:
                await trio.sleep(0.01)
        await trio.sleep(_SETTLE_S)  # its workers have to be at their accept()
        yield
    finally:
        process.terminate()
        process.wait()


def _listens(path: str) -> bool:
    with unix_socket() as probe:
        return connect(probe, UnixPath(path)) == 0


@asynccontextmanager
async def _proxy(path: str, upstream: str) -> AsyncIterator[None]:
    config = ProxyConfig(listen=UnixPath(path), upstream=UnixPath(upstream), name="demo")
    server = Server([config], LogConfig(format="console"))
    server.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        yield
        server.stop()


async def _burst(upstream: UnixPath) -> list[str]:
    """What each client got, in the order in which they came."""
    outcomes = [""] * BURST

    async def client(index: int) -> None:
        try:
            answer = await requester.ask(upstream, requester.make_params(f"/slow.php?client={index + 1}"))
            outcomes[index] = f"status {answer.status} after {duration(answer.total_s)}"
        except requester.RequestFailed as failure:
            outcomes[index] = str(failure)

    async with trio.open_nursery() as nursery:
        for index in range(BURST):
            nursery.start_soon(client, index)
            await trio.sleep(_APART_S)
    return outcomes


def _tell(outcomes: list[str]) -> None:
    for number, outcome in enumerate(outcomes, 1):
        _say(f"  client {number:>2}  {outcome}", hang=11)
    kinds = Counter("answered" if outcome.startswith("status") else "got EAGAIN" for outcome in outcomes)
    _say("  " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))


def _title(text: str) -> None:
    width = width_of(sys.stdout)
    _say(f"\n{text}", hang=3)
    _say("-" * min(len(text), width or len(text)))


def _command(*words: str) -> None:
    print(fold_command(f"udsproxy {' '.join(words)}", width_of(sys.stdout), 4, "$ "), flush=True)


def _say(text: str, hang: int = 2) -> None:
    width = width_of(sys.stdout)
    print(fold(text, width and min(width, _MAX_WIDTH), hang), flush=True)
