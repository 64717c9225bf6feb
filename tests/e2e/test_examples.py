"""The examples of the help: each is run as it stands, but for the paths, which are those of a stage.

Rule: an example that goes on until Ctrl-C is ended by SIGINT when it has shown what it is for.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.site import start_nginx, start_php_fpm
from tests.e2e.starts import start_each
from tests.e2e.test_control import runtime
from tests.e2e.tools import LIMIT_S, program, read, until
from tests.stage import Stage
from udsproxy.cli.pages import PAGES, PHP

__all__ = ["runtime"]

UNTIL_CTRL_C = {
    f"sudo -u www-data udsproxy run /run/php/seen.sock {PHP}": "listening on",
    f"udsproxy run /tmp/try.sock {PHP} --log json --fault workers=2": '"event":"listening"',
    f"sudo udsproxy tap {PHP}": "listening in place of",
    f"sudo udsproxy tap {PHP} --nginx-log /var/log/nginx/error.log --log-file seen.json": "listening in place of",
    f"sudo udsproxy state {PHP} --watch --interval 200ms": "php-fpm",
    "udsproxy explain -f /var/log/nginx/error.log": "EAGAIN",
    "udsproxy serve /tmp/app.sock": "serving FastCGI on",
    "udsproxy serve /tmp/app.sock --workers 2 --backlog 2 --delay 500ms": "serving FastCGI on",
}
"""And what it shows."""
ELSEWHERE = {"udsproxy demo", "udsproxy demo 2>&1 | less"}
"""tests/e2e/test_lab.py runs it: it takes some seconds."""
LINES = [example.line for page in PAGES.values() for example in page.examples if example.line not in ELSEWHERE]
NEEDS_SHELL = re.compile(r"[|>$]")
_SUDO = """#!/bin/sh
[ "$1" != -u ] || shift 2
exec "$@"
"""
_UDSPROXY = f"""#!/bin/sh
exec {shlex.quote(sys.executable)} -m udsproxy "$@"
"""
_CONFIG = '[[proxy]]\nlisten = "/tmp/udsproxy-seen.sock"\nupstream = "/tmp/udsproxy-server.sock"\n'
_ERROR = (
    "2026/11/29 12:00:00 [error] 7#7: *1 connect() to unix:/run/php.sock failed (11: Resource temporarily "
    'unavailable) while connecting to upstream, client: ::1, request: "GET / HTTP/1.1"\n'
)


class Shell:
    """A stage on which the examples find all that they name."""

    def __init__(self, stage: Stage, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage = stage
        php = stage.path("run", "php.sock")
        start_php_fpm(stage, php)
        front = start_nginx(stage, {"site": php})["site"]
        start_proxy(stage.path("running", "try.sock"), php)
        for name, text in (("sudo", _SUDO), ("udsproxy", _UDSPROXY)):
            os.chmod(stage.write(text, "bin", name), 0o755)
        monkeypatch.setenv("PATH", f"{stage.path('bin')}:{os.environ['PATH']}")
        monkeypatch.setenv("HOME", stage.path("home"))
        stage.path("home", ".config", "fish", "completions", "")
        self._paths = {
            PHP: php,
            "/run/php/seen.sock": stage.path("seen.sock"),
            "/tmp/": stage.path(""),
            "/var/www/html": stage.path("www"),
            "/index.php": "/hello.php",
            "http://localhost": f"http://127.0.0.1:{front.port}",
            "/etc/udsproxy.toml": stage.write(_CONFIG, "udsproxy.toml"),
            "/var/log/php8.2-fpm.log": stage.path("php", "log"),
            "/var/log/nginx/error.log": stage.write(_ERROR, "error.log"),
            "/usr/local/share/man/man1": stage.path("man1"),
            "seen.json": stage.path("seen.json"),
            "| less": "| cat",
            "| man -l -": f"| {program('groff')} -man -Tutf8",
            "--for 60s": "--for 100ms",
        }

    def line(self, example: str) -> str:
        pattern = "|".join(map(re.escape, self._paths))
        return re.sub(pattern, lambda found: self._paths[found[0]], example)

    def start(self, example: str) -> tuple[subprocess.Popen[bytes], str]:
        """The process, which leads a group, and the file with what it says."""
        output = self.stage.path("output", str(len(os.listdir(self.stage.path("output", "")))))
        return self.stage.spawn(example, ["/bin/sh", "-c", f"exec {self.line(example)}"], output), output


@pytest.fixture
def shell(stage: Stage, runtime: str, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(stage, start_proxy, monkeypatch)


RESET = [["fault", "clear"], ["fault", "add", "latency=1ms", "stall name=refuse"]]
"""So that there are the faults that an example names."""


def test_examples_that_end(shell: Shell) -> None:
    """Each that ends by itself does what it says, and finds nothing wrong with how it is called."""
    assert set(UNTIL_CTRL_C) <= set(LINES)
    serve, output = shell.start("udsproxy serve /tmp/app.sock")
    until(lambda: "serving" in read(output), "a server for the load")
    lines = [line for line in LINES if line not in UNTIL_CTRL_C and not NEEDS_SHELL.search(line)]
    cases: list[list[str]] = []
    for line in lines:
        words = shlex.split(shell.line(line.removeprefix("sudo ")))[1:]
        cases += [*RESET, words] if words[:2] in (["fault", "remove"], ["fault", "enable"]) else [words]
    for words, done in zip(cases, start_each(shell.stage, [(words, []) for words in cases]), strict=True):
        assert done.code in ((0, 1) if words[0] == "doctor" else (0,)), (words, done)
        assert "Traceback" not in done.error
    serve.send_signal(signal.SIGINT)
    serve.wait(LIMIT_S)


def test_examples_for_a_shell(shell: Shell) -> None:
    """So does each that is a pipe."""
    for example in filter(NEEDS_SHELL.search, LINES):
        argv = [program("bash"), "-o", "pipefail", "-c", shell.line(example)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert (example, done.returncode, done.stderr) == (example, 0, "")


def test_examples_that_go_on(shell: Shell) -> None:
    """Each that goes on shows what it is for, and Ctrl-C ends it."""
    for example, shown in UNTIL_CTRL_C.items():
        process, output = shell.start(example)
        until(partial(has_shown, process, output, shown), f"what {example} shows")
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) in (0, 130), read(output)
        assert "Traceback" not in read(output)


def has_shown(process: subprocess.Popen[bytes], output: str, what: str) -> bool:
    assert process.poll() is None, read(output)
    return what in read(output)
