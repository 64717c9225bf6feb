"""What follows from which facts."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor.about_load import Load
from udsproxy.doctor.facts import (
    Entry,
    ErrorLog,
    Facts,
    Logged,
    Nginx,
    Pass,
    Peer,
    Pool,
    Process,
    Refused,
    Upstream,
    User,
)
from udsproxy.doctor.findings import examine
from udsproxy.doctor.seen import Traffic
from udsproxy.inspection.forwarding import Hop
from udsproxy.inspection.stops import Stop
from udsproxy.inspection.systemd import SocketUnit
from udsproxy.inspection.taps import Case as TapCase
from udsproxy.inspection.taps import Holder, Tapped
from udsproxy.kernel.process_table import Descriptors

PATH = "/run/php/x.sock"
WWW = User("www-data", 33, (33,), "nginx's worker, pid 7", "www-data", pid=7)
SETTINGS = {
    "listen": PATH, "listen.backlog": "511", "pm": "static", "pm.max_children": "4", "pm.max_requests": "1000",
    "request_terminate_timeout": "30s",
}  # fmt: skip
WORKERS = tuple(Process(pid, "php-fpm8.2", Descriptors(1024, 4096, 10), busy=False) for pid in range(11, 15))
MASTER = Process(10, "php-fpm8.2", Descriptors(1024, 4096, 12), master=True)
STOPPED = Stop("signal")
SERVER = Holder(10, "php-fpm8.2")
TAP = Holder(3, "udsproxy")
STOPPED_TAP = Holder(3, "udsproxy", STOPPED)
DIRECTORY = Entry("/run", 0, 0, 0o755, (), "root:root")


def file(owner: int = 33, group: int = 33, mode: int = 0o660) -> tuple[Entry, ...]:
    return DIRECTORY, Entry(PATH, owner, group, mode, (), f"{owner}:{group}")


def pool(**settings: str) -> Pool:
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return Pool(name="www", file="/etc/www.conf", settings={**SETTINGS, **changed}, owner=33, group=33)


def dynamic(most: int, least: int, kept: int) -> Pool:
    return pool(
        pm="dynamic",
        pm__max_children=str(most),
        pm__min_spare_servers=str(least),
        pm__max_spare_servers=str(kept),
    )


def nginx(*peers: Peer, keepalive: int = 0, keep_conn: bool = False, next_upstream: str = "error") -> Nginx:
    upstreams = (Upstream("php", "/etc/nginx.conf:1", peers, keepalive),) if peers else ()
    to = "php" if peers else None
    passes = (Pass("fastcgi_pass", "/etc/nginx.conf:9", 60.0, (next_upstream,), keep_conn, to),)
    workers = (Process(7, "nginx", Descriptors(1024, 4096, 20)),)
    return Nginx(
        pid=6, conf="/etc/nginx.conf", user="www-data", workers=workers, upstreams=upstreams, passes=passes
    )


def logged(kind: str, since_start: int | None, level: str = "error", zone: str = "+0100") -> dict[str, object]:
    """Facts with an error log that has ten lines of that kind."""
    words = f"connect() to unix:{PATH} failed (11: Resource temporarily unavailable)"
    lines = (Logged(kind, words, 10, "2026-11-29 03:12:44", since_start),) if kind else ()
    log = ErrorLog("/var/log/nginx/error.log", "2026-11-28 00:00:01", zone, level=level, logged=lines)
    return {"nginx": (msgspec.structs.replace(nginx(), logs=(log,)),)}


def acl(mask: int, uid: int = 33) -> tuple[Entry, ...]:
    """The socket's file with an ACL for a user."""
    entries = ((1, 6, 0), (2, 6, uid), (4, 6, 0), (0x10, mask, 0), (0x20, 0, 0))
    return DIRECTORY, Entry(PATH, 0, 0, 0o600 | mask << 3, entries, "root:root")


VARIABLE = Pass("fastcgi_pass", "/etc/nginx.conf:9", variable="unix:/run/php/$pool.sock", is_sure=False)

GOOD = Facts(
    path=PATH,
    type="stream",
    state="listening",
    queue=0,
    backlog=511,
    somaxconn=4096,
    entries=file(),
    servers=(MASTER, *WORKERS),
    php_fpm=10,
    pool=pool(),
    nginx=(nginx(),),
    clients=(WWW,),
)
LOAD = Load(rate=10.0, time_s=0.05)


