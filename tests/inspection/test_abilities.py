"""What needs which capability: the table against the kernel, and what is said of it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from tempfile import TemporaryDirectory

import pytest

from tests.inspection.children import in_a_child
from udsproxy.inspection.abilities import ABILITIES, CALLS, REFUSALS, WORKERS, Ability, how_to_have, lost

NOBODY = 65534
ALL = (1 << 41) - 1
NUMBERS = {"dac_override": 1, "dac_read_search": 2, "sys_ptrace": 19, "sys_admin": 21, "perfmon": 38}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have capabilities to take away")

_PR_SET_KEEPCAPS, _CAPABILITY_VERSION_3 = 8, 0x20080522


def without(*names: str) -> int:
    """All capabilities but these."""
    return ALL & ~sum(1 << NUMBERS[name] for name in names)


class Server:
    """A socket of our own, in a directory that everybody may enter."""

    def __init__(self, directory: str) -> None:
        os.chmod(directory, 0o755)
        self.path = f"{directory}/s"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(1)


@pytest.fixture
def server() -> Iterator[Server]:
    with TemporaryDirectory() as directory:
        made = Server(directory)
        with made.listener:
            yield made


def hold(capabilities: int) -> None:
    """This process becomes nobody, with these capabilities (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    low, high = capabilities & 0xFFFFFFFF, capabilities >> 32
    sets = struct.pack("=6I", low, low, 0, high, high, 0)
    assert libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), sets) == 0


def unseen_with(capabilities: int, server: Server) -> str:
    """What nobody with these capabilities is told that he will not see."""

    def told() -> str:
        server.listener.close()  # else it would be this child that is seen
        hold(capabilities)
        return " / ".join(each.lost for each in lost([server.path]))

    return in_a_child(told)


def test_of_a_server_of_our_own_all_is_seen(server: Server) -> None:
    """Also without any capability; and of one that is not there nothing can be said."""
    assert lost([server.path], 0) == []
    assert lost([f"{server.path}.gone", b"gone"], 0) == []
    assert lost([], 0) == []


@needs_root
@pytest.mark.parametrize(
    ("held", "hidden"),
    [
        ([], ABILITIES),
        (["sys_ptrace"], ABILITIES),
        (["dac_read_search"], ABILITIES),
        (["sys_ptrace", "dac_read_search"], ()),
        (["sys_ptrace", "dac_override"], ()),
    ],
)
def test_what_somebody_else_sees_of_roots_server(
    server: Server, held: list[str], hidden: tuple[Ability, ...]
) -> None:
    """Just these capabilities are enough for whoever is not root: what is said is what the kernel shows."""
    capabilities = sum(1 << NUMBERS[name] for name in held)
    assert unseen_with(capabilities, server) == " / ".join(each.lost for each in ABILITIES if each in hidden)


@pytest.mark.parametrize(
    ("abilities", "held", "uid", "says"),
    [
        ([WORKERS], 0, 33, "run udsproxy as root, or with CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"),
        (ABILITIES, 0, 33, "run udsproxy as root, or with CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE and CAP_PERFMON"),
        ([WORKERS, CALLS], without("sys_ptrace"), 0, "run udsproxy with CAP_SYS_PTRACE"),
        ([REFUSALS], without("perfmon", "sys_admin"), 0, "run udsproxy with CAP_PERFMON"),
        ([WORKERS], without("dac_read_search"), 0, "run udsproxy as root, outside of this container"),
        ([WORKERS], ALL, 0, "run udsproxy as root, outside of this container"),
    ],
)
def test_how_to_have_it(abilities: list[Ability], held: int, uid: int, says: str) -> None:
    """Only what is missing is named; of several that would do, the narrowest."""
    assert how_to_have(abilities, held, uid) == says
