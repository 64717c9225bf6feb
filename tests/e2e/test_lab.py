"""The lab: ``udsproxy serve`` and ``udsproxy request``, with each other and with nginx and php-fpm; the demo."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.site import start_nginx, start_php_fpm, write_scripts
from tests.e2e.tools import (
    LIMIT_S,
    UDSPROXY,
    SocketServer,
    ask,
    cgi_params,
    connect,
    read,
    run,
    udsproxy,
    until,
)
from tests.stage import REPOSITORY, Stage
from udsproxy.protocols import fastcgi as wire

BODY = bytes(range(256)) * 1000


def serve(stage: Stage, *options: str) -> tuple[str, subprocess.Popen[bytes]]:
    """`udsproxy serve`: its socket and its process."""
    path = stage.path("serve.sock")
    process = stage.spawn("udsproxy serve", [*UDSPROXY, "serve", path, *options], stage.path("serve.out"))
    stage.await_socket(path)
    return path, process


def body_line(body: bytes) -> str:
    return f"body: {len(body)} bytes, sha256 {hashlib.sha256(body).hexdigest()}"


# --- request and serve ---


def test_one_request(stage: Stage) -> None:
    """A request carries its script, its query and its parameters; the answer comes out as it is, and a line on
    standard error says what it was."""
    path, _ = serve(stage)
    done = udsproxy("request", path, "--script", "/a.php?b=c", "--param", "HTTP_HOST=example.test", "--param", "E=")
    assert done.returncode == 0
    head, page = done.stdout.decode().split("\r\n\r\n")
    assert head == "Content-Type: text/plain; charset=utf-8"
    expected = {"SCRIPT_NAME=/a.php", "QUERY_STRING=b=c", "REQUEST_METHOD=GET", "HTTP_HOST=example.test", "E="}
    assert expected | {body_line(b"")} <= set(page.splitlines())
    assert re.fullmatch(r"status 200, REQUEST_COMPLETE, [^\n]*\n", done.stderr.decode())


@pytest.mark.parametrize("source", ["file", "standard input"])
def test_a_request_with_a_body(stage: Stage, source: str) -> None:
    """A body comes whole from a file or from standard input, and makes the request a POST unless told otherwise."""
    path, _ = serve(stage)
    with open(stage.path("body"), "wb") as file:
        file.write(BODY)
    if source == "file":
        done = udsproxy("request", path, "--body", stage.path("body"))
    else:
        done = udsproxy("request", path, "--body", "-", "--method", "PUT", stdin=BODY)
    assert done.returncode == 0
    expected = {body_line(BODY), f"CONTENT_LENGTH={len(BODY)}"}
    expected.add("REQUEST_METHOD=POST" if source == "file" else "REQUEST_METHOD=PUT")
    assert expected <= set(done.stdout.decode().splitlines())


def test_a_load(stage: Stage, start_proxy: StartProxy) -> None:
    """-n and -c send so many requests, through the proxy as well, and the summary accounts for each."""
    path, _ = serve(stage, "--workers", "2")
    proxy = start_proxy(stage.path("p.sock"), path)
    done = udsproxy("request", proxy.socket, "--script", "/load", "-n", "200", "-c", "20")
    assert done.returncode == 0, done.stderr
    assert re.match(rb"200 requests in .*\n +200  status 200\n  latency: 50% .*\n$", done.stdout)
    assert len(proxy.wait_for("request", count=200, uri="/load", status=200)) == 200


def test_what_is_no_answer(stage: Stage) -> None:
    """Where nobody listens, or somebody speaks something else, the exit code is 1 and one line says what failed."""
    absent = udsproxy("request", stage.path("absent.sock"))
    with SocketServer(stage.path("http.sock"), lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")):
        foreign = udsproxy("request", stage.path("http.sock"))
    assert (absent.returncode, foreign.returncode) == (1, 1)
    assert absent.stderr.decode() == (
        f"udsproxy: {stage.path('absent.sock')}: connect: No such file or directory (ENOENT)\n"
    )
    assert re.fullmatch(rb"udsproxy: [^\n]*http\.sock: [^\n]+\n", foreign.stderr)
    assert absent.stdout == foreign.stdout == b""


def test_values(stage: Stage, start_proxy: StartProxy) -> None:
    """GET_VALUES is answered with the values that the server knows, and with nothing for those that it does not;
    the proxy tells of both."""
    path, _ = serve(stage, "--workers", "3")
    proxy = start_proxy(stage.path("p.sock"), path, "-v")
    asked = wire.encode_pairs({b"FCGI_MAX_CONNS": b"", b"FCGI_MPXS_CONNS": b"", b"FCGI_UNHEARD_OF": b""})
    with connect(proxy.socket) as sock:
        sock.sendall(wire.encode_record(wire.GET_VALUES, 0, asked))
        reader, records = wire.RecordReader(), list[wire.Record]()
        while not records:
            records += reader.feed(sock.recv(4096))
    assert [(record.kind, record.request_id) for record in records] == [(wire.GET_VALUES_RESULT, 0)]
    found = dict(wire.PairReader().feed(records[0].content))
    assert found == {b"FCGI_MAX_CONNS": b"3", b"FCGI_MPXS_CONNS": b"0"}
    question, answer = proxy.wait_for("message", count=2)
    assert (question["kind"], question["direction"]) == ("GET_VALUES", "c2s")
    assert (answer["kind"], answer["fields"]) == (
        "GET_VALUES_RESULT",
        {"FCGI_MAX_CONNS": "3", "FCGI_MPXS_CONNS": "0"},
    )


def test_serve_ends_with_its_workers(stage: Stage) -> None:
    """A worker that is killed is replaced; at SIGTERM the server ends with exit code 0, and its workers and its
    socket's file with it."""
    path, process = serve(stage, "--workers", "1")

    def worker() -> int:
        match = re.search(rb"^worker: (\d+)$", ask(path, {}), re.MULTILINE)
        assert match is not None
        return int(match[1])

    first = worker()
    os.kill(first, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{first}"), "the end of the first worker")
    second = worker()
    assert second != first
    process.terminate()
    assert process.wait(LIMIT_S) == 0
    assert not os.path.exists(path)
    assert not os.path.exists(f"/proc/{second}")


def test_serve_under_a_web_server(stage: Stage) -> None:
    """nginx takes `udsproxy serve` for a FastCGI server, and gets right answers with and without a body."""
    path, _ = serve(stage)
    front = start_nginx(stage, {"served": path})["served"]
    page = front.fetch("/hello.php?x=1")
    assert page.status == 200
    assert {"REQUEST_URI=/hello.php?x=1", "QUERY_STRING=x=1", body_line(b"")} <= set(
        page.body.decode().splitlines()
    )
    page = front.fetch("/kept/hello.php", method="POST", body=BODY)
    assert body_line(BODY) in page.body.decode().splitlines()
    assert read(front.error_log) == ""


def test_requests_to_php_fpm(stage: Stage) -> None:
    """With --root, `udsproxy request` gets pages from php-fpm: status, output and what PHP logged."""
    start_php_fpm(stage, stage.path("php.sock"))
    request = ["request", stage.path("php.sock"), "--root", write_scripts(stage), "--script"]
    hello = udsproxy(*request, "/hello.php?id=you")
    assert hello.stdout.endswith(b"\r\n\r\nhello you\n")
    assert hello.stderr.startswith(b"status 200, REQUEST_COMPLETE")
    upload = udsproxy(*request, "/upload.php", "--body", "-", stdin=BODY)
    assert hashlib.sha256(BODY).hexdigest().encode() in upload.stdout
    missing = udsproxy(*request, "/missing.php")
    assert b"Primary script unknown" in missing.stderr
    assert b"\nstatus 404, REQUEST_COMPLETE" in missing.stderr
    assert hello.returncode == upload.returncode == missing.returncode == 0


# --- the full accept queue ---


def connect_now(path: str) -> socket.socket | None:
    """A connection, unless the accept queue is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    failed = sock.connect_ex(path)
    if failed == 0:
        return sock
    sock.close()
    assert failed == errno.EAGAIN
    return None


def hold_only_worker(path: str) -> list[socket.socket]:
    """Two clients that say nothing: one has the only worker, the other fills a queue for one."""
    first = until(lambda: connect_now(path), "room in the queue")
    # There is room again once the first was taken out.
    second = until(lambda: connect_now(path), "the worker to take the first client")
    assert first is not None
    assert second is not None
    return [first, second]


def test_a_burst_on_a_full_queue(stage: Stage) -> None:
    """With one worker that is busy, --backlog 0 and one client waiting, each client of a burst gets EAGAIN, which
    is counted, and the exit code is 1. When the worker is free again requests are answered."""
    path, _ = serve(stage, "--workers", "1", "--backlog", "0", "--delay", "50ms")
    holding = hold_only_worker(path)
    try:
        burst = udsproxy("request", path, "-n", "10", "-c", "10")
    finally:
        for sock in holding:
            sock.close()
    assert burst.returncode == 1
    assert re.search(rb"^10 requests in .*\n +10  connect: EAGAIN\n$", burst.stdout)
    until(lambda: udsproxy("request", path).returncode == 0, "an answer")


def test_a_full_queue_behind_the_proxy(stage: Stage, start_proxy: StartProxy) -> None:
    """With `--backlog N`, where the server's queue is full, clients of the proxy wait in the proxy's queue and none
    is refused; one event says EAGAIN in the kernel's words; and when there is room all are answered."""
    path, _ = serve(stage, "--workers", "1", "--backlog", "0", "--delay", "10ms")
    proxy = start_proxy(stage.path("p.sock"), path, "--backlog", "100")
    holding = hold_only_worker(path)
    try:
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(ask, proxy.socket, cgi_params(f"/{number}")) for number in range(10)]
            (event,) = proxy.wait_for("upstream_error")
            for sock in holding:
                sock.close()
            for number, each in enumerate(waiting):
                assert f"REQUEST_URI=/{number}\n".encode() in each.result()
    finally:
        for sock in holding:
            sock.close()
    assert (event["op"], event["errno"], event["message"]) == (
        "connect",
        "EAGAIN",
        "Resource temporarily unavailable",
    )
    assert len(proxy.wait_for("request", count=10, status=200)) == 10


