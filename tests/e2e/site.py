"""The setup that the project is for: php-fpm, and an nginx with two servers that give the same pages. One asks
php-fpm directly, the other through udsproxy.

Rules: what a page does is decided by its script and its query alone, so that both servers can be compared. Both
keep logs of their own. All of it runs as the user who runs the tests.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.e2e.proxy import Proxy
from tests.e2e.tools import LIMIT_S, free_port, program, read, until
from tests.stage import Stage
from udsproxy.kernel.namespaces import Namespace, within

WORKERS = 8

SCRIPTS = {
    "hello": 'echo "hello ", $_GET["id"] ?? "world", "\\n";',
    "query": 'header("X-Several: one"); header("X-Several: two", false); setcookie("a", "b"); var_dump($_GET);',
    "upload": """
        $body = file_get_contents("php://input");
        header("Content-Type: application/json");
        echo json_encode(["method" => $_SERVER["REQUEST_METHOD"], "length" => strlen($body),
                          "sha256" => hash("sha256", $body)]);
    """,
    "download": 'for ($i = 0; $i < 800; $i++) echo str_repeat(hash("sha256", $i, true), 2048);',
    "absent": 'http_response_code(404); echo "nothing of that name\\n";',
    "fatal": 'throw new RuntimeException("out of luck");',
    "errorlog": 'error_log("red \\e[31m, bell \\x07, line\\nline, \\xff"); echo "logged\\n";',
    # PHP sets the status itself when it is given a Location; taken back, only the Location is sent.
    "redirect": 'header("Location: /hello.php?id=redirected"); http_response_code(200);',
    "gate": """
        touch($_GET["started"]);
        while (!file_exists($_GET["gate"])) { clearstatcache(); usleep(5000); }
        echo "through\\n";
    """,
    "slow": 'usleep(200000); echo "slow\\n";',
    # What a worker may wait for: a database that says nothing, a lock, a computation, time.
    "database": 'fread(stream_socket_client("tcp://{$_GET["at"]}"), 1); echo "answered\\n";',
    "locked": 'flock(fopen($_GET["file"], "c"), LOCK_EX); echo "locked\\n";',
    "compute": """
        while (!file_exists($_GET["until"])) { clearstatcache(); hash("sha256", str_repeat("x", 1 << 22)); }
    """,
    "sleep": 'usleep(1500000); echo "slept\\n";',
    "endless": 'while (true) { echo str_repeat("endless ", 8192); flush(); usleep(1000); }',
}
DOWNLOAD_BYTES = 50 * 1024 * 1024

_PHP_FPM_CONF = """\
[global]
daemonize = no
error_log = {log}
[e2e]
listen = {listen}
{user}
pm = static
pm.max_children = {workers}
php_admin_flag[display_errors] = off
php_admin_flag[log_errors] = on
{settings}
"""

_NGINX_CONF = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr;
{user}
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 64m;
{http}
}}
"""

_HTTP = """\
    log_format e2e escape=json '{"id":"$request_id","uri":"$request_uri","method":"$request_method",'
        '"status":"$status","request_length":"$request_length","upstream_status":"$upstream_status",'
        '"upstream_bytes_sent":"$upstream_bytes_sent","upstream_bytes_received":"$upstream_bytes_received",'
        '"upstream_response_time":"$upstream_response_time"}';
"""

# /kept/ keeps connections to php-fpm, /patient/ goes on asking when its client has left.
_SERVER = """\
    upstream {name} {{ server unix:{upstream}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        access_log {access_log} e2e;
        error_log {error_log} error;
        # In one place: a level that has one of these inherits none.
        fastcgi_param SCRIPT_FILENAME {root}/$script.php;
        fastcgi_param QUERY_STRING $query_string;
        fastcgi_param REQUEST_METHOD $request_method;
        fastcgi_param CONTENT_TYPE $content_type;
        fastcgi_param CONTENT_LENGTH $content_length;
        fastcgi_param SCRIPT_NAME $fastcgi_script_name;
        fastcgi_param REQUEST_URI $request_uri;
        fastcgi_param SERVER_PROTOCOL $server_protocol;
        fastcgi_param HTTP_HOST example.test;
        fastcgi_param REDIRECT_STATUS 200;
        location ~ ^/(?<script>\\w+)\\.php$ {{ fastcgi_pass unix:{upstream}; }}
        location ~ ^/kept/(?<script>\\w+)\\.php$ {{ fastcgi_pass {name}; fastcgi_keep_conn on; }}
        location ~ ^/patient/(?<script>\\w+)\\.php$ {{
            fastcgi_pass unix:{upstream};
            fastcgi_ignore_client_abort on;
        }}
    }}
"""


