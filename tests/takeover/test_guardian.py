"""Putting a path back, while others change what is there."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from threading import Barrier, Thread

from udsproxy.takeover.guardian import aside_of, identity, put_back


def leave_dead_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


def test_a_server_that_removes_its_path_in_that_very_moment(tmp_path: Path) -> None:
    """Whenever a server removes its path while that is put back, and ends: nothing fails, and nothing is left."""
    path = str(tmp_path / "s.sock")
    together = Barrier(2)

    def remove() -> None:
        together.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    for _ in range(300):
        leave_dead_socket(path)
        leave_dead_socket(aside_of(path))
        ours = identity(path)
        assert ours is not None
        thread = Thread(target=remove)
        thread.start()
        together.wait()
        put_back(path, {ours})
        thread.join()
        assert os.listdir(tmp_path) == []