def test_serve_is_interrupted_at_once(stage: Stage) -> None:
    """A signal that comes while the workers are being started ends it, too."""
    for _ in range(5):
        argv = [*UDSPROXY, "serve", stage.path("early.sock")]
        with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(LIMIT_S) == 0


# --- the demo ---


def test_the_demo() -> None:
    """`udsproxy demo` shows requests, then the full queue, ends with exit code 0, and leaves nothing behind. Its
    advice names both ways to look at one's own socket, in short lines, also in a pipe."""
    done = run([*UDSPROXY, "demo"])
    shown = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    for method, uri in (("GET", "/index.php?page=1"), ("POST", "/form.php"), ("HEAD", "/health")):
        assert re.search(rf"#\d+ {method} +200 .*  {re.escape(uri)}(  after .* in the queue)?\n", shown)
    assert re.search(r"client +\d+  connect: Resource temporarily unavailable \(EAGAIN\)", shown)
    assert re.search(r"queue full: 3 of 3, \d connected; the next client gets EAGAIN", shown)
    assert len(re.findall(r"\d answered, \d got EAGAIN", shown)) == 2
    advice = shown.partition("What you saw:")[2]
    assert "udsproxy tap /run/" in advice
    assert "udsproxy run /run/" in advice
    assert max(map(len, advice.splitlines())) < 80
    (directory,) = set(re.findall(r"/tmp/udsproxy-demo-[^/]+", shown))
    assert not os.path.exists(directory)
    commands = [read(path) for path in glob.glob("/proc/[0-9]*/cmdline")]
    assert [command for command in commands if directory in command] == []
