"""Sockets' files that lead nowhere because of how they are mounted: what `state` and `doctor` say of them.

Rule: file systems are real, and mounted for the test's own child alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.tools import called
from tests.namespaces import in_own_mounts, mount
from udsproxy.cli.doctor import doctor as doctor_command
from udsproxy.cli.state import state as state_command
from udsproxy.inspection.mounted import Mounted
from udsproxy.kernel import mounts
from udsproxy.kernel.mounts import Mount


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A short directory: a socket's path has 107 bytes."""
    name = Path(f"/tmp/udsm-{os.getpid()}")
    name.mkdir()
    yield name
    subprocess.run(["rm", "-rf", "--one-file-system", name], check=True)


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(3)
    return sock


def state(path: Path) -> str:
    return called(state_command, str(path))[1]


def doctor(path: Path) -> str:
    return called(doctor_command, str(path))[1].replace("\n           ", " ")


def refused(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) != 0


def test_a_stale_bind_mount(here: Path) -> None:
    """A mount of the file itself leads to the old socket when the server was restarted: that is said, and where the
    server is now; while it leads to the server, nothing is."""

    def look() -> None:
        run, mounted = here / "run", here / "m.sock"
        run.mkdir()
        mounted.touch()
        with listen(run / "s.sock"):
            mount("--bind", str(run / "s.sock"), str(mounted))
            assert "stream, listening" in state(mounted)
        os.unlink(run / "s.sock")
        with listen(run / "s.sock"):
            assert refused(mounted)
            text = state(mounted)
            assert "a stale bind mount: the file that is mounted here" in text
            assert f", pid {os.getpid()}, listens at {run}/s.sock now: clients get ECONNREFUSED" in text
            assert f"Mount the directory {run} instead of the socket's file" in text
            assert doctor(mounted).startswith("problem: a stale bind mount: clients get ECONNREFUSED\n")
            assert "server was killed" not in doctor(mounted)
        text = state(mounted)
        assert "a stale bind mount: the file that is mounted here" in text
        assert "listens at" not in text

    in_own_mounts(look)


def test_an_overlay(here: Path) -> None:
    """A server in a layer is not reached through the overlay, and the other way round: the server is named, and its
    path. Of a dead one an overlay is only told as a possible cause."""

    def look() -> None:
        mount("-t", "tmpfs", "none", str(here))
        lower, merged = here / "lower", here / "merged"
        for name in ("lower", "upper", "work", "merged"):
            (here / name).mkdir()
        with listen(lower / "in, lower"), listen(lower / "dead"):
            options = f"lowerdir={lower},upperdir={here}/upper,workdir={here}/work"
            mount("-t", "overlay", "none", "-o", options, str(merged))
            path = merged / "in, lower"
            assert refused(path)
            assert f", pid {os.getpid()}) listens at {lower}/in, lower, a layer of this overlay" in state(path)
            assert "problem: the server is not reached by this path: clients get ECONNREFUSED\n" in doctor(path)
        with listen(merged / "above"):
            path = here / "upper/above"
            assert refused(path)
            assert f"listens at {merged}/above, in an overlay that this is a layer of" in state(path)
        text = state(merged / "above")
        assert "  nobody listens behind this file: clients get ECONNREFUSED\n  it is on an overlay: " in text
        text = doctor(merged / "above")
        assert text.startswith("problem: nobody listens: clients get ECONNREFUSED\n")
        assert "Or: it is on an overlay: " in text

    in_own_mounts(look)


def test_another_machines_file_system() -> None:
    """What is served by others is told as a possible cause only."""
    told = Mounted(why="remote", kind="nfs4")
    assert not told.is_sure
    assert told.text.startswith("it is on nfs4: a server on another machine")


def test_a_line() -> None:
    """Every field of a line; escapes are undone, and layers are in their order."""
    line = (
        r"36 35 8:1 /a\040b//deleted /mnt/x\134y rw,noatime shared:1 master:2 - overlay none "
        r"rw,lowerdir=/l\:1:/l2,upperdir=/up,workdir=/w"
    )
    [found] = mounts.parse(f"garbage\n{line}\n")
    assert found == Mount(
        36, 8 << 20 | 1, "/a b//deleted", "/mnt/x\\y", "overlay", r"rw,lowerdir=/l\:1:/l2,upperdir=/up,workdir=/w"
    )
    assert found.is_replaced
    assert found.source == "/a b"
    assert found.layers == ["/up", "/l:1", "/l2"]


@given(st.text())
def test_any_text(text: str) -> None:
    """Nothing is raised, whatever a file system puts among its options."""
    for found in mounts.parse(f"1 2 3:4 / / rw - x y {text}\n{text}"):
        assert isinstance(found.layers, list)
