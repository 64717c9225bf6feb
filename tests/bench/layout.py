"""Where things are: the sockets of servers and contenders on the stage, and programs on the machine.

Rule: every path follows from names alone, so that the front nginx can be told of a contender's socket
before the contender runs.
"""

import functools
import glob
import importlib.util
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tests.stage import MissingError, Stage

# The search path of an ordinary user often lacks the directories that hold servers.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

DIRECT = "direct"


@dataclass(frozen=True)
class Layout:
    """The paths and the port of one run; `services` names the servers that run (fastcgi, redis, bulk)."""

    stage: Stage
    services: tuple[str, ...]
    front_port: int

    def upstream(self, service: str) -> str:
        """The socket a server itself listens on."""
        return self.stage.path("up", f"{service}.sock")

    def listen(self, contender: str, service: str) -> str:
        """The socket a client connects to in order to reach a server through a contender."""
        if contender == DIRECT:
            return self.upstream(service)
        return self.stage.path(contender, f"{service}.sock")

    def log(self, owner: str, name: str) -> str:
        """The file for what a process prints or records."""
        return self.stage.path(owner, f"{name}.log")

    def url(self, contender: str) -> str:
        """The page of the front nginx that reaches php-fpm through a contender."""
        return f"http://127.0.0.1:{self.front_port}/{contender}"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@functools.cache
def find(name: str) -> str:
    """The path of a program; MissingError when it is not there."""
    found = _php_fpm() if name == "php-fpm" else shutil.which(name, path=SEARCH_PATH)
    if found is None:
        raise MissingError(f"program not found: {name}")
    return found


def _php_fpm() -> str | None:
    """php-fpm under whatever name a distribution gives it (php-fpm8.2, php-fpm82), the newest first."""
    places = [directory for directory in SEARCH_PATH.split(os.pathsep) if directory]
    found = [path for place in places for path in glob.glob(os.path.join(glob.escape(place), "php-fpm*"))]
    return max((path for path in found if os.access(path, os.X_OK)), key=_version_in_name, default=None)


def _version_in_name(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", os.path.basename(path))]


@functools.cache
def nginx_stream_line() -> str:
    """The line that makes nginx know stream{}: load_module, or nothing where it is built in."""
    built = subprocess.run([find("nginx"), "-V"], capture_output=True, text=True, check=True).stderr
    if re.search(r"--with-stream(\s|$)", built):
        return ""
    folder = re.search(r"--modules-path=(\S+)", built)
    module = os.path.join(folder[1] if folder else "", "ngx_stream_module.so")
    if not os.path.isfile(module):
        raise MissingError("program not found: nginx stream module (ngx_stream_module.so)")
    return f"load_module {module};"


def _check_udsproxy() -> None:
    if importlib.util.find_spec("udsproxy.__main__") is None:
        raise MissingError("program not found: udsproxy (python -m udsproxy)")


# Needed things that are no program on the search path.
OTHERS: dict[str, Callable[[], object]] = {"nginx stream": nginx_stream_line, "udsproxy": _check_udsproxy}


def require(names: list[str]) -> None:
    """Raise MissingError unless all programs, and others, are there."""
    for name in names:
        OTHERS.get(name, functools.partial(find, name))()


@functools.cache
def version(program: str) -> str:
    """The version a program tells of itself."""
    flag = {"socat": "-V", "redis-server": "--version"}.get(program, "-v")
    # wrk answers -v with status 1, nginx on stderr.
    done = subprocess.run(
        [find(program), flag], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout)
    return found[0] if found else "unknown"
