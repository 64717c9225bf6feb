"""Every kind of fault that takes no byte comes and goes, by the control socket, while clients and a server say what
they have to, half-close and close: all of it comes, and the end behind it; and nothing stays open.

Rule: how many streams there are is a constant; the environment variable UDSPROXY_FAULT_STREAMS raises it for a
longer run. Their bytes follow from their numbers, so either end knows what the other has to say.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import NamedTuple

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.tools import until
from tests.stage import Stage
from tests.transparency.ends import BACKLOG, limited
from udsproxy.control.client import Client
from udsproxy.protocols import fastcgi as wire

STREAMS = int(os.environ.get("UDSPROXY_FAULT_STREAMS", "400"))
CLIENTS = 8
"""At once."""

GATES = ("hold", "workers=3", "backlog=2", "accept-delay=1ms p=0.1", "eagain=0.5")
ON_BYTES = (
    "connect-delay=2ms p=0.5",
    "latency=2ms±1ms@both",
    "latency=1ms±1ms,distribution=pareto@c2s p=0.5",
    "bandwidth=9MiB/s",
    "bandwidth=4MiB/s@both",
    "slicer=100B@both p=0.5",
    "slicer=1000B,variation=900B,delay=100us@s2c p=0.5",
    "slow-close=2ms@both",
    "stall=3ms@both",
    "stall",
    "limit=10B,then=stall",
    # For much less than these take:
    "limit=1GiB@both",
    "limit=1GiB,then=reset@c2s",
    "limit=1GiB,then=half-close@both",
    "stall=1h,then=reset@s2c",
    "half-close=1h@both",
    "close=1h",
    "reset=1h",
)
ON_REQUESTS = (
    "latency=2ms@both if script=/a.php",
    "slicer=100B@both if script=/a.php p=0.5",
    "stall=2ms if script=/a.php",
    "reset=1h if script=/a.php",
    # Of nobody; but a request waits until that is known.
    "fcgi-status=503 if script=/b.php",
    "fcgi-truncate=0B if script=/b.php",
)


class Talk(NamedTuple):
    """What is said on one connection."""

    question: list[bytes]
    """In one send() each, and so in a record each, where it has records."""
    answer: list[bytes]
    answers_first: bool
    """Before it has read the question to its end."""
    waits: bool
    """The client has its last to say when it has read the answer."""


Say = Callable[[int], Talk]


def pieces(random: Random, data: bytes) -> list[bytes]:
    size = random.choice((900, 5000, 30_000))
    return [data[at : at + size] for at in range(0, len(data), size)]


def anything(number: int) -> Talk:
    random = Random(number)
    question, answer = (random.randbytes(random.choice((50, 700, 3000, 20_000))) for _ in range(2))
    answers_first = random.random() < 0.6
    return Talk(
        pieces(random, b"N%08d" % number + question),
        pieces(random, answer * random.choice((1, 1, 5))),
        answers_first,
        answers_first and random.random() < 0.2,
    )


def fastcgi(number: int) -> Talk:
    random = Random(number)
    params = {b"SCRIPT_NAME": b"/a.php", b"X": b"N%08d" % number, b"Y": random.randbytes(random.choice((9, 5000)))}
    question = wire.encode_request(params, random.randbytes(random.choice((0, 700, 20_000))))
    page = random.randbytes(random.choice((50, 3000, 30_000)))
    answer = wire.encode_stream(wire.STDOUT, 1, page) + wire.encode_end(1)
    return Talk(pieces(random, question), pieces(random, answer), random.random() < 0.5, False)


class Told:
    """Both ends of all connections, and what came otherwise than it was said."""

    def __init__(self, kind: socket.SocketKind, path: str, say: Say) -> None:
        self._say = say
        self.wrong: list[str] = []
        self.served = 0
        self._listener = socket.socket(socket.AF_UNIX, kind)
        self._listener.bind(path)
        self._listener.listen(BACKLOG)
        self._pool = ThreadPoolExecutor(4 * CLIENTS)
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._pool.shutdown()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._pool.submit(self._serve, limited(self._listener.accept()[0]))

    def _serve(self, sock: socket.socket) -> None:
        number, got = -1, b""
        # (Most of a question stays unread for a while.)
        size = 50 if sock.type == socket.SOCK_STREAM else 1 << 20
        with sock:
            try:
                while not (found := re.search(rb"N(\d{8})", got)):
                    data = sock.recv(size)
                    if not data:
                        break
                    got += data
                else:
                    number = int(found[1])
                    talk = self._say(number)
                    if talk.answers_first:
                        send(sock, talk.answer)
                    got += read(sock, size)
                    if not talk.answers_first:
                        send(sock, talk.answer)
                    self._compare(f"question {number}", got, talk.question)
            except OSError as error:
                self.wrong.append(f"server of {number}: {error!r}")
        self.served += number >= 0

    def ask(self, number: int, path: str) -> None:
        """Be one client, from its connect() to its close()."""
        talk = self._say(number)
        with limited(socket.socket(socket.AF_UNIX, self._listener.type)) as sock:
            try:
                sock.connect(path)
                if talk.waits:
                    for piece in talk.question[:1]:
                        sock.sendall(piece)
                    got = read(sock)
                    send(sock, talk.question[1:])
                else:
                    send(sock, talk.question)
                    got = read(sock)
            except OSError as error:
                self.wrong.append(f"client {number}: {error!r}")
            else:
                self._compare(f"answer {number}", got, talk.answer)

    def _compare(self, what: str, got: bytes, said: list[bytes]) -> None:
        if got != b"".join(said):
            self.wrong.append(f"{what}: {len(got)} bytes, not {len(b''.join(said))}")


def send(sock: socket.socket, data: list[bytes]) -> None:
    """All of it, and the end."""
    for piece in data:
        sock.sendall(piece)
    sock.shutdown(socket.SHUT_WR)


def read(sock: socket.socket, size: int = 1 << 20) -> bytes:
    """To the end, so much at a time."""
    return b"".join(iter(lambda: sock.recv(size), b""))


def change_faults(control: Client, texts: tuple[str, ...], random: Random) -> Iterator[None]:
    """Add and take away, one and another, two or three at a time, in all the ways that there are; a step each time
    that it is asked for one."""
    there: list[str] = []
    for round_ in itertools.count():
        for number, text in enumerate(random.sample(texts, len(texts))):
            name = f"f{round_}-{number}"
            control.ask("POST", "faults", body={"fault": f"{text} name={name}"})
            there.append(name)
            yield
            while len(there) > random.choice((0, 1, 2)):
                gone = there.pop(random.randrange(len(there)))
                if random.random() < 0.3:
                    control.ask("PATCH", "faults", gone, body={"enabled": False})
                control.ask("DELETE", "faults", gone)
                yield
        control.ask("DELETE", "faults")
        there.clear()


def open_files(proxy: Proxy) -> list[str]:
    """What it has open, by what it is."""
    found = []
    for fd in os.listdir(f"/proc/{proxy.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(re.sub(r"\d+", "N", os.readlink(f"/proc/{proxy.pid}/fd/{fd}")))
    return sorted(found)


def open_at_rest(proxy: Proxy) -> list[str]:
    """What it has open when nothing goes on: the same in many looks."""
    looks: list[list[str]] = []

    def is_at_rest() -> bool:
        looks.append(open_files(proxy))
        return looks[-50:] == [looks[-1]] * 50

    until(is_at_rest, "a proxy that opens and closes nothing")
    return looks[-1]


@pytest.mark.parametrize(
    ("kind", "say", "texts"),
    [
        (socket.SOCK_STREAM, anything, ON_BYTES),
        (socket.SOCK_STREAM, fastcgi, (*ON_BYTES, *ON_REQUESTS)),
        (socket.SOCK_STREAM, anything, (*ON_BYTES, *GATES)),
        (socket.SOCK_SEQPACKET, anything, GATES),
    ],
    ids=["bytes", "fastcgi", "gates", "records"],
)
def test_nothing_is_lost(
    stage: Stage, start_proxy: StartProxy, kind: socket.SocketKind, say: Say, texts: tuple[str, ...]
) -> None:
    """0 of all questions and answers are other than they were said, and no descriptor is left."""
    told = Told(kind, stage.path("up"), say)
    try:
        proxy = start_proxy(stage.path("p"), stage.path("up"), "--seed", "1", "--control", stage.path("c"))
        control = Client(stage.path("c"))
        told.ask(0, proxy.socket)
        assert control.ask("GET", "connections") == []
        before = open_at_rest(proxy)
        changes = 0
        with ThreadPoolExecutor(CLIENTS) as clients:
            asked = [clients.submit(told.ask, number, proxy.socket) for number in range(1, STREAMS + 1)]
            for _ in change_faults(control, texts, Random(1)):
                changes += 1
                if changes > 3 * len(texts) and all(each.done() for each in asked):
                    break
            control.ask("DELETE", "faults")
            for each in asked:
                each.result()
        until(lambda: control.ask("GET", "connections") == [], "the end of all connections")
        print(f"{STREAMS} streams, {len(told.wrong)} not equal, {changes} changes, {len(before)} descriptors")
        assert told.wrong == []
        assert told.served == STREAMS + 1
        # (Fewer: the process that observes is given up on a machine that has no time for it.)
        assert not Counter(open_at_rest(proxy)) - Counter(before)
    finally:
        told.close()
