"""A client, or a server, in another network namespace: it is served as any other.

What accept() returns belongs to the namespace of who has connected, and sock_diag shows it there alone. An abstract
name can be used in its own namespace alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.tools import LIMIT_S, program
from tests.namespaces import ROOT
from tests.stage import Stage
from tests.transparency import test_endings
from tests.transparency.ends import BACKLOG, OneWay, Route
from udsproxy.kernel.namespaces import Namespace, within


class Elsewhere(Route):
    """Its clients' sockets are those of a container."""

    space: Namespace
    ends: str
    """Which: clients', or the server's."""

    def serve(self, backlog: int = BACKLOG) -> None:
        super().serve(backlog)
        if self.ends == "server":
            self.listener.close()
            os.unlink(self.server_path)
            self.listener = within(self.space, lambda: socket.socket(socket.AF_UNIX, self._kind))
            self.listener.settimeout(LIMIT_S)
            self.listener.bind(self.server_path)

    def client(self, kind: socket.SocketKind | None = None) -> socket.socket:
        made = super().client(kind)
        if self.ends == "server":
            return made
        with within(self.space, lambda: socket.socket(socket.AF_UNIX, made.type)) as there:
            os.dup2(there.fileno(), made.fileno())
        return made


@pytest.fixture
def space() -> Iterator[Namespace]:
    name = f"udsproxy-ends-{os.getpid()}"
    subprocess.run([program("ip"), "netns", "add", name], check=True)
    yield Namespace(0, f"/run/netns/{name}")
    subprocess.run([program("ip"), "netns", "delete", name], check=True)


if ROOT:

    @pytest.mark.parametrize("sends", ["client", "server"])
    def test_shutdowns(space: Namespace, sends: str) -> None:
        """Who has called shutdown() has not closed: a reset follows when it does, and none before."""
        with Stage() as stage:
            route = Elsewhere(stage, socket.SOCK_STREAM, proxied=True)
            route.space, route.ends = space, "clients"
            route.start()
            try:
                for check in (test_endings.test_no_reset_after_shut_rdwr, test_endings.test_reset_after_shut_rdwr):
                    client, server = route.pair()
                    check(OneWay(client, server) if sends == "client" else OneWay(server, client))
            finally:
                route.close()

    @pytest.mark.parametrize("proxied", [False, True])
    def test_replies_of_a_server_for_datagrams(space: Namespace, *, proxied: bool) -> None:
        """It answers a client that has a path."""
        with Stage() as stage:
            route = Elsewhere(stage, socket.SOCK_DGRAM, proxied=proxied)
            route.space, route.ends = space, "server"
            route.start()
            try:
                client = route.client()
                client.bind(route.new_path())
                for number in range(3):
                    client.sendto(b"question %d" % number, route.path)
                    data, address = route.listener.recvfrom(99)
                    assert data == b"question %d" % number
                    route.listener.sendto(b"answer %d" % number, address)
                    assert client.recv(99) == b"answer %d" % number
            finally:
                route.close()
