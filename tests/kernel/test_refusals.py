"""EAGAINs of connect(), counted by the kernel's tracing: whose they were, at which socket, and when."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.tools import LIMIT_S, until
from tests.stage import REPOSITORY
from tests.tracing import traces
from udsproxy.kernel.refusals import Refusals

ROOT = os.geteuid() == 0
COUNTING = f"""
import ctypes, os, sys, time
sys.path.insert(0, {REPOSITORY!r})
from tests.kernel.test_refusals import refuse, refuse_as_nginx
from udsproxy.kernel import refusals
refusals.STILL_S = int(sys.argv[1])
counted = refusals.Refusals()
refuse(2)
counted.count(on=True)

def taken():
    found, missed = counted.taken()
    return sum(each.count for each in found if each.pid == os.getpid()) + missed
"""


def refuse(count: int) -> None:
    """So many EAGAINs, and one connect() that gets none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        name = f"\0udsproxy-refusals-{os.getpid()}"
        listener.bind(name)
        listener.listen(0)
        for number in range(count + 1):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as client:
                assert (client.connect_ex(name) == 0) == (number == 0)


def refuse_as_nginx(name: bytes, count: int) -> object:
    """So many EAGAINs at this socket, and one connect() that gets none. As nginx does, the address stays where it
    is: in what is returned."""
    connect = ctypes.CDLL(None, use_errno=True).connect
    address = ctypes.create_string_buffer(socket.AF_UNIX.to_bytes(2, sys.byteorder) + name)
    with contextlib.ExitStack() as stack:
        for number in range(count + 1):
            kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            client = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            failed = connect(client.fileno(), address, 2 + len(name))
            assert (failed == 0) == (number == 0)
    return address


@contextlib.contextmanager
def counting(code: str, still_s: int = 1000, lines: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """A process that counts and does this, and has said so, besides so many lines."""
    argv = [
        sys.executable,
        "-c",
        COUNTING + code + "\nprint('!', flush=True)\ntime.sleep(1000)",
        str(still_s),
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        try:
            said = [process.stdout.readline().decode().removesuffix("\n") for _ in range(lines + 1)]
            assert said.pop() == "!"
            yield process, said
        finally:
            process.kill()


def test_without_the_right() -> None:
    """Where the kernel does not let us count, that is an OSError."""
    if not ROOT:
        with pytest.raises((PermissionError, FileNotFoundError)):
            Refusals().count(on=True)


if ROOT:

    def test_refusals_are_counted() -> None:
        """Each EAGAIN of a process while it is on, and nothing before or after. Of more than a ring holds the rest
        is counted too, though not whose they were."""
        code = """
refuse(5)
assert taken() == 5
refuse(3)
counted.count(on=False)
refuse(4)
assert taken() == 3
assert taken() == 0
counted.count(on=True)
for _ in range(5):
    refuse(4000)
    assert taken() == 4000
"""
        with counting(code) as (process, _):
            assert traces(process.pid)

    @pytest.mark.parametrize("abstract", [False, True])
    def test_at_which_socket(tmp_path: Path, abstract: bool) -> None:
        """Two sockets of two names: each refusal has the name that was called, and the file at a path; and when the
        first and the last of them were."""
        names = [
            b"\0one" if abstract else bytes(tmp_path / "one"),
            b"\0other" if abstract else bytes(tmp_path / "other"),
        ]
        with contextlib.ExitStack() as stack:
            for name in names:
                listener = stack.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(name)
                listener.listen(0)
            code = f"""
began = time.monotonic_ns()
kept = [refuse_as_nginx({names[0]!r}, 3), refuse_as_nginx({names[1]!r}, 5)]
found, missed = counted.taken()
ended = time.monotonic_ns()
for each in found:
    if each.pid == os.getpid():
        assert began < each.first < each.last < ended
        print(each.name.decode(), each.count, each.file is not None, flush=True)
"""
            with counting(code, lines=2) as (_, said):
                assert sorted(said) == [
                    f"{name.decode()} {count} {not abstract}" for name, count in zip(names, (3, 5), strict=True)
                ]

    def test_nothing_is_traced_while_it_is_off() -> None:
        """Neither before it is on for the first time nor after it."""
        with counting("counted.count(on=False)") as (process, _):
            assert not traces(process.pid)

    def test_nothing_is_left_of_a_process_that_was_killed() -> None:
        """What it has had the kernel do ends with it."""
        with counting("") as (process, _):
            assert traces(process.pid)
            process.send_signal(signal.SIGKILL)
            process.wait(LIMIT_S)
            assert not os.path.exists(f"/proc/{process.pid}")

    def test_a_process_that_stands_still_does_not_count_for_ever() -> None:
        """One that was stopped is ended by the kernel; one that goes on looking is not."""
        looks = "for _ in range(15):\n    time.sleep(0.1)\n    counted.read()"
        with counting(looks, still_s=1) as (process, _):
            os.kill(process.pid, signal.SIGSTOP)
            assert process.wait(LIMIT_S) == -signal.SIGKILL
        with counting("counted.count(on=False)\ntime.sleep(1.1)", still_s=1) as (process, _):
            until(lambda: not traces(process.pid), "the end of it")
