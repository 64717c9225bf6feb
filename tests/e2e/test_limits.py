"""Limits and load: very many connections, no descriptors left, clients that stall, a server that stands still, a
disk that is full.

Rules: nothing here is a measurement of speed. How much is tried follows from what the machine allows (the limit on
open files), or is a constant; an environment variable of that name (UDSPROXY_CONNECTIONS, UDSPROXY_STANDSTILL_S)
raises it for a longer run.
Figures that are worth knowing are printed (``pytest -s``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest

from tests.e2e.proxy import Record, Running, StartProxy
from tests.e2e.tap import StartTap, beside
from tests.e2e.tools import (
    LIMIT_S,
    EchoServer,
    SocketServer,
    echo,
    echoes,
    read,
    receive_all,
    receive_exactly,
    until,
)
from tests.stage import Stage

CONNECTIONS = int(os.environ.get("UDSPROXY_CONNECTIONS", "3000"))
"""More take long: each look at a queue is one at all Unix sockets of the system (net/unix/diag.c,
unix_lookup_by_ino)."""
STANDSTILL_S = float(os.environ.get("UDSPROXY_STANDSTILL_S", "1"))


def patient(path: str) -> socket.socket:
    """A connection, as soon as the queue has room: connect() waits in the kernel."""
    sock = socket.socket(socket.AF_UNIX)
    # (settimeout() would make it non-blocking.)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(LIMIT_S), 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(LIMIT_S), 0))
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def resident(proxy: Running) -> int:
    """Memory that a process has resident (bytes)."""
    match = re.search(r"VmRSS:\s*(\d+) kB", read(f"/proc/{proxy.pid}/status"))
    assert match is not None
    return int(match[1]) * 1024


def cpu_s(proxy: Running) -> float:
    """Processor time that a process has taken."""
    fields = read(f"/proc/{proxy.pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- very many ---

SPARE = 200
"""Descriptors for everything else."""
EACH_BYTES = 10 * 1024
"""Memory for a connection on which nothing happens, at most. (A process that is idle takes some 40 MiB.)"""


@pytest.fixture
def room() -> Iterator[int]:
    """So many connections may a process hold both ends of; this one is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = CONNECTIONS if hard == resource.RLIM_INFINITY else min(CONNECTIONS, (hard - SPARE) // 2)
    assert most >= 400, f"the hard limit on open files is {hard} (ulimit -Hn)"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * most + SPARE), hard))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_as_many_connections_as_there_are_descriptors(stage: Stage, start_proxy: StartProxy, room: int) -> None:
    """Thousands of connections are held at once, each little memory; on each a byte arrives in either direction, in
    whatever order they speak; all are ended as their clients ended them, and no descriptor is left."""
    chance = random.Random(1)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(stage.path("up.sock"))
        listener.listen(100)
        listener.settimeout(LIMIT_S)
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        before = proxy.descriptors

        def open_some(numbers: range) -> list[tuple[socket.socket, socket.socket]]:
            """These connections, in the order of their numbers: client and server."""
            clients, servers = {}, {}
            for number in numbers:
                clients[number] = stack.enter_context(patient(proxy.socket))
                clients[number].sendall(number.to_bytes(4))
            for _ in numbers:
                server = stack.enter_context(listener.accept()[0])
                server.settimeout(LIMIT_S)
                servers[int.from_bytes(receive_exactly(server, 4))] = server
            return [(clients[number], servers[number]) for number in numbers]

        def close(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
            for client, server in pairs:
                client.close()
                assert server.recv(1) == b""
                server.close()

        close(open_some(range(50)))  # memory that is taken once and kept is there from here on
        until(lambda: proxy.descriptors <= before, f"{before} descriptors")
        memory = resident(proxy)
        pairs: list[tuple[socket.socket, socket.socket]] = []
        began = time.monotonic()
        for start in range(0, room, 50):
            pairs += open_some(range(start, min(start + 50, room)))
        took = time.monotonic() - began
        for ends in ((0, 1), (1, 0)):
            order = list(range(room))
            chance.shuffle(order)
            for number in order:
                pairs[number][ends[0]].sendall(bytes([number % 251]))
            chance.shuffle(order)
            for number in order:
                assert pairs[number][ends[1]].recv(2) == bytes([number % 251])
        each = (resident(proxy) - memory) / room
        print(
            f"\n{room:,} connections at once, opened in {took:.1f} s: {memory / 1048576:.1f} MiB before,",
            f"{resident(proxy) / 1048576:.1f} MiB with them, {each / 1024:.2f} KiB each",
        )
        assert proxy.descriptors >= before + 2 * room
        assert each < EACH_BYTES
        chance.shuffle(pairs)
        close(pairs)
        until(lambda: proxy.descriptors <= before, f"{before} descriptors")
        assert echo_through(listener, proxy.socket)
    assert proxy.stop() == 0
    ends_seen = Counter((event["by"], event["c2s_bytes"], event["s2c_bytes"]) for event in proxy.events("close"))
    assert ends_seen[("client", 5, 1)] == room
    [summary] = proxy.events("summary")
    assert (summary["connections"], summary["dropped"]) == (room + 51, 0)


def echo_through(listener: socket.socket, path: str) -> bool:
    """Does one more connection work?"""
    with patient(path) as client:
        client.sendall(b"!")
        with listener.accept()[0] as server:
            return server.recv(1) == b"!"


# --- no descriptors left ---

FEW = 64
"""The limit on open files of a proxy that is to reach it."""
LATE = 10
"""How many clients come when it has."""
WATCHED_S = 0.5
"""How long it is watched while it can accept nobody. (Here time itself is what is measured.)"""


def limited(most: int) -> list[str]:
    """A command that runs another with so many descriptors, and no way to have more."""
    return ["/bin/sh", "-c", f'ulimit -n {most}; exec "$@"', "sh"]


def answers(client: socket.socket, data: bytes) -> bool:
    """Does an echo server answer, as soon as it can?"""
    client.sendall(data)
    return receive_exactly(client, len(data)) == data


def is_answered(client: socket.socket) -> bool:
    """Has an answer come?"""
    return bool(select.select([client], [], [], 0)[0])


class Crowd:
    """More clients of an echo server than a proxy has descriptors for. All have asked one byte."""

    def __init__(self, proxy: Running) -> None:
        self.served: list[socket.socket] = []
        self.waiting: list[socket.socket] = []
        while not self.waiting:
            self._come(proxy)
            # The proxy says that it can accept nobody as soon as it has found out, and then goes on doing so.
            until(lambda: is_answered(self._last) or proxy.events("proxy_error"), "an answer, or an error")
            (self.served if is_answered(self._last) else self.waiting).append(self._last)
        for _ in range(LATE - 1):
            self._come(proxy)
            self.waiting.append(self._last)
        for client in self.served:
            assert client.recv(2) == b"?"

    def _come(self, proxy: Running) -> None:
        self._last = patient(proxy.socket)
        self._last.sendall(b"?")

    def close(self) -> None:
        for client in self.served + self.waiting:
            client.close()


@pytest.mark.parametrize("credentials", ["client", "own"])
@pytest.mark.parametrize("most", [FEW, FEW + 1], ids=["even", "odd"])
def test_no_descriptors_left(stage: Stage, start_proxy: StartProxy, most: int, credentials: str) -> None:
    """At the limit on open files those who are served are served on, and those who come wait until somebody leaves;
    then they are served, each once. One event says so, with what to do. Meanwhile the proxy rests."""
    with EchoServer(stage.path("up.sock")):
        options = ["--credentials", credentials]
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), *options, wrap=limited(most))
        crowd = Crowd(proxy)
        took = cpu_s(proxy)
        time.sleep(WATCHED_S)
        took = cpu_s(proxy) - took
        assert took < WATCHED_S / 3
        assert not any(is_answered(client) for client in crowd.waiting)
        for _ in range(20):
            assert all(answers(client, b"hello") for client in crowd.served)
        for client in crowd.waiting:
            crowd.served.pop(0).close()
            assert client.recv(2) == b"?"
            assert answers(client, b"hello")
        assert all(answers(client, b"hello") for client in crowd.served + crowd.waiting)
        crowd.close()
        assert echoes(proxy.socket)
        assert proxy.stop() == 0
    [error] = proxy.events("proxy_error")
    assert (error["errno"], error["message"]) == ("EMFILE", "Too many open files")
    assert "ulimit -n" in error["hint"]
    assert not proxy.events("upstream_error")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["told to end", "killed"])