def test_nothing_is_wrong_where_nothing_is() -> None:
    """A sound pool is fine in every respect."""
    assert {each.level for each in examine(GOOD, LOAD)} - {"fine"} <= {"note"}
    assert [each.title for each in examine(GOOD, LOAD) if each.level == "note"] == [
        "pm.max_requests = 1000: each worker ends after that many, and is forked anew"
    ]


def halted(process: Process, stop: Stop = STOPPED) -> Process:
    return msgspec.structs.replace(process, stopped=stop)


def tapped(case: TapCase, tap: Holder | None = None, server: Holder | None = SERVER) -> dict[str, object]:
    seen = Tapped(path=PATH, aside=f"{PATH}.udsproxy", case=case, tap=tap, server=server)
    return {"tap": seen, "tapped": seen.aside if seen.server_is_aside else None}


@dataclass(frozen=True)
class Case:
    """A change to what is sound, and what comes of it."""

    level: str
    title: str
    changes: dict[str, object]
    load: Load = field(default=LOAD)


RUN: dict[str, object] = {"hops": (Hop(kind="run", path=PATH, to="/run/b.sock", process=TAP),)}
"""A ``udsproxy run`` listens at the path."""
HERE, THERE = Peer(f"unix:{PATH}", True), Peer("unix:/run/php/y.sock", False)
GONE: dict[str, object] = {"failure": "ENOENT", "state": None, "entries": (), "servers": ()}
FULL = tuple(msgspec.structs.replace(each, busy=True) for each in WORKERS)
NEARLY = (Process(10, "server", Descriptors(100, 200, 85)), Process(11, "server", Descriptors(100, 200, 99)))
TRAFFIC = Traffic(requests=9, span_s=9, mean_rate=1, busiest_rate=5, mean_s=0.1, p99_s=0.3, times_full=2)

UNIT = SocketUnit(
    name="x.socket", file="/etc/x.socket", service="x.service", backlog=511, backlog_file="/etc/x.socket"
)
BY_SYSTEMD: dict[str, object] = {
    "systemd": 1,
    "unit": UNIT,
    "pool": None,
    "php_fpm": None,
    "servers": (Process(1, "systemd", master=True),),
}


def unit(backlog: int | None) -> dict[str, object]:
    return BY_SYSTEMD | {"unit": msgspec.structs.replace(UNIT, backlog=backlog)}


