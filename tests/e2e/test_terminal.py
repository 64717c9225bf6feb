"""The program on a terminal: no line is wider than that, whatever is shown, and nothing is cut on a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.screen import Screen, too_wide
from tests.e2e.site import start_nginx, start_php_fpm
from tests.e2e.tools import UDSPROXY, EchoServer, cgi_params, connect, receive_all, udsproxy
from tests.stage import Stage
from udsproxy.protocols import fastcgi as wire

LONG = "/shop/catalogue/index.php?category=shoes&order=12345678&step=confirmation&lang=en_GB&from=basket"

_EACH = """
import json, os, sys
from udsproxy.cli import main
for words in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        sys.argv[1:] = words
        main()
    os.waitpid(pid, 0)
    print("END", flush=True)
"""
"""Commands, one after the other, each forked from a process that has imported the program."""


@pytest.fixture
def upstream(stage: Stage) -> Iterator[str]:
    """The path of an echo server's socket, which is long."""
    path = stage.path("a-socket-whose-name-is-rather-long-for-a-terminal.sock")
    with EchoServer(path):
        yield path


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_what_commands_print_fits(stage: Stage, upstream: str, columns: int) -> None:
    """What is printed for people, and mistakes on standard error."""
    line = (
        "2026/11/23 09:33:{:02} [error] 7#7: *3 connect() to unix:{} failed (11: Resource temporarily unavailable) "
        'while connecting to upstream, client: ::1, server: _, request: "GET {} HTTP/1.1", upstream: "fastcgi://unix:{}:"'
    )
    log = stage.write(
        "\n".join(line.format(each, upstream, LONG, upstream) for each in range(30)) + "\n", "error.log"
    )
    commands = [
        ["--help"], ["tap", "--help"], ["state"], ["state", upstream], ["doctor", upstream], ["explain"],
        ["explain", "connect", "EAGAIN"], ["explain", f"connect() to unix:{upstream} failed (111: x)"],
        ["fault", "kinds"], ["run", "--check", f"{upstream}.p", upstream, "--fault", "latency=1s if script=/a"],
        ["run", f"{upstream}/x", upstream], ["state", "/nonexistent/" + "d/" * 30], ["statte"],
        ["tap", "/nonexistent/" + "d/" * 30], ["explain", log], ["fault", "list"],
    ]  # fmt: skip
    with Screen([sys.executable, "-c", _EACH, json.dumps(commands)], columns) as screen:
        lines = screen.end()
    assert lines.count("END") == len(commands)
    assert too_wide(lines, columns) == []
    assert not [line for line in lines if "Traceback" in line]
    text = " ".join(" ".join(lines).split())
    for said in (
        "The server's accept queue is full.",
        "did you mean state?",
        "1 problem" if "1 problem" in text else "fine",
    ):
        assert said in text


def test_columns_says_how_wide(upstream: str) -> None:
    """COLUMNS counts, as it does for other programs: also where the terminal does not say how wide it is."""
    for columns, terminal, expected in (("50", 0, 50), ("70", 120, 70), ("none", 90, 90)):
        words = ["env", f"COLUMNS={columns}", *UDSPROXY, "explain", "EAGAIN"]
        with Screen(words, terminal) as screen:
            lines = screen.end()
        assert too_wide(lines, expected) == []
        assert max(map(len, lines)) > expected - 12


def test_a_pipe_has_whole_lines(upstream: str) -> None:
    """Where there is no terminal nothing is folded or cut."""
    done = udsproxy("explain", "connect", "EAGAIN")
    [line] = [line for line in done.stdout.decode().splitlines() if "A non-blocking connect()" in line]
    assert line.startswith("The server's accept queue is full.")
    done = udsproxy("doctor", upstream)
    assert all(line.startswith(("    ", "problem", "warning", "note", "fine", "not seen")) or line[0].isdigit()
               for line in done.stdout.decode().splitlines())  # fmt: skip
    done = udsproxy("state", "/nonexistent/" + "d/" * 60)
    assert done.stderr.count(b"\n") == 1