@pytest.mark.parametrize("most", [FEW, FEW + 1], ids=["even", "odd"])
def test_a_tap_without_descriptors_gives_the_path_back(
    stage: Stage, start_tap: StartTap, most: int, number: signal.Signals
) -> None:
    """A tap that has no descriptor left puts the server's socket back all the same when it ends; who comes to the
    path then is served."""
    path = stage.path("run", "up.sock")
    with EchoServer(path):
        before = beside(path)
        tap = start_tap(path, wrap=limited(most))
        crowd = Crowd(tap)
        tap.signal(number)
        until(lambda: beside(path) == before, "the path to be as it was")
        assert echoes(path)
        if number == signal.SIGTERM:
            assert all(answers(client, b"hello") for client in crowd.served)
        crowd.close()
        assert tap.wait() == (0 if number == signal.SIGTERM else -number)
        assert beside(path) == before


# --- clients that stall ---

LOAD = 1000
"""Connections that come and go meanwhile."""
THREADS = 4
BIG = random.Random(2).randbytes(4 << 20)
"""An answer that no buffer on the way holds."""
HALF = 100_000
"""A part of a question, in bytes, that none of them is too small for."""


def serve_big(connection: socket.socket) -> None:
    """To who asks "big" that answer, to who asks anything else the question."""
    question = connection.recv(3, socket.MSG_WAITALL)
    connection.sendall(BIG if question == b"big" else question)
    echo(connection)


