"""Whether the sockets of a process ask who sends. (Of this one: another takes the right to trace it.)"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from udsproxy.kernel.passcred import who_asks


def test_only_what_is_meant_is_asked(tmp_path: Path) -> None:
    """Each socket that is meant says whether it has SO_PASSCRED; the others and files are left alone."""
    path = str(tmp_path / "s.sock")
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as client,
        socket.socket(socket.AF_INET),
        open(os.devnull, "rb"),
    ):
        listener.bind(path)
        listener.listen()
        client.connect(path)
        with listener.accept()[0] as server:

            def of_server() -> list[bool]:
                return who_asks(os.getpid(), lambda sock: sock.getsockname() == path)

            assert of_server() == [False, False]
            server.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            assert sorted(of_server()) == [False, True]
            assert who_asks(os.getpid(), lambda sock: sock.getpeername() == path) == [False]
            client.send(b"x")
            assert server.recv(1) == b"x", "it is the same socket, and as it was"


def test_a_process_that_has_gone() -> None:
    """Nothing is known of it."""
    assert who_asks(2**22, lambda _: True) == []
