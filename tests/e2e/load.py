"""Clients that ask an echo server again and again, and what becomes of each request."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections import Counter
from typing import NamedTuple, Self

from tests.e2e.tools import LIMIT_S, connect, receive_exactly

_PAUSE_S = 0.002
"""Of each client between two requests: the tests' own thread needs the processor, too."""


class Request(NamedTuple):
    """When it began and ended (of the monotonic clock), and the errno that it ended with; 0: it was answered."""

    began: float
    ended: float
    errno: int

    @property
    def took_s(self) -> float:
        return self.ended - self.began


class Load:
    """So many clients, each in a thread of its own. A context manager."""

    def __init__(self, path: str, clients: int = 4) -> None:
        self._path = path
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask_again_and_again) for _ in range(clients)]
        self.requests: list[Request] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(LIMIT_S + 1)

    @property
    def failures(self) -> Counter[str]:
        """How many requests failed with which errno."""
        return Counter(errno.errorcode.get(each.errno, "?") for each in list(self.requests) if each.errno)

    def longest(self, since: float) -> float:
        """Of the requests that were answered after that moment, what the slowest took."""
        return max((each.took_s for each in list(self.requests) if each.ended >= since), default=0.0)

    def _ask_again_and_again(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            number = 0
            try:
                with connect(self._path) as sock:
                    sock.sendall(b"hello")
                    receive_exactly(sock, 5)
                    sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                number = error.errno or errno.ETIMEDOUT
            except AssertionError:  # it was closed without an answer
                number = errno.ECONNRESET
            self.requests.append(Request(began, time.monotonic(), number))
            self._ended.wait(_PAUSE_S)