def come_and_go(path: str, numbers: range) -> list[int]:
    """One connection after the other. Returns those that were not answered as they should be."""
    wrong = []
    for number in numbers:
        with patient(path) as client:
            message = b"%06d" % number
            client.sendall(message)
            client.shutdown(socket.SHUT_WR)
            if receive_all(client) != message:
                wrong.append(number)
    return wrong


def test_clients_that_stall(stage: Stage, start_proxy: StartProxy) -> None:
    """While one client does not read its answer, and another does not send the rest of its question, all others are
    answered; and when these two go on, nothing of theirs is missing."""
    with SocketServer(stage.path("up.sock"), serve_big), ThreadPoolExecutor(THREADS) as pool:
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        with patient(proxy.socket) as never_reads, patient(proxy.socket) as never_ends:
            never_reads.sendall(b"big")
            until(lambda: is_answered(never_reads), "the beginning of the big answer")
            never_ends.sendall(BIG[:HALF])
            assert receive_exactly(never_ends, HALF) == BIG[:HALF]
            began = time.monotonic()
            each = LOAD // THREADS
            loads = [
                pool.submit(come_and_go, proxy.socket, range(first, first + each)) for first in range(0, LOAD, each)
            ]
            assert [load.result() for load in loads] == [[]] * THREADS
            print(f"\nwith two that stall: {LOAD / (time.monotonic() - began):,.0f} connections a second")
            never_ends.sendall(BIG[HALF : 2 * HALF])
            assert receive_exactly(never_ends, HALF) == BIG[HALF : 2 * HALF]
            never_reads.shutdown(socket.SHUT_WR)
            assert receive_all(never_reads) == BIG
        assert proxy.stop() == 0
    [summary] = proxy.events("summary")
    assert (summary["connections"], summary["dropped"]) == (LOAD + 2, 0)
    assert len(proxy.events("close", c2s_bytes=6, s2c_bytes=6, by="client")) == LOAD


