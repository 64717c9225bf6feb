"""Asks a process that runs."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import struct
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
_UCRED = struct.Struct("3i")


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
            raise PermissionError(
                errno.EPERM, f"its owner is not the one who listens there: that is {user_name(uid)}"
            )


class Client:
    """Of the process that is controlled by this socket."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = 0
        self.uid = 0
        """Who listens there, and as which user (SO_PEERCRED); known when it was asked something."""

    def ask(self, method: str, *path: str, body: object = None, proxy: str | None = None) -> Any:
        """The answer, decoded. ``path``: its parts. Raises `ControlError`."""
        try:
            target = "/" + "/".join(quote(part, safe="") for part in path)
            if proxy is not None:
                target += f"?proxy={quote(proxy, safe='')}"
            sent = None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError:
            raise ControlError("the arguments are not UTF-8") from None
        connection = _Connection(UnixPath(self.path))
        try:
            connection.connect()
            self.pid, self.uid = peers.credentials_of(connection.sock)
            connection.request(method, target, sent, {"Connection": "close"})
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read(_MOST_ANSWER))
        except OSError as error:
            raise ControlError(f"{printable(self.path)}: {error.strerror or error}") from None
        except (http.client.HTTPException, msgspec.DecodeError):
            raise self.stranger() from None
        finally:
            connection.close()
        if response.status >= 400:
            line = answer.get("error") if isinstance(answer, dict) else None
            raise ControlError(printable(str(line or f"status {response.status}")))
        return answer

    def stranger(self) -> ControlError:
        """It does not speak as it should."""
        return ControlError(f"{printable(self.path)}: what answers there is not a udsproxy")
