"""What ``udsproxy explain`` says reproduces an error does reproduce it, for a client that speaks any protocol.

What it says of nginx's lines without an errno is in test_faults.py.
"""

from __future__ import annotations

import glob
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.site import start_nginx, start_php_fpm
from tests.e2e.test_tap import OTHER_UID, ROOT
from tests.e2e.tools import LIMIT_S, EchoServer, read, udsproxy, until
from tests.stage import REPOSITORY, Stage
from udsproxy.explain.errors import TABLE, Call, number_of

Act = Callable[[socket.socket, str], None]


def connect(client: socket.socket, path: str) -> None:
    client.setblocking(False)
    client.connect(path)


def connect_as_other(client: socket.socket, path: str) -> None:
    if not ROOT:
        connect(client, path)
        return
    os.seteuid(OTHER_UID)
    try:
        connect(client, path)
    finally:
        os.seteuid(0)


def limited(client: socket.socket, option: int, limit_s: float) -> None:
    """send() or recv() wait no longer, and fail with EAGAIN then."""
    whole_s = int(limit_s)
    client.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole_s, int((limit_s - whole_s) * 1e6)))


def send(client: socket.socket, path: str) -> None:
    limited(client, socket.SO_SNDTIMEO, LIMIT_S)
    client.connect(path)
    while True:
        client.send(bytes(65536))


def send_for_a_moment(client: socket.socket, path: str) -> None:
    limited(client, socket.SO_SNDTIMEO, 0.2)
    client.connect(path)
    while True:
        client.send(bytes(65536))


def receive(client: socket.socket, path: str) -> None:
    limited(client, socket.SO_RCVTIMEO, LIMIT_S)
    client.connect(path)
    client.sendall(b"hello")
    client.recv(1)


def receive_for_a_moment(client: socket.socket, path: str) -> None:
    limited(client, socket.SO_RCVTIMEO, 0.2)
    client.connect(path)
    client.sendall(b"hello")
    client.recv(1)


ACTS: dict[tuple[Call, str], Act] = {
    ("connect", "EAGAIN"): connect,
    ("connect", "ENOENT"): connect,
    ("connect", "ECONNREFUSED"): connect,
    ("connect", "EACCES"): connect_as_other,
    ("send", "EPIPE"): send,
    ("send", "EAGAIN"): send_for_a_moment,
    ("recv", "ECONNRESET"): receive,
    ("recv", "EAGAIN"): receive_for_a_moment,
}
FAULTS = {(meaning.call, meaning.errno): meaning.fault for meaning in TABLE if meaning.fault is not None}


def test_all_are_tried() -> None:
    """Each fault of the table has a client here."""
    assert ACTS.keys() == FAULTS.keys()


@pytest.mark.parametrize(("call", "name"), ACTS)
def test_the_fault_reproduces_it(stage: Stage, start_proxy: StartProxy, call: Call, name: str) -> None:
    """A client gets the errno from the call, through a proxy with the fault."""
    fault = FAULTS[call, name]
    with EchoServer(stage.path("s")):
        os.chmod(stage.directory, 0o755)
        os.chmod(stage.path("s"), 0o666)
        proxy = start_proxy(stage.path("p"), stage.path("s"), "--fault", fault)
        proxy.wait_for("fault")
        with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError, match=os.strerror(number_of(name))):
            ACTS[call, name](client, proxy.socket)


def test_what_is_said_to_be_pasted(stage: Stage) -> None:
    """The line that a terminal shows makes the error for its own client and for others, whatever path was asked
    about; Ctrl-C ends all of it, and nothing is left behind."""
    line = "connect() to unix:/run/php/live.sock failed (11: Resource temporarily unavailable)"
    said = udsproxy("explain", line).stdout.decode()
    (command,) = re.findall(r"^    (D=.*--fault.*)$", said, re.MULTILINE)
    assert "live.sock" not in command
    program = stage.write(f'#!/bin/sh\nexec {sys.executable} -m udsproxy "$@"\n', "bin", "udsproxy")
    os.chmod(program, 0o755)
    environment = {
        **os.environ,
        "PATH": f"{os.path.dirname(program)}:{os.environ['PATH']}",
        "TMPDIR": stage.path("tmp", "").rstrip("/"),
        "XDG_RUNTIME_DIR": stage.directory,
    }
    with open(stage.path("said"), "wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command], stdout=output, stderr=output, cwd=REPOSITORY, env=environment,
            start_new_session=True,
        )  # fmt: skip
    try:
        (path,) = until(lambda: glob.glob(stage.path("tmp", "*", "p")), "the proxy's socket")

        def is_met() -> bool:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
                return client.connect_ex(path) == number_of("EAGAIN")

        until(is_met, "the error")
        until(lambda: f"{path}: connect: " in read(stage.path("said")), "the client's line")
        os.killpg(process.pid, signal.SIGINT)
        process.wait(LIMIT_S)
        assert not os.path.exists(os.path.dirname(path))
    finally:
        process.kill()
        process.wait()


def test_the_logs_of_nginx_and_php_fpm(stage: Stage) -> None:
    """What the real programs log is summed up, in order of time: a request that ran into its limit, and then a
    server that is not there. (Within a second, which is all that they tell, the log that is named first is first.)
    """
    upstream = stage.path("php.sock")
    php_fpm = start_php_fpm(stage, upstream, "request_terminate_timeout = 1s", workers=1)
    front = start_nginx(stage, {"direct": upstream})["direct"]
    assert front.fetch("/compute.php?until=/nothing").status == 502
    php_fpm.terminate()
    php_fpm.wait(LIMIT_S)
    assert front.fetch("/hello.php").status == 502
    done = udsproxy("explain", stage.path("php", "log"), front.error_log)
    assert done.returncode == 0
    said = done.stdout.decode()
    newest = said.partition("The newest, in order of time:\n")[2].partition("\n\n")[0]
    at = [newest.index(part) for part in ("php-fpm: execution timed out", "/compute.php", "connect(): ENOENT")]
    assert at == sorted(at), newest
    assert re.search(rf"^ +1  .*connect\(\): ENOENT, {re.escape(upstream)}$", said, re.MULTILINE)
    assert "1 x connect(): ENOENT (2, No such file or directory)" in said
    assert "1 x execution timed out, terminating" in said


def test_the_errors_of_scripts(stage: Stage) -> None:
    """Each is counted once, though nginx writes several lines of it and php-fpm as many, and stands there with its
    request and its text."""
    upstream = stage.path("php.sock")
    start_php_fpm(stage, upstream, "catch_workers_output = yes")
    front = start_nginx(stage, {"direct": upstream})["direct"]
    for path in ("/fatal.php", "/fatal.php", "/errorlog.php"):
        front.fetch(path)
    log = stage.path("php", "log")
    until(lambda: "line, " in read(log), "php-fpm's lines")
    said = udsproxy("explain", log, front.error_log).stdout.decode()
    text = f"PHP Fatal error: Uncaught RuntimeException: out of luck in {stage.path('www', 'fatal.php')}:2"
    table = [line.strip() for line in said.partition("\n\n")[0].splitlines()]
    assert re.fullmatch(rf"3  \S+  \S+  FastCGI sent in stderr, {re.escape(upstream)}", table[1])
    assert table[2:] == [
        "/fatal.php (2), /errorlog.php (1)",
        f'"{text}" (2)',
        r'"red \x1b[31m, bell \x07, line" (1)',
    ]