# --- a server that stands still ---

BACKLOG = 7
LASTING = 8
"""Clients that send all the time."""


SERVER = """
import selectors, socket, sys
with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as selector:
    listener.bind(sys.argv[1])
    listener.listen(int(sys.argv[2]))
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif data := key.fileobj.recv(65536):
                key.fileobj.sendall(data)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
"""
"""An echo server in one thread: arguments are its path and its backlog."""


class Lasting:
    """A client that sends numbers all the time and looks whether they come back in order. A context manager."""

    def __init__(self, path: str) -> None:
        self._sock = patient(path)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        """How many came back."""
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LIMIT_S)
        self._sock.close()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                numbers = range(self.count, self.count + 100)
                for number in numbers:
                    self._sock.sendall(number.to_bytes(8))
                for number in numbers:
                    if receive_exactly(self._sock, 8) != number.to_bytes(8):
                        self.wrong.append(f"{number} did not come back in its turn")
                        return
                    self.count += 1
        except (OSError, AssertionError) as error:
            self.wrong.append(repr(error))


def stand_still(stage: Stage, name: str, path: str, server: subprocess.Popen[bytes]) -> int:
    """Stop a server under load and let it go on. Returns how many clients connect() took while it stood still."""
    with contextlib.ExitStack() as stack:
        lasting = [stack.enter_context(Lasting(path)) for _ in range(LASTING)]
        until(lambda: all(client.count > 100 for client in lasting), "all clients to have been answered")
        server.send_signal(signal.SIGSTOP)
        stack.callback(server.send_signal, signal.SIGCONT)
        until(lambda: read(f"/proc/{server.pid}/stat").rpartition(")")[2].split()[0] == "T", "the server to stop")
        queued: list[socket.socket] = []
        end = time.monotonic() + STANDSTILL_S
        refused = 0
        while time.monotonic() < end:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if failed := client.connect_ex(path):
                assert failed == errno.EAGAIN
                client.close()
                refused += 1
                time.sleep(0.01)
            else:
                client.settimeout(LIMIT_S)
                client.sendall(b"%04d" % len(queued))
                queued.append(client)
        blocked = stack.enter_context(ThreadPoolExecutor(4))
        waiting = [blocked.submit(echoes_patiently, path) for _ in range(4)]
        print(f"\n{name}: {len(queued)} connected, {refused} times EAGAIN in {STANDSTILL_S:g} s")
        stood_at = [client.count for client in lasting]
        server.send_signal(signal.SIGCONT)
        for number, client in enumerate(queued):
            assert receive_exactly(client, 4) == b"%04d" % number
        assert all(each.result(LIMIT_S) for each in waiting)
        until(
            lambda: all(client.count > before + 200 for client, before in zip(lasting, stood_at, strict=True)),
            "them to go on",
        )
        assert refused > 0
    assert [client.wrong for client in lasting] == [[]] * LASTING
    return len(queued)


def echoes_patiently(path: str) -> bool:
    """Whether an echo server answers who waits for room in its queue."""
    with patient(path) as client:
        return answers(client, b"patience")


def test_a_server_that_stands_still(stage: Stage, start_proxy: StartProxy) -> None:
    """While the server is stopped (SIGSTOP) as many clients get into the queue as directly, and all others
    EAGAIN; when it goes on (SIGCONT) everybody is answered, in order. `queue` events say when it was full, and when
    it no longer was."""
    taken = {}
    for name in ("direct", "proxied"):
        path = stage.path(name, "up.sock")
        server = stage.spawn(name, [sys.executable, "-c", SERVER, path, str(BACKLOG)], stage.path(name, "output"))
        stage.await_socket(path)
        if name == "proxied":
            proxy = start_proxy(stage.path("p.sock"), path)
            path = proxy.socket
        taken[name] = stand_still(stage, name, path, server)
    assert taken == {"direct": BACKLOG + 1, "proxied": BACKLOG + 1}
    full, free, *_ = proxy.wait_for("queue", count=2)
    assert (full["queue"], full["backlog"]) == (BACKLOG + 1, BACKLOG)
    assert free["queue"] <= BACKLOG
    assert proxy.stop() == 0
    assert not proxy.events("proxy_error")
    [summary] = proxy.events("summary")
    assert summary["c2s_bytes"] == summary["s2c_bytes"]


