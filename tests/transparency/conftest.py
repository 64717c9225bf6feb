"""The fixtures: a route for all tests of a module, and one for a test alone; each once direct, once proxied.

Rule: the proxy's standard error is checked at its end.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.stage import Stage
from tests.transparency.ends import Burst, OneWay, Route


@pytest.fixture(scope="module")
def kind() -> socket.SocketKind:
    """The type of the sockets; modules about another one have a fixture of their own."""
    return socket.SOCK_STREAM


@pytest.fixture(scope="module")
def options() -> tuple[str, ...]:
    """Of the proxy; modules that need some have a fixture of their own."""
    return ()


@pytest.fixture(scope="module", params=["direct", "proxied"])
def proxied(request: pytest.FixtureRequest) -> bool:
    """Is there a proxy between?"""
    return bool(request.param == "proxied")


@pytest.fixture(scope="module")
def shared_route(kind: socket.SocketKind, proxied: bool, options: tuple[str, ...]) -> Iterator[Route]:
    """The module's. Tests take `route`."""
    with Stage() as stage:
        route = Route(stage, kind, proxied=proxied, options=options)
        try:
            route.start()
            yield route
        finally:
            route.close()


@pytest.fixture
def route(shared_route: Route) -> Iterator[Route]:
    """A route with a server that listens, and nothing on the way."""
    shared_route.drain()
    yield shared_route
    shared_route.clear()


@pytest.fixture
def fresh(kind: socket.SocketKind, proxied: bool, options: tuple[str, ...]) -> Iterator[Route]:
    """A route of the test's own, with neither server nor proxy yet."""
    with Stage() as stage:
        route = Route(stage, kind, proxied=proxied, options=options)
        yield route
        route.close()


@pytest.fixture(params=["client_sends", "server_sends"])
def one_way(route: Route, request: pytest.FixtureRequest) -> OneWay:
    """A connection, used in each of its directions."""
    client, server = route.pair()
    return OneWay(client, server) if request.param == "client_sends" else OneWay(server, client)


@pytest.fixture(params=["as_it_comes", "at_once"])
def burst(request: pytest.FixtureRequest) -> Burst:
    """What happens in ``with burst(route)`` a proxy meets as it comes, and once more all of it at once."""
    return Route.stalled if request.param == "at_once" else lambda _: nullcontext()
