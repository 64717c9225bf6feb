"""Our end of the observer (`udsproxy.inspection.observer`).

Rules: it is started before there are connections, and never again: a child has copies of all descriptors until it
runs its own program, and epoll tells of what was closed meanwhile as if it were open, under a number that may be
another's by then (epoll(7)). One question at a time. Where it cannot be started, or fails, that is told once, and
there are no more answers.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from time import monotonic

import msgspec
import trio

from udsproxy.inspection.workers import Ask, Sample
from udsproxy.kernel import own_processes, refusals

_MOST_BYTES = 8 * 1024 * 1024
_READ = 64 * 1024
_ANSWER_S = 5.0
"""An answer that takes longer does not come."""
_REAP_S = 1.0


class Observer:
    """Ask it."""

    def __init__(self) -> None:
        self.tell_failure: Callable[[str], None] = lambda _: None
        self._lock: trio.Lock | None = None
        self._to: trio.lowlevel.FdStream | None = None
        self._from: trio.lowlevel.FdStream | None = None
        self._number = 0
        self._failure: str | None = None
        self._asked_at = 0.0
        """When it was asked what it has not answered."""
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603 - it is our own program
                own_processes.command("udsproxy.inspection.observer"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
                env=own_processes.environment(),
            )
        except OSError as error:
            self._failure = f"the observer was not started: {error.strerror}"

    async def run(self) -> None:
        """See that it answers. Until cancelled."""
        while True:
            await trio.sleep(1)
            # (By the system's clock: a test's may jump.)
            if self._asked_at and monotonic() - self._asked_at > _ANSWER_S:
                self.close()

    async def ask(self, ask: Ask) -> Sample | None:
        """Its answer. None: there is none, now or ever."""
        if self._lock is None:
            self._lock = trio.Lock()
            if self._failure is not None:
                self.tell_failure(self._failure)
        async with self._lock:
            if self._process is None:
                return None
            try:
                if self._to is None:
                    self._open(self._process)
                return await self._exchange(ask)
            except (OSError, trio.BrokenResourceError, msgspec.DecodeError, EOFError) as error:
                self.close()
                self.tell_failure(str(error) or type(error).__name__)
                return None
            except trio.ClosedResourceError:
                self.tell_failure(f"the observer has not answered for {_ANSWER_S:.0f} s")
                return None
            except BaseException:
                self.close()  # an answer that is still to come would be taken for another
                raise

    def _open(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            self._to = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
            self._from = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))

    async def _exchange(self, ask: Ask) -> Sample:
        assert self._to is not None
        assert self._from is not None
        self._number += 1
        self._asked_at = monotonic()
        await self._to.send_all(msgspec.json.encode(msgspec.structs.replace(ask, number=self._number)) + b"\n")
        line = bytearray()
        while not line.endswith(b"\n"):
            data = await self._from.receive_some(_READ)
            if not data or len(line) > _MOST_BYTES:
                raise EOFError("the observer has ended")
            line += data
        self._asked_at = 0.0
        return msgspec.json.decode(line, type=Sample)

    def close(self) -> None:
        """End it: it ends when it sees that nobody is there to ask."""
        self._asked_at = 0.0
        for stream in (self._to, self._from):
            if stream is not None:
                stream.close()
        process, self._process = self._process, None
        if process is not None:
            for file in (process.stdin, process.stdout):
                if file is not None:
                    file.close()
            self._ended = process

    def reap(self) -> None:
        """`close`, and wait for its end, but not for long."""
        self.close()
        process, self._ended = self._ended, None
        if process is None:
            return
        try:
            process.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_REAP_S)
            refusals.remove(process.pid)  # it cannot any more