# --- a disk that is full ---

ROUNDS = 3


class Disk:
    """A small file system of its own where that may be mounted (by root); else the limit on the size of files
    stands for it. A context manager."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "udsproxy-test", directory]
        self._mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", self._directory], check=True)  # a proxy may still hold it

    def fill(self, proxy: Running) -> None:
        """Leave no room, but for the rest of the block in which the log ends."""
        if not self._mounted:
            self._limit(proxy, os.stat(proxy.log).st_size + 100)
            return
        with open(f"{self._directory}/filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def clear(self, proxy: Running) -> None:
        """There is room again."""
        if self._mounted:
            os.unlink(f"{self._directory}/filler")
        else:
            self._limit(proxy, resource.RLIM_INFINITY)

    @staticmethod
    def _limit(proxy: Running, nbytes: int) -> None:
        _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(
            proxy.pid, resource.RLIMIT_FSIZE, (hard if nbytes == resource.RLIM_INFINITY else nbytes, hard)
        )


@pytest.mark.parametrize("full_at_end", [False, True], ids=["room at the end", "full at the end"])
def test_a_disk_that_is_full_again_and_again(stage: Stage, start_proxy: StartProxy, full_at_end: bool) -> None:
    """While the disk is full traffic goes on. Whenever it has room the log does too: only whole lines, and together
    with what `dropped` counts, and what the last line on standard error says, all of them."""
    os.mkdir(stage.path("disk"))
    log = stage.path("disk", "log.json")
    with Disk(stage.path("disk")) as disk, EchoServer(stage.path("up.sock")):
        # (Where nothing is looked at there are two events for each connection, neither more nor less.)
        options = ["--log", "json", "--log-file", log, "--slow", "none", "--incident", "none"]
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), "--backlog", "100", log=options)
        proxy.log = log
        proxy.wait_for("listening")
        connections = 0

        def come(count: int) -> None:
            nonlocal connections
            assert come_and_go(proxy.socket, range(count)) == []
            connections += count

        def all_is_told() -> bool:
            come(1)
            proxy.wait_for("close", conn=connections)
            return told(proxy.events()) == 1 + 2 * connections

        def have_rounds() -> bool:
            disk.fill(proxy)
            come(50)  # some 20 KiB of log
            disk.clear(proxy)
            until(all_is_told, "all events, or that they are missing")
            # The writer may have been too slow to find it full: then once more.
            return len(proxy.events("dropped")) >= ROUNDS

        until(have_rounds, f"{ROUNDS} dropped events")
        if full_at_end:
            disk.fill(proxy)
            come(100)
        assert proxy.stop() == int(full_at_end)
        text = read(log)
    assert text.endswith("\n")
    events = [json.loads(line) for line in text.splitlines()]
    unsaid = 0
    if full_at_end:
        *_, line = proxy.said.splitlines()
        match = re.fullmatch(r"udsproxy: log json: (No space left on device|File too large); (\d+) events .*", line)
        assert match is not None, line
        unsaid = int(match[2]) - sum(event["count"] for event in events if event["event"] == "dropped")
    else:
        told_of = [event["count"] for event in events if event["event"] == "dropped"]
        assert events[-1]["dropped"] == sum(told_of)
    assert proxy.said.count("\n") == 1 + full_at_end
    assert told(events) + unsaid == 2 + 2 * connections


def told(events: list[Record]) -> int:
    """How many events these are, with those that they say are missing."""
    return sum(event["count"] if event["event"] == "dropped" else 1 for event in events)
