"""``udsproxy run``: a proxy between two sockets."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from typing import Annotated

import trio
from cyclopts import Parameter

from udsproxy import config, endpoints
from udsproxy.cli.common import (
    DONE,
    FAILED,
    LISTENING,
    USAGE,
    Failure,
    duration_option,
    endpoint_argument,
    number_option,
    size_option,
)
from udsproxy.config import Color, Decode, LogConfig, LogFormat, ProxyConfig
from udsproxy.events import Summary, printable
from udsproxy.faults.spelling import format_rule, named_apart, parse_rules
from udsproxy.proxy.server import Server
from udsproxy.sinks.console import summary_text


def run(
    listen: Annotated[str, Parameter(name="LISTEN")],
    upstream: Annotated[str, Parameter(name="UPSTREAM")],
    /,
    *,
    log: LogFormat = "console",
    log_file: str | None = None,
    verbose: Annotated[int, Parameter(alias="-v", count=True)] = 0,
    hexdump: str = "256",
    decode: Decode = "auto",
    redact: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    show_secrets: Annotated[bool, Parameter(negative="")] = False,
    backlog: str = "mirror",
    fault: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    seed: int | None = None,
    check: Annotated[bool, Parameter(negative="")] = False,
    grace: str = "5s",
    connect_timeout: str = "5s",
    name: str | None = None,
    color: Color = "auto",
) -> int:
    """Listen on LISTEN, forward to UPSTREAM, and show what flows.

    An endpoint is a PATH, unix:PATH, unix:@NAME (abstract) or tcp:HOST:PORT.

    LISTEN takes mode=, owner= and group= after commas; else it copies UPSTREAM's.

    Parameters
    ----------
    listen
        Where clients connect.
    upstream
        The server's socket.
    log
        What to write: console is for people, json one object a line, socat what socat -v prints.
    log_file
        Write to this file (made with mode 600) and not to standard output.
    verbose
        -v shows each message, -vv the bytes too.
    hexdump
        The most bytes of a chunk that -vv shows (4096, 64KiB).
    decode
        What the bytes are: auto recognises FastCGI, else raw; none does not look at them.
    redact
        Mask this parameter's value too (HTTP_COOKIE, HTTP_AUTHORIZATION, PHP_AUTH_PW always are).
    show_secrets
        Mask nothing.
    backlog
        mirror: our accept queue is full for a client when the upstream's would be (else as long as the system
        allows: for TCP, or where the kernel does not show it); N: a limit of its own, N + 1 clients may wait.
    fault
        A fault: 'backlog=2,workers=2', 'refuse for=30s', 'close p=0.1 if comm=nginx'; may be given several
        times (docs/faults.md).
    seed
        Of the faults' chance: the same seed and the same traffic give the same faults.
    check
        Print what was understood, and do nothing.
    grace
        How long open connections may go on after SIGTERM or Ctrl-C (250ms, 5s).
    connect_timeout
        How long connecting to a TCP upstream may take.
    name
        What the proxy is called in the log; without it, the last part of LISTEN.
    color
        Colour on the console; auto: on a terminal where NO_COLOR is not set.
    """
    listen_on, to = endpoint_argument(listen), endpoint_argument(upstream)
    if isinstance(to, endpoints.UnixPath) and (to.mode, to.owner, to.group) != (None, None, None):
        raise Failure(USAGE, f"endpoint {upstream!r}: mode, owner and group are for LISTEN")
    grace_s = duration_option("--grace", grace)
    log_config = LogConfig(
        format=log,
        file=log_file,
        verbosity=verbose,
        hexdump=size_option("--hexdump", hexdump),
        secrets=frozenset() if show_secrets else config.DEFAULT_SECRETS | {each.upper() for each in redact},
        color=color,
    )
    try:
        rules = named_apart([rule for text in fault for rule in parse_rules(text)])
        proxy = ProxyConfig(
            listen=listen_on,
            upstream=to,
            name=printable(name or os.path.basename(str(listen_on)) or "proxy"),
            decode=decode,
            backlog=None if backlog == "mirror" else number_option("--backlog", backlog, "mirror or a number"),
            connect_timeout_s=duration_option("--connect-timeout", connect_timeout),
        )
    except config.ConfigError as error:
        raise Failure(USAGE, str(error)) from None

    if check:
        print(f"{listen_on} -> {to}", *(f"fault {format_rule(rule)}" for rule in rules), sep="\n")
        return DONE
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
        if any(rule.has_chance for rule in rules):
            print(f"udsproxy: --seed {seed} gives the same faults again", file=sys.stderr)
    server = Server([proxy], log_config, grace_s=grace_s, rules=rules, seed=seed)
    try:
        summary = trio.run(_run_until_signals, server)
    except endpoints.ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    except OSError as error:
        what = f"write the log to {error.filename}" if error.filename else "write the log or start"
        raise Failure(FAILED, f"cannot {what}: {error.strerror}") from None
    if log != "console" or log_file is not None:
        print(
            f"udsproxy: {summary_text(summary)}",
            file=sys.stderr,
        )
    for line in server.failures:
        print(f"udsproxy: {line}", file=sys.stderr)
    return FAILED if server.failures else DONE


async def _run_until_signals(server: Server) -> Summary:
    # Signals first: from the moment that there is a socket file, none may end us without removing it.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        for listener in server.open():
            if listener.note:
                print(f"udsproxy: {printable(listener.note)}", file=sys.stderr)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at, signals, server)
            summary = await server.run()
            nursery.cancel_scope.cancel()
    return summary


async def _stop_at(signals: AsyncIterator[int], server: Server) -> None:
    async for _ in signals:
        server.stop()
