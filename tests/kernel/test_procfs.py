"""procfs: what it says of processes that this test starts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tools import until
from udsproxy.kernel.procfs import (
    Activity,
    holder_of_lock,
    holders_of,
    read_activity,
    read_comm,
    read_descriptor,
    read_epoll,
    read_file_inode,
    read_memory,
    read_parent,
    sockets_of,
    threads_of,
)

MASTER = """
import os, sys
children = []
while len(children) < 3 and (child := os.fork()):
    children.append(child)
if len(children) == 3:
    print(*children, flush=True)
sys.stdin.read()
"""


def test_who_holds_a_socket() -> None:
    """A master and its children hold the listener that they inherited."""
    with socket.socket(socket.AF_UNIX) as listener:
        inode = os.fstat(listener.fileno()).st_ino
        assert holders_of(inode) == [os.getpid()]
        with subprocess.Popen(
            [sys.executable, "-c", MASTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        ) as master:
            assert master.stdout is not None
            children = [int(pid) for pid in master.stdout.readline().split()]
            assert len(children) == 3
            assert sorted(holders_of(inode)) == sorted([os.getpid(), master.pid, *children])
            assert {read_parent(child) for child in children} == {master.pid}
            master.communicate()


def test_a_process_that_is_gone() -> None:
    """Nothing is raised."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert read_parent(done.pid) is None
    assert read_comm(done.pid) is None


# --- what a process does ---

WAITS = {
    "nanosleep": "time.sleep(1000)",
    "poll": "p = select.poll(); p.register(s, select.POLLIN); p.poll()",
    "select": "select.select([s], [], [])",
    "epoll": "e = select.epoll(); e.register(s, select.EPOLLIN); e.poll()",
    "read": "os.read(os.pipe()[0], 1)",
    "flock": "fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)",
    "accept": "s.listen(); s.accept()",
    "wait": "os.fork() or time.sleep(1000); os.wait()",
}
CALLS = {
    "nanosleep": {"clock_nanosleep", "nanosleep", "select", "pselect6"},
    "poll": {"poll", "ppoll"},
    "select": {"select", "pselect6"},
    "epoll": {"epoll_wait", "epoll_pwait"},
    "read": {"read"},
    "flock": {"flock"},
    "accept": {"accept4", "accept"},
    "wait": {"wait4"},
}


@contextlib.contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs this, ``s`` a socket; ended in the end with all that it has started."""
    setup = "import fcntl, os, select, socket, sys, time; s, other = socket.socketpair()\n"
    if "s.listen" in code:
        setup += "s = socket.socket(socket.AF_UNIX); s.bind('')\n"
    text = f"{setup}os.write(1, b'!'); {code}"
    with subprocess.Popen(
        [sys.executable, "-c", text, *arguments], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"!"
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", WAITS)
def test_the_call_in_which_a_process_waits(kind: str, tmp_path: Path) -> None:
    """By name, with its arguments; and it is the same wait while nothing happens."""
    path = tmp_path / "lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with child(WAITS[kind], str(path)) as process:

            def waits() -> Activity | None:
                seen = read_activity(process.pid)
                return seen if seen is not None and seen.state == "S" and seen.call in CALLS[kind] else None

            seen = until(waits, kind)
            assert seen is not None
            assert seen.pid == process.pid
            assert seen.comm.startswith("python")
            assert seen.threads == 1
            assert not seen.hidden
            again = read_activity(process.pid)
            assert again is not None
            assert (again.call, again.args, again.switches, again.ticks) == (
                seen.call, seen.args, seen.switches, seen.ticks,
            )  # fmt: skip
            if kind == "epoll":
                sockets = sockets_of(process.pid)
                assert sockets is not None
                [(number, inode)] = read_epoll(process.pid, seen.args[0])
                assert sockets[inode] == number
            if kind == "flock":
                inode = os.fstat(lock.fileno()).st_ino
                assert read_file_inode(process.pid, seen.args[0]) == inode
                assert holder_of_lock(inode, process.pid) == os.getpid()
                assert holder_of_lock(inode, os.getpid()) is None
                assert holder_of_lock(inode + 1, process.pid) is None


def test_a_process_that_runs_and_is_stopped_and_ends() -> None:
    """R, T, Z; then there is none."""
    with child("\nwhile True: pass") as process:

        def is_in(state: str) -> bool:
            seen = read_activity(process.pid)
            return seen is not None and seen.state == state and (state == "Z" or seen.ticks > 0)

        until(lambda: is_in("R"), "a process that runs")
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: is_in("T"), "a process that is stopped")
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: is_in("Z"), "a process that has ended")
        process.wait()
        assert read_activity(process.pid) is None
        assert threads_of(process.pid) == []
        assert sockets_of(process.pid) is None
        assert read_epoll(process.pid, 0) == []
        assert read_memory(process.pid, 0, 8) == b""
        assert read_descriptor(process.pid, 0) is None


def test_each_thread_has_its_own_call() -> None:
    """The main thread waits for the other, which sleeps."""
    code = "import threading; t = threading.Thread(target=time.sleep, args=[1000]); t.start(); t.join()"
    with child(code) as process:

        def calls() -> list[str | None]:
            threads = threads_of(process.pid)
            seen = [read_activity(process.pid, thread) for thread in threads]
            return [each.call for each in seen if each is not None and each.threads == 2]

        until(lambda: calls() in (["futex", "clock_nanosleep"], ["futex", "select"]), "two threads that wait")
