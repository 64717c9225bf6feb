"""``udsproxy doctor`` and the configurations of real servers: what php-fpm and nginx have read is what it has read.

Rule: nothing depends on how fast anything is; what is waited for is a condition.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.site import Front
from tests.e2e.test_doctor import examine, examine_at_rest, titles
from tests.e2e.tools import connect, free_port, program, read, run, until
from tests.stage import Stage
from udsproxy.doctor import php_fpm
from udsproxy.doctor.reading import Reader

ROOT = os.geteuid() == 0
_USER = [] if ROOT else ["--user", "--map-root-user"]


def start_at(stage: Stage, listen: str, *options: str, wrap: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """php-fpm with these options, as soon as it accepts on ``listen``."""
    argv = [*wrap, program("php-fpm"), "-n", "-F", *(["-R"] if ROOT else []), *options]
    process = stage.spawn("php-fpm", argv, stage.path("php-fpm.out"))

    def accepts() -> bool:
        assert process.poll() is None, read(stage.path("php-fpm.out"))
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(listen) == 0

    until(accepts, "php-fpm")
    return process


def write_official(stage: Stage, at: str, *more: str) -> str:
    """The files of the official image below a directory of the stage. Returns the directory."""
    stage.write("[global]\n;error_log = log/php-fpm.log\ninclude=etc/php-fpm.d/*.conf\n", at, "etc", "php-fpm.conf")
    stage.write("[global]\nerror_log = /dev/null\n[www]\nclear_env = no\n", at, "etc", "php-fpm.d", "docker.conf")
    user = "user = root\n" if ROOT else ""
    text = f"[www]\n{user}listen = run/www.sock\npm = static\npm.max_children = 1\nlisten.backlog = 511\n"
    stage.write(text, at, "etc", "php-fpm.d", "www.conf")
    stage.write(
        f"[global]\ndaemonize = no\n[www]\n{chr(10).join(more)}\n", at, "etc", "php-fpm.d", "zz-docker.conf"
    )
    return os.path.dirname(stage.path(at, "run", "www.sock").removesuffix("/www.sock"))


def pool_of(report: dict[str, Any]) -> dict[str, Any]:
    pool = report["facts"]["pool"]
    assert pool is not None, report["facts"]["unseen"]
    assert isinstance(pool, dict)
    return pool


def test_the_official_image(stage: Stage) -> None:
    """Its files below a prefix (-p): includes and ``listen`` are found there; of two files with one [www] the last
    value of each key counts, and the advice names its place."""
    prefix = write_official(stage, "local", "pm.max_children = 3", "listen.backlog = 1")
    path = f"{prefix}/run/www.sock"
    start_at(stage, path, "-p", prefix)
    code, report = examine_at_rest(path)
    pool = pool_of(report)
    assert (pool["name"], pool["settings"]["pm.max_children"]) == ("www", "3")
    last = f"{prefix}/etc/php-fpm.d/zz-docker.conf"
    assert pool["places"]["pm.max_children"] == f"{last}:4"
    assert pool["places"]["pm"] == f"{prefix}/etc/php-fpm.d/www.conf:{4 if ROOT else 3}"
    assert (code, report["facts"]["backlog"]) == (0, 1)
    (advice,) = [each["do"] for each in report["findings"] if each["title"].startswith("room for 2")]
    assert f"{last}:5" in advice
    assert not [line for line in report["facts"]["unseen"] if prefix in line]


def test_a_prefix_that_no_title_names(stage: Stage) -> None:
    """With -p and another -y, the socket that the master holds tells where relative names begin; a name of the
    configuration that is relative begins where php-fpm was started."""
    prefix = write_official(stage, "site")
    os.rename(f"{prefix}/etc/php-fpm.conf", stage.path("elsewhere", "main.conf"))
    path = f"{prefix}/run/www.sock"
    wrap = ("env", f"--chdir={stage.directory}")
    start_at(stage, path, "-p", prefix, "-y", "elsewhere/main.conf", wrap=wrap)
    _, report = examine(path)
    assert pool_of(report)["file"] == f"{prefix}/etc/php-fpm.d/docker.conf:3"


def test_a_container(stage: Stage) -> None:
    """A php-fpm with mounts of its own: its files are read as it finds them, though there are none here."""
    inner = write_official(stage, "image")
    os.makedirs(stage.path("mnt", "x"), exist_ok=True)
    place = stage.path("mnt")
    script = f'mount --bind {inner} {place} && exec "$0" "$@"'
    wrap = ("unshare", *_USER, "--mount", "sh", "-c", script)
    path = f"{inner}/run/www.sock"
    start_at(stage, path, "-p", place, wrap=wrap)
    _, report = examine(path)
    pool = pool_of(report)
    assert pool["places"]["listen"] == f"{place}/etc/php-fpm.d/www.conf:{3 if ROOT else 2}"
    assert not os.path.exists(f"{place}/etc")


def test_ondemand_with_a_small_backlog(stage: Stage) -> None:
    """Whether this php-fpm raises it or not, nothing is said of a file that was changed."""
    prefix = write_official(stage, "local", "pm = ondemand", "listen.backlog = 2")
    path = f"{prefix}/run/www.sock"
    start_at(stage, path, "-p", prefix)
    _, report = examine(path)
    told = titles(report, "problem", "warning", "note")
    assert not [each for each in told if "not in force" in each], told
    raised = [each for each in told if each.startswith("listen.backlog = 2 is raised to 511")]
    assert bool(raised) == (report["facts"]["backlog"] != 2)


def test_an_acl_and_its_mask(stage: Stage) -> None:
    """php-fpm makes an ACL, and ignores the owner; a chmod then changes its mask, and that is what is told."""
    if not ROOT:
        pytest.skip("an ACL for another user takes root")
    prefix = write_official(stage, "local", "listen.acl_users = nobody", "listen.owner = root")
    path = f"{prefix}/run/www.sock"
    os.chmod(stage.directory, 0o755)
    start_at(stage, path, "-p", prefix)
    code, report = examine_at_rest(path, "--client", "nobody")
    assert (code, titles(report, "problem")) == (0, [])
    assert "listen.owner: ignored, for listen.acl_users = nobody" in titles(report, "note")
    os.chmod(path, 0o640)
    code, report = examine(path, "--client", "nobody")
    (finding,) = [each for each in report["findings"] if "nobody (--client) cannot connect" in each["title"]]
    assert (code, finding["do"].startswith(f"setfacl -m m::rw {path}")) == (1, True), finding


def shown_by_php_fpm(prefix: str, file: str) -> dict[str, dict[str, str]]:
    """What ``php-fpm -tt`` says of each pool, or nothing: it refuses the files."""
    root = ["-R"] if ROOT else []
    done = run([program("php-fpm"), "-n", *root, "-p", prefix, "-y", file, "-tt"])
    pools: dict[str, dict[str, str]] = {}
    name = ""
    for line in re.sub(r"^\[[^]]+\] ", "", done.stderr.decode(), flags=re.MULTILINE).splitlines():
        if section := re.fullmatch(r"NOTICE: \[([^]]+)\]", line):
            name = section[1]
        elif setting := re.fullmatch(r"NOTICE: \t(\S+) = (.*)", line):
            pools.setdefault(name, {})[setting[1]] = setting[2]
    pools.pop("global", None)
    return pools


VALUES = [
    "listen = run/$pool.sock",
    "listen = '/a b/$pool.sock' ; c",
    'listen = "/x;y"',
    "listen = /a-b_c@d+e,f%g*h?i<j>k.sock",
    "LISTEN = x\nListen = y",
    "prefix = /tmp\nlisten = $pool/x",
    "prefix = sub/$pool\nlisten = x",
    "listen = ${UDSPROXY_NOT_SET}/$pool.s",
    "listen = x\n[other]\nlisten = z\n[WWW]\nlisten = y",
    "listen = x\n[ www ]\nlisten = y",
    '["www"]\nlisten = y',
    "[www] ; c\nlisten=y",
    "[www]listen = z",
    "listen = x\nlisten.backlog = 7\npm.max_children = '9' ; c",
    "listen = a#b",
    "listen = 1+2",
    "listen = x\ninclude = sub/*.inc",
    "listen = y\ninclude = sub/a.inc\nlisten = x",
]


@pytest.mark.parametrize("text", VALUES)
def test_php_fpm_reads_the_same(stage: Stage, text: str) -> None:
    """``php-fpm -tt`` shows the path, the backlog and the number of workers of each pool as they are read here."""
    os.makedirs(stage.path("sub", "www", "x"), exist_ok=True)
    stage.write("pm.max_children = 4\n[late]\nlisten = late\npm.max_children = 5\n", "sub", "a.inc")
    user = "user = root\n" if ROOT else ""
    head = f"[global]\nerror_log = /dev/null\n[other]\n{user}pm = static\npm.max_children = 1\nlisten = other\n"
    late = f"[late]\n{user}pm = static\n" if "include" in text else ""
    own = f"[ www ]\n{user}pm = static\npm.max_children = 2\n" if "[ www ]" in text else ""
    file = stage.write(f"{head}{late}{own}[www]\n{user}pm = static\npm.max_children = 3\n{text}\n", "fpm.conf")
    theirs = shown_by_php_fpm(stage.directory, file)
    assert "www" in theirs
    found = php_fpm.read(Reader(), file, stage.directory)
    for pool in found.pools:
        seen = theirs.pop(pool.name)
        assert pool.settings["listen"].is_known == ("${" not in text) or pool.name != "www"
        if pool.settings["listen"].is_known:
            assert found.listens(pool) == seen["listen"]
        assert pool.value("pm.max_children") == seen["pm.max_children"]
        assert pool.value("listen.backlog") in (seen["listen.backlog"], None)
    assert not theirs


@pytest.mark.parametrize("deep", [4, 5])
def test_php_fpm_refuses_the_same(stage: Stage, deep: int) -> None:
    """Files that include each other too deep, and links that lead nowhere."""
    user = "user = root\n" if ROOT else ""
    main = stage.write("[global]\nerror_log = /dev/null\ninclude = 1.conf\n", "0.conf")
    for number in range(1, deep):
        stage.write(f"include = {number + 1}.conf\n", f"{number}.conf")
    stage.write(f"[www]\n{user}pm = static\npm.max_children = 3\nlisten = x\n", f"{deep}.conf")
    assert bool(shown_by_php_fpm(stage.directory, main)) == (deep == 4)
    assert bool(php_fpm.read(Reader(), main, stage.directory).refused) == (deep == 5)
    stage.write("include = 5.con*\n", f"{deep}.conf")
    Path(stage.path("5.conx")).symlink_to("/nonexistent")
    assert not shown_by_php_fpm(stage.directory, main)
    assert php_fpm.read(Reader(), main, stage.directory).refused


# --- nginx ---

_CONF = """\
daemon off;
worker_processes 1;
pid {directory}/run.pid;
{user}
events {{ worker_connections 64; }}
http {{
    client_body_temp_path {directory}/t1; proxy_temp_path {directory}/t2; fastcgi_temp_path {directory}/t3;
    uwsgi_temp_path {directory}/t4; scgi_temp_path {directory}/t5;
    access_log off;
    include sites/*;
}}
"""


def spawn_nginx(stage: Stage, argv: list[str], port: int) -> subprocess.Popen[bytes]:
    """An nginx, as soon as it accepts on that port."""
    process = stage.spawn("nginx", argv, stage.path("nginx.out"))

    def accepts() -> bool:
        assert process.poll() is None, read(stage.path("nginx.out"))
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(accepts, "nginx")
    return process


def start_nginx(stage: Stage, sites: dict[str, str], port: int) -> subprocess.Popen[bytes]:
    """nginx, started in the stage's directory with ``-p . -c conf/nginx.conf``."""
    for name, text in sites.items():
        stage.write(text, "conf", "sites", name)
    user = "user root;" if ROOT else ""
    stage.write(_CONF.format(directory=stage.directory, user=user), "conf", "nginx.conf")
    argv = [
        "env",
        f"--chdir={stage.directory}",
        program("nginx"),
        "-p",
        ".",
        "-c",
        "conf/nginx.conf",
        "-e",
        "stderr",
    ]
    return spawn_nginx(stage, argv, port)


def nginx_accepts_its_files(stage: Stage) -> bool:
    argv = ["env", f"--chdir={stage.directory}", program("nginx"), "-t", "-p", ".", "-c", "conf/nginx.conf"]
    return run([*argv, "-e", "stderr"]).returncode == 0


def listen(stack: ExitStack, path: str) -> None:
    """A socket whose queue is full."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(path)
    listener.listen(0)
    stack.enter_context(connect(path))


def test_error_11_in_the_log(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often nginx met a full queue, and when last (in its zone, which is named), is told from the log of the
    place that leads to the socket, found by nginx's own configuration and working directory; other sockets' errors
    are not counted."""
    monkeypatch.setenv("TZ", "<+0545>-5:45")
    port, path, other = free_port(), stage.path("x.sock"), stage.path("y.sock")
    site = f"""
        server {{
            listen 127.0.0.1:{port};
            error_log site.error;
            location / {{ fastcgi_pass unix:x.sock; }}
            location /other {{ fastcgi_pass unix:{other}; }}
        }}
    """
    front = Front(port, "", stage.path("site.error"))
    with ExitStack() as stack:
        listen(stack, path)
        listen(stack, other)
        start_nginx(stage, {"site": site}, port)
        assert [front.fetch("/").status for _ in range(3)] == [502] * 3
        assert front.fetch("/other").status == 502
        code, report = examine(path)
        last = re.findall(r"^(\d+)/(\d+)/(\d+) (\S+) .*x\.sock failed", read(front.error_log), re.MULTILINE)[-1]
        at = "{}-{}-{} {}".format(*last)
        assert code == 1
        told = f"nginx logged error 11 for this socket 3 times since the server was started, last at {at} +0545"
        assert told in titles(report, "problem")
        (log,) = report["facts"]["nginx"][0]["logs"]
        assert log["path"] == stage.path("site.error")
        assert [each["count"] for each in log["logged"]] == [3]


def test_what_nginx_would_refuse(stage: Stage) -> None:
    """After a link in its sites has lost its target, nginx goes on, and would not start again: that is told, and
    where; so it is of another server of a block that is not there, and of a variable that may lead here."""
    port, path = free_port(), stage.path("x.sock")
    sites = {
        "10-site": f"""
            upstream php {{ server unix:{path} max_fails=0; server unix:{stage.path("gone.sock")};
                server unix:{stage.path("left.sock")}; }}
            server {{ listen 127.0.0.1:{port}; server_name ~^(?<pool>.)$; error_log off.log crit;
            location / {{ fastcgi_pass php; }}
            location /v {{ fastcgi_pass unix:{stage.directory}/$pool.sock; }} }}
        """
    }
    gone = stage.write("", "available")
    with ExitStack() as stack:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(stage.path("left.sock"))
        listen(stack, path)
        os.symlink(gone, stage.path("conf", "sites", "20-link"))
        start_nginx(stage, sites, port)
        before = examine(path)[1]
        assert (nginx_accepts_its_files(stage), before["facts"]["refused"]) == (True, [])
        os.unlink(gone)
        after = examine(path)[1]
        assert not nginx_accepts_its_files(stage)
        link, conf = stage.path("conf", "sites", "20-link"), stage.path("conf", "nginx.conf")
        told = f"nginx cannot be started anew: {link} is a link to {gone}, which is not there"
        assert told in titles(after, "problem")
        (finding,) = [each for each in after["findings"] if each["title"] == told]
        assert f"{conf}:10" in finding["why"]
        at = stage.path("conf", "sites", "10-site")
        lost = [each for each in titles(after, "warning") if each.startswith(f"upstream php ({at}:2): ")]
        assert lost == [
            f"upstream php ({at}:2): unix:{stage.path(name)} cannot be reached: {why}"
            for name, why in (("gone.sock", "no such file"), ("left.sock", "a socket that nobody has"))
        ]
        variable = f"fastcgi_pass unix:{stage.directory}/$pool.sock at {at}:6 may lead to this socket"
        assert variable in titles(after, "note")
        assert f"error_log {stage.path('off.log')} crit: error 11 is not in it" in titles(after, "note")


def start_contained(stage: Stage, port: int, socket_there: str, mounts: str) -> str:
    """An nginx with mounts of its own that asks a socket there. Returns its directory, seen from outside; ``{}`` in
    both is where it has that."""
    inner, place = stage.path("container", "conf"), stage.path("mnt", "x").removesuffix("/x")
    os.makedirs(inner)
    inner = os.path.dirname(inner)
    user = "user root;" if ROOT else ""
    site = (
        f"server {{ listen 127.0.0.1:{port}; error_log {place}/e.log;"
        f" location / {{ fastcgi_pass unix:{socket_there.format(place)}; }} }}"
    )
    text = _CONF.format(directory=place, user=user).replace("include sites/*;", site)
    Path(inner, "conf", "nginx.conf").write_text(text)
    os.makedirs(f"{inner}/sockets")
    Path(inner, "sockets", "file.sock").touch()
    script = (
        f"mount --bind {inner} {place} && mount --bind {mounts.format(place)} && "
        f'exec "$0" -p {place} -c conf/nginx.conf -e stderr'
    )
    argv = ["unshare", *_USER, "--mount", "sh", "-c", script, program("nginx")]
    spawn_nginx(stage, argv, port)
    return inner


def test_nginx_in_a_container(stage: Stage) -> None:
    """An nginx with mounts of its own: its configuration and its log are read as it finds them, and its path leads
    to this socket by the file, not by the name. Who may connect is judged by its own way to the socket."""
    port, path, place = free_port(), stage.path("run", "x.sock"), stage.path("mnt")
    with ExitStack() as stack:
        listen(stack, path)
        inner = start_contained(stage, port, "{}/sockets/x.sock", f"{os.path.dirname(path)} {{}}/sockets")
        front = Front(port, "", f"{inner}/e.log")
        assert front.fetch("/").status == 502
        os.rename(os.path.dirname(path), stage.path("hidden", "run"))
        path = stage.path("hidden", "run", "x.sock")
        os.chmod(stage.path("hidden"), 0o700)
        _, report = examine(path)
        (nginx,) = report["facts"]["nginx"]
        assert nginx["conf"] == f"{place}/conf/nginx.conf"
        (client,) = report["facts"]["clients"]
        assert client["sees"]
        assert client["way"][-1]["path"] == f"{place}/sockets/x.sock"
        assert [each["at"] for each in nginx["passes"]] == [f"{place}/conf/nginx.conf:10"]
        assert any(each.startswith("nginx logged error 11") for each in titles(report, "problem"))


def test_a_stale_mount_of_the_file(stage: Stage) -> None:
    """An nginx in a container where the socket's file itself is mounted, at another path: after the server has made
    it anew, that it is the old one is told."""
    port, path = free_port(), stage.path("run", "x.sock")
    with ExitStack() as stack:
        listen(stack, path)
        start_contained(stage, port, "{}/sockets/file.sock", f"{path} {{}}/sockets/file.sock")
        _, report = examine(path)
        assert [each["sees"] for each in report["facts"]["clients"]] == [True]
        os.unlink(path)
        listen(stack, path)
        code, report = examine(path)
        assert [each["sees"] for each in report["facts"]["clients"]] == [False]
        assert (code, [each for each in titles(report, "problem") if "stale bind mount" in each] != []) == (1, True)
