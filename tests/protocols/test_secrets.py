"""No byte of a secret is shown: whatever is damaged, however it is cut, at any verbosity, in any output."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocols.hostile import PUBLIC, Hostile, stream
from tests.protocols.strategies import cut
from udsproxy.events import Close, Data, Event
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.budget import Budget, Ledger
from udsproxy.protocols.screen import make_screens
from udsproxy.protocols.secrets import Masking
from udsproxy.protocols.tap import Tap
from udsproxy.sinks.console import ConsoleRenderer
from udsproxy.sinks.json_lines import JsonRenderer
from udsproxy.sinks.sink import Renderer
from udsproxy.sinks.socat import SocatRenderer
from udsproxy.sinks.text import WallClock

STREAMS = int(os.environ.get("UDSPROXY_SECRET_STREAMS", "300"))
FIRST = int(os.environ.get("UDSPROXY_SECRET_FIRST", "0"))
"""The number of the first, so that many can be shared among processes."""

MASKING = Masking()
CLOCK = WallClock()
REPLY = wire.encode_stream(wire.STDOUT, 1, b"Status: 200\r\n\r\nhi") + wire.encode_end(1)


class Kept:
    """A sink that keeps the events."""

    name = "kept"
    total_dropped = 0

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> Iterator[None] | None:
        self.events.append(event)
        return None

    def flush(self) -> None:
        pass


def observe(
    pieces: list[bytes], *, verbosity: int, decode: str = "auto", masking: Masking | None = MASKING
) -> list[Event]:
    """All events of a client that sent this, and whom the server answered."""
    sink = Kept()
    tap = Tap([sink], name="p", decode={"p": decode}, verbosity=verbosity, masking=masking)
    seen = tap.observe("p", 1)
    for piece in pieces:
        seen.data("c2s", 0, piece)
    seen.data("s2c", 0, REPLY)
    seen.close(
        Close(at=0, proxy="p", conn=1, by="client", c2s_bytes=1, s2c_bytes=1, total_s=1.0, requests=0), "left"
    )
    while tap.work(1000):
        pass
    assert tap.budget.held == 0
    return sink.events


def shown(events: list[Event]) -> bytes:
    """The client's bytes, as they are shown."""
    return b"".join(event.data for event in events if isinstance(event, Data) and event.direction == "c2s")


def rendered(events: list[Event], renderer: Renderer) -> bytes:
    out = []
    for event in events:
        lines = renderer.render(event)
        out.append(lines if isinstance(lines, bytes) else b"".join(lines or ()))
    return b"".join(out)


def renderers(verbosity: int) -> list[Renderer]:
    console = ConsoleRenderer(CLOCK, color=False, verbosity=verbosity, hexdump=1 << 16)
    return [console, JsonRenderer(CLOCK, hexdump=1 << 16), SocatRenderer(CLOCK)]


def pieces_of(rng: random.Random, data: bytes) -> list[bytes]:
    most = rng.choice((1, 30, 30, 300, 300, 300, 2000, 2000))
    return cut(data, [rng.randint(1, most) for _ in range(2 * len(data) // most + 1)])


def told(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Data)]


def seen_of(number: int, verbosity: int, wrong: dict[str, list[int]]) -> None:
    """Look at one stream, cut and whole; note what is wrong."""
    hostile, rng = stream(number), random.Random(-number - 1)
    decode = "fastcgi" if number % 3 == 0 else "auto"
    pieces = [piece for piece in pieces_of(rng, hostile.data) if piece]
    events = observe(pieces, verbosity=verbosity, decode=decode)
    # A hexdump shows the bytes of `Data` and nothing else; mostly those are looked at themselves, which is faster.
    few = events if number % 100 == 0 else told(events)
    texts = [shown(events), *(rendered(few, renderer) for renderer in renderers(verbosity))]
    texts += [rendered(events, SocatRenderer(CLOCK))] if verbosity == 2 else []
    if hostile.leaks(b"\n".join(texts)):
        wrong["leaks"].append(number)
    if verbosity == 2 or number % 4 == 0:
        whole = observe([hostile.data], verbosity=verbosity, decode=decode)
        if shown(events) != shown(whole) or told(events) != told(whole):
            wrong["differs"].append(number)


def test_no_secret_is_shown() -> None:
    """Of many damaged streams no four bytes of a secret in a row are in any output, and no cut makes a difference."""
    wrong: dict[str, list[int]] = {"leaks": [], "differs": []}
    for number in range(FIRST, FIRST + STREAMS):
        # At -vv everything is told that is at -v, and the bytes; so that needs to be looked at less.
        for verbosity in (0, 1, 2) if number % 10 == 0 else (0, 2):
            seen_of(number, verbosity, wrong)
    assert wrong == {"leaks": [], "differs": []}
