"""Our end of the observer (`udsproxy.inspection.observer`): started when it is first asked, ended with us.

Rules: one question at a time. Where it cannot be started, or fails, that is told once, and there is no answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import msgspec
import trio

from udsproxy.inspection.workers import Ask, Sample

_MOST_FAILURES = 3
_MOST_BYTES = 8 * 1024 * 1024
_READ = 64 * 1024
_REAP_S = 1.0


class Observer:
    """Ask it."""

    def __init__(self, tell_failure: Callable[[str], None]) -> None:
        self._tell_failure = tell_failure
        self._lock = trio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._to: trio.lowlevel.FdStream | None = None
        self._from: trio.lowlevel.FdStream | None = None
        self._number = 0
        self._failures = 0
        self._ended: list[subprocess.Popen[bytes]] = []

    async def ask(self, ask: Ask) -> Sample | None:
        """Its answer. None: there is none, now or ever."""
        async with self._lock:
            if self._failures >= _MOST_FAILURES:
                return None
            try:
                if self._process is None:
                    await self._start()
                return await self._exchange(ask)
            except (OSError, trio.BrokenResourceError, msgspec.DecodeError, EOFError) as error:
                self._failures += 1
                self.close()
                if self._failures == _MOST_FAILURES:
                    self._tell_failure(str(error) or type(error).__name__)
                return None
            except BaseException:
                self.close()  # an answer that is still to come would be taken for another
                raise

    async def _start(self) -> None:
        # In a thread: to start a process takes milliseconds.
        self._process = process = await trio.to_thread.run_sync(_start)
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            self._to = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
            self._from = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))

    async def _exchange(self, ask: Ask) -> Sample:
        assert self._to is not None
        assert self._from is not None
        self._number += 1
        await self._to.send_all(msgspec.json.encode(msgspec.structs.replace(ask, number=self._number)) + b"\n")
        line = bytearray()
        while not line.endswith(b"\n"):
            data = await self._from.receive_some(_READ)
            if not data or len(line) > _MOST_BYTES:
                raise EOFError("the observer has ended")
            line += data
        return msgspec.json.decode(line, type=Sample)

    def close(self) -> None:
        """End it: it ends when it sees that nobody is there to ask."""
        for stream in (self._to, self._from):
            if stream is not None:
                stream.close()
        self._to = self._from = None
        if self._process is not None:
            self._ended.append(self._process)
            self._process = None

    def reap(self) -> None:
        """`close`, and wait for its end, but no longer than `_REAP_S`."""
        self.close()
        for process in self._ended:
            try:
                process.wait(_REAP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._ended.clear()


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "udsproxy.inspection.observer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
    )
