"""Asks a process that runs."""

from __future__ import annotations

import errno
import http.client
import os
import socket
from typing import Any
from urllib.parse import quote

import msgspec

from udsproxy import endpoints
from udsproxy.control import peers, place
from udsproxy.endpoints import UnixPath
from udsproxy.endpoints.ownership import user_name
from udsproxy.events import printable

TIMEOUT_S = 10.0
_MOST_ANSWER = 64 * 1024 * 1024


class ControlError(Exception):
    """It was not done; one line says why."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: UnixPath) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = endpoints.unix_socket()
        if failed := place.connect(self.sock, self._path):
            raise OSError(failed, os.strerror(failed))
        self.sock.settimeout(TIMEOUT_S)
        self._require_trusted(self.sock)

    def _require_trusted(self, sock: socket.socket) -> None:
        """A proxy that is asked for by its path may be another user's; it is his file, then, where he listens.
        Raises OSError."""
        uid = peers.uid_of(sock)
        if not peers.is_trusted(uid) and os.stat(self._path.path).st_uid != uid:
            raise PermissionError(errno.EPERM, f"it is not its owner who listens there, but {user_name(uid)}")


class Client:
    """Of the process that is controlled by this socket; without one, of the one that runs."""

    def __init__(self, path: str | None = None) -> None:
        """Raises `ControlError`: none runs, or several."""
        if path is not None:
            self._path = UnixPath(path)
            return
        found, others = place.running()
        if not found:
            where = place.looked_in()
            besides = f"; others' that run: {printable(', '.join(others))}" if others else ""
            raise ControlError(
                f"no udsproxy that runs was found in {where}; --control PATH (of run, too) is another{besides}"
            )
        if len(found) > 1:
            raise ControlError(f"several run; choose one with --control PATH: {', '.join(map(str, found))}")
        self._path = found[0]

    def ask(self, method: str, *path: str, body: object = None, proxy: str | None = None) -> Any:
        """The answer, decoded. ``path``: its parts. Raises `ControlError`."""
        try:
            target = "/" + "/".join(quote(part, safe="") for part in path)
            if proxy is not None:
                target += f"?proxy={quote(proxy, safe='')}"
            sent = None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError:
            raise ControlError("what was given is no UTF-8") from None
        connection = _Connection(self._path)
        try:
            connection.request(method, target, sent, {"Connection": "close"})
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read(_MOST_ANSWER))
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from None
        except (http.client.HTTPException, msgspec.DecodeError):
            raise ControlError(f"{self._path}: what answers there is no udsproxy") from None
        finally:
            connection.close()
        if response.status >= 400:
            line = answer.get("error") if isinstance(answer, dict) else None
            raise ControlError(printable(str(line or f"status {response.status}")))
        return answer
