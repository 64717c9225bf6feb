"""The options that ``udsproxy run`` and ``udsproxy tap`` share, and what runs a server with them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from udsproxy import config
from udsproxy.cli.common import USAGE, Failure, duration_option, size_option
from udsproxy.cli.people import say
from udsproxy.config import Color, Config, Decode, LogConfig, LogFormat, ProxyConfig
from udsproxy.endpoints import Endpoint
from udsproxy.events import printable
from udsproxy.faults.spelling import parse_all
from udsproxy.units import ConfigError


@Parameter(name="*")
@dataclass(kw_only=True)
class Options:
    """Options of a proxy.

    Parameters
    ----------
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
        Mask this parameter's value too (QUERY_STRING: every query; what is not known to be public always is).
    show
        Show this parameter's value, which is not known to be public (APP_ENV); STDIN: bodies of requests at -vv.
    show_secrets
        Mask nothing.
    backlog
        mirror: our accept queue is full when the upstream's is, where that can be seen; N: N + 1 clients may wait.
    fault
        A fault, such as 'refuse for=30s' or 'latency=250ms p=0.1'; may be repeated. udsproxy fault kinds lists all.
    seed
        Of the faults' chance: the same seed and the same traffic give the same faults.
    credentials
        The server sees the client's user and group (client; as root), each message's sender too (messages), or own.
    slow
        Look at the worker of a request that takes longer; none: at none.
    incident
        Tell of it when the server's queue is not empty for longer, or full, or a client is refused; none: do not.
    nginx_log
        nginx's error log: what it says of connect() to this socket is counted with incidents.
    control
        Where udsproxy fault finds us: a PATH, none, or auto ($XDG_RUNTIME_DIR/udsproxy or /run/udsproxy).
    name
        What the proxy is called in the log; without it, the last part of the path.
    color
        Colour on the console; auto: on a terminal where NO_COLOR is not set.
    """

    log: LogFormat = "console"
    log_file: str | None = None
    verbose: Annotated[int, Parameter(alias="-v", count=True)] = 0
    hexdump: str = "256"
    decode: Decode = "auto"
    redact: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    show: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    show_secrets: Annotated[bool, Parameter(negative="")] = False
    backlog: str = "mirror"
    fault: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    seed: int | None = None
    credentials: config.WhoConnects = "client"
    slow: str = "1s"
    incident: str = "100ms"
    nginx_log: str | None = None
    control: str = "auto"
    name: str | None = None
    color: Color = "auto"

    def proxy(self, listen: Endpoint, upstream: Endpoint, connect_timeout: str = "5s") -> ProxyConfig:
        """Raises `Failure`."""
        try:
            return ProxyConfig(
                listen=listen,
                upstream=upstream,
                name=printable(self.name) if self.name else config.default_name(listen),
                decode=self.decode,
                backlog=config.parse_backlog(self.backlog),
                connect_timeout_s=duration_option("--connect-timeout", connect_timeout),
                credentials=self.credentials,
                slow_s=config.parse_limit(self.slow),
                incident_s=config.parse_limit(self.incident),
                nginx_log=self.nginx_log,
                faults=parse_all(self.fault),
            )
        except ConfigError as error:
            raise Failure(USAGE, str(error)) from None

    def settings(self, proxy: ProxyConfig, grace_s: float) -> Config:
        """Raises `Failure`."""
        return Config(
            proxies=(proxy,),
            log=LogConfig(
                format=self.log,
                file=self.log_file,
                verbosity=self.verbose,
                hexdump=size_option("--hexdump", self.hexdump),
                redact=self.redact,
                show=self.show,
                show_secrets=self.show_secrets,
                color=self.color,
            ),
            grace_s=grace_s,
            seed=self.seed,
            control=self.control,
        )


def chosen_seed(settings: Config) -> int:
    """The seed, or one that is chosen and said."""
    if settings.seed is not None:
        return settings.seed
    seed = random.SystemRandom().randrange(1 << 32)
    if any(rule.has_chance for proxy in settings.proxies for rule in proxy.faults):
        say(f"--seed {seed} gives the same faults again")
    return seed
