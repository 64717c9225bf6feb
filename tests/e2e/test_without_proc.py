"""Without /proc (a chroot, a container in the making): each command that needs it says so in a line."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.starts import start_each
from tests.e2e.tools import UDSPROXY, EchoServer, program
from tests.stage import Stage

NEEDS_IT = "udsproxy: /proc is not mounted here, and this needs it: mount -t proc proc /proc\n"
NOT_SEEN = "processes: /proc is not mounted (mount -t proc proc /proc)"


@pytest.fixture
def upstream(stage: Stage) -> Iterator[str]:
    """The path of an echo server's socket."""
    with EchoServer(stage.path("up.sock")):
        yield stage.path("up.sock")


def test_without_proc(stage: Stage, upstream: str) -> None:
    """What makes sockets refuses, and touches nothing; what only looks says what it could not see; what needs no
    /proc works. No traceback."""
    fcgi = stage.path("fcgi.sock")
    stage.spawn("udsproxy serve", [*UDSPROXY, "serve", fcgi], stage.path("serve.out"))
    stage.await_socket(fcgi)
    before = os.lstat(upstream).st_ino
    refused = (
        ["run", stage.path("p.sock"), upstream],
        ["tap", upstream],
        ["tap", "--restore", upstream],
        ["serve", stage.path("t.sock")],
        ["demo"],
    )
    looking = (
        ["state"],
        ["state", upstream],
        ["state", "--json", upstream],
        ["doctor", upstream],
        ["doctor", "@x"],
    )
    working = (
        ["explain", "EAGAIN"],
        ["request", fcgi],
        ["request", fcgi, "-n", "2"],
        ["fault", "kinds"],
        ["run", "a", "b", "--check"],
        ["--help"],
    )
    wrap = [program("unshare"), *(() if os.getuid() == 0 else ("-r",)), "-m"]
    wrap += ["sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]
    cases = [*refused, *looking, *working, ["fault", "list", "--control", upstream]]
    done = dict(zip(map(tuple, cases), start_each(stage, [(words, []) for words in cases], wrap), strict=True))
    for words in refused:
        assert (words, done[tuple(words)]) == (words, (1, "", NEEDS_IT))
    for words in looking:
        code, output, error = done[tuple(words)]
        assert (words, code, error) == (words, int("@x" in words), "")
        assert NOT_SEEN in output
    for words in working:
        code, output, error = done[tuple(words)]
        assert (words, code) == (words, 0)
        assert output
        assert "Traceback" not in error
    assert done["fault", "list", "--control", upstream].code == 1
    assert os.lstat(upstream).st_ino == before
    assert not os.path.exists(stage.path("p.sock"))