CASES = [
    Case(
        "problem",
        "4 of 4 workers hold idle connections of nginx, pid 7, nginx, pid 8",
        {"servers": (MASTER, *FULL), "idle": ("nginx, pid 7",) * 3 + ("nginx, pid 8",), "queue": 2},
    ),
    Case(
        "problem",
        "www-data (nginx's worker, pid 7) has a stale bind mount at this path: it gets ECONNREFUSED",
        {"clients": (msgspec.structs.replace(WWW, sees=False, stale_mount=True),)},
    ),
    Case("note", "systemd, pid 1, holds this socket: x.socket, Backlog=511", BY_SYSTEMD),
    Case("note", "systemd, pid 1, holds this socket", BY_SYSTEMD | {"unit": None}),
    Case("note", "no worker runs yet: systemd starts x.service when somebody connects", BY_SYSTEMD),
    Case("warning", "3 wait in the queue, and x.service does not run", BY_SYSTEMD | {"queue": 3}),
    Case("problem", "Backlog=9000 is cut to 4096", unit(9000) | {"backlog": 4096}),
    Case("problem", "Backlog=600 is not in force: the kernel has 511", unit(600)),
    Case("warning", "Backlog=5 is not in force: the kernel has 511", unit(5)),
    Case(
        "note",
        "udsproxy run, pid 3, forwards to /run/b.sock",
        {"hops": (Hop(kind="run", path=PATH, to="/run/b.sock", process=TAP),), "behind": "/run/b.sock"},
    ),
    Case(
        "problem",
        "udsproxy run, pid 3, is stopped (SIGSTOP or Ctrl-Z): clients wait",
        {"hops": (Hop(kind="run", path=PATH, to="/run/b.sock", process=STOPPED_TAP),)},
    ),
    Case(
        "problem",
        "no such path at /run/b.sock, behind udsproxy: clients get ENOENT",
        {"behind": "/run/b.sock", "failure": "ENOENT", "state": None},
    ),
    Case("warning", "the socket cannot be looked at", {"state": None, "type": None, "entries": ()}),
    Case("problem", "no such path: clients get ENOENT", {"failure": "ENOENT", "state": None, "entries": ()}),
    Case("problem", "the path is too long", {"failure": "ENAMETOOLONG", "state": None, "entries": ()}),
    Case("problem", "nobody listens: clients get ECONNREFUSED", {"failure": "ECONNREFUSED", "state": "stale"}),
    Case("problem", "nobody listens: clients get ECONNREFUSED", {"failure": "ECONNREFUSED", "state": "shut"}),
    Case(
        "problem",
        "it is a directory, no socket: clients get ECONNREFUSED",
        {"failure": "ECONNREFUSED", "state": None, "kind": "a directory"},
    ),
    Case("problem", "it cannot be reached: clients get EIO", {"failure": "EIO", "state": None}),
    Case("note", "tapped by udsproxy, pid 3, in front of php-fpm8.2, pid 10", tapped("standing", TAP)),
    Case("note", "tapped by udsproxy, in front of its server", tapped("standing", None, None)),
    Case(
        "problem",
        "tapped by udsproxy, pid 3, in front of php-fpm8.2, pid 10; it is stopped: clients wait",
        tapped("standing", STOPPED_TAP),
    ),
    Case(
        "warning",
        "udsproxy (tap), pid 3, is stopped: its guardian has given the path back to php-fpm8.2, pid 10",
        tapped("given back", STOPPED_TAP),
    ),
    Case(
        "problem",
        "a tap was killed, and its guardian too: clients get ECONNREFUSED",
        tapped("killed") | {"failure": "ECONNREFUSED"},
    ),
    Case(
        "problem",
        "nothing is at this path, which a tap has had: clients get ENOENT",
        tapped("moved") | {"failure": "ENOENT", "entries": ()},
    ),
    Case("warning", f"{PATH}.udsproxy is left from a tap that was killed", tapped("left")),
    Case("warning", f"php-fpm8.2, pid 10, listens at {PATH}.udsproxy", tapped("beside")),
    Case(
        "problem",
        "all 4 workers (php-fpm8.2) are stopped (SIGSTOP or Ctrl-Z): clients wait",
        {"servers": (MASTER, *map(halted, WORKERS))},
    ),
    Case(
        "warning",
        "2 of 4 workers (php-fpm8.2) are stopped (SIGSTOP or Ctrl-Z): their clients wait",
        {"servers": (MASTER, *map(halted, WORKERS[:2]), *WORKERS[2:])},
    ),
    Case(
        "warning",
        "php-fpm8.2, pid 11, is stopped (by gdb, pid 9): its clients wait",
        {"servers": (MASTER, halted(WORKERS[0], Stop("tracer", "gdb, pid 9")), *WORKERS[1:])},
    ),
    Case(
        "problem",
        "php-fpm8.2, pid 11, is stopped (its control group is frozen): clients wait",
        {"servers": (halted(WORKERS[0], Stop("freezer")),)},
    ),
    Case(
        "warning",
        "php-fpm8.2, pid 10, is stopped (SIGSTOP or Ctrl-Z): it starts no workers",
        {"servers": (halted(MASTER), *WORKERS)},
    ),
    Case(
        "problem",
        "nginx, pid 7, is stopped (SIGSTOP or Ctrl-Z): it asks nobody",
        {"nginx": (msgspec.structs.replace(nginx(), workers=(halted(Process(7, "nginx")),)),)},
    ),
    Case("note", "it receives datagrams", {"type": "datagram", "state": "bound"}),
    Case("problem", "the queue is full now: 512 of 512", {"queue": 512}),
    Case("note", "3 of 512 wait in the queue now", {"queue": 3}),
    Case("warning", "3 of 512 wait in the queue now", {"queue": 3, "servers": FULL}),
    Case("note", "2 of those in the queue have left", {"queue": 3, "gone": 2}),
    Case(
        "problem", "listen.backlog = 9000 is cut to 4096", {"backlog": 4096, "pool": pool(listen__backlog="9000")}
    ),
    Case("problem", "listen.backlog = 511 is not in force: the kernel has 128", {"backlog": 128}),
    Case("warning", "listen.backlog = 511 is not in force: the kernel has 700", {"backlog": 700}),
    Case("warning", "the backlog is 128, and could be 4096", {"backlog": 128, "pool": pool(listen__backlog="-1")}),
    Case(
        "note", "the backlog is 4096, which is net.core.somaxconn", {"backlog": 4096, "pool": None, "php_fpm": None}
    ),
    Case("warning", "room for 3 in the queue, and 4 workers", {"backlog": 2, "pool": pool(listen__backlog="2")}),
    Case("problem", "server (pid 11) has 99 of 100 descriptors open", {"servers": NEARLY}),
    Case("warning", "server (pid 10) has 85 of 100 descriptors open", {"servers": NEARLY[:1]}),
    Case("problem", "www-data (nginx's worker, pid 7) cannot connect: EACCES", {"entries": file(0, 0)}),
    Case(
        "problem",
        "www-data (nginx's worker, pid 7) cannot connect: EACCES",
        {"entries": (Entry("/run/php", 0, 0, 0o700), file()[1])},
    ),
    Case(
        "problem",
        "www-data (nginx's worker, pid 7) sees another",
        {"clients": (msgspec.structs.replace(WWW, sees=False),)},
    ),
    Case(
        "problem",
        "www-data (nginx's worker, pid 7) cannot connect: EACCES",
        {"clients": (msgspec.structs.replace(WWW, sees=True, pid=7, way=file(0, 0)),)},
    ),
    Case(
        "fine",
        "www-data (nginx's worker, pid 7) may connect",
        {"clients": (msgspec.structs.replace(WWW, sees=True, pid=7, way=file()),), "entries": file(0, 0)},
    ),
    Case("note", "who connects is not known", {"clients": ()}),
    Case("note", "every user of this machine may connect", {"entries": file(mode=0o666)}),
    Case(
        "warning",
        "the file is 33:33, mode 660; the pool has listen.mode = 0600",
        {"pool": pool(listen__mode="0600")},
    ),
    Case("problem", "all 4 workers of pool www are busy now", {"servers": FULL}),
    Case("warning", "pm = static, pm.max_children = 4, and 2 workers", {"servers": WORKERS[:2]}),
    Case("problem", "process.max = 2 is less", {"pool": msgspec.structs.replace(pool(), process_max=2)}),
    Case(
        "warning",
        "process.max = 128, and the 10 pools may have 500 workers together",
        {"pool": msgspec.structs.replace(pool(), process_max=128, pools=10, all_children=500)},
    ),
    Case(
        "note",
        "listen.backlog = 2 is raised to 511: pm = ondemand",
        {"pool": pool(pm="ondemand", listen__backlog="2")},
    ),
    Case(
        "note",
        "listen.backlog = -1 is raised to 511: pm = ondemand",
        {"pool": pool(pm="ondemand", listen__backlog="-1")},
    ),
    Case(
        "warning",
        "listen.backlog = 2 is not in force: the kernel has 511",
        {"pool": pool(pm="static", listen__backlog="2")},
    ),
    Case("warning", "room for 3 in the queue", {"backlog": 2, "pool": pool(pm="ondemand", listen__backlog="2")}),
    Case("problem", "nginx logged error 11 for this socket 7 times since", logged("connect 11", 7)),
    Case(
        "note",
        "nginx logged error 11 for this socket 10 times, last at 2026-11-29 03:12:44 +0100, before the server was",
        logged("connect 11", 0),
    ),
    Case(
        "problem",
        "nginx logged error 11 for this socket 10 times, last at 2026-11-29 03:12:44",
        logged("connect 11", None, zone=""),
    ),
    Case(
        "note",
        "nginx logged error 11 for this socket 10 times, last at 2026-11-29 03:12:44 +0100, while there was a",
        logged("connect 11", None) | GONE,
    ),
    Case("warning", "nginx logged error 2 for this socket 10 times, last at", logged("connect 2", None) | GONE),
    Case("warning", "nginx logged error 2 for this socket 1 time since the server was", logged("connect 2", 1)),
    Case(
        "warning",
        "nginx logged error 2 for this socket 1 time since udsproxy run was",
        logged("connect 2", 1) | RUN,
    ),
    Case(
        "note",
        "nginx logged error 2 for this socket 10 times, last at 2026-11-29 03:12:44 +0100, before udsproxy run was",
        logged("connect 2", 0) | RUN,
    ),
    Case("warning", "nginx logged error 104 for this socket 3 times", logged("recv 104", 3)),
    Case("problem", "nginx logged `connect() to", logged("no live upstreams", 3)),
    Case("warning", "nginx logged error 99 for this socket", logged("sendmsg 99", 3)),
    Case("fine", "nginx's error log has no failure of this socket since 2026-11-28 00:00:01 +0100", logged("", 0)),
    Case("note", "error_log /var/log/nginx/error.log crit: error 11 is not in it", logged("", 0, "crit")),
    Case(
        "problem",
        "nginx cannot be started anew: /etc/nginx/sites-enabled/x is a link to /y, which is not there",
        {"refused": (Refused("nginx", "/etc/nginx/sites-enabled/x", "/n:1", "a link to /y, which is not there"),)},
    ),
    Case(
        "warning",
        "upstream php (/etc/nginx.conf:1): unix:/run/php/y.sock cannot be reached: no such file",
        {"nginx": (nginx(HERE, msgspec.structs.replace(THERE, missing="no such file")),)},
    ),
    Case(
        "problem",
        "upstream php (/etc/nginx.conf:1): unix:/run/php/y.sock cannot be reached: no such file",
        {"nginx": (nginx(HERE, msgspec.structs.replace(THERE, missing="no such file", max_fails=0)),)},
    ),
    Case(
        "note",
        "fastcgi_pass unix:/run/php/$pool.sock at /etc/nginx.conf:9 may lead to this socket",
        {"nginx": (msgspec.structs.replace(nginx(), passes=(VARIABLE,)),)},
    ),
    Case("problem", "www-data (nginx's worker, pid 7) cannot connect: EACCES", {"entries": acl(4)}),
    Case("fine", "www-data (nginx's worker, pid 7) may connect", {"entries": acl(6)}),
    Case(
        "note",
        "listen.owner: ignored, for listen.acl_users = deploy",
        {"pool": pool(listen__acl_users="deploy", listen__owner="www-data")},
    ),
    Case("note", "pm = ondemand: workers", {"pool": pool(pm="ondemand")}),
    Case("note", "pm = dynamic: a burst finds about 1 idle worker, of 4", {"pool": pool(pm="dynamic")}),
    Case("warning", "pm = dynamic", {"pool": pool(pm="dynamic", pm__max_children="50")}),
    Case("note", "pm = dynamic: a burst finds about 4 idle workers, of 9", {"pool": dynamic(9, 1, 6)}),
    Case("note", "pm = dynamic: a burst finds about 4 idle workers, of 20", {"pool": dynamic(20, 1, 6)}),
    Case("warning", "pm = dynamic: a burst finds about 3 idle workers, of 20", {"pool": dynamic(20, 1, 3)}),
    Case("note", "pm = dynamic: a burst finds about 3 idle workers, of 4", {"pool": dynamic(4, 1, 3)}),
    Case(
        "note",
        "pm = dynamic: a burst finds about 2 idle workers, of 9",
        {"pool": dynamic(9, 2, 6), "servers": FULL},
    ),
    Case(
        "note", "pm = dynamic: a burst finds about 2 idle workers, of 4", {"pool": dynamic(4, 2, 4), "servers": ()}
    ),
    Case(
        "note",
        "pm = dynamic: a burst finds about 3 idle workers, of 4",
        {"pool": dynamic(4, 1, 4), "servers": WORKERS[:3]},
    ),
    Case(
        "fine",
        "pm = dynamic: all 4 workers are there, and stay (pm.max_spare_servers = 4)",
        {"pool": dynamic(4, 1, 4)},
    ),
    Case("note", "pm.max_requests = 0", {"pool": pool(pm__max_requests="0")}),
    Case("warning", "pm.max_requests = 50", {"pool": pool(pm__max_requests="50")}),
    Case(
        "warning",
        "request_terminate_timeout = 0: a stuck request holds its worker for ever",
        {"pool": pool(request_terminate_timeout="0")},
    ),
    Case("warning", "request_terminate_timeout = 5m", {"pool": pool(request_terminate_timeout="5m")}),
    Case("fine", "upstream php (/etc/nginx.conf:1) has one server", {"nginx": (nginx(HERE),)}),
    Case("problem", "upstream php (/etc/nginx.conf:1): a full queue puts", {"nginx": (nginx(HERE, THERE),)}),
    Case(
        "warning",
        "upstream php (/etc/nginx.conf:1): a full queue puts",
        {"nginx": (nginx(HERE, Peer("a:9", False)),)},
    ),
    Case(
        "fine",
        "upstream php (/etc/nginx.conf:1): max_fails=0",
        {"nginx": (nginx(msgspec.structs.replace(HERE, max_fails=0), THERE),)},
    ),
    Case("note", "fastcgi_pass at /etc/nginx.conf:9: next", {"nginx": (nginx(HERE, THERE, next_upstream="off"),)}),
    Case(
        "problem",
        "nginx keeps up to 8 connections open, and there are 4 workers",
        {"nginx": (nginx(HERE, keepalive=8, keep_conn=True),)},
    ),
    Case("warning", "nginx keeps up to 2", {"nginx": (nginx(HERE, keepalive=2, keep_conn=True),)}),
    Case("note", "nginx runs as www-data; its", {"nginx": (msgspec.structs.replace(nginx(), user="nobody"),)}),
    Case("warning", "nginx: worker_conn", {"nginx": (msgspec.structs.replace(nginx(), worker_connections=9999),)}),
    Case("note", "not known: how many requests/s, how long each", {}, Load()),
    Case("note", "4 workers at 50 ms each serve 80 requests/s", {}, Load(time_s=0.05)),
    Case("problem", "100 requests/s of 50 ms each", {}, Load(rate=100, time_s=0.05)),
    Case("warning", "40 requests/s of 50 ms each", {}, Load(rate=40, time_s=0.05)),
    Case("fine", "a stall of 1 s at 10 requests/s needs a backlog of 7; it is 511", {}),
    Case(
        "warning",
        "a stall of 60 s at 10 requests/s needs a backlog of 597",
        {},
        Load(rate=10, time_s=0.05, stall_s=60),
    ),
    Case(
        "note",
        "too few requests to say how many workers are needed: 9 in 9 s (x.json)",
        {},
        Load(source="x.json", traffic=TRAFFIC),
    ),
    Case(
        "problem", "the queue was seen full 2 times", {}, Load(rate=5, time_s=0.1, source="x.json", traffic=TRAFFIC)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_each_finding(case: Case) -> None:
    """One thing is changed, and that is what is found."""
    found = examine(msgspec.structs.replace(GOOD, **case.changes), case.load)
    assert [each.level for each in found if each.title.startswith(case.title)] == [case.level], found


def test_a_problem_says_what_to_do_and_how_to_check_it() -> None:
    """So does a warning."""
    for case in CASES:
        for each in examine(msgspec.structs.replace(GOOD, **case.changes), case.load):
            if each.level in ("problem", "warning"):
                assert each.do, each
                assert each.check, each


def advice(facts: Facts, title: str) -> str:
    """What the finding of that title says is to be done."""
    (found,) = [each for each in examine(facts, LOAD) if each.title.startswith(title)]
    return found.do


def test_advice_names_the_place_that_counts() -> None:
    """A setting is to be changed where its last value stands; where it has none, where the pool begins."""
    places = {"listen.backlog": "/etc/z.conf:3"}
    changed = msgspec.structs.replace(pool(listen__backlog="2"), file="/etc/www.conf:1", places=places)
    facts = msgspec.structs.replace(GOOD, backlog=2, pool=changed)
    assert "/etc/z.conf:3" in advice(facts, "room for 3")
    assert "/etc/z.conf:3" in advice(msgspec.structs.replace(facts, **logged("connect 11", 1)), "nginx logged")
    del changed.settings["request_terminate_timeout"]
    assert "/etc/www.conf:1" in advice(facts, "request_terminate_timeout = 0")


def test_advice_for_an_acl() -> None:
    """The mask, where that is the cause; else the list that php-fpm makes the ACL from, and never the owner, which
    it ignores then."""
    changed = pool(listen__acl_users="deploy", listen__owner="www-data")
    facts = msgspec.structs.replace(GOOD, pool=msgspec.structs.replace(changed, owner=None, group=None))
    masked = advice(msgspec.structs.replace(facts, entries=acl(4)), "www-data (nginx's worker, pid 7) cannot")
    assert masked.startswith(f"setfacl -m m::rw {PATH}")
    other = advice(msgspec.structs.replace(facts, entries=acl(6, 1000)), "www-data (nginx's worker, pid 7) cannot")
    assert other.startswith("listen.acl_users = deploy,www-data (")


@pytest.mark.parametrize(("pm", "is_logged"), [("static", False), ("dynamic", True), ("ondemand", True)])
def test_php_fpm_s_log_where_it_tells(pm: str, is_logged: bool) -> None:
    """pm = static never logs that it has reached pm.max_children, so nobody is sent to look for it."""
    busy = examine(msgspec.structs.replace(GOOD, servers=FULL, pool=pool(pm=pm)), LOAD)
    (found,) = [each for each in busy if each.title == "all 4 workers of pool www are busy now"]
    assert ("max_children" in found.check) == is_logged


def test_numbers_are_no_more_exact_than_what_they_come_from() -> None:
    """Two figures of what is computed from an average."""
    few = msgspec.structs.replace(GOOD, backlog=2, pool=pool(pm__max_children="2"))
    texts = " ".join(each.why for each in examine(few, Load(rate=9.0, time_s=0.37)))
    assert "The 2 there are serve about 5.4 requests/s" in texts
    assert "The present backlog of 2 is enough for a stall of about 330 ms." in texts


def test_a_queue_that_was_seen_full_was_too_short() -> None:
    """That workers and queue are enough by the numbers is not said to be fine then."""
    load = msgspec.structs.replace(LOAD, traffic=TRAFFIC)
    by_numbers = [each for each in examine(GOOD, load) if "requests/s" in each.title]
    assert [each.level for each in by_numbers] == ["note", "note"]
    assert all("was full all the same" in each.why for each in by_numbers)


def test_a_tap_may_be_what_was_killed() -> None:
    """Clients get the same errors where a udsproxy in front of the server is killed: it is among the causes."""
    for kind in ("connect 111", "recv 104", "closed"):
        found = examine(msgspec.structs.replace(GOOD, **logged(kind, 3)), LOAD)
        [told] = [each for each in found if each.title.startswith("nginx logged")]
        assert "(a tap" in told.why


@pytest.mark.parametrize(
    ("kind", "since_start", "says", "blames_php_fpm"),
    [
        ("connect 2", 0, "udsproxy run was not there", False),
        ("connect 2", 3, "get the error that it gets from the socket behind it. ", True),
        ("connect 2", None, "from the socket behind it, or it was not there itself. ", True),
        ("connect 111", 0, "an earlier udsproxy run had been killed", False),
        ("connect 11", 3, "from the socket behind it. The queue was full", False),
        ("connect 11", None, "from the socket behind it. The queue was full", False),
        ("closed", 3, "before a whole answer had come", False),
    ],
)
def test_errors_at_the_path_of_a_run(
    kind: str, since_start: int | None, says: str, *, blames_php_fpm: bool
) -> None:
    """Before it was started, it was not there: php-fpm is not to blame. From then on, clients get from it what it
    gets from the server."""
    found = examine(msgspec.structs.replace(GOOD, **logged(kind, since_start), **RUN), LOAD)
    [told] = [each for each in found if each.title.startswith("nginx logged")]
    assert says in told.why
    assert ("php-fpm" in told.why) == blames_php_fpm


def test_what_fails_now_comes_first() -> None:
    """Of several problems: what clients get at this moment, then what was logged, then what a burst would bring."""
    changes = logged("connect 11", 15) | {
        "backlog": 4096,
        "pool": pool(listen__backlog="9000"),
        "entries": file(0, 0),
    }
    found = examine(msgspec.structs.replace(GOOD, **changes), LOAD)
    problems = [each for each in found if each.level == "problem"]
    assert [each.when for each in problems] == ["now", "before", "later"]
    assert "cannot connect: EACCES" in problems[0].title
    assert "logged error 11" in problems[1].title
    assert "is cut to" in problems[2].title


def test_nothing_is_fine_about_a_queue_that_was_full() -> None:
    """Where nginx was refused since the server was started, no room in the queue is praised."""
    for since_start, is_fine in ((3, False), (None, False), (0, True)):
        found = examine(msgspec.structs.replace(GOOD, **logged("connect 11", since_start)), LOAD)
        assert any(each.title.startswith("room for") for each in found) == is_fine


def test_the_worst_comes_first() -> None:
    """Problems, warnings, notes, and what is fine."""
    facts = msgspec.structs.replace(GOOD, queue=512, clients=(), nginx=(nginx(HERE, Peer("a:9", False)),))
    levels = [each.level for each in examine(facts, LOAD)]
    assert levels == sorted(levels, key=("problem", "warning", "note", "fine").index)
    assert set(levels) == {"problem", "warning", "note", "fine"}


OPTIONAL = st.none() | st.integers(0, 5000)


@given(
    st.builds(
        Facts,
        path=st.just(PATH),
        failure=st.none() | st.sampled_from(["ENOENT", "ECONNREFUSED", "EACCES"]),
        type=st.none() | st.sampled_from(["stream", "datagram"]),
        state=st.none() | st.sampled_from(["listening", "bound", "shut", "stale", "no file"]),
        queue=OPTIONAL,
        backlog=OPTIONAL,
        gone=OPTIONAL,
        somaxconn=OPTIONAL,
        entries=st.sampled_from([(), file(), file(0, 0)]),
        servers=st.sampled_from([(), WORKERS, FULL, WORKERS[:1], (Process(1, "x", busy=None),)]),
        php_fpm=st.none() | st.just(10),
        pool=st.none()
        | st.builds(
            Pool,
            name=st.text(max_size=3),
            file=st.text(max_size=3),
            settings=st.dictionaries(
                st.sampled_from([*SETTINGS, "listen.mode"]), st.text(max_size=5) | st.just("7")
            ),
            process_max=st.integers(0, 9),
        ),
        nginx=st.sampled_from(
            [
                (),
                (nginx(),),
                (nginx(HERE, THERE, keepalive=3, keep_conn=True),),
                logged("connect 11", 3)["nginx"],
                logged("", 3)["nginx"],
            ]
        ),
        clients=st.sampled_from([(), (WWW,)]),
    ),
    st.builds(
        Load,
        rate=st.none() | st.floats(1e-9, 1e6),
        time_s=st.none() | st.floats(1e-7, 1e-3),
        stall_s=st.floats(0, 1e9),
        traffic=st.none() | st.just(TRAFFIC),
    ),
)
def test_any_facts(facts: Facts, load: Load) -> None:
    """Whatever is known and is not, something follows, and nothing raises."""
    found = examine(facts, load)
    assert all(each.title for each in found)


def test_a_unit_that_is_not_started() -> None:
    """Where nothing is at the path, and a unit of systemd's has it, starting that is what is advised."""
    found = examine(msgspec.structs.replace(GOOD, failure="ENOENT", state=None, entries=(), unit=UNIT), LOAD)
    [missing] = [each for each in found if each.title.startswith("no such path")]
    assert missing.do == "systemctl start x.socket: its ListenStream= (/etc/x.socket) is this path."


def test_rights_where_systemd_makes_the_file() -> None:
    """They are the unit's to give, not the pool's."""
    found = examine(msgspec.structs.replace(GOOD, **BY_SYSTEMD, entries=file(0, 0)), LOAD)
    [denied] = [each for each in found if "cannot connect" in each.title]
    assert denied.do.startswith("SocketGroup=www-data and SocketMode=0660 in x.socket")


def test_a_check_is_a_command() -> None:
    """A shell takes each, up to three spaces, after which it is explained."""
    found = {
        each.check.partition("   ")[0]
        for case in CASES
        for each in examine(msgspec.structs.replace(GOOD, **case.changes), case.load)
    }
    for check in sorted(found):
        done = subprocess.run(["sh", "-n", "-c", check], capture_output=True, text=True, check=False)
        assert not done.stderr, check
