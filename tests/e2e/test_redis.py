"""redis through the proxy: a protocol that it does not know, with long binary values and pipelines."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.tools import program, read, run, with_output
from tests.stage import Stage


@pytest.fixture
def redis(stage: Stage) -> str:
    """The socket of a redis server."""
    path = stage.path("redis.sock")
    argv = [program("redis-server"), "--port", "0", "--unixsocket", path, "--save", "", "--dir", stage.directory]
    stage.spawn("redis-server", argv, stage.path("redis.out"))
    stage.await_socket(path)
    return path


def redis_cli(path: str, *command: str, stdin: bytes | None = None) -> bytes:
    """What redis answers. ``stdin``: the last argument of the command."""
    argv = [program("redis-cli"), "-s", path, *(["-x"] if stdin is not None else []), *command]
    done = run(argv, stdin=stdin or b"")
    assert done.returncode == 0, done.stderr
    return done.stdout


def resp(command: Sequence[bytes]) -> int:
    """The bytes of a command on the wire."""
    return len(b"*%d\r\n" % len(command)) + sum(len(b"$%d\r\n" % len(each)) + len(each) + 2 for each in command)


@pytest.mark.parametrize("size", [0, 1, 4096, 1_000_000, 10 * 1024 * 1024])
def test_binary_values(stage: Stage, start_proxy: StartProxy, redis: str, size: int) -> None:
    """A value of random bytes, up to 10 MiB, is stored and comes back unchanged, and the close events count every
    byte of it."""
    proxy = start_proxy(stage.path("p.sock"), redis)
    value = random.Random(size).randbytes(size)
    assert redis_cli(proxy.socket, "SET", "key", stdin=value) == b"OK\n"
    assert redis_cli(proxy.socket, "GET", "key") == value + b"\n"
    assert redis_cli(redis, "GET", "key") == value + b"\n"
    closes = proxy.wait_for("close", count=2)
    assert [(close["c2s_bytes"], close["s2c_bytes"]) for close in closes] == [
        (resp([b"SET", b"key", value]), len(b"+OK\r\n")),
        (resp([b"GET", b"key"]), len(b"$%d\r\n" % size) + size + 2),
    ]
    assert [(close["by"], close["requests"], close.get("protocol")) for close in closes] == [
        ("client", 0, None)
    ] * 2
    assert {event["event"] for event in proxy.events()} <= {"listening", "open", "accepted", "close"}


@pytest.mark.parametrize("decode", ["auto", "raw", "none", "fastcgi"])
def test_a_benchmark_with_pipelines(stage: Stage, start_proxy: StartProxy, redis: str, decode: str) -> None:
    """redis-benchmark gets all its answers, whatever the proxy tries to decode them as, and nothing fails."""
    proxy = start_proxy(stage.path("p.sock"), redis, "--decode", decode)
    argv = [program("redis-benchmark"), "-s", proxy.socket, "-P", "16", "-n", "20000", "-c", "20", "-q"]
    done = run([*argv, "-t", "ping,set,get,lrange_100"])
    assert done.returncode == 0, done.stderr
    assert b"rror" not in done.stdout + done.stderr
    assert len(re.findall(rb"[\d.]+ requests per second", done.stdout)) >= 4
    proxy.wait_for("close", count=20)
    assert proxy.events("upstream_error") == proxy.events("proxy_error") == []


def test_decoding_as_what_it_is_not(stage: Stage, start_proxy: StartProxy, redis: str) -> None:
    """With --decode fastcgi the client's side of each connection has one decode_error, which says from which byte
    on it is no FastCGI and why; so has the server's, where there is enough to tell. The traffic is unharmed."""
    proxy = start_proxy(stage.path("p.sock"), redis, "--decode", "fastcgi")
    for number in range(3):
        assert redis_cli(proxy.socket, "SET", f"key{number}", stdin=b"value") == b"OK\n"
    assert redis_cli(proxy.socket, "MGET", "key0", "key1", "key2") == b"value\nvalue\nvalue\n"
    proxy.wait_for("close", count=4)
    errors = proxy.events("decode_error")
    told = [(error["conn"], error["direction"], error["protocol"], error["offset"]) for error in errors]
    # "+OK" is shorter than the head of a record.
    assert told == [*((conn, "c2s", "fastcgi", 0) for conn in (1, 2, 3, 4)), (4, "s2c", "fastcgi", 0)]
    assert [error["reason"] for error in errors] == [f"version {ord(sign)} where FastCGI has 1" for sign in "*****"]
    assert proxy.stop() == 0
    (summary,) = proxy.events("summary")
    assert (summary["connections"], summary["requests"], summary["decode_errors"]) == (4, 0, 5)


def test_the_console_of_raw_traffic(stage: Stage, start_proxy: StartProxy, redis: str) -> None:
    """On the console a connection that no exchange tells of is a line of its own, with what went through."""
    log = stage.path("console")
    options = ["--log", "console", "--color", "always"]
    proxy = start_proxy(stage.path("p.sock"), redis, log=options, wrap=with_output(log))
    # Its socket is there before it runs: this waits in the queue until it does.
    stage.await_socket(proxy.socket)
    assert redis_cli(proxy.socket, "PING") == b"PONG\n"
    assert proxy.stop() == 0
    assert re.search(r"#2 raw +[\d.]+ \w+ +14 B +7 B  closed by client\n", read(log))
