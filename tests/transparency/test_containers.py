"""A client in another network namespace: what it has done with its end is seen as of any other.

What accept() returns belongs to the namespace of who has connected, and sock_diag shows it there alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.tools import program
from tests.namespaces import ROOT
from tests.stage import Stage
from tests.transparency import test_endings
from tests.transparency.ends import OneWay, Route
from udsproxy.kernel.namespaces import Namespace, within


class Elsewhere(Route):
    """Its clients' sockets are those of a container."""

    space: Namespace

    def client(self, kind: socket.SocketKind | None = None) -> socket.socket:
        made = super().client(kind)
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
            route.space = space
            route.start()
            try:
                for check in (test_endings.test_no_reset_after_shut_rdwr, test_endings.test_reset_after_shut_rdwr):
                    client, server = route.pair()
                    check(OneWay(client, server) if sends == "client" else OneWay(server, client))
            finally:
                route.close()
