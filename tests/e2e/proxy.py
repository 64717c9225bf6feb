"""A running udsproxy, as the tests see it: its socket, its events, its end.

Rules: started on a stage, with a JSON log unless told otherwise; `Running.check` after its end is part of every
test: no traceback, ever.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from typing import Any, Protocol

from tests.e2e.tools import LIMIT_S, UDSPROXY, read, until
from tests.stage import Stage

Record = dict[str, Any]


class Running:
    """One process, from its start on."""

    def __init__(
        self,
        stage: Stage,
        socket: str,
        arguments: Sequence[str],
        *,
        command: Sequence[str] = (),
        log: Sequence[str] | None = None,
        wrap: Sequence[str] = (),
    ) -> None:
        """``socket``: where clients connect. ``command``: what comes after ``--``.

        ``log``: options in the place of those for a JSON log file; then nothing waits until it runs.

        ``wrap``: a command that runs the proxy (setpriv, a shell).
        """
        self.socket = socket
        name = f"udsproxy{len(os.listdir(os.path.dirname(stage.path('proxies', ''))))}"
        self.log = stage.path("proxies", name, "log.json")
        self._said = stage.path("proxies", name, "output")
        if log is None:
            log, wait = ("--log", "json", "--log-file", self.log), True
        else:
            wait = False
        argv = [*wrap, *UDSPROXY, *arguments, *log, *(["--", *command] if command else [])]
        self.process = stage.spawn(name, argv, self._said)
        if wait:
            # The socket can be connected to before that, but a signal would not yet be taken.
            self.wait_for("listening")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def descriptors(self) -> int:
        """How many it has open, without those by which it counts refusals until its observer does."""
        links = []
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/{self.pid}/fd/{name}"))
        return sum("perf_event" not in link for link in links)

    @property
    def said(self) -> str:
        """Its standard error, and standard output where that goes nowhere else."""
        return read(self._said)

    # --- events ---

    def events(self, name: str | None = None, **keys: object) -> list[Record]:
        """The events that were written so far, of that name and with these values."""
        lines = read(self.log).split("\n")[:-1]  # the last has no end yet
        return [
            event
            for event in map(json.loads, lines)
            if name in (None, event["event"]) and all(event.get(key) == value for key, value in keys.items())
        ]

    def wait_for(self, name: str, *, count: int = 1, **keys: object) -> list[Record]:
        """At least so many such events, as soon as they are there."""

        def found() -> list[Record]:
            ended = self.process.poll() is not None
            events = self.events(name, **keys)
            assert len(events) >= count or not ended, f"udsproxy ended: {self.said}"
            return events if len(events) >= count else []

        return until(found, f"{count} x {name} {keys}")

    def freeze(self) -> None:
        """Stop it where it is; returns when it has stopped. SIGCONT has it go on."""
        self.signal(signal.SIGSTOP)
        until(lambda: read(f"/proc/{self.pid}/stat").rpartition(")")[2].split()[0] == "T", "the proxy to stop")

    # --- the end ---

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        code = self.process.wait(LIMIT_S)
        self.check()
        return code

    def stop(self) -> int:
        """End it as an administrator would, with SIGTERM. Returns its exit code."""
        self.signal()
        return self.wait()

    def end(self) -> None:
        """End it, whatever it is doing."""

        def ended() -> bool:
            if self.process.poll() is None:
                self.signal()  # the second of these ends what is still open
            return self.process.poll() is not None

        until(ended, f"the end of {self.process.args!r}")
        self.check()

    def check(self) -> None:
        assert "Traceback" not in self.said, self.said


class Proxy(Running):
    """One ``udsproxy run``."""

    def __init__(
        self,
        stage: Stage,
        listen: str,
        upstream: str,
        *options: str,
        log: Sequence[str] | None = None,
        wrap: Sequence[str] = (),
    ) -> None:
        """``log`` and ``wrap``: as of `Running`."""
        arguments = ["run", listen, upstream, *options]
        super().__init__(stage, listen.partition(",")[0], arguments, log=log, wrap=wrap)


class StartProxy(Protocol):
    """The fixture ``start_proxy``: `Proxy`, on the test's stage."""

    def __call__(
        self, listen: str, upstream: str, *options: str, log: list[str] = ..., wrap: list[str] = ...
    ) -> Proxy: ...
