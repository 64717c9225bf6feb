"""The example configurations in config/, run as they are but for their paths and users."""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import stat
from collections.abc import Mapping

from tests.e2e.proxy import StartProxy
from tests.e2e.site import Front, run_nginx, run_php_fpm, write_scripts
from tests.e2e.tools import free_port, read, until
from tests.stage import REPOSITORY, Stage


def example(name: str, replace: Mapping[str, str]) -> str:
    """A file of config/ with each of these replaced; each must be there."""
    text = read(os.path.join(REPOSITORY, "config", name))
    for old, new in replace.items():
        assert old in text, f"config/{name} has no {old}"
        text = text.replace(old, new)
    return text


def as_this_user(pool: str) -> str:
    """A pool of php-fpm as the user who runs the tests."""
    user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    pool, users = re.subn(r"^(user|listen\.owner) = www-data$", rf"\1 = {user}", pool, flags=re.MULTILINE)
    pool, groups = re.subn(r"^(group|listen\.group) = www-data$", rf"\1 = {group}", pool, flags=re.MULTILINE)
    assert (users, groups) == (2, 2)
    return pool


def test_the_examples_work_together(stage: Stage, start_proxy: StartProxy) -> None:
    """nginx, php-fpm and udsproxy run from the examples, serve pages with and without kept connections, and nginx's
    log has the same as udsproxy's in the fields of the same name."""
    upstream, listen = stage.path("php.sock"), stage.path("p.sock")
    sockets = {"/run/php/udsproxy.sock": upstream, "/run/udsproxy/php.sock": listen}
    pool = as_this_user(example("php-fpm/udsproxy.conf", {"/run/php/udsproxy.sock": upstream}))
    log = stage.path("php", "log")
    conf = stage.write(f"[global]\ndaemonize = no\nerror_log = {log}\n{pool}", "php", "fpm.conf")
    run_php_fpm(stage, conf, upstream, log)

    unit = example("systemd/udsproxy.service", sockets)
    (command,) = re.findall(r"^ExecStart=/usr/local/bin/udsproxy (.+)$", unit, re.MULTILINE)
    name, *arguments = shlex.split(command)
    assert (name, arguments[:2]) == ("run", [listen, upstream])
    output = ["/bin/sh", "-c", f'exec "$@" >{stage.path("journal")}', "sh"]
    proxy = start_proxy(listen, upstream, log=arguments[2:], wrap=output)
    proxy.log = stage.path("journal")
    proxy.wait_for("listening")
    assert stat.S_IMODE(os.stat(listen).st_mode) == 0o660

    port, root = free_port(), write_scripts(stage)
    front = Front(port, stage.path("nginx", "udsproxy.access.json"), stage.path("nginx", "udsproxy.error.log"))
    http = example(
        "nginx/udsproxy.conf",
        sockets
        | {
            "127.0.0.1:80;": f"127.0.0.1:{port};",
            "root /var/www/html;": f"root {root};",
            "/var/log/nginx/": stage.path("nginx", ""),
        },
    )
    run_nginx(stage, http, [Front(port, "", "")])

    uris = [f"{place}/hello.php?id={number}" for place in ("", "/kept") for number in range(4)]
    for uri in uris:
        assert front.fetch(uri).body == f"hello {uri[-1]}\n".encode()
    assert front.fetch("/fatal.php").status == 500
    uris.append("/fatal.php")
    events = proxy.wait_for("request", count=len(uris))
    until(lambda: len(front.accesses()) == len(uris), "nginx's log")
    for access, event in zip(front.accesses(), events, strict=True):
        for key in ("uri", "method", "status"):
            assert access[key] == str(event[key])
        assert 0 <= float(access["ttfb_s"]) <= float(access["total_s"])
        assert access["upstream"] == f"unix:{listen}"
        if not access["uri"].startswith("/kept"):
            for key in ("c2s_bytes", "s2c_bytes"):
                assert access[key] == str(event[key])
    assert [event["uri"] for event in events] == uris
    kept = [event["conn"] for event in events if event["uri"].startswith("/kept")]
    assert len(set(kept)) == 1
    assert "out of luck" in events[-1]["stderr"]
    assert "out of luck" in read(front.error_log)
