"""``udsproxy explain``: of an errno, of a line of a log, of standard input; and the page that is made of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from udsproxy.explain.errors import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
LINE = (
    "2026/11/23 09:33:42 [error] 115#115: *37 connect() to unix:/run/php/p.sock failed (11: Resource temporarily "
    'unavailable) while connecting to upstream, client: 203.0.113.7, server: _, request: "GET /slow.php HTTP/1.1", '
    'upstream: "fastcgi://unix:/run/php/p.sock:", host: "localhost"'
)


def explain(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "udsproxy", "explain", *words],
        check=False,
        capture_output=True,
        input=given,
        timeout=60,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_an_errno() -> None:
    """An errno alone: each call that returns it, connect first."""
    done = explain("EAGAIN")
    assert done.returncode == 0
    calls = [line for line in done.stdout.splitlines() if line.endswith(": EAGAIN")]
    assert calls == ["connect(): EAGAIN", "accept(): EAGAIN", "send(): EAGAIN", "recv(): EAGAIN"]


def test_a_call_and_an_errno() -> None:
    """As two words, without quotes."""
    done = explain("connect", "11")
    assert done.returncode == 0
    assert done.stdout.startswith("connect(): EAGAIN (11, Resource temporarily unavailable)\n")
    assert done.stdout.count("tell:") >= 3
    assert "udsproxy run $D/p $D/s --fault 'eagain'" in done.stdout


def test_nothing_that_is_said_harms_a_live_socket() -> None:
    """Of what there is to paste nothing takes the socket's path down: no fault on it, no file removed."""
    said = explain("--markdown").stdout + explain(LINE).stdout
    commands = re.findall(r"`([^`]+)`", said) + [line for line in said.splitlines() if "--fault" in line]
    assert [line for line in commands if re.search(r"\btap\b.*--fault|^(sudo )?(rm|unlink)\b|kill -9", line)] == []
    assert "Remove it" not in said


def test_a_line_of_nginx() -> None:
    """Commands have the path that the line has."""
    done = explain(LINE)
    assert done.returncode == 0
    assert "In this line: /run/php/p.sock, GET /slow.php HTTP/1.1, client 203.0.113.7" in done.stdout
    assert "udsproxy state /run/php/p.sock" in done.stdout
    assert not re.search(r"\bPATH\b", done.stdout)


def test_what_begins_with_a_hyphen() -> None:
    """A line may begin with what looks like an option."""
    done = explain("-1 EAGAIN (Resource temporarily unavailable)")
    assert done.returncode == 0
    assert done.stdout.startswith("EAGAIN")


def test_the_overview() -> None:
    """Without an error: all there are."""
    done = explain()
    assert done.returncode == 0
    assert {meaning.errno for meaning in TABLE} <= set(done.stdout.split())
    assert "upstream prematurely closed connection" in done.stdout


def test_standard_input() -> None:
    """Each error once, the most frequent first, with how often it came."""
    refused = LINE.replace("11: Resource temporarily unavailable", "111: Connection refused")
    done = explain("-", given="\n".join(["noise", "read", refused, LINE, LINE, "\x1b[0m", ""]).encode() + b"\xff\n")
    assert done.returncode == 0
    titles = re.findall(r"^\d+ x .*$", done.stdout, re.MULTILINE)
    assert titles == [
        "2 x connect(): EAGAIN (11, Resource temporarily unavailable)",
        "1 x connect(): ECONNREFUSED (111, Connection refused)",
    ]


def test_standard_input_is_bounded() -> None:
    """More than it reads, and more errors than it answers: it says so."""
    lines = b"".join(LINE.replace("/p.sock", f"/p{number}.sock").encode() + b"\n" for number in range(1000))
    done = explain("-", given=lines)
    assert done.returncode == 0
    assert len(re.findall(r"^\d+ x ", done.stdout, re.MULTILINE)) == 20
    assert re.search(r"^and \d+ others$", done.stdout, re.MULTILINE)
    assert "Only the first 64 KiB were read." in done.stdout


def test_no_error() -> None:
    """What names no error ends with exit code 2 and one line that says what can be given."""
    for words, given in ((["hello\x1b[0m" * 100], b""), (["-"], b"hello\n"), (["-"], b""), ([""], b"")):
        done = explain(*words, given=given)
        assert done.returncode == 2
        assert done.stdout == ""
        [line] = done.stderr.splitlines()
        assert line.startswith("udsproxy: no error is known in ")
        assert "connect EAGAIN" in line
        assert len(line) < 250


def test_the_page() -> None:
    """docs/errors.md is what the command prints, and its links lead somewhere."""
    done = explain("--markdown")
    assert done.returncode == 0
    assert PAGE.read_text(encoding="utf-8") == done.stdout
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", done.stdout, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", done.stdout)) <= headings
