"""The socket that is looked at, by the paths that configurations have for it."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from udsproxy.doctor.known import KnownSocket
from udsproxy.kernel.roots import Root


@pytest.fixture
def path(tmp_path: Path) -> str:
    os.mknod(tmp_path / "x.sock", stat.S_IFSOCK | 0o660)
    return str(tmp_path / "x.sock")


def test_paths_here(path: str) -> None:
    """Its own path, links to it and to directories above it, other names of its file; nothing else."""
    directory = os.path.dirname(path)
    os.symlink(path, f"{directory}/link")
    os.symlink(directory, f"{directory}/same")
    os.link(path, f"{directory}/other")
    seen = KnownSocket(path, "/bound/elsewhere").known_as({"/behind/it"}).seen_from(Root())
    for name in ("x.sock", "./x.sock", "link", "same/x.sock", "other"):
        assert seen.is_same(f"{directory}/{name}"), name
    assert seen.is_same("/behind/it")
    for name in ("/bound/elsewhere", "/none", f"{directory}/none", "x.sock", "", "\0", f"{directory}/x\0"):
        assert not seen.is_same(name), name


def test_a_path_that_is_not_there() -> None:
    """It is known by its name."""
    seen = KnownSocket("/run/none.sock").seen_from(Root())
    assert seen.is_same("/run/../run/none.sock")
    assert not seen.is_same("/run/other.sock")


def test_an_abstract_name() -> None:
    """No path leads to it, but for that of a server behind it."""
    known = KnownSocket(None)
    assert not known.seen_from(Root()).is_same("/run/x.sock")
    assert known.known_as(["/run/x.sock"]).seen_from(Root()).is_same("/run/x.sock")
    assert known.names == ()


def test_paths_below_another_root(path: str) -> None:
    """There the file decides, or the name that the server has bound; our own name for it means nothing."""
    directory = os.path.dirname(path)
    with closing(Root.at(directory)) as root:
        seen = KnownSocket(path, "/run/php/x.sock").seen_from(root)
        assert seen.is_same("/x.sock")
        assert seen.is_same("/run/php/x.sock")
        assert not seen.is_same(path)
        assert seen.leads_there == {"/x.sock": True, "/run/php/x.sock": False}
        way = seen.way()
        assert way is not None
        assert [each.path for each in way] == ["/", "/x.sock"]
        assert way[-1].mode == stat.S_IMODE(os.stat(path).st_mode)


def test_another_file_below_another_root(path: str, tmp_path: Path) -> None:
    """A path that is called like the socket there, and is not its file, is no way to it; of none there is nothing
    to say."""
    (tmp_path / "empty").mkdir()
    with closing(Root.at(str(tmp_path / "empty"))) as root:
        seen = KnownSocket(path, "/run/x.sock").seen_from(root)
        assert seen.way() is None
        assert seen.is_same("/run/x.sock")
        assert seen.way() == ()
    with closing(Root()) as root:
        ours = KnownSocket(path).seen_from(root)
        assert ours.is_same(path)
        assert ours.way() is None


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file, a file that is no socket, and a socket that was left; one that somebody has is not."""
    (tmp_path / "file").touch()
    seen = KnownSocket(None).seen_from(Root())
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as left:
        monkeypatch.chdir(tmp_path)  # (a path of a test may be too long for a socket)
        listener.bind("used")
        listener.listen()
        left.bind("left")
        left.close()
        told = {name: seen.missing(str(tmp_path / name)) for name in ("none", "file/x", "file", "left", "used")}
    assert told == {
        "none": "no such file",
        "file/x": "no such file",
        "file": "a file, and no socket",
        "left": "a socket that nobody has",
        "used": None,
    }
