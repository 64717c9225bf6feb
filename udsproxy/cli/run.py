"""``udsproxy run``: a proxy between two sockets, or the proxies that a file names."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from udsproxy import config
from udsproxy.cli.arguments import CONNECTIONS, ENDING, SETTINGS, Duration, FileName, option
from udsproxy.cli.common import (
    CONFIGURATION,
    DONE,
    USAGE,
    Failure,
    duration_option,
    endpoint_argument,
    refuse_set_aside,
    require_proc,
)
from udsproxy.cli.options import Options, chosen_seed
from udsproxy.cli.people import say, tell
from udsproxy.cli.running import run_server
from udsproxy.config import Config
from udsproxy.endpoints import UnixPath
from udsproxy.events import printable
from udsproxy.faults.spelling import format_rule
from udsproxy.kernel.files import read_config
from udsproxy.proxy.server import Server
from udsproxy.units import ConfigError


def run(
    listen: Annotated[FileName | None, Parameter(name="LISTEN")] = None,
    upstream: Annotated[FileName | None, Parameter(name="UPSTREAM")] = None,
    /,
    *,
    config_file: Annotated[FileName | None, option(SETTINGS, name="--config")] = None,
    check: Annotated[bool, option(SETTINGS, show_default=False)] = False,
    options: Options | None = None,
    connect_timeout: Annotated[Duration, option(CONNECTIONS)] = "5s",
    grace: Annotated[Duration, option(ENDING)] = "5s",
) -> int:
    """Run a proxy between two sockets and show what passes through it.

    Clients connect to LISTEN; what they send is forwarded to UPSTREAM, the server. Either is a PATH, unix:PATH,
    unix:@NAME (an abstract name) or tcp:HOST:PORT. LISTEN gets the mode, owner and group of UPSTREAM's socket; to
    set them, append mode=, owner= or group= after a comma. Ctrl-C or SIGTERM ends it.

    Parameters
    ----------
    listen
        The socket that clients connect to.
    upstream
        The server's socket.
    config_file
        Read the settings of one or more proxies from a TOML file; config/udsproxy.toml is an example. SIGHUP reads
        the faults in it again.
    check
        Print the settings as they were understood, and exit.
    connect_timeout
        How long connecting to a TCP server may take.
    grace
        At the end, how long open connections may continue before they are closed.
    """
    options = options or Options()
    if config_file is not None:
        if listen is not None:
            raise Failure(USAGE, "--config FILE names the sockets: leave out LISTEN and UPSTREAM")
        plain = Options()
        for option in vars(plain):
            if getattr(options, option) != getattr(plain, option):
                spelled = option.replace("_", "-")
                raise Failure(USAGE, f"--config FILE has all settings: leave out --{spelled}")
        settings = _read_config(config_file)
    elif listen is None or upstream is None:
        raise Failure(USAGE, "LISTEN and UPSTREAM are needed, or --config FILE")
    else:
        listen_on, to = endpoint_argument(listen), endpoint_argument(upstream)
        proxy = options.proxy(listen_on, to, connect_timeout)
        settings = options.settings(proxy, duration_option("--grace", grace))
    for each in settings.proxies:
        for what, endpoint in (("listen on", each.listen), ("forward to", each.upstream)):
            if isinstance(endpoint, UnixPath):
                refuse_set_aside(what, os.path.realpath(endpoint.path))
    if check:
        _print_config(settings)
        return DONE
    require_proc()
    server = Server(settings.proxies, settings.log, grace_s=settings.grace_s, seed=chosen_seed(settings))
    reload = None if config_file is None else lambda: _reload(server, config_file)
    return run_server(server, settings, reload)


def _read_config(path: str) -> Config:
    try:
        return config.parse_file(read_config(path).decode())
    except OSError as error:
        raise Failure(CONFIGURATION, f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Failure(CONFIGURATION, f"{path}: it is not UTF-8") from None
    except ConfigError as error:
        raise Failure(CONFIGURATION, f"{path}: {error}") from None


def _print_config(settings: Config) -> None:
    for proxy in settings.proxies:
        tell(printable(f"{proxy.name}: {proxy.listen} -> {proxy.upstream}"))
        for rule in proxy.faults:
            tell(printable(f"  fault {format_rule(rule)}"))


def _reload(server: Server, config_file: str) -> None:
    """Read the file again. A bad one changes nothing, and says why; what takes a restart is said too."""
    try:
        lines = server.change(_read_config(config_file).proxies)
    except (Failure, ConfigError) as error:
        say(f"nothing is changed: {error}")
        return
    for line in lines:
        say(line)
