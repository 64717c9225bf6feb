"""Who waits in an accept queue, found out from real sockets; time is the test's."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic_ns

import pytest

from udsproxy.kernel.sock_diag import SockDiag
from udsproxy.protocols.decoder import AcceptWait
from udsproxy.proxy.waits import LAST_NS, Waiting, Waits


class Connection:
    """A connection to the test's listener."""

    def __init__(self, path: str) -> None:
        self.upstream = socket.socket(socket.AF_UNIX)
        self.upstream.connect(path)
        self.left_queue = self.answered = False
        self.wait: AcceptWait | None = AcceptWait(0)


class Place:
    """A listener, connections to it, and the calls that were asked for."""

    def __init__(self, directory: Path) -> None:
        self._path = os.path.relpath(directory / "s")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self._path)
        self.listener.listen(1000)
        self.asked: list[tuple[int, Callable[[int], None]]] = []
        self.told: list[Waiting] = []
        self.connections: list[Connection] = []
        self.accepted: list[socket.socket] = []
        self._diag = SockDiag()
        self.waits = Waits(lambda at, call: self.asked.append((at, call)), self._diag)
        self.waits.accepted = self.told.append

    def come(self, count: int) -> None:
        for _ in range(count):
            self.connections.append(Connection(self._path))
            self.waits.add(self.connections[-1])

    def accept(self, count: int) -> None:
        self.accepted += [self.listener.accept()[0] for _ in range(count)]

    def look(self) -> None:
        """Make the call that was asked for last."""
        at, call = self.asked[-1]
        call(at)

    def close(self) -> None:
        self._diag.close()
        for sock in [self.listener, *self.accepted, *(each.upstream for each in self.connections)]:
            sock.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("accepted", [0, 1, 2, 3, 7, 8, 9, 30, 31, 32])
def test_the_first_so_many(place: Place, accepted: int) -> None:
    """Of 32 that wait, exactly those that were accepted are told, in their order."""
    place.come(32)
    place.accept(accepted)
    place.look()
    assert place.told == place.connections[:accepted]
    assert len(place.waits) == 32 - accepted
    assert (place.waits.since is None) == (accepted == 32)


def test_what_is_known_of_a_wait(place: Place) -> None:
    """It lies between the last look at which it waited and the first at which it did not."""
    place.come(1)
    wait = place.connections[0].wait
    assert wait is not None
    assert wait.known(None) is None
    place.look()
    assert wait.known(None) is None
    place.accept(1)
    place.look()
    known = wait.known(None)
    assert known is not None
    least, most = known[0] - known[1], known[0] + known[1]
    assert 0 < least < most
    # An answer that came before that look bounds it too.
    assert wait.known(int((least + most) / 2 * 1e9)) == pytest.approx(
        (least + (most - least) / 4, (most - least) / 4), abs=1e-6
    )


def test_who_was_answered_is_not_asked_for(place: Place) -> None:
    """Those who were answered before the first look leave without one, and nobody is told of them."""
    place.come(3)
    for each in place.connections:
        each.left_queue = each.answered = True
    place.look()
    assert (len(place.waits), place.told, place.waits.since) == (0, [], None)


def test_who_left_without_an_answer(place: Place) -> None:
    """Nothing is known of how long somebody waited who has left while waiting."""
    place.come(2)
    place.look()
    place.connections[0].left_queue = True
    place.look()
    wait = place.connections[0].wait
    assert wait is not None
    assert wait.known(None) is None
    assert place.told == []
    assert len(place.waits) == 1


def test_looks_are_had_while_somebody_waits(place: Place) -> None:
    """The pause between two of them grows to its limit; when nobody waits there are no more."""
    place.come(1)
    for _ in range(30):
        place.look()
    before = monotonic_ns()
    place.look()
    assert place.asked[-1][0] - before >= LAST_NS
    place.accept(1)
    place.look()
    place.look()
    count = len(place.asked)
    place.look()
    assert len(place.asked) == count


def test_a_connection_that_ends_brings_a_look(place: Place) -> None:
    """A worker whose connection has ended takes the next: that is looked at soon, and the earlier call counts no
    more."""
    place.come(2)
    for _ in range(30):
        place.look()
    late = place.asked[-1]
    place.waits.freed()
    assert place.asked[-1][0] < late[0]
    place.accept(1)
    late[1](late[0])
    assert place.told == []
    place.look()
    assert place.told == place.connections[:1]


def test_those_ahead_count(place: Place) -> None:
    """Somebody for whom a connection was made ahead waits too; who begins to wait is told of once."""
    crowded: list[bool] = []
    place.waits.crowded = lambda: crowded.append(True)
    place.waits.wait_ahead(5)
    place.waits.wait_ahead(7)
    assert (place.waits.since, crowded) == (5, [True])
    place.waits.wait_ahead(None)
    assert place.waits.since is None


def test_a_queue_that_empties_again_and_again(place: Place) -> None:
    """Where those who wait are others at each look, the queue may have been empty meanwhile: it is not since the
    first of these has come."""
    place.come(1)
    place.look()
    first = place.waits.since
    place.accept(1)
    place.come(1)
    wait = place.connections[1].wait
    assert wait is not None
    wait.connected_at = monotonic_ns()
    place.look()
    assert first == 0
    assert place.waits.since == wait.connected_at


def test_nobody_is_kept_where_nobody_looks(place: Place) -> None:
    """Who has ended is forgotten, also behind one who says nothing for ever; and where nobody wants to know, nobody
    is kept at all."""
    place.come(1)
    for _ in range(300):
        place.come(1)
        place.connections[-1].left_queue = True
    assert len(place.waits) < 200
    place.waits.accepted = None
    before = len(place.waits)
    place.come(1)
    assert len(place.waits) == before


def test_who_left_says_nothing_of_those_before(place: Place) -> None:
    """Somebody in the middle has left without an answer: nobody was accepted for that."""
    place.come(8)
    for number in (1, 3, 7):
        place.connections[number].left_queue = True
    place.look()
    assert place.told == []
    assert len(place.waits) == 5
    place.accept(3)
    place.look()
    assert place.told == [place.connections[0], place.connections[2]]
