"""Who serves a listening socket: real processes, and families that are only numbers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from tests.sockets import inode
from udsproxy.inspection.roles import Role, count_servers, roles_of

MASTER = """
import os, sys
children = []
while len(children) < 3 and (child := os.fork()):
    children.append(child)
if len(children) == 3:
    print("!", flush=True)
sys.stdin.read()
"""


def test_counted() -> None:
    """A master and its children hold the listener that they inherited; the children are those who serve."""
    with socket.socket(socket.AF_UNIX) as listener:
        assert count_servers(inode(listener)) == 1
        with subprocess.Popen(
            [sys.executable, "-c", MASTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        ) as master:
            assert master.stdout is not None
            assert master.stdout.readline() == b"!\n"
            assert count_servers(inode(listener)) == 3
            master.communicate()
    assert count_servers(os.stat("/").st_ino << 40) == 0


@pytest.mark.parametrize(
    ("parents", "connections", "waiting", "expected"),
    [
        pytest.param({1: 0}, (), (), {1: "server"}, id="alone"),
        pytest.param({1: 0, 2: 1, 3: 1}, (), (), {1: "master", 2: "server", 3: "server"}, id="prefork"),
        pytest.param({1: 0, 2: 1, 3: 1}, (), (1,), {1: "server", 2: "server", 3: "server"}, id="accepts itself"),
        pytest.param({1: 0, 2: 1}, ({1},), (), {1: "server", 2: "server"}, id="serves itself"),
        pytest.param(
            {1: 0, 2: 1, 3: 2}, ({2, 3},), (), {1: "master", 2: "server", 3: "heir"}, id="a script's program"
        ),
        pytest.param(
            {1: 0, 2: 1, 3: 2, 4: 3},
            ({2, 3},),
            (),
            {1: "master", 2: "server", 3: "heir", 4: "heir"},
            id="a script's program's program",
        ),
        pytest.param(
            {1: 0, 2: 1}, ({1, 2},), (2,), {1: "server", 2: "server"}, id="forked with a connection, accepts"
        ),
        pytest.param({1: 2, 2: 1}, ({3, 4},), (), {1: "master", 2: "master"}, id="an impossible family"),
    ],
)
def test_families(
    parents: dict[int, int], connections: tuple[set[int], ...], waiting: tuple[int, ...], expected: dict[int, Role]
) -> None:
    """Whose parents are whose, who has which connection, and who waits at the socket, tell who serves it."""
    assert roles_of(list(parents), parents.get, connections, waiting) == expected
