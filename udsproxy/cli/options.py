"""The options that ``udsproxy run`` and ``udsproxy tap`` share, and what runs a server with them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from udsproxy import config
from udsproxy.cli import completion
from udsproxy.cli.arguments import CONNECTIONS, FAULTS, LOG, REPORTS, SHOWN, Duration, FileName, Size, option
from udsproxy.cli.common import USAGE, Failure, duration_option, size_option
from udsproxy.cli.people import say
from udsproxy.config import DEFAULT_LOG_KEEP, Color, Config, Decode, LogConfig, LogFormat, ProxyConfig
from udsproxy.endpoints import Endpoint
from udsproxy.events import printable
from udsproxy.faults.spelling import parse_all
from udsproxy.units import ConfigError


@Parameter(name="*")
@dataclass(kw_only=True)
class Options:
    """Options of a proxy, in the order in which the help shows them.

    Parameters
    ----------
    log
        What is shown on standard output. console is for people, json writes one object per line, socat writes what
        socat -v prints, none writes nothing.
    log_file
        Write JSON lines to FILE (made with mode 600) as well. With --log json, they are written there only.
    log_size
        Rotate the log file before it grows beyond this size: FILE becomes FILE.1, FILE.1 becomes FILE.2, and so on.
    log_keep
        How many rotated files to keep. Default: 5.
    color
        Colour on the console. auto: if standard output is a terminal and NO_COLOR is not set.
    name
        The name of the proxy in the log. Default: the last part of its path.
    verbose
        With -v, show connections and messages as well; with -vv, the bytes, too.
    hexdump
        With -vv, how many bytes of each chunk are shown.
    decode
        The protocol of the bytes. auto recognises FastCGI and shows everything else raw; none does not look.
    redact
        Mask the value of this FastCGI parameter too. Values that are not known to be public are always masked;
        QUERY_STRING masks the query of every URI.
    show
        Show the value of this FastCGI parameter although it is not known to be public, for example APP_ENV. STDIN
        shows the bodies of requests with -vv.
    show_secrets
        Mask nothing.
    slow
        Show what the worker is doing when a request takes longer than this. none: never.
    incident
        Report an incident when the server's queue is full, when it is not empty for longer than this, or when a
        client is refused. none: never.
    nginx_log
        The error log of nginx. What it says about connect() to this socket is counted with the incident.
    fault
        Inject a fault, for example 'refuse for=30s' or 'latency=250ms p=0.1'. May be given several times. The
        command udsproxy fault kinds lists all faults.
    seed
        The seed of the faults' random choices. The same seed and the same traffic give the same faults.
    control
        The socket through which udsproxy fault reaches this proxy. auto: in $XDG_RUNTIME_DIR/udsproxy or
        /run/udsproxy; none: no such socket.
    backlog
        The length of our accept queue. mirror: it is full when the server's is, where that can be seen. N: N + 1
        clients can wait.
    credentials
        Whose user and group the server sees. client: the client's (needs root); messages: the sender's of each
        message, too; own: udsproxy's.
    """

    log: Annotated[LogFormat, option(LOG)] = "console"
    log_file: Annotated[FileName | None, option(LOG)] = None
    log_size: Annotated[Size | None, option(LOG)] = None
    log_keep: Annotated[int | None, option(LOG, "N")] = None
    color: Annotated[Color, option(LOG)] = "auto"
    name: Annotated[str | None, option(LOG, "NAME")] = None

    verbose: Annotated[int, option(SHOWN, alias="-v", count=True, show_default=False)] = 0
    hexdump: Annotated[Size, option(SHOWN)] = "256"
    decode: Annotated[Decode, option(SHOWN)] = "auto"
    redact: Annotated[tuple[str, ...], option(SHOWN, "PARAM", show_default=False)] = ()
    show: Annotated[tuple[str, ...], option(SHOWN, "PARAM", show_default=False)] = ()
    show_secrets: Annotated[bool, option(SHOWN, show_default=False)] = False

    slow: Annotated[Duration, option(REPORTS)] = "1s"
    incident: Annotated[Duration, option(REPORTS)] = "100ms"
    nginx_log: Annotated[FileName | None, option(REPORTS)] = None

    fault: Annotated[tuple[str, ...], option(FAULTS, "FAULT", completer=completion.faults, show_default=False)] = ()
    seed: Annotated[int | None, option(FAULTS, "N")] = None
    control: Annotated[FileName, option(FAULTS, "PATH")] = "auto"

    backlog: Annotated[str, option(CONNECTIONS, "N")] = "mirror"
    credentials: Annotated[config.WhoConnects, option(CONNECTIONS)] = "client"

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
            log=self._log(),
            grace_s=grace_s,
            seed=self.seed,
            control=self.control,
        )

    def _log(self) -> LogConfig:
        """Raises `Failure`."""
        if self.log_size is not None and self.log_file is None:
            raise Failure(USAGE, "--log-size needs --log-file FILE")
        if self.log_keep is not None and self.log_size is None:
            raise Failure(USAGE, "--log-keep needs --log-size SIZE")
        try:
            return LogConfig(
                format=self.log,
                file=self.log_file,
                size=None if self.log_size is None else size_option("--log-size", self.log_size),
                keep=DEFAULT_LOG_KEEP if self.log_keep is None else self.log_keep,
                verbosity=self.verbose,
                hexdump=size_option("--hexdump", self.hexdump),
                redact=self.redact,
                show=self.show,
                show_secrets=self.show_secrets,
                color=self.color,
            )
        except ConfigError as error:
            raise Failure(USAGE, str(error)) from None


def chosen_seed(settings: Config) -> int:
    """The seed, or one that is chosen and said."""
    if settings.seed is not None:
        return settings.seed
    seed = random.SystemRandom().randrange(1 << 32)
    if any(rule.has_chance for proxy in settings.proxies for rule in proxy.faults):
        say(f"--seed {seed} gives the same faults again")
    return seed
