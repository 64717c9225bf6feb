"""Our end of the observer (`udsproxy.inspection.observer`).

Rules: it is started before there are connections. Where it has ended it is started again, no sooner each time than
twice as long after; the relay is told before (`udsproxy.proxy.relay.Relay.expect_child`). One question at a time. A
question that it does not answer in time is dropped, which is told; it is asked nothing more until it has answered
that one (it was stopped, say, and goes on). What fails in the same way again is told once, until it has answered.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from time import monotonic, monotonic_ns

import msgspec
import trio

from udsproxy.events import errno_name
from udsproxy.inspection.workers import Ask, Sample
from udsproxy.kernel import own_processes
from udsproxy.kernel.refusals import Refusals

_MOST_BYTES = 8 * 1024 * 1024
_READ = 64 * 1024
_ANSWER_S = 5.0
"""An answer that takes longer is waited for no more."""
_REAP_S = 1.0
_TICK_S = 0.25
_AGAIN_S, _AGAIN_MOST_S = 1.0, 300.0
"""How soon it is started again, at first and at most."""
_LONG_S = 60.0
"""What has lived for so long had not failed at once."""


class Observer:
    """Ask it."""

    def __init__(self, *, counts: bool = False) -> None:
        """``counts``: it is to count refused clients, from now on (before there is a client)."""
        self._early: Refusals | None = None
        """What counts until it does."""
        self.tell_failure: Callable[[str, str], None] = lambda _message, _errno: None
        """What has failed, and the name of the errno."""
        self._lock: trio.Lock | None = None
        self._number = 0
        self._owed = 0
        """The question that it has not answered; 0: none."""
        self._asked_at = 0.0
        self._answer: Sample | None = None
        self._waiting: trio.CancelScope | None = None
        """Of who waits for that answer."""
        self._to: trio.lowlevel.FdStream | None = None
        self._failure: tuple[str, str] | None = None
        """What is to be told when somebody asks."""
        self._told: tuple[str, str] | None = None
        """What was told last, and has not changed since."""
        self._process: subprocess.Popen[bytes] | None = None
        handed: list[int] = []
        if counts:
            with contextlib.suppress(OSError):
                self._early = Refusals(for_child=True)
                self._early.count(on=True)
                handed = self._early.descriptors
        self._start(handed)
        if self._early is not None:
            self._early.hand_on()

    def _start(self, handed: Sequence[int] = ()) -> None:
        """``handed``: descriptors that count refusals."""
        since = [str(monotonic_ns()), *map(str, handed)] if handed else []
        try:
            self._process = subprocess.Popen(  # noqa: S603 - it is our own program
                own_processes.command("udsproxy.inspection.observer", *since),
                pass_fds=handed,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
                env=own_processes.environment(),
            )
        except OSError as error:
            message = f"the observer was not started: {error.filename or sys.executable}: {error.strerror}"
            self._failure = message, errno_name(error.errno or errno.ENOEXEC)
            self._let_go()

    def _let_go(self) -> None:
        """It counts itself by now, or never will."""
        if self._early is not None:
            early, self._early = self._early, None
            early.close()

    async def run(self, expect_child: Callable[[], None]) -> None:
        """Take its answers, and see that it is there. Until cancelled. ``expect_child``: is called before it is
        started again."""
        pause_s = _AGAIN_S / 2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._see_that_it_answers)
            while True:
                began = trio.current_time()
                if self._process is not None:
                    await self._listen(self._process)
                    await _in_a_thread(_end, self._process)
                    self._process = None
                pause_s = _AGAIN_S if trio.current_time() - began > _LONG_S else min(2 * pause_s, _AGAIN_MOST_S)
                await trio.sleep(pause_s)
                expect_child()
                await _in_a_thread(self._start)

    async def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Take its answers until it has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        why, number = "the observer has ended", errno.ESRCH
        try:
            with process.stdin, process.stdout:
                self._to = trio.lowlevel.FdStream(os.dup(process.stdin.fileno()))
                out = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
            async with out:
                await self._take_answers(out)
        except OSError as error:
            why, number = f"the observer cannot be asked: {error.strerror}", error.errno or errno.EPIPE
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except msgspec.DecodeError as error:
            why, number = f"the observer's answer cannot be understood: {error}", errno.EBADMSG
        finally:
            self._hang_up()
        self._tell(f"{why}; it is started again", number)

    async def _take_answers(self, out: trio.lowlevel.FdStream) -> None:
        line = bytearray()
        while data := await out.receive_some(_READ):
            line += data
            if len(line) > _MOST_BYTES:
                raise msgspec.DecodeError("it is too long")
            if line.endswith(b"\n"):
                self._take(msgspec.json.decode(line, type=Sample))
                line.clear()

    def _take(self, answer: Sample) -> None:
        """(Only one can come: nothing else has been asked.)"""
        self._owed = 0
        self._told = None
        self._let_go()
        if self._waiting is not None and answer.number == self._number:
            self._answer = answer
        self._wake()

    async def _see_that_it_answers(self) -> None:
        while True:
            await trio.sleep(_TICK_S)
            # (By the system's clock: a test's may jump.)
            if self._waiting is not None and self._owed and monotonic() - self._asked_at > _ANSWER_S:
                self._tell(f"the observer has not answered for {_ANSWER_S:.0f} s", errno.ETIMEDOUT)
                self._wake()

    def _wake(self) -> None:
        """Who waits for an answer has waited for long enough."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _tell(self, message: str, number: int) -> None:
        """Now, if anybody has asked; else when somebody does."""
        self._failure = message, errno_name(number)
        if self._lock is not None:
            self._tell_now()

    def _tell_now(self) -> None:
        """What has failed, if that was not told already."""
        failure, self._failure = self._failure, None
        if failure is not None and failure != self._told:
            self._told = failure
            self.tell_failure(*failure)

    async def ask(self, ask: Ask) -> Sample | None:
        """Its answer. None: there is none, now."""
        if self._lock is None:
            self._lock = trio.Lock()
        self._tell_now()
        async with self._lock:
            if self._to is None or self._owed:
                return None
            self._number += 1
            self._owed, self._asked_at, self._answer = self._number, monotonic(), None
            question = msgspec.json.encode(msgspec.structs.replace(ask, number=self._number)) + b"\n"
            with trio.CancelScope() as self._waiting:
                try:
                    await self._send(self._to, question)
                    await trio.sleep_forever()
                finally:
                    self._waiting = None
            return self._answer

    async def _send(self, to: trio.lowlevel.FdStream, question: bytes) -> None:
        try:
            await to.send_all(question)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._hang_up()
        except BaseException:
            self._hang_up()  # half a question may have been sent
            raise

    def _hang_up(self) -> None:
        """It ends when it sees that nobody is there to ask."""
        self._owed = 0
        self._let_go()
        if self._to is not None:
            self._to.close()
            self._to = None
        self._wake()

    def reap(self) -> None:
        """End it, and wait for its end, but not for long."""
        self._hang_up()
        process, self._process = self._process, None
        if process is not None:
            _end(process)


async def _in_a_thread(call: Callable[..., None], *arguments: object) -> None:
    """Traffic does not wait for it. Where there is no thread to be had it is not called."""
    with contextlib.suppress(RuntimeError):
        await trio.to_thread.run_sync(call, *arguments)


def _end(process: subprocess.Popen[bytes]) -> None:
    for file in (process.stdin, process.stdout):
        if file is not None:
            file.close()
    try:
        process.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_REAP_S)
