"""Whose a refused connect() was: two sockets, real clients that are refused at each, and the kernel that counts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns

import pytest

from tests.kernel.test_refusals import refuse, refuse_as_nginx
from tests.sockets import inode
from tests.stage import REPOSITORY
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.refused import Refusers
from udsproxy.inspection.workers import Ask, Counted
from udsproxy.kernel.refusals import Refusals

ROOT = os.geteuid() == 0


@contextlib.contextmanager
def full(name: str) -> Iterator[int]:
    """A socket that takes one client. Its inode."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen(0)
        yield inode(listener)


def asked(refusers: Refusers, proxy: str, door: int, *clients: int, count: bool = True) -> Counted | None:
    made: list[Machine] = []

    def machine() -> Machine:
        made.append(Machine())
        return made[-1]

    try:
        return refusers.told(Ask(number=1, proxy=proxy, count_refusals=count, door=door, clients=clients), machine)
    finally:
        for each in made:
            each.close()


@pytest.fixture
def refusers() -> Iterator[Refusers]:
    made = Refusers()
    yield made
    made.close()


def test_nothing_is_counted_that_nobody_asked_for(refusers: Refusers) -> None:
    """Who does not want it counted is told nothing, and the kernel does not trace."""
    assert asked(refusers, "p", 0, count=False) is None
    assert refusers.descriptors == []


if not ROOT:

    def test_without_the_right(refusers: Refusers) -> None:
        """Where the kernel does not let us count, it is said why, and that is no count of none."""
        assert asked(refusers, "p", 0) is None
        assert refusers.why_not == "the kernel's tracing takes root"


if ROOT:

    def test_each_at_its_own_socket(refusers: Refusers, tmp_path: Path) -> None:
        """A process that is a client of two proxies (nginx with two pools) and is refused at both, and at a third
        socket that is nobody's: each proxy is told of those at its own."""
        me = os.getpid()
        names = ["\0udsproxy-refused", str(tmp_path / "b"), str(tmp_path / "c")]
        with contextlib.ExitStack() as stack:
            doors = [stack.enter_context(full(name)) for name in names]
            for proxy, door in zip("ab", doors, strict=False):
                first = asked(refusers, proxy, door, me)
                assert first is not None
                assert first.count == 0
            began = monotonic_ns()
            kept = [refuse_as_nginx(os.fsencode(name), 2 + at) for at, name in enumerate(names)]
            ended = monotonic_ns()
            for proxy, door, count in zip("ab", doors, (2, 3), strict=False):
                found = asked(refusers, proxy, door, me)
                assert found is not None
                assert (found.count, found.missed) == (count, 0)
                assert began < found.first < found.last < ended
                again = asked(refusers, proxy, door, me)
                assert again is not None
                assert again.count == 0
            assert len(kept) == 3

    def test_a_name_that_cannot_be_read_is_its_clients(refusers: Refusers) -> None:
        """Where the address is overwritten by the time that it is looked at, a refusal counts for the proxy whose
        client it is, which may be known a little later only."""
        for proxy in "ab":
            asked(refusers, proxy, 0)
        refuse(4)
        for proxy in "ab":
            found = asked(refusers, proxy, 0)
            assert found is not None
            assert found.count == 0
        found = asked(refusers, "b", 0, os.getpid())
        assert found is not None
        assert found.count == 4

    def test_nothing_is_missed_while_the_observer_starts() -> None:
        """What a parent has begun to count its child tells, to each proxy, with the time since when."""
        parent = Refusals(for_child=True)
        parent.count(on=True)
        refuse(3)
        code = f"""
import sys
sys.path.insert(0, {REPOSITORY!r})
from tests.inspection.test_refused import asked, refuse
from udsproxy.inspection.refused import Refusers
refusers = Refusers([int(each) for each in sys.argv[3:]], int(sys.argv[2]))
first = asked(refusers, "a", 0, int(sys.argv[1]))
print(first.count, asked(refusers, "b", 0, int(sys.argv[1])).count, first.since == int(sys.argv[2]))
refusers.close()
"""
        handed = parent.descriptors
        argv = [sys.executable, "-c", code, str(os.getpid()), str(monotonic_ns()), *map(str, handed)]
        done = subprocess.run(argv, pass_fds=handed, capture_output=True, cwd=REPOSITORY, check=False)
        parent.close()
        assert done.stdout == b"3 3 True\n", done.stderr

    def test_it_rests(refusers: Refusers) -> None:
        """Where nobody asks any more, and where nobody wants it any more, the kernel counts no longer."""
        asked(refusers, "a", 0)
        assert refusers.descriptors
        refusers.rest()
        assert refusers.descriptors == []
        asked(refusers, "a", 0)
        asked(refusers, "b", 0)
        asked(refusers, "a", 0, count=False)
        assert refusers.descriptors
        asked(refusers, "b", 0, count=False)
        assert refusers.descriptors == []
