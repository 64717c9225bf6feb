"""The servers behind the contenders, and the nginx in front of php-fpm.

Rules: one of each for the whole run; configurations are our own, complete, and on the stage; all of them
run as the user who runs the benchmark.
"""

import os
import pwd
import subprocess
import sys

from tests.bench.layout import Layout, find
from tests.stage import StageError

PHP_CHILDREN = 8

SERVER_PROGRAMS = {
    "fastcgi": ("nginx", "php-fpm", "wrk"),
    "redis": ("redis-server", "redis-benchmark"),
    "bulk": (),
}

PHP_FPM_CONF = """\
[global]
daemonize = no
error_log = {log}
[bench]
listen = {listen}
{user}
pm = static
pm.max_children = {children}
"""

FRONT_NGINX_CONF = """\
{head}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {temp}/body;
    proxy_temp_path {temp}/proxy;
    fastcgi_temp_path {temp}/fastcgi;
    uwsgi_temp_path {temp}/uwsgi;
    scgi_temp_path {temp}/scgi;
    keepalive_requests 100000000;
    server {{
        listen 127.0.0.1:{port};
        fastcgi_param SCRIPT_FILENAME {script};
        fastcgi_param QUERY_STRING $query_string;
        fastcgi_param REQUEST_METHOD $request_method;
        fastcgi_param CONTENT_TYPE $content_type;
        fastcgi_param CONTENT_LENGTH $content_length;
        fastcgi_param SCRIPT_NAME $fastcgi_script_name;
        fastcgi_param REQUEST_URI $request_uri;
        fastcgi_param DOCUMENT_URI $document_uri;
        fastcgi_param DOCUMENT_ROOT $document_root;
        fastcgi_param SERVER_PROTOCOL $server_protocol;
        fastcgi_param REQUEST_SCHEME $scheme;
        fastcgi_param GATEWAY_INTERFACE CGI/1.1;
        fastcgi_param SERVER_SOFTWARE nginx/$nginx_version;
        fastcgi_param REMOTE_ADDR $remote_addr;
        fastcgi_param REMOTE_PORT $remote_port;
        fastcgi_param SERVER_ADDR $server_addr;
        fastcgi_param SERVER_PORT $server_port;
        fastcgi_param SERVER_NAME $server_name;
        fastcgi_param REDIRECT_STATUS 200;
{locations}
    }}
}}
"""


def start_servers(layout: Layout, contenders: list[str]) -> None:
    """Start the servers of the services in use; return when they accept."""
    starters = {"fastcgi": _start_php_fpm, "redis": _start_redis, "bulk": _start_bulk_sink}
    for service in layout.services:
        starters[service](layout, layout.log("up", service))
        layout.stage.await_socket(layout.upstream(service))
    if "redis" in layout.services:
        _fill_redis(layout)
    if "fastcgi" in layout.services:
        _start_front_nginx(layout, contenders)


def nginx_head(layout: Layout, owner: str) -> str:
    """The first lines of an nginx configuration; one worker, as every other contender has one process."""
    lines = [
        "daemon off;",
        "worker_processes 1;",
        f"pid {layout.stage.path(owner, 'nginx.pid')};",
        "error_log stderr;",
    ]
    # As root, nginx would give its worker to "nobody", who may not enter the stage.
    return "\n".join([*lines, "user root;"] if os.geteuid() == 0 else lines)


def nginx_argv(layout: Layout, conf: str) -> list[str]:
    """The command line of an nginx that reads only `conf`."""
    return [find("nginx"), "-p", layout.stage.directory, "-c", conf]


def _start_php_fpm(layout: Layout, log: str) -> None:
    root = os.geteuid() == 0
    text = PHP_FPM_CONF.format(
        log=log,
        listen=layout.upstream("fastcgi"),
        user=f"user = {pwd.getpwuid(0).pw_name}" if root else "",
        children=PHP_CHILDREN,
    )
    conf = layout.stage.write(text, "up", "php-fpm.conf")
    argv = [find("php-fpm"), "-n", "-F", "-p", layout.stage.directory, "-y", conf]
    layout.stage.spawn("php-fpm", [*argv, "-R"] if root else argv, log)


def _start_redis(layout: Layout, log: str) -> None:
    argv = [find("redis-server"), "--port", "0", "--unixsocket", layout.upstream("redis"), "--save", ""]
    layout.stage.spawn("redis-server", [*argv, "--dir", layout.stage.directory], log)


def _fill_redis(layout: Layout) -> None:
    # The key that GET asks for must be there, or all answers are nil.
    argv = [find("redis-benchmark"), "-s", layout.upstream("redis"), "-t", "set", "-n", "1", "-q"]
    if subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode:
        raise StageError("redis-benchmark can't set a key")


def _start_bulk_sink(layout: Layout, log: str) -> None:
    argv = [sys.executable, "-m", "tests.bench.bulk", "serve", layout.upstream("bulk")]
    layout.stage.spawn("bulk sink", argv, log)


def _start_front_nginx(layout: Layout, contenders: list[str]) -> None:
    text = FRONT_NGINX_CONF.format(
        head=nginx_head(layout, "front"),
        temp=layout.stage.directory,
        port=layout.front_port,
        script=layout.stage.write('<?php echo "hello world\\n";\n', "up", "hello.php"),
        locations="\n".join(
            f"        location = /{name} {{ fastcgi_pass unix:{layout.listen(name, 'fastcgi')}; }}"
            for name in contenders
        ),
    )
    conf = layout.stage.write(text, "front", "nginx.conf")
    layout.stage.spawn("front nginx", nginx_argv(layout, conf), layout.log("front", "nginx"))
    layout.stage.await_socket(("127.0.0.1", layout.front_port))
