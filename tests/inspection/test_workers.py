"""A server's workers: real processes that hold a socket as php-fpm's do, and what scripts of theirs start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tools import until
from tests.sockets import inode
from udsproxy.events import Doing
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.workers import Ask, Sample, WorkerState, take_sample

# A master that forks two workers; each answers a connection, some by starting a program that inherits everything
# and waiting for it.
SERVER = """
import os, socket, subprocess, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(5)
listener.set_inheritable(True)
for _ in range(2):
    if not os.fork():
        while True:
            connection, _ = listener.accept()
            connection.set_inheritable(True)
            if connection.recv(1) == b"x":
                program = subprocess.Popen(["sleep", "1000"], close_fds=False)
                connection.send(b"%d" % os.getpid())
                program.wait()
            else:
                connection.send(b"%d" % os.getpid())
                connection.recv(1)
            connection.close()
os.write(1, b"!")
os.wait()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    path = os.path.relpath(tmp_path / "s")
    process = subprocess.Popen([sys.executable, "-c", SERVER, path], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.read(1) == b"!"
        yield path
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ask(path: str, *connections: socket.socket) -> Sample:
    machine = Machine()
    try:
        [listener] = [
            each for each in machine.unix.values() if each.listening and each.name == path.encode() + b"\0"
        ]
        named = tuple((number, inode(each)) for number, each in enumerate(connections, 1))
        return take_sample(Ask(number=7, listener=listener.inode, connections=named), machine, Doer(), 0.0)
    finally:
        machine.close()


def test_who_has_a_connection(server: str) -> None:
    """Two workers, and no master; each connection's worker is the one that answers; who waits is nobody's."""
    with (
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as second,
        socket.socket(socket.AF_UNIX) as third,
    ):
        pids = []
        for sock in (first, second):
            sock.connect(server)
            sock.send(b"-")
            pids.append(int(sock.recv(10)))
        third.connect(server)
        sample = ask(server, first, second, third)
    assert (sample.number, sample.queue, sample.backlog, sample.waiting) == (7, 1, 5, (3,))
    assert {worker.pid: worker.connections for worker in sample.workers} == {pids[0]: (1,), pids[1]: (2,)}
    assert sample.busy == 2


def test_what_a_worker_has_started(server: str) -> None:
    """A program that a worker has started holds its sockets too, and is no worker: the worker waits for it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server)
        client.send(b"x")
        pid = int(client.recv(10))
        samples: list[Sample] = []

        def does() -> str | None:
            """What it does; it may not have come to wait yet."""
            samples.append(ask(server, client))
            [worker] = [each for each in samples[-1].workers if each.connections]
            assert worker.pid == pid
            return worker.doing.what if worker.doing is not None else None

        until(lambda: does() == "child", "the worker to wait for its child")
    assert len(samples[-1].workers) == 2
    assert samples[-1].busy == 1


def test_clients_that_have_left(server: str) -> None:
    """Who left while a worker runs their request, and while they wait, is counted."""
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(server)
            client.send(b"x")
            client.recv(10)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server)
    sample = ask(server)
    assert (sample.gone_running, sample.gone_waiting, sample.queue) == (2, 1, 1)


def test_what_several_do() -> None:
    """Workers that wait for the same server do the same, each by a connection of its own to another process."""
    workers = [
        WorkerState(
            pid=number,
            comm="php-fpm",
            doing=Doing(
                what="socket", call="poll", on="tcp 10.0.0.5:3306", who=f"mysqld, pid {number}", local=local
            ),
        )
        for number, local in enumerate(("10.0.0.1:40001", "10.0.0.1:40002", None))
    ]
    sample = Sample(number=1, workers=tuple(workers))
    [(did, count)] = sample.what_they_do().items()
    assert (did.text(did.who), count) == ("poll() on tcp 10.0.0.5:3306 (mysqld)", 3)


def test_nobody_listens() -> None:
    """An inode that is nobody's has no workers."""
    machine = Machine()
    assert take_sample(Ask(number=1, listener=1), machine, Doer(), 0.0) == Sample(number=1)
    machine.close()
