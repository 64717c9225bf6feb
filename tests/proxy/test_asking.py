"""Whether somebody asks who sends is found out from the sockets of both ends; here of this process."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from udsproxy.endpoints import UnixPath
from udsproxy.proxy.asking import Asking


class Ends:
    """A server, and a client of somebody who is in between."""

    def __init__(self, directory: Path) -> None:
        self.server_path, self.path = str(directory / "server.sock"), str(directory / "p.sock")
        self.listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for listener, path in zip(self.listeners, (self.server_path, self.path), strict=True):
            listener.bind(path)
            listener.listen()
        self.asking = Asking(UnixPath(self.server_path))
        self.socks: list[socket.socket] = []

    def connect(self, path: str, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        server = listener.accept()[0]
        self.socks += [client, server]
        return client, server

    def look(self) -> bool:
        return self.asking.look([os.getpid()], self.path)

    def close(self) -> None:
        for sock in self.listeners + self.socks:
            sock.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    made = Ends(tmp_path)
    yield made
    made.close()


def ask(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)


def test_nothing_is_known_before_both_ends_were_seen(ends: Ends) -> None:
    """A listener that does not ask is a server that was seen; of clients nothing is known until one was."""
    assert ends.look()
    ends.connect(ends.path, ends.listeners[1])
    assert not ends.look()


def test_a_server_asks(ends: Ends) -> None:
    """On its listener, or on a connection."""
    ends.connect(ends.path, ends.listeners[1])
    _, server = ends.connect(ends.server_path, ends.listeners[0])
    assert not ends.look()
    ask(server)
    assert ends.look()
    server.close()
    assert not ends.look()
    ask(ends.listeners[0])
    assert ends.look()


def test_a_client_asks(ends: Ends) -> None:
    client, _ = ends.connect(ends.path, ends.listeners[1])
    assert not ends.look()
    ask(client)
    assert ends.look()


def test_nobody_is_there(tmp_path: Path) -> None:
    """Then nothing is known."""
    assert Asking(UnixPath(str(tmp_path / "nothing.sock"))).look([], "p.sock")
