"""Where a ``udsproxy run`` forwards to, as its command line says, or the configuration file that this names.

Rules: what another process says of itself is anything at all: nothing is raised, files are read within limits, and
what cannot be read is None. Paths are looked up as that process finds them.
"""

from __future__ import annotations

import os
import re
import tomllib

from udsproxy import endpoints
from udsproxy.endpoints import Endpoint, Tcp, UnixAbstract
from udsproxy.kernel import process_table
from udsproxy.kernel.diag_codec import UnixSocket
from udsproxy.kernel.roots import Root
from udsproxy.kernel.socket_file import SocketFile

_MAX_CONFIG = 1 << 20
"""Bytes of a configuration file."""
_FLAG = re.compile(r"-v+")
"""An option that no value follows."""


def words_of_run(pid: int) -> list[str] | None:
    """What follows ``udsproxy run`` in a command line; None: it is another's."""
    return process_table.words_after(pid, "run")


def upstream_of(pid: int, sock: UnixSocket, words: list[str]) -> Endpoint | None:
    """What is behind this socket, as the process was told; None: that cannot be read."""
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option == "--config":
            return _configured(pid, sock, value if equals else "".join(words[number + 1 : number + 2]))
    for number, word in enumerate(words):
        listen = _endpoint(word)
        if listen is not None and _is_of(pid, sock, listen):
            return _next_endpoint(words[number + 1 :])
    return None


def _next_endpoint(words: list[str]) -> Endpoint | None:
    """The first that is neither an option nor its value, as far as that can be told."""
    before = ""
    for word in words:
        if not word.startswith("-") and (not before.startswith("-") or "=" in before):
            return _endpoint(word)
        before = "" if _FLAG.fullmatch(word) else word
    return None


def _configured(pid: int, sock: UnixSocket, file: str) -> Endpoint | None:
    root = Root(pid)
    try:
        text = root.read(absolute(pid, file), _MAX_CONFIG).decode()
        tables = tomllib.loads(text).get("proxy", [])
        pairs = [(str(table["listen"]), str(table["upstream"])) for table in tables]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    finally:
        root.close()
    for listen, upstream in pairs:
        endpoint = _endpoint(listen)
        if endpoint is not None and _is_of(pid, sock, endpoint):
            return _endpoint(upstream)
    return None


def _endpoint(text: str) -> Endpoint | None:
    try:
        return endpoints.parse(text)
    except endpoints.EndpointError:
        return None


def _is_of(pid: int, sock: UnixSocket, listen: Endpoint) -> bool:
    """Is this the socket that the process has made for this endpoint? (Its name is the path, whatever has become of
    the file: `udsproxy.endpoints.naming`.)"""
    if isinstance(listen, Tcp) or sock.name is None:
        return False
    if isinstance(listen, UnixAbstract):
        return sock.name == b"\0" + os.fsencode(listen.name)
    if sock.name.partition(b"\0")[0] == os.fsencode(absolute(pid, listen.path)):
        return True
    try:
        return SocketFile.at(listen.path, pid).is_of(sock) is True
    except (OSError, ValueError):
        return False


def absolute(pid: int, path: str) -> str:
    """A path of a process, from the root directory on."""
    if os.path.isabs(path):
        return os.path.normpath(path)
    try:
        return os.path.normpath(os.path.join(os.readlink(f"/proc/{pid}/cwd"), path))
    except OSError:
        return path
