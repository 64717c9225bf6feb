"""``udsproxy run``: a proxy between two sockets, or the proxies that a file names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from udsproxy import config
from udsproxy.cli.common import (
    CONFIGURATION,
    DONE,
    USAGE,
    Failure,
    duration_option,
    endpoint_argument,
    refuse_set_aside,
)
from udsproxy.cli.options import Options, chosen_seed, say
from udsproxy.cli.running import run_server
from udsproxy.config import Config
from udsproxy.endpoints import UnixPath
from udsproxy.faults.spelling import format_rule
from udsproxy.proxy.server import Server
from udsproxy.units import ConfigError


def run(
    listen: Annotated[str | None, Parameter(name="LISTEN")] = None,
    upstream: Annotated[str | None, Parameter(name="UPSTREAM")] = None,
    /,
    *,
    config_file: Annotated[str | None, Parameter(name="--config")] = None,
    options: Options | None = None,
    check: Annotated[bool, Parameter(negative="")] = False,
    grace: str = "5s",
    connect_timeout: str = "5s",
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
    check
        Print what was understood, and do nothing.
    grace
        How long open connections may go on after SIGTERM or Ctrl-C (250ms, 5s).
    connect_timeout
        How long connecting to a TCP upstream may take.
    """
    options = options or Options()
    if config_file is not None:
        if listen is not None:
            raise Failure(USAGE, "--config FILE names the sockets: LISTEN and UPSTREAM cannot be given besides")
        plain = Options()
        for option in vars(plain):
            if getattr(options, option) != getattr(plain, option):
                spelled = option.replace("_", "-")
                raise Failure(USAGE, f"--config FILE has all settings: --{spelled} cannot be given besides")
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
    server = Server(settings.proxies, settings.log, grace_s=settings.grace_s, seed=chosen_seed(settings))
    reload = None if config_file is None else lambda: _reload(server, config_file)
    return run_server(server, settings, reload)


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


def _reload(server: Server, config_file: str) -> None:
    """Read the file again. A bad one changes nothing, and says why; what takes a restart is said too."""
    try:
        lines = server.change(_read_config(config_file).proxies)
    except (Failure, ConfigError) as error:
        say(f"nothing is changed: {error}")
        return
    for line in lines:
        say(line)