def ask(path: str, script: str, root: str) -> None:
    with connect(path) as sock:
        sock.sendall(wire.encode_request(cgi_params(script, root=root), b""))
        receive_all(sock)


def test_a_proxy_follows_a_terminal_that_is_resized(stage: Stage) -> None:
    """Each request is one row as wide as the terminal is then; the heading comes again where columns changed. What
    the terminal writes for Ctrl-C does not shift the line after it."""
    upstream, path = stage.path("up.sock"), stage.path("p.sock")
    stage.spawn("serve", [*UDSPROXY, "serve", upstream], stage.path("serve.out"))
    stage.await_socket(upstream)
    control, rule = stage.path("control"), "latency=1s if script=/a-long-name-of-a-script/index.php p=0.5 for=2h"
    options = ["--control", control, "--name", "a-long-name-of-a-proxy", "--fault", rule]
    with Screen([*UDSPROXY, "run", path, upstream, *options], 120) as screen:
        screen.until(lambda lines: any("listening" in line for line in lines), "the proxy")
        ask(path, LONG, "")
        wide = screen.until(lambda lines: any("GET" in line for line in lines), "a request")
        screen.resize(60)
        ask(path, LONG, "")
        narrow = screen.until(lambda lines: sum("GET" in line for line in lines) == 2, "another")[len(wide) :]
        with Screen([*UDSPROXY, "fault", "list", "--control", control], 60) as other:
            listed = other.end()
        screen.type("\x03")
        rest = screen.end()[len(wide) + len(narrow) :]
        assert screen.process.returncode == 0
    assert too_wide(wide, 120) == []
    assert too_wide(narrow + rest + listed, 60) == []
    assert "if script=/a-long-name-of-a-script/index.php" in " ".join(" ".join(listed).split())
    (names, row), (others, another) = (
        [line for line in lines if "METHOD" in line or "GET" in line] for lines in (wide, narrow)
    )
    assert names.split()[-3:] == ["SENT", "RECEIVED", "URI"]
    assert others.split() == ["TIME", "CONN", "METHOD", "STATUS", "TOTAL", "URI"]
    for shown in (row, another):
        assert "#" in shown
        assert "…" in shown
        assert shown.endswith("=basket")
    assert "^C" not in " ".join(rest)
    assert "seen 2 requests in 2 connections" in " ".join(" ".join(rest).split())


@pytest.mark.parametrize("columns", [60, 80])
def test_a_tap_of_php_fpm(stage: Stage, columns: int) -> None:
    """Real requests of an nginx: a long URI, an error with a text on stderr; and what is said of the tap
    itself."""
    path = stage.path("php.sock")
    start_php_fpm(stage, path, workers=2)
    front = start_nginx(stage, {"only": path})["only"]
    with Screen([*UDSPROXY, "tap", path, "-v"], columns) as screen:
        screen.until(lambda lines: "puts it back" in " ".join(lines), "the tap")
        front.fetch("/hello.php?" + LONG)
        front.fetch("/fatal.php")
        screen.until(lambda lines: any(" 500 " in line for line in lines), "the error")
        screen.type("\x03")
        lines = screen.end()
    assert os.path.exists(path)
    assert too_wide(lines, columns) == []
    text = " ".join(" ".join(lines).split())
    assert "RuntimeException: out of luck" in text
    assert f"QUERY_STRING={LONG}" in "".join(text.split())
    assert any("GET     200" in line and "…" in line for line in lines)


def test_the_demonstration_fits() -> None:
    """All of it, on the narrowest terminal that has the whole table; the commands can be copied."""
    with Screen([*UDSPROXY, "demo"], 60) as screen:
        lines = screen.end()
        assert screen.process.returncode == 0
    assert too_wide(lines, 60) == []
    assert [line for line in lines if line.startswith("$ udsproxy run") and line.endswith(" \\")]
    assert "7 got EAGAIN" in " ".join(lines)
