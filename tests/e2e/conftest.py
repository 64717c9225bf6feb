"""The fixtures: a stage, proxies and taps on it, and the site of nginx and php-fpm.

Rule: the standard error of every proxy is checked at its end, in whatever test it ran (`Running.check`).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.site import Site
from tests.e2e.tap import StartTap, Tap
from tests.stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A directory and processes, for one test."""
    with Stage() as stage:
        yield stage


@pytest.fixture
def start_proxy(stage: Stage) -> Iterator[StartProxy]:
    """Starts proxies on the test's stage."""
    started: list[Proxy] = []

    def start(listen: str, upstream: str, *options: str, **settings: list[str]) -> Proxy:
        started.append(Proxy(stage, listen, upstream, *options, **settings))
        return started[-1]

    yield start
    for proxy in started:
        proxy.end()


@pytest.fixture
def start_tap(stage: Stage) -> Iterator[StartTap]:
    """Starts taps on the test's stage."""
    started: list[Tap] = []

    def start(path: str, *options: str, **settings: list[str]) -> Tap:
        started.append(Tap(stage, path, *options, **settings))
        return started[-1]

    yield start
    for tap in started:
        tap.end()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """The site that the tests of a module share: each looks for what its own requests left."""
    with Stage() as stage:
        site = Site(stage)
        yield site
        site.proxy.end()


@pytest.fixture
def fresh_site(stage: Stage) -> Iterator[Site]:
    """A site for one test alone."""
    site = Site(stage)
    yield site
    site.proxy.end()
