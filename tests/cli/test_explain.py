"""``udsproxy explain``: of an errno, of a line of a log, of standard input; and the page that is made of it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from udsproxy.cli.tailing import MAX_LINES, MAX_READ
from udsproxy.explain.errors import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
LINE = (
    "2026/11/23 09:33:42 [error] 115#115: *37 connect() to unix:/run/php/p.sock failed (11: Resource temporarily "
    'unavailable) while connecting to upstream, client: 203.0.113.7, server: _, request: "GET /slow.php HTTP/1.1", '
    'upstream: "fastcgi://unix:/run/php/p.sock:", host: "localhost"'
)


def explain(*words: str, given: bytes = b"", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "udsproxy", "explain", *words],
        check=False,
        capture_output=True,
        input=given,
        cwd=cwd,
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
    """Each error once, the most frequent first, with how often it came: in a table, and then in full."""
    refused = LINE.replace("11: Resource temporarily unavailable", "111: Connection refused")
    done = explain("-", given="\n".join(["noise", "read", refused, LINE, LINE, "\x1b[0m", ""]).encode() + b"\xff\n")
    assert done.returncode == 0
    titles = re.findall(r"^\d+ x .*$", done.stdout, re.MULTILINE)
    assert titles == [
        "2 x connect(): EAGAIN (11, Resource temporarily unavailable)",
        "1 x connect(): ECONNREFUSED (111, Connection refused)",
    ]
    assert "    2  09:33:42  09:33:42  connect(): EAGAIN, /run/php/p.sock\n" in done.stdout
    assert "/slow.php (2)" in done.stdout


def test_the_newest_of_standard_input_counts() -> None:
    """Of more than it keeps, it reads the newest lines, and says so."""
    old = LINE.replace("11: Resource temporarily unavailable", "111: Connection refused")
    noise = b"x" * 60_000 + b"\n"
    done = explain("-", given=old.encode() + b"\n" + noise * (MAX_READ // len(noise) + 10) + LINE.encode())
    assert done.returncode == 0
    assert re.findall(r"^\d+ x (.*) \(", done.stdout, re.MULTILINE) == ["connect(): EAGAIN"]
    assert (
        f"Only the end of standard input was read: {MAX_READ // 2**20} MiB, or {MAX_LINES:,} lines." in done.stdout
    )


def test_the_newest_of_a_file_counts(tmp_path: Path) -> None:
    """Of a file that is too large only the end is read."""
    log = tmp_path / "error.log"
    with log.open("wb") as file:
        file.write(LINE.replace("11: Resource temporarily unavailable", "111: Connection refused").encode() + b"\n")
        file.seek(2 * MAX_READ)
        file.write(b"\n" + LINE.encode() + b"\n")
    done = explain(str(log))
    assert done.returncode == 0
    assert re.findall(r"^\d+ x (.*) \(", done.stdout, re.MULTILINE) == ["connect(): EAGAIN"]
    assert f"Only the end of {log} was read: {MAX_READ // 2**20} MiB, or {MAX_LINES:,} lines." in done.stdout


def test_many_errors() -> None:
    """More than it lists: it says how many lines are left out. Each kind is explained once."""
    lines = b"".join(LINE.replace("/p.sock", f"/p{number}.sock").encode() + b"\n" for number in range(100))
    done = explain("-", given=lines)
    assert done.returncode == 0
    assert len(re.findall(r"^ +1  09:33:42", done.stdout, re.MULTILINE)) == 20
    assert "and 80 lines of other errors" in done.stdout
    assert re.findall(r"^(\d+) x ", done.stdout, re.MULTILINE) == ["20"]


def test_two_logs(tmp_path: Path) -> None:
    """nginx's and php-fpm's together, in order of time."""
    (tmp_path / "error.log").write_text(LINE + "\n")
    (tmp_path / "fpm.log").write_text(
        "[23-Nov-2026 09:33:41] WARNING: [pool www] server reached pm.max_children setting (5)\n"
    )
    done = explain(str(tmp_path / "error.log"), str(tmp_path / "fpm.log"))
    assert done.returncode == 0
    newest = done.stdout.partition("The newest, in order of time:\n")[2].partition("\n\n")[0]
    assert newest.splitlines() == [
        "09:33:41  php-fpm: server reached pm.max_children setting",
        "09:33:42  nginx: connect(): EAGAIN, /run/php/p.sock, /slow.php",
    ]


def test_files_of_nginx(tmp_path: Path) -> None:
    """A file that nginx could not use is named, and so is the errno."""
    for name in ("50x.html", "a", "a"):
        with (tmp_path / "error.log").open("a") as file:
            file.write(LINE.replace("to unix:/run/php/p.sock", f'"/srv/{name}"').replace("connect", "open") + "\n")
    said = explain("error.log", cwd=tmp_path).stdout
    assert '    3  09:33:42  09:33:42  open() "FILE" failed: EAGAIN\n' in said
    assert "       /srv/a (2)\n       /srv/50x.html (1)\n" in said
    assert '09:33:42  nginx: 2 x open() "/srv/a" failed: EAGAIN' in said
    made = explain(LINE.replace("to unix:/run/php/p.sock", '"/srv/tmp/1"').replace("connect", "mkdir", 1)).stdout
    assert made.startswith('mkdir() "/srv/tmp/1" failed\n')
    only = explain("-", given=(tmp_path / "error.log").read_bytes().splitlines()[0]).stdout
    assert '    1  09:33:42  09:33:42  open() "/srv/50x.html" failed: EAGAIN\n' in only
    assert '\n1 x open() "/srv/50x.html" failed\n' in only


def test_what_is_no_log(tmp_path: Path) -> None:
    """One line says why a file cannot be read, and where to ask about a socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for word, said, code in (
            (str(tmp_path / "s"), f"{tmp_path}/s is a socket, and no log: see udsproxy doctor {tmp_path}/s", 2),
            (str(tmp_path / "none"), f"cannot open {tmp_path}/none: No such file or directory (ENOENT)", 1),
            (str(tmp_path), f"cannot read lines from {tmp_path}: it is no file and no pipe", 2),
        ):
            done = explain(word)
            assert (done.returncode, done.stdout, done.stderr) == (code, "", f"udsproxy: {said}\n")


