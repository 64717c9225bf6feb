"""Which socket a file is of, on file systems whose numbers deceive: always that to which connect() leads.

Rule: file systems are real, and mounted for the test's own child alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.tools import program
from tests.inspection.children import NOBODY
from tests.namespaces import ROOT, in_own_mounts, mount
from tests.sockets import inode
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.sockets import state_of
from udsproxy.kernel.server_diag import ServerDiag
from udsproxy.kernel.sock_diag import Unsure


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A short directory: a socket's path has 107 bytes."""
    name = Path(f"/tmp/udsf-{os.getpid()}")
    name.mkdir()
    yield name
    subprocess.run(["rm", "-rf", "--one-file-system", name], check=True)


def listen(path: Path | str, backlog: int = 1) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(backlog)
    return sock


def found_at(path: Path) -> int | None:
    """The inode of the socket that is told to listen there; as `ServerDiag` and `state` have it, who agree."""
    with ServerDiag() as diag:
        found = diag.listener(str(path))
    with contextlib.closing(Machine()) as machine:
        [state] = state_of(machine, str(path), Doer())
    assert state.sure
    assert state.inode == (None if found is None else found.inode)
    assert state.state == ("stale" if found is None else "listening")
    return state.inode


def check(path: Path, listener: socket.socket | None) -> None:
    """Is that the one to which connect() leads, and is that what is told?"""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        assert (client.connect_ex(str(path)) == 0) == (listener is not None)
    if listener is not None:
        listener.accept()[0].close()
    assert found_at(path) == (None if listener is None else inode(listener))


def test_two_file_systems_with_the_same_numbers(here: Path) -> None:
    """The first file of every new tmpfs has the same number: a dead socket is not taken for the live one."""

    def look() -> None:
        for name in ("one", "other"):
            (here / name).mkdir()
            mount("-t", "tmpfs", "none", str(here / name))
        with listen(here / "one/s") as one, listen(here / "other/s") as other:
            assert (here / "one/s").stat().st_ino == (here / "other/s").stat().st_ino
            check(here / "one/s", one)
            check(here / "other/s", other)
            other.close()
            check(here / "one/s", one)
            check(here / "other/s", None)

    in_own_mounts(look)


def test_bind_mounts(here: Path) -> None:
    """The same file by another mount, of a directory or of itself, is the same socket."""

    def look() -> None:
        (here / "by").mkdir()
        (here / "file").touch()
        with listen(here / "s") as listener:
            mount("--bind", str(here), str(here / "by"))
            mount("--bind", str(here / "s"), str(here / "file"))
            for path in (here / "s", here / "by/s", here / "file"):
                check(path, listener)

    in_own_mounts(look)


@pytest.mark.parametrize("layers", ["one file system", "two file systems"])
def test_overlay(here: Path, layers: str) -> None:
    """What is bound in a layer has the same name and number in the overlay, and nobody listens there; and the other
    way round."""

    def look() -> None:
        for name in ("lower", "upper", "merged"):
            (here / name).mkdir()
        mount("-t", "tmpfs", "none", str(here / "lower"))
        if layers == "two file systems":
            mount("-t", "tmpfs", "none", str(here / "upper"))
        else:
            mount("--bind", str(here / "lower"), str(here / "upper"))
        for name in ("lower/low", "upper/up", "upper/work"):
            (here / name).mkdir()
        options = f"lowerdir={here}/lower/low,upperdir={here}/upper/up,workdir={here}/upper/work"
        mount("-t", "overlay", "none", "-o", options, str(here / "merged"))
        with listen(here / "lower/low/below") as below, listen(here / "merged/above") as above:
            check(here / "lower/low/below", below)
            check(here / "merged/below", None)
            check(here / "merged/above", above)
            check(here / "upper/up/above", None)

    in_own_mounts(look)


def test_bindfs(here: Path) -> None:
    """A FUSE file system that shows another's files with their numbers."""
    if not os.access("/dev/fuse", os.W_OK):
        return

    def look() -> None:
        for name in ("source", "shown"):
            (here / name).mkdir()
        subprocess.run([program("bindfs"), here / "source", here / "shown"], check=True)
        try:
            with listen(here / "source/s") as listener, listen(here / "shown/t") as through:
                check(here / "source/s", listener)
                check(here / "shown/s", None)
                check(here / "source/t", None)
                if ROOT:
                    check(here / "shown/t", through)
        finally:
            subprocess.run(["umount", "--lazy", here / "shown"], check=True)

    in_own_mounts(look)


def on_btrfs(here: Path, look: Callable[[], None]) -> None:
    """Call it where ``one`` and ``other`` are subvolumes of one btrfs."""

    def with_btrfs() -> None:
        image = here / "image"
        with open(image, "wb") as file:
            file.truncate(120 << 20)
        subprocess.run([program("mkfs.btrfs"), "-q", image], check=True, stdout=subprocess.DEVNULL)
        (here / "b").mkdir()
        mount("-o", "loop", str(image), str(here / "b"))
        for name in ("one", "other"):
            subprocess.run(["btrfs", "-q", "subvolume", "create", here / "b" / name], check=True)
        look()

    if ROOT and os.access("/dev/loop-control", os.W_OK):
        in_own_mounts(with_btrfs)


def test_subvolumes(here: Path) -> None:
    """sock_diag names sockets in two subvolumes of a btrfs alike: which is which they tell themselves."""
    one, other = here / "b/one/s", here / "b/other/s"

    def look() -> None:
        with listen(one) as first, listen(other) as second:
            assert one.stat().st_ino == other.stat().st_ino
            check(one, first)
            check(other, second)
            second.close()
            check(one, first)
            check(other, None)

    on_btrfs(here, look)


def test_what_is_not_sure(here: Path) -> None:
    """Who may not ask the socket itself is told that it is not sure; where nobody has the file, that is; and a
    connection settles it."""
    one, other = here / "b/one/s", here / "b/other/s"

    def look() -> None:
        with listen(one) as first, listen(other) as second:
            for path in (one, other):
                path.chmod(0o777)
            os.setgroups([])
            assert ctypes.CDLL(None).setresuid(NOBODY, NOBODY, NOBODY) == 0
            with contextlib.closing(Machine()) as machine:
                found = state_of(machine, str(one), Doer())
            assert sorted((each.inode or 0, each.sure) for each in found) == sorted(
                (inode(each), False) for each in (first, second)
            )
            with ServerDiag() as diag:
                with pytest.raises(Unsure) as caught:
                    diag.listener(str(one))
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(one))
                    settled = diag.settle(caught.value, client)
                assert settled is not None
                assert settled.inode == inode(first)
            second.close()
            check(other, None)

    on_btrfs(here, look)
