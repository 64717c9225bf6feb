"""``udsproxy run``: a proxy between two sockets, or the proxies that a file names."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter
from msgspec.structs import replace

from udsproxy import config, endpoints
from udsproxy.cli.common import (
    CONFIGURATION,
    DONE,
    FAILED,
    LISTENING,
    USAGE,
    Failure,
    duration_option,
    endpoint_argument,
    size_option,
)
from udsproxy.config import Color, Config, Decode, LogConfig, LogFormat, ProxyConfig
from udsproxy.control import place, serving
from udsproxy.endpoints import Listener, UnixPath
from udsproxy.events import Summary, printable
from udsproxy.faults.spelling import format_rule, parse_all
from udsproxy.proxy.server import Server
from udsproxy.sinks.console import summary_text
from udsproxy.units import ConfigError


def run(
    listen: Annotated[str | None, Parameter(name="LISTEN")] = None,
    upstream: Annotated[str | None, Parameter(name="UPSTREAM")] = None,
    /,
    *,
    config_file: Annotated[str | None, Parameter(name="--config")] = None,
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
    control: str = "auto",
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
    config_file
        Several proxies, and all options, from a TOML file (config/udsproxy.toml); SIGHUP reads its faults again.
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
        A fault: 'backlog=2,workers=2', 'refuse for=30s', 'latency=250ms±50ms if script=/slow.php p=0.1'; may be
        given several times. udsproxy fault kinds lists them.
    seed
        Of the faults' chance: the same seed and the same traffic give the same faults.
    check
        Print what was understood, and do nothing.
    control
        The socket by which udsproxy fault changes faults while it runs: a PATH, auto ($XDG_RUNTIME_DIR/udsproxy or
        /run/udsproxy), or none.
    grace
        How long open connections may go on after SIGTERM or Ctrl-C (250ms, 5s).
    connect_timeout
        How long connecting to a TCP upstream may take.
    name
        What the proxy is called in the log; without it, the last part of LISTEN.
    color
        Colour on the console; auto: on a terminal where NO_COLOR is not set.
    """
    if config_file is not None:
        if listen is not None:
            raise Failure(USAGE, "--config FILE names the sockets: LISTEN and UPSTREAM cannot be given besides")
        besides = {
            "--fault": bool(fault),
            "--seed": seed is not None,
            "--log": log != "console",
            "--log-file": log_file is not None,
            "--decode": decode != "auto",
            "--backlog": backlog != "mirror",
            "--control": control != "auto",
            "--name": name is not None,
        }
        for option in (option for option, given in besides.items() if given):
            raise Failure(USAGE, f"--config FILE has all settings: {option} cannot be given besides")
        settings = _read_config(config_file)
    elif listen is None or upstream is None:
        raise Failure(USAGE, "LISTEN and UPSTREAM are needed, or --config FILE")
    else:
        listen_on, to = endpoint_argument(listen), endpoint_argument(upstream)
        log_config = LogConfig(
            format=log,
            file=log_file,
            verbosity=verbose,
            hexdump=size_option("--hexdump", hexdump),
            secrets=config.secrets(redact, show=show_secrets),
            color=color,
        )
        try:
            proxy = ProxyConfig(
                listen=listen_on,
                upstream=to,
                name=printable(name) if name else config.default_name(listen_on),
                decode=decode,
                backlog=config.parse_backlog(backlog),
                connect_timeout_s=duration_option("--connect-timeout", connect_timeout),
                faults=parse_all(fault),
            )
        except ConfigError as error:
            raise Failure(USAGE, str(error)) from None
        settings = Config(
            proxies=(proxy,),
            log=log_config,
            grace_s=duration_option("--grace", grace),
            seed=seed,
            control=control,
        )
    if check:
        _print_config(settings)
        return DONE
    return _run(settings, config_file)


def _read_config(path: str) -> Config:
    try:
        return config.parse_file(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(CONFIGURATION, f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(CONFIGURATION, f"{path}: it is not UTF-8") from None
    except ConfigError as error:
        raise Failure(CONFIGURATION, f"{path}: {error}") from None


def _print_config(settings: Config) -> None:
    for proxy in settings.proxies:
        print(f"{proxy.name}: {proxy.listen} -> {proxy.upstream}")
        for rule in proxy.faults:
            print(f"  fault {format_rule(rule)}")


def _run(settings: Config, config_file: str | None) -> int:
    seed = settings.seed
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
        if any(rule.has_chance for proxy in settings.proxies for rule in proxy.faults):
            _say(f"--seed {seed} gives the same faults again")
    server = Server(settings.proxies, settings.log, grace_s=settings.grace_s, seed=seed)
    try:
        summary = trio.run(_run_until_signals, server, config_file, settings.control)
    except endpoints.ListenError as error:
        raise Failure(LISTENING, str(error)) from None
    except OSError as error:
        what = f"write the log to {error.filename}" if error.filename else "write the log or start"
        raise Failure(FAILED, f"cannot {what}: {error.strerror}") from None
    if settings.log.format != "console" or settings.log.file is not None:
        _say(summary_text(summary))
    for line in server.failures:
        _say(line)
    return FAILED if server.failures else DONE


def _say(line: str) -> None:
    print(f"udsproxy: {line}", file=sys.stderr)


async def _run_until_signals(server: Server, config_file: str | None, control: str) -> Summary:
    # Signals first: from the moment that there is a socket file, none may end us without removing it.
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        controlled = _open_control(control)
        if controlled is not None:
            stack.callback(controlled.close)
        for listener in server.open():
            if listener.note:
                _say(printable(listener.note))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_heed, signals, server, config_file, controlled)
            if controlled is not None:
                nursery.start_soon(serving.serve, server, controlled)
            summary = await server.run()
            nursery.cancel_scope.cancel()
    return summary


def _open_control(control: str) -> Listener | None:
    """Listen for who controls us. Raises `endpoints.ListenError`, `Failure`."""
    if control == "none":
        return None
    if control == "auto":
        try:
            return Listener(place.default_endpoint())
        except (endpoints.ListenError, OSError) as error:
            # This user has no place for it, and nobody asked for one by name.
            why = printable(str(error))
            _say(f"udsproxy fault will not find this proxy ({why}); --control PATH is a place for it")
            return None
    endpoint = endpoint_argument(control)
    if not isinstance(endpoint, UnixPath):
        raise Failure(USAGE, f"--control {control}: a path is needed")
    return Listener(replace(endpoint, mode=endpoint.mode or 0o600))


async def _heed(
    signals: AsyncIterator[int], server: Server, config_file: str | None, controlled: Listener | None
) -> None:
    async for number in signals:
        if number == signal.SIGHUP and config_file is not None:
            await server.started.wait()
            _reload(server, config_file)
        else:
            server.stop()
            if controlled is not None:
                controlled.remove_file()  # who looks for a proxy that runs shall not find one that ends


def _reload(server: Server, config_file: str) -> None:
    """Read the file again. A bad one changes nothing, and says why; what takes a restart is said too."""
    try:
        lines = server.change(_read_config(config_file).proxies)
    except (Failure, ConfigError) as error:
        _say(f"nothing is changed: {error}")
        return
    for line in lines:
        _say(line)