def test_names_of_logs(tmp_path: Path) -> None:
    """A file is known by its name alone, without a slash; of several that are named, the missing one is told. An
    errno and a line of text stay what they are, whatever files there are."""
    (tmp_path / "error.log").write_text(LINE + "\n")
    (tmp_path / "fpm.log").touch()
    (tmp_path / "11").write_text("noise\n")
    for words in (["error.log"], ["error.log", "fpm.log"]):
        assert "    1  09:33:42  09:33:42  connect(): EAGAIN" in explain(*words, cwd=tmp_path).stdout
    for words, missing in (
        (["log/nosuch.log"], "log/nosuch.log"),
        (["nosuch.log"], "nosuch.log"),
        (["MISSING", "error.log", "fpm.log"], "MISSING"),
    ):
        done = explain(*words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (
            1,
            f"udsproxy: cannot open {missing}: No such file or directory (ENOENT)\n",
        )
    assert explain("11", cwd=tmp_path).stdout.startswith("EAGAIN (11")
    assert explain("error.log", "says", "connect:", "Connection refused", cwd=tmp_path).stdout.startswith("connect")


@pytest.mark.parametrize(
    ("written", "said"),
    [(b"", "empty"), (b"hello\n", "1 line, none with an error that is known")],
)
def test_a_log_without_errors(tmp_path: Path, written: bytes, said: str) -> None:
    """It is said to have none, which is no failure."""
    (tmp_path / "error.log").write_bytes(written)
    for word, name in (("error.log", "error.log"), ("-", "standard input")):
        done = explain(word, given=written, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"no error in {name}: {said}\n", "")


class Following:
    """``udsproxy explain -f``, which is read line by line."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "udsproxy", "explain", "-f", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def until(self, form: str) -> list[str]:
        """The lines up to the first that has it."""
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line.rstrip("\n"))
            if re.search(form, line):
                return seen
        raise AssertionError(form)


@pytest.fixture
def following() -> Iterator[Callable[..., Following]]:
    started: list[Following] = []

    def start(*words: str) -> Following:
        started.append(Following(*words))
        return started[-1]

    yield start
    for each in started:
        with each.process:
            each.process.kill()


def test_following_a_file(tmp_path: Path, following: Callable[..., Following]) -> None:
    """What is written to it is shown, and a new error explained; so it is when the log was rotated, or truncated.
    Ctrl-C ends it, with a table of all."""
    log = tmp_path / "error.log"
    log.write_text(LINE + "\n")
    explaining = following(str(log))
    told = explaining.until("Following; Ctrl-C ends it.")
    assert "    udsproxy explain connect EAGAIN" in told
    assert len(told) < 12
    with log.open("a") as file:
        file.write(LINE.replace("(11: Resource temporarily unavailable)", "(2: No such file or directory)") + "\n")
    explaining.until(r"^09:33:42  nginx: connect\(\): ENOENT, /run/php/p\.sock, /slow\.php$")
    explaining.until(r"^    connect\(\): ENOENT \(2, No such file or directory\)$")
    explaining.until(r"^    In full: udsproxy explain connect ENOENT$")
    with log.open("a") as file:
        file.write(LINE.replace("/p.sock", "/other.sock") + "\n" + LINE.replace("*37 connect", "*38 recv") + "\n")
    seen = explaining.until(r"^    recv\(\): EAGAIN")
    assert [line for line in seen if line.startswith("    ")] == seen[-1:]  # the other socket is nothing new
    log.rename(tmp_path / "error.log.1")
    log.write_text(LINE.replace("(11: Resource temporarily unavailable)", "(13: Permission denied)") + "\n")
    explaining.until(r"^09:33:42  nginx: connect\(\): EACCES")
    log.write_text(LINE.replace("11: Resource temporarily unavailable", "111: Connection refused")[:-40] + "\n")
    explaining.until(r"^09:33:42  nginx: connect\(\): ECONNREFUSED")
    explaining.process.send_signal(signal.SIGINT)
    explaining.until(r"^COUNT  FIRST")
    assert explaining.process.wait(60) == 0


def test_following_a_record_that_is_cut(tmp_path: Path, following: Callable[..., Following]) -> None:
    """What a script wrote is its text, also where the log ends in it while the rest is still to come."""
    log = tmp_path / "error.log"
    log.write_text('2026/11/23 09:33:42 [error] 1#1: *2 FastCGI sent in stderr: "PHP message: one\n')
    explaining = following(str(log))
    explaining.until("Following; Ctrl-C ends it.")
    with log.open("a") as file:
        file.write("connect() to unix:/x failed (13: Permission denied)\nend")
        file.write('" while reading response header from upstream, client: 192.0.2.1, server: , ')
        file.write('request: "GET /a.php HTTP/1.1", upstream: "fastcgi://unix:/run/p.sock:", host: "a"\n')
    seen = explaining.until(r"FastCGI sent in stderr, /run/p\.sock, /a\.php")
    assert not [line for line in seen if "EACCES" in line]


def test_following_a_pipe(following: Callable[..., Following]) -> None:
    """Lines are shown as they come, and the end of the pipe is the end."""
    explaining = following("-")
    assert explaining.process.stdin is not None
    explaining.process.stdin.write(LINE + "\n")
    explaining.process.stdin.flush()
    explaining.until(r"^09:33:42  nginx: connect\(\): EAGAIN")
    explaining.process.stdin.close()
    explaining.until(r"^COUNT  FIRST")
    assert explaining.process.wait(60) == 0


def test_no_error() -> None:
    """What names no error ends with exit code 2 and one line that says what can be given."""
    for words in (["hello\x1b[0m" * 100], [""]):
        done = explain(*words)
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