@dataclass(frozen=True)
class Page:
    """A response, but for its Date."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class Front:
    """One server of an nginx."""

    port: int
    access_log: str
    error_log: str
    within: str | None = None
    """The network namespace that it is in (``/run/netns/NAME``), where that is not ours."""

    def connect(self) -> socket.socket:
        def connected() -> socket.socket:
            return socket.create_connection(("127.0.0.1", self.port), LIMIT_S)

        return connected() if self.within is None else within(Namespace(0, self.within), connected)

    def fetch(self, uri: str, *, method: str = "GET", body: bytes | None = None) -> Page:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as connection:
            connection.request(method, uri, body, {"Content-Type": "application/octet-stream"} if body else {})
            response = connection.getresponse()
            headers = [(name, value) for name, value in response.getheaders() if name != "Date"]
            return Page(response.status, response.reason, headers, response.read())

    def begin(self, uri: str, *, close: bool = False) -> socket.socket:
        """Send a request and nothing more; ``close``: the answer's end shall be the connection's."""
        sock = self.connect()
        ending = "Connection: close\r\n" if close else ""
        sock.sendall(f"GET {uri} HTTP/1.1\r\nHost: localhost\r\n{ending}\r\n".encode())
        return sock

    def accesses(self) -> list[dict[str, Any]]:
        """The access log."""
        return [json.loads(line) for line in read(self.access_log).split("\n")[:-1]]


# --- parts ---


def start_php_fpm(
    stage: Stage, listen: str, *settings: str, workers: int = WORKERS, wrap: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """A php-fpm that accepts on ``listen``. ``settings``: more lines for its pool. ``wrap``: a command that runs
    it."""
    root = os.geteuid() == 0
    log = stage.path("php", "log")
    text = _PHP_FPM_CONF.format(
        log=log,
        listen=listen,
        user=f"user = {pwd.getpwuid(0).pw_name}" if root else "",
        workers=workers,
        settings="\n".join(settings),
    )
    return run_php_fpm(stage, stage.write(text, "php", "fpm.conf"), listen, log, wrap)


def run_php_fpm(
    stage: Stage, conf: str, listen: str, log: str, wrap: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """php-fpm with that configuration and no php.ini, as soon as it accepts on ``listen``."""
    argv = [*wrap, program("php-fpm"), "-n", "-F", "-p", stage.directory, "-y", conf]
    process = stage.spawn("php-fpm", [*argv, "-R"] if os.geteuid() == 0 else argv, log)

    def accepts() -> bool:
        assert process.poll() is None, f"php-fpm ended: {read(log)}"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(listen) == 0

    until(accepts, "php-fpm")
    return process


def write_scripts(stage: Stage) -> str:
    """The pages. Returns their directory."""
    for name, code in SCRIPTS.items():
        stage.write(f"<?php\n{code}", "www", f"{name}.php")
    return stage.path("www")


def start_nginx(
    stage: Stage, upstreams: Mapping[str, str], wrap: Sequence[str] = (), within: str | None = None
) -> dict[str, Front]:
    """An nginx with a server for each of ``upstreams``: its name, and the socket that it asks for all pages.
    ``wrap``: a command that runs it; ``within``: as of `Front`."""
    root, http, fronts = write_scripts(stage), _HTTP, {}
    for name, upstream in upstreams.items():
        front = Front(
            free_port(), stage.path("nginx", f"{name}.access"), stage.path("nginx", f"{name}.error"), within
        )
        fronts[name] = front
        http += _SERVER.format(
            name=name,
            upstream=upstream,
            port=front.port,
            access_log=front.access_log,
            error_log=front.error_log,
            root=root,
        )
    run_nginx(stage, http, list(fronts.values()), wrap)
    return fronts


def run_nginx(stage: Stage, http: str, fronts: list[Front], wrap: Sequence[str] = (), user: str = "root") -> None:
    """nginx with that in its http block, as soon as it accepts at the fronts. ``user``: its worker's, as root."""
    # As root, nginx would give its worker to "nobody", who may not enter the stage.
    as_user = f"user {user};" if os.geteuid() == 0 else ""
    text = _NGINX_CONF.format(directory=stage.directory, user=as_user, http=http)
    conf, log = stage.write(text, "nginx", "nginx.conf"), stage.path("nginx", "log")
    process = stage.spawn("nginx", [*wrap, program("nginx"), "-p", stage.directory, "-c", conf], log)

    def accepts(front: Front) -> bool:
        assert process.poll() is None, f"nginx ended: {read(log)}"
        with contextlib.suppress(OSError):
            front.connect().close()
            return True
        return False

    for front in fronts:
        until(partial(accepts, front), "nginx")


# --- the whole ---


class Site:
    """All of it. ``direct`` and ``proxied`` are the two servers."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.upstream = stage.path("php.sock")
        self.root = stage.path("www")
        self.php_fpm = start_php_fpm(stage, self.upstream)
        self.proxy = Proxy(stage, stage.path("seen.sock"), self.upstream)
        fronts = start_nginx(stage, {"direct": self.upstream, "proxied": self.proxy.socket})
        self.direct, self.proxied = fronts["direct"], fronts["proxied"]
        self._gates = 0

    def request_event(self, uri: str) -> dict[str, Any]:
        """The one event of the one request for ``uri``."""
        (event,) = self.proxy.wait_for("request", uri=uri)
        return event

    def gate(self) -> Gate:
        """A page that answers when it is told to."""
        self._gates += 1
        return Gate(self.stage.path("gates", f"{self._gates}"))


class Gate:
    """The page that waits: its URI, when php-fpm works on it, and letting it through."""

    def __init__(self, path: str) -> None:
        self._started, self._gate = f"{path}.started", f"{path}.open"
        self.script = f"/gate.php?started={self._started}&gate={self._gate}"

    def wait_until_started(self) -> None:
        until(lambda: os.path.exists(self._started), "php-fpm to work on the page")

    def open(self) -> None:
        with open(self._gate, "x", encoding="ascii"):
            pass


_VARYING = re.compile(
    r'^\d{4}/\d\d/\d\d [\d:]+ (?=\[)|\d+#\d+: \*\d+ |upstream: "fastcgi://unix:[^"]*"|host: "127\.0\.0\.1:\d+"',
    re.MULTILINE,
)


def error_lines(front: Front) -> list[str]:
    """The error log without what differs from request to request and from server to server."""
    return _VARYING.sub("", read(front.error_log)).splitlines()
