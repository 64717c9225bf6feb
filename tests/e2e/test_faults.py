"""Faults on a healthy php-fpm, as nginx meets them: the line that each makes nginx log."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from contextlib import closing

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.site import Front, run_nginx, start_nginx, start_php_fpm, write_scripts
from tests.e2e.test_backlog import REFUSED, burst, causes
from tests.e2e.tools import free_port, read, udsproxy, until
from tests.stage import Stage


def messages(front: Front) -> Counter[str]:
    """What the lines of an error log say: no time, no request, no path."""
    lines = read(front.error_log).splitlines()
    return Counter(re.sub(r"^.*?\*\d+ | while .*| to unix:\S+", "", line) for line in lines)


@pytest.mark.parametrize(
    ("fault", "status", "logged"),
    [
        ("refuse", 502, "connect() failed (111: Connection refused)"),
        ("missing", 502, "connect() failed (2: No such file or directory)"),
        ("eagain", 502, f"connect() {REFUSED}"),
        ("close", 502, "upstream prematurely closed connection"),
        ("reset", 502, "recv() failed (104: Connection reset by peer)"),
        ("hold", 504, "upstream timed out (110: Connection timed out)"),
        ("stall", 504, "upstream timed out (110: Connection timed out)"),
        ("latency=5s", 504, "upstream timed out (110: Connection timed out)"),
        ("limit=10B", 502, "upstream prematurely closed connection"),
        ("limit=10B,then=reset", 502, "recv() failed (104: Connection reset by peer)"),
        ("reset if script=/hello.php", 502, "recv() failed (104: Connection reset by peer)"),
        ("fcgi-overloaded", 502, "upstream sent unexpected FastCGI record: 3"),
        ("fcgi-truncate=0B", 502, "upstream prematurely closed FastCGI stdout"),
        ("fcgi-version", 502, "upstream sent unsupported FastCGI protocol version: 2"),
        ("fcgi-type", 502, "upstream sent unexpected FastCGI record: 3"),
        ("fcgi-type=11", 502, "upstream sent invalid FastCGI record type: 11"),
        ("fcgi-header-too-big", 502, "upstream sent too big header"),
        ("fcgi-stderr='PHP message: as if'", 200, 'FastCGI sent in stderr: "PHP message: as if"'),
    ],
)
def test_what_nginx_logs(stage: Stage, start_proxy: StartProxy, fault: str, status: int, logged: str) -> None:
    """Each request gets this status and makes nginx log this, and nothing else."""
    start_php_fpm(stage, stage.path("php.sock"))
    proxy = start_proxy(stage.path("p.sock"), stage.path("php.sock"), "--fault", fault)
    front = Front(free_port(), stage.path("nginx", "access"), stage.path("nginx", "error"))
    root = write_scripts(stage)
    server = f"""
        server {{
            listen 127.0.0.1:{front.port};
            error_log {front.error_log} error;
            fastcgi_read_timeout 1s;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param SCRIPT_NAME $uri;
            fastcgi_param SCRIPT_FILENAME {root}$uri;
            location / {{ fastcgi_pass unix:{proxy.socket}; }}
        }}
    """
    run_nginx(stage, server, [front])
    assert [front.fetch("/hello.php").status for _ in range(3)] == [status] * 3
    assert messages(front) == {logged: 3}


def test_an_answer_that_is_cut_short(stage: Stage, start_proxy: StartProxy) -> None:
    """Where connections are kept, nginx counts on END_REQUEST: without it, it says that the answer is not whole."""
    start_php_fpm(stage, stage.path("php.sock"))
    proxy = start_proxy(stage.path("p.sock"), stage.path("php.sock"), "--fault", "fcgi-truncate")
    front = start_nginx(stage, {"proxied": proxy.socket})["proxied"]
    with closing(front.begin("/kept/hello.php", close=True)) as sock, contextlib.suppress(ConnectionResetError):
        while sock.recv(4096):
            pass
    until(lambda: messages(front) == {"upstream prematurely closed connection": 1}, "nginx's word on it")


def test_a_status_of_ours(stage: Stage, start_proxy: StartProxy) -> None:
    """For the request that is meant, and no other; the log says that it was the fault."""
    start_php_fpm(stage, stage.path("php.sock"))
    rule = "fcgi-status=503 if script=/slow.php method=GET on=2"
    proxy = start_proxy(stage.path("p.sock"), stage.path("php.sock"), "--fault", rule)
    front = start_nginx(stage, {"proxied": proxy.socket})["proxied"]
    pages = ["/slow.php", "/hello.php", "/slow.php", "/kept/hello.php", "/slow.php"]
    assert [front.fetch(page).status for page in pages] == [200, 200, 503, 200, 200]
    assert messages(front) == {}
    events = proxy.events("request")
    assert [(event["status"], event.get("faults")) for event in events if event["status"] != 200] == [
        (503, ["fcgi-status"])
    ]


def test_the_first_experiment(stage: Stage, start_proxy: StartProxy) -> None:
    """A php-fpm with room for all, made to be one of 2 workers and a backlog of 2: 5 of 12 are answered, and nginx
    logs EAGAIN for 7, each time."""
    start_php_fpm(stage, stage.path("php.sock"), "listen.backlog = 511", workers=20)
    proxy = start_proxy(stage.path("p.sock"), stage.path("php.sock"), "--fault", "backlog=2,workers=2")
    front = start_nginx(stage, {"proxied": proxy.socket})["proxied"]
    assert [burst(front, 12) for _ in range(5)] == [{200: 5, 502: 7}] * 5
    assert causes(front) == {f"connect() {REFUSED}": 35}
    assert {event["kind"] for event in proxy.events("fault")} == {"backlog", "workers"}
    full = [event for event in proxy.events("queue") if event["queue"] > event["backlog"]]
    assert {(event["queue"], event["backlog"], event["active"]) for event in full} == {(3, 2, 2)}
    for event in proxy.wait_for("request", count=25)[-3:]:  # (two are served at a time, and three have waited)
        assert event["accept_wait_s"] > 0.5 * (event["total_s"] - event["accept_wait_s"])
    over = proxy.wait_for("incident", phase="close")[-1]
    assert "the queue grew to 3 of 3" in over["what"]
    assert "2 of 2 workers busy" in over["what"]


def test_check_prints_what_was_understood(stage: Stage) -> None:
    """Endpoints and rules, normalised, and nothing is listened on."""
    done = udsproxy("run", "/l", "/u", "--check", "--fault", "down for=1m", "--fault", "close,reset p=.5 on=2..")
    assert done.returncode == 2
    done = udsproxy("run", "/l", "/u", "--check", "--fault", "down for=1m", "--fault", "close,close p=.5 on=2+")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().splitlines() == [
        "l: /l -> /u",
        "  fault refuse for=60s",
        "  fault close p=0.5 on=2+",
        "  fault close p=0.5 on=2+ name=close-2",
    ]


def test_a_mistake_is_one_line(stage: Stage) -> None:
    """Exit code 2, the fault as it was written, and what would do."""
    done = udsproxy("run", stage.path("l"), stage.path("u"), "--fault", "latncy=3s if x")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().count("\n") == 1
    assert "fault 'latncy=3s if x': unknown fault 'latncy'; did you mean 'latency'?" in done.stderr.decode()


def test_the_seed_is_told(stage: Stage) -> None:
    """Where there is chance and no seed was given, standard error says which one gives the same faults again."""
    absent = stage.path("directory") + "/l"
    done = udsproxy("run", absent, stage.path("u"), "--fault", "close p=0.5")
    assert re.search(r"^udsproxy: --seed \d+ gives the same faults again$", done.stderr.decode(), re.MULTILINE)
    done = udsproxy("run", absent, stage.path("u"), "--fault", "close p=0.5", "--seed", "1")
    assert done.returncode == 4
    assert b"--seed" not in done.stderr
