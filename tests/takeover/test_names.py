"""Putting a path back, while others change what is there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from threading import Barrier, Thread

import pytest

from udsproxy.kernel.directory import Directory, Identity
from udsproxy.takeover.names import STEPS, File, Known, Names, is_stood_down, look, put_back, stand_down, stand_up


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Names]:
    """A path in a directory that is held open."""
    directory = Directory(str(tmp_path))
    yield Names(directory, "s.sock")
    directory.close()


def make_socket(names: Names, name: str) -> Identity:
    """A socket that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(names.directory.path_of(name))
    made = names.directory.identity(name)
    assert made is not None
    return made


def make(names: Names, name: str, file: File) -> Identity | None:
    if file is File.NOTHING:
        return None
    if file is File.OTHER:
        Path(names.directory.path_of(name)).write_text("somebody's")
        return None
    return make_socket(names, name)


@pytest.mark.parametrize("lives", [True, False], ids=["server lives", "server dead"])
@pytest.mark.parametrize(("here", "beside"), list(product(File, File)))
def test_every_case(names: Names, here: File, beside: File, lives: bool) -> None:
    """Whatever has the two names: what is not known is not removed; nothing of ours is left; and
    to do it twice is to do it once."""
    made = {names.name: make(names, names.name, here), names.aside: make(names, names.aside, beside)}
    kinds = {names.name: here, names.aside: beside}
    known = Known(
        *({made[name] for name, kind in kinds.items() if kind is file} for file in (File.OURS, File.REAL))
    )
    strangers = {
        names.directory.identity(name) for name, kind in kinds.items() if kind in (File.SOCKET, File.OTHER)
    }
    put_back(names, known, lambda _: lives)
    left = {name: look(names, name, known) for name in os.listdir(names.directory.path)}
    assert File.OURS not in left.values()
    assert strangers <= {names.directory.identity(name) for name in left}
    if File.REAL in (here, beside) and lives and here in (File.OURS, File.NOTHING):
        assert left == {names.name: File.REAL}
    put_back(names, known, lambda _: lives)
    assert left == {name: look(names, name, known) for name in os.listdir(names.directory.path)}


def test_the_table_is_whole() -> None:
    """There is a step for whatever two files have the names."""
    assert STEPS.keys() == set(product(File, File))


def test_a_server_that_removes_its_path_in_that_very_moment(names: Names) -> None:
    """Whenever a server removes its path while that is put back, and ends: nothing fails, and nothing is left."""
    together = Barrier(2)

    def remove() -> None:
        together.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(names.path)

    for _ in range(300):
        known = Known({make_socket(names, names.name)}, {make_socket(names, names.aside)})
        thread = Thread(target=remove)
        thread.start()
        together.wait()
        put_back(names, known)
        thread.join()
        assert os.listdir(names.directory.path) == []


def test_standing_down_and_up(names: Names) -> None:
    """While we stand still the real socket has the path, and ours is kept beside it."""
    ours, real = make_socket(names, names.name), make_socket(names, names.aside)
    known = Known({ours}, {real})
    assert stand_down(names, known)
    assert not stand_down(names, known)
    assert (names.directory.identity(names.name), names.directory.identity(names.aside)) == (real, ours)
    assert is_stood_down(names, known)
    assert stand_up(names, known)
    assert not stand_up(names, known)
    assert (names.directory.identity(names.name), names.directory.identity(names.aside)) == (ours, real)


def test_not_standing_up_over_another_server(names: Names) -> None:
    """Where another socket has come to the path while we stood still, it keeps it."""
    ours, real = make_socket(names, names.name), make_socket(names, names.aside)
    known = Known({ours}, {real})
    assert stand_down(names, known)
    pinned = names.directory.pin(names.name)  # as we do: the other gets another inode
    os.unlink(names.path)
    another = make_socket(names, names.name)
    os.close(pinned)
    assert not stand_up(names, known)
    assert names.directory.identity(names.name) == another


def test_two_do_not_work_at_once(names: Names) -> None:
    """While one holds the lock of a directory another does not get it, and goes on after a while."""
    with names.directory.locked(0) as first, names.directory.locked(0) as second:
        assert (first, second) == (True, False)
    with names.directory.locked(0) as again:
        assert again
