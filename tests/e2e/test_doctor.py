"""``udsproxy doctor`` against a real php-fpm, a real nginx and sockets of every kind: what it foretells, happens.

Rule: nothing depends on how fast anything is; what is waited for is a condition.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import socket
import subprocess
from contextlib import ExitStack, closing
from typing import Any

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.site import Front, run_nginx, start_nginx, start_php_fpm
from tests.e2e.tap import StartTap
from tests.e2e.tools import (
    SocketServer,
    called,
    cgi_params,
    connect,
    free_port,
    program,
    read,
    run,
    udsproxy,
    until,
)
from tests.stage import Stage
from udsproxy.cli.doctor import doctor as doctor_command
from udsproxy.protocols import fastcgi as wire

NOBODY = 65534
SOUND = ("listen.backlog = 64", "pm.max_requests = 1000", "request_terminate_timeout = 30s")


def examine(path: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code, and the report."""
    done = udsproxy("doctor", path, "--json", *options)
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def examine_at_rest(path: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The same, when php-fpm has started all its workers and has nothing to do."""

    reports: list[tuple[int, dict[str, Any]]] = []

    def at_rest() -> bool:
        reports.append(examine(path, *options))
        facts = reports[-1][1]["facts"]
        return not facts["queue"] and not any(each["busy"] for each in facts["servers"])

    until(at_rest, "php-fpm to have nothing to do")
    return reports[-1]


def titles(report: dict[str, Any], *levels: str) -> list[str]:
    return [each["title"] for each in report["findings"] if each["level"] in levels]


def test_a_sound_site(stage: Stage) -> None:
    """With workers and backlog enough, and nginx who may connect, there is no problem; what was read is right."""
    path = stage.path("php.sock")
    php_fpm = start_php_fpm(stage, path, *SOUND)
    start_nginx(stage, {"direct": path})
    code, report = examine_at_rest(path, "--rate", "20", "--time", "50ms")
    assert (code, titles(report, "problem")) == (0, [])
    facts = report["facts"]
    assert (facts["state"], facts["backlog"], facts["php_fpm"]) == ("listening", 64, php_fpm.pid)
    assert (facts["pool"]["name"], facts["pool"]["settings"]["pm.max_children"]) == ("e2e", "8")
    assert len([each for each in facts["servers"] if not each["master"]]) == 8
    (nginx,) = facts["nginx"]
    assert nginx["conf"] == stage.path("nginx", "nginx.conf")
    assert [each["uid"] for each in facts["clients"]] == [os.geteuid()]
    assert {each["upstream"] for each in nginx["passes"]} == {None, "direct"}
    assert "upstream direct" in " ".join(titles(report, "fine"))
    assert not [line for line in facts["unseen"] if stage.directory in line]


def test_a_backlog_that_is_cut(stage: Stage) -> None:
    """One over somaxconn is cut; a reload with another does not change it, and it is told which is in force."""
    path, most = stage.path("php.sock"), int(read("/proc/sys/net/core/somaxconn"))
    php_fpm = start_php_fpm(stage, path, f"listen.backlog = {most + 1}", workers=2)
    code, report = examine(path)
    assert (code, report["facts"]["backlog"]) == (1, most)
    assert f"listen.backlog = {most + 1} is cut to {most}" in titles(report, "problem")
    conf, log = stage.path("php", "fpm.conf"), stage.path("php", "log")
    stage.write(read(conf).replace(f"= {most + 1}", "= 7"), "php", "fpm.conf")
    php_fpm.send_signal(signal.SIGUSR2)
    until(lambda: read(log).count("ready to handle connections") == 2, "php-fpm to reload")
    code, report = examine(path)
    assert report["facts"]["backlog"] == most
    assert f"listen.backlog = 7 is not in force: the kernel has {most}" in titles(report, "warning")


@pytest.mark.parametrize(
    ("directory", "mode", "owner", "group"),
    [
        (0o755, 0o660, 0, 0),
        (0o755, 0o666, 0, 0),
        (0o755, 0o664, 0, 0),
        (0o711, 0o660, 0, NOBODY),
        (0o711, 0o606, 0, NOBODY),
        (0o711, 0o600, NOBODY, 0),
        (0o711, 0o077, NOBODY, NOBODY),
        (0o744, 0o666, NOBODY, 0),
        (0o700, 0o666, 0, 0),
    ],
)
def test_who_may_connect(stage: Stage, directory: int, mode: int, owner: int, group: int) -> None:
    """What is said of a user is what the kernel says to that user: as root to another, else to ourselves."""
    path, user, wrap = stage.path("place", "x.sock"), str(os.geteuid()), list[str]()
    root = os.geteuid() == 0
    if root:
        user = str(NOBODY)
        wrap = [program("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    os.chmod(stage.directory, 0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        os.chmod(path, mode)
        if root:
            os.chown(path, owner, group)
        os.chmod(os.path.dirname(path), directory)
        code, report = examine(path, "--client", user)
        done = run([*wrap, program("socat"), "-u", "/dev/null", f"UNIX-CONNECT:{path}"])
        os.chmod(os.path.dirname(path), 0o755)
    assert (done.returncode != 0) == (b"Permission denied" in done.stderr), done
    problems = titles(report, "problem")
    assert code == bool(problems)
    if report["facts"]["entries"]:
        assert any("EACCES" in title for title in problems) == bool(done.returncode), problems
    else:
        assert "the socket cannot be looked at" in titles(report, "warning")


def test_all_workers_are_busy(stage: Stage) -> None:
    """When each worker has a request, and others wait behind them, that is what is said."""
    path, root = stage.path("php.sock"), stage.path("www")
    gate = stage.path("gate")
    code = f'while (!file_exists("{gate}")) {{ clearstatcache(); usleep(5000); }} echo "through";'
    stage.write(f"<?php\n{code}", "www", "wait.php")
    start_php_fpm(stage, path, "listen.backlog = 1", workers=2)

    def await_accepted() -> None:
        until(lambda: examine(path)[1]["facts"]["queue"] == 0, "what has been sent to be accepted")

    await_accepted()  # (the start of php-fpm was probed)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(path)).sendall(request_for("/wait.php", root))
            await_accepted()
        until(
            lambda: "all 2 workers of pool e2e are busy now" in titles(examine(path)[1], "problem"),
            "both to be busy",
        )
        for _ in range(2):
            stack.enter_context(connect(path))
        exit_code, report = examine(path)
        stage.write("", "gate")
    assert exit_code == 1
    assert "the queue is full now: 2 of 2" in titles(report, "problem")


def request_for(script: str, root: str) -> bytes:
    return wire.encode_request(cgi_params(script, root=root), b"")


_SERVER = """
    upstream {name} {{ {servers} }}
    server {{ listen 127.0.0.1:{port}; error_log {log} error; location / {{ fastcgi_pass {name}; }} }}
"""


def test_the_outage_that_is_foretold(stage: Stage) -> None:
    """Of two full sockets in a block nginx has `no live upstreams` from the second request on, and that was said;
    of one, and of two with max_fails=0, each request is one error 11, and that is fine."""
    paths = [stage.path(f"{name}.sock") for name in "abcde"]
    blocks = {
        "two": [f"unix:{paths[0]}", f"unix:{paths[1]}"],
        "one": [f"unix:{paths[2]}"],
        "calm": [f"unix:{paths[3]} max_fails=0", f"unix:{paths[4]} max_fails=0"],
    }
    fronts, http = {}, ""
    for name, servers in blocks.items():
        front = fronts[name] = Front(free_port(), "", stage.path("nginx", f"{name}.error"))
        lines = " ".join(f"server {server};" for server in servers)
        http += _SERVER.format(name=name, servers=lines, port=front.port, log=front.error_log)
    with ExitStack() as stack:
        for path in paths:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen(0)
            stack.enter_context(connect(path))
        run_nginx(stage, http, list(fronts.values()))
        for front in fronts.values():
            assert [front.fetch("/").status for _ in range(2)] == [502, 502]
        foretold = {name: examine(servers[0].split()[0][5:])[1] for name, servers in blocks.items()}
    for name, report in foretold.items():
        errors = read(fronts[name].error_log)
        out = [title for title in titles(report, "problem") if f"upstream {name} (" in title]
        assert bool(out) == ("no live upstreams" in errors), (name, errors)
        assert bool(out) == (name == "two")
        assert "(11: Resource temporarily unavailable)" in errors
        assert "the queue is full now: 1 of 1" in titles(report, "problem")


_KINDS = ("connect 11", "connect 2", "connect 13", "connect 111", "recv 104", "timed out 110", "closed")
_SERVED = ("connect 11", "connect 13", "connect 111", "recv 104", "timed out 110", "closed")


@pytest.mark.skipif(os.geteuid() != 0, reason="nginx's worker is another user's")
def test_the_checks_of_the_log_show_the_lines_that_were_counted(stage: Stage) -> None:
    """Of every kind of failure, by real servers and a real nginx: the command shows the lines that were counted,
    from a log that has those of other sockets, too, and was rotated; and they have the words that are quoted."""
    paths = {name: stage.path(f"{name.replace(' ', '-')}.sock") for name in (*_KINDS, "another 104")}
    front, down = Front(free_port(), "", stage.path("nginx", "error.log")), stage.path("down.sock")
    limits = {"timed out 110": "50ms"}
    locations = "".join(
        f'location = "/{name}" {{ fastcgi_pass unix:{path}; fastcgi_read_timeout {limits.get(name, "60s")}; }}'
        for name, path in paths.items()
    )
    http = f"""
        upstream php {{ server unix:{down}; server unix:{down}.2; }}
        server {{ listen 127.0.0.1:{front.port}; error_log {front.error_log};
                  location = /down {{ fastcgi_pass php; }} {locations} }}
    """

    def reset(connection: socket.socket) -> None:
        connection.recv(1)

    def close(connection: socket.socket) -> None:
        connection.recv(1 << 16)

    def wait(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    answers = {"recv 104": reset, "another 104": reset, "timed out 110": wait, "closed": close}
    os.chmod(stage.directory, 0o755)
    with ExitStack() as stack:
        for name in ("connect 11", "connect 13", "connect 111"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(paths[name])
            if name == "connect 11":
                listener.listen(0)
                stack.enter_context(connect(paths[name]))
        for name, answer in answers.items():
            stack.enter_context(SocketServer(paths[name], answer))
        for name, path in paths.items():
            if name != "connect 2":
                os.chmod(path, 0o600 if name == "connect 13" else 0o666)
        run_nginx(stage, http, [front], user=f"{pwd.getpwuid(NOBODY).pw_name} {grp.getgrgid(NOBODY).gr_name}")
        for name in (*paths, "down"):
            for _ in range(3):
                assert front.fetch(f"/{name.replace(' ', '%20')}").status in (502, 504)
        os.rename(front.error_log, f"{front.error_log}.1")
        stage.write("", "nginx", "error.log")
        paths["no live upstreams"] = down
        del paths["another 104"]
        reports = {kind: json.loads(called(doctor_command, path, json=True)[1]) for kind, path in paths.items()}
    for kind, report in reports.items():
        logged = report["facts"]["nginx"][0]["logs"][0]["logged"]
        assert kind in [each["kind"] for each in logged], (logged, read(f"{front.error_log}.1"))
        for each in logged:
            (found,) = [found for found in report["findings"] if f"`{each['words']}` in " in found["why"]]
            lines = run(["sh", "-c", found["check"]]).stdout.decode().splitlines()
            assert (len(lines), each["kind"]) == (each["count"], each["kind"])
            assert all(each["words"] in line for line in lines)
            # (Of a server that is not there, no start is known.)
            assert ("since the server was started" in found["title"]) == (kind in _SERVED)


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount is made")
def test_an_nginx_with_a_mount_of_the_file(stage: Stage) -> None:
    """An nginx that has the socket's file mounted by itself gets ECONNREFUSED once the server has restarted: it is
    said so, with what to mount instead."""
    path, kept = stage.path("run", "x.sock"), stage.write("", "kept")

    def serve() -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        return listener

    with serve():
        directory = os.path.dirname(path)
        # (On a file of its own: a mount ends with the file that it is on.)
        script = f"mount --bind {path} {kept} && mount -t tmpfs none {directory} && touch {path}"
        script += f' && mount --bind {kept} {path} && exec "$@"'
        front = start_nginx(stage, {"x": path}, wrap=[program("unshare"), "-m", "sh", "-c", script, "sh"])["x"]
        assert titles(examine(path)[1], "problem") == []
    os.unlink(path)
    with serve():
        assert front.fetch("/hello.php").status == 502
        assert "(111: Connection refused)" in read(front.error_log)
        _, report = examine(path)
        [stale] = [each for each in report["findings"] if "stale bind mount" in each["title"]]
        assert stale["do"].startswith(f"Mount the directory {directory} instead of the file")
        assert b"//deleted" in run(["sh", "-c", stale["check"].partition("   ")[0]]).stdout
        # (Its log is looked for where it is: in the file system that this nginx has.)
        [refused] = [each for each in report["findings"] if "logged error 111" in each["title"]]
        assert "/proc/" in refused["check"]
        assert run(["sh", "-c", refused["check"]]).stdout.count(b"(111: Connection refused)") == 1


def test_numbers_from_a_log(stage: Stage, start_proxy: StartProxy) -> None:
    """What a proxy has logged of the requests through it is read; five are too few to compute with."""
    path = stage.path("php.sock")
    start_php_fpm(stage, path, *SOUND)
    proxy = start_proxy(stage.path("seen.sock"), path)
    fronts = start_nginx(stage, {"proxied": proxy.socket})
    for number in range(5):
        assert fronts["proxied"].fetch(f"/hello.php?id={number}").status == 200
    events = proxy.wait_for("request", count=5)
    _, report = examine(path, "--log", proxy.log)
    seen = report["load"]["traffic"]
    assert seen["requests"] == 5
    # (How long one waited in the queue is not known where nobody had the time to look.)
    served_s = [max(0.0, each["total_s"] - each.get("accept_wait_s", 0.0)) for each in events]
    assert seen["mean_s"] == pytest.approx(sum(served_s) / 5)
    assert seen["busiest_rate"] >= 1
    assert "rate" not in report["load"]
    too_few = "too few requests to say how many workers are needed: 5 in "
    assert [title for title in titles(report, "note") if too_few in title and f"({proxy.log})" in title]
    assert not [title for title in titles(report, "fine", "warning", "problem") if "requests/s" in title]


def test_in_place_of_a_tap(stage: Stage, start_tap: StartTap) -> None:
    """While a tap stands at the path, the pool behind it is what is told."""
    path = stage.path("php.sock")
    php_fpm = start_php_fpm(stage, path, *SOUND, workers=2)
    tap = start_tap(path)
    code, report = examine_at_rest(path)
    assert (code, titles(report, "problem")) == (0, [])
    name = read(f"/proc/{php_fpm.pid}/comm").strip()
    stands = f"tapped by udsproxy, pid {tap.pid}, in front of {name}, pid {php_fpm.pid}"
    assert stands in titles(report, "note")
    assert (report["facts"]["backlog"], report["facts"]["pool"]["name"]) == (64, "e2e")


def test_the_commands_that_check(stage: Stage, start_tap: StartTap) -> None:
    """Each that looks for the socket with `ss` finds it by its inode: also one that has another name by now."""
    path, link = stage.path("php.sock"), stage.path("link.sock")
    start_php_fpm(stage, path, "listen.backlog = 3", workers=5)
    os.symlink(path, link)
    start_tap(path)
    for asked in (path, link):
        _, report = examine(asked, "--rate", "100", "--stall", "10s")
        checks = {each["check"].partition("   ")[0] for each in report["findings"] if "ss -x" in each["check"]}
        assert checks == {f"ss -xl | grep -w {report['facts']['inode']}"}
        done = run(["sh", "-c", checks.pop()])
        assert done.stdout.decode().split()[:4] == ["u_str", "LISTEN", "0", "3"], done


def test_where_nobody_listens(stage: Stage) -> None:
    """No path, a file, a stale socket, one without listen(), a name that nobody has: the errno is connect()'s."""
    stale, silent = stage.path("stale.sock"), stage.path("silent.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(stale)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(silent)
        for path in (stage.path("none"), stage.write("", "file"), stale, silent, f"{stale}/x", "@udsproxy-none"):
            code, report = examine(path)
            with socket.socket(socket.AF_UNIX) as probe:
                errno = probe.connect_ex("\0" + path[1:] if path.startswith("@") else path)
            assert code == 1
            assert report["facts"]["failure"] == {2: "ENOENT", 20: "ENOTDIR", 111: "ECONNREFUSED"}[errno], path
    assert examine("/" + "x" * 120)[1]["facts"]["failure"] == "ENAMETOOLONG"


def test_other_sockets(stage: Stage) -> None:
    """Datagrams, and abstract names, have no file or no queue to speak of, and no problem."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as sock:
        sock.bind(stage.path("log.sock"))
        code, report = examine(stage.path("log.sock"))
        assert (code, report["facts"]["type"]) == (0, "datagram")
    name = f"@udsproxy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0" + name[1:])
        sock.listen(3)
        code, report = examine(name)
        assert (code, report["facts"]["backlog"]) == (0, 3)


def test_what_people_see(stage: Stage) -> None:
    """Problems come first; lines are plain, and where there is no terminal whole; the last line counts."""
    path = stage.path("evil\x1b[31m\nname.sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    done = udsproxy("doctor", path)
    text = done.stdout.decode()
    lines = text.splitlines()
    assert done.returncode == 1
    assert lines[0] == "problem: nobody listens: clients get ECONNREFUSED"
    assert lines[1].startswith("    why:   ")
    assert lines[-1].startswith("1 problem, ")
    assert "\x1b" not in text
    assert all(line.startswith(("    why:", "    do:", "    check:")) or not line.startswith(" ") for line in lines)


def test_a_title_is_only_a_claim(stage: Stage) -> None:
    """A process that calls itself nginx, and has a configuration that is none, is no reason to fail."""
    path = stage.path("x.sock")
    conf = stage.write("http { upstream a { server unix:%s; } } \0 { \x1b[31m 'x" % path, "conf\x1b[31m")  # noqa: UP031
    claims = [f"nginx: master process nginx -c {conf}", "nginx: master process nginx -c /dev/zero"]
    with socket.socket(socket.AF_UNIX) as sock, ExitStack() as stack:
        sock.bind(path)
        sock.listen()
        for claim in claims:
            stack.enter_context(subprocess.Popen([claim], executable="/bin/cat", stdin=subprocess.PIPE))
        done = udsproxy("doctor", path)
        assert done.returncode == 0, done
        assert b"\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--client", "no such user"], 2, "--client no such user: this machine has no such user"),
        (["--rate", "0"], 2, "--rate"),
        (["--rate", "nan"], 2, "--rate"),
        (["--time", "0"], 2, "--time"),
        (["--time", "soon"], 2, "--time"),
        (["--rate", "1e9", "--time", "1h"], 2, "workers busy at once"),
        (["--rate", "1e300", "--stall", "1h"], 2, "--stall"),
        (["--log", "/nonexistent"], 1, "--log /nonexistent: No such file or directory"),
        (["--log", "/"], 1, "--log /: "),
        (["--log", "/dev/null"], 1, "there is no request in it"),
    ],
)
def test_bad_options(options: list[str], code: int, says: str) -> None:
    """One line says what is wrong."""
    done = udsproxy("doctor", "/x", *options)
    assert udsproxy("doctor", "").returncode == 2
    line = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b"")
    assert says in line
    assert line.count("\n") == 1
