"""The contenders: what is put between a client and a server.

Rules: each is started once and lives for the whole run, idle while others are measured; each runs with its
own defaults except where a comment says why not; what it is asked to write goes to a file on the stage.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.layout import DIRECT, Layout, find, nginx_stream_line
from tests.bench.servers import nginx_argv, nginx_head

NGINX_CONF = """\
{module}
{head}
events {{ worker_connections 4096; }}
stream {{
{servers}
}}
"""

# One thread: on 2 cores haproxy's default of one for each did 12% fewer requests/s of fastcgi, and no more of
# redis50; the others have one thread too.
HAPROXY_CONF = """\
global
    maxconn 4096
    nbthread 1
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
{listens}
"""


@dataclass(frozen=True)
class Contender:
    """One contender. One that `records` writes what it sees to a file, one for each service; `unrecorded` counts
    in such a file what the contender says it left out."""

    name: str
    programs: tuple[str, ...]
    start: Callable[[Layout, str], None]
    records: bool = False
    unrecorded: Callable[[str], int] = lambda path: 0


def start_contender(layout: Layout, contender: Contender) -> None:
    """Start a contender for every service in use; return when all its sockets accept."""
    contender.start(layout, contender.name)
    for service in layout.services:
        layout.stage.await_socket(layout.listen(contender.name, service))


def record_path(layout: Layout, contender: str, service: str) -> str:
    """The file a contender that records writes for a service."""
    return layout.log(contender, f"{service}-record")


def udsproxy_argv(listen: str, upstream: str, *options: str) -> list[str]:
    """The command line of this checkout's udsproxy."""
    return [sys.executable, "-m", "udsproxy", "run", listen, upstream, *options]


def _start_direct(layout: Layout, name: str) -> None:
    """Nothing to start: Layout.listen gives the server's own socket."""


def _start_socat(layout: Layout, name: str) -> None:
    for service in layout.services:
        _spawn_socat(layout, name, service, [], layout.log(name, service))


def _start_socat_v(layout: Layout, name: str) -> None:
    for service in layout.services:
        _spawn_socat(layout, name, service, ["-v"], record_path(layout, name, service))


def _spawn_socat(layout: Layout, name: str, service: str, options: list[str], output: str) -> None:
    # socat's default backlog of 5 would turn away most of 50 clients that come at once.
    listen = f"UNIX-LISTEN:{layout.listen(name, service)},fork,backlog=1024"
    argv = [find("socat"), *options, listen, f"UNIX-CONNECT:{layout.upstream(service)}"]
    layout.stage.spawn(f"{name} for {service}", argv, output)


def _start_nginx(layout: Layout, name: str) -> None:
    server = "    server {{ listen unix:{}; proxy_pass unix:{}; }}"
    text = NGINX_CONF.format(
        module=nginx_stream_line(),
        head=nginx_head(layout, name),
        servers="\n".join(
            server.format(layout.listen(name, service), layout.upstream(service)) for service in layout.services
        ),
    )
    conf = layout.stage.write(text, name, "nginx.conf")
    layout.stage.spawn(name, nginx_argv(layout, conf), layout.log(name, name))


def _start_haproxy(layout: Layout, name: str) -> None:
    listen = "listen {}\n    bind unix@{}\n    server up unix@{}"
    text = HAPROXY_CONF.format(
        listens="\n".join(
            listen.format(service, layout.listen(name, service), layout.upstream(service))
            for service in layout.services
        )
    )
    conf = layout.stage.write(text, name, "haproxy.cfg")
    layout.stage.spawn(name, [find("haproxy"), "-db", "-f", conf], layout.log(name, name))


def _start_udsproxy_forward(layout: Layout, name: str) -> None:
    for service in layout.services:
        _spawn_udsproxy(layout, name, service, "--log", "none", "--decode", "none")


def _start_udsproxy_fixed(layout: Layout, name: str) -> None:
    """Forwards with a queue of its own: what it saves is the cost of mirroring the server's."""
    for service in layout.services:
        _spawn_udsproxy(layout, name, service, "--log", "none", "--decode", "none", "--backlog", "4096")


def _start_udsproxy_json(layout: Layout, name: str) -> None:
    """Records every FastCGI request; of what it does not recognise (redis, bulk) only openings and closings."""
    for service in layout.services:
        record = record_path(layout, name, service)
        _spawn_udsproxy(layout, name, service, "--log", "json", "--log-file", record)


def _start_udsproxy_unwatched(layout: Layout, name: str) -> None:
    """Records as that does, and looks at no queue and no worker: what it saves is the cost of that."""
    for service in layout.services:
        record = record_path(layout, name, service)
        options = ("--log", "json", "--log-file", record, "--slow", "none", "--incident", "none")
        _spawn_udsproxy(layout, name, service, *options)


def _spawn_udsproxy(layout: Layout, name: str, service: str, *options: str) -> None:
    argv = udsproxy_argv(layout.listen(name, service), layout.upstream(service), *options)
    layout.stage.spawn(f"{name} for {service}", argv, layout.log(name, service))


def udsproxy_dropped(path: str) -> int:
    """What udsproxy says, in a file of JSON lines, that it did not observe."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return sum(json.loads(line)["count"] for line in file if '"event":"dropped"' in line)


SOCAT_V = "socat-v"
HAPROXY = "haproxy"
UDSPROXY_FORWARD = "udsproxy-forward"
UDSPROXY_FIXED = "udsproxy-fixed"
UDSPROXY_JSON = "udsproxy-json"
UDSPROXY_UNWATCHED = "udsproxy-unwatched"

CONTENDERS = (
    Contender(DIRECT, (), _start_direct),
    Contender("socat", ("socat",), _start_socat),
    Contender(SOCAT_V, ("socat",), _start_socat_v, records=True),
    Contender("nginx", ("nginx", "nginx stream"), _start_nginx),
    Contender(HAPROXY, ("haproxy",), _start_haproxy),
    Contender(UDSPROXY_FORWARD, ("udsproxy",), _start_udsproxy_forward),
    Contender(UDSPROXY_FIXED, ("udsproxy",), _start_udsproxy_fixed),
    Contender(UDSPROXY_JSON, ("udsproxy",), _start_udsproxy_json, records=True, unrecorded=udsproxy_dropped),
    Contender(UDSPROXY_UNWATCHED, ("udsproxy",), _start_udsproxy_unwatched, True, udsproxy_dropped),
)
