"""The stream faults: pure functions from timed chunks to timed chunks, each with a state of its own.

A *stage* is given what passes in one direction, with the time at which it comes, and says what comes out, and when.

Rules: no stage reads a clock, or draws from any chance but the one that it was given. It may say a time that is
earlier than what it said before: who moves the bytes keeps their order (`udsproxy.faults.line`). It says things as
late as it can, in a generator: a slow link does not cut what waits for it beforehand.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from random import Random
from typing import assert_never

from udsproxy.faults import kinds

FOREVER = 1 << 62
"""When nothing comes any more (ns)."""

_S = 1_000_000_000
_PARETO_SHAPE = 3.0
_PARETO_MEAN = _PARETO_SHAPE / (_PARETO_SHAPE - 1)
_PARETO_DEVIATION = math.sqrt(_PARETO_SHAPE / (_PARETO_SHAPE - 2)) / (_PARETO_SHAPE - 1)


class Ending(enum.Enum):
    """What passes last."""

    EOF = enum.auto()
    """The sender has no more to say."""
    HALF_CLOSE = enum.auto()
    """The receiver is told so; by a fault."""
    CLOSE = enum.auto()
    """The connection is closed in order; by a fault."""
    RESET = enum.auto()
    """The connection is reset; by a fault."""


Timed = tuple[int, bytes | Ending]
"""When (ns), and what."""

_THEN = {"close": Ending.CLOSE, "reset": Ending.RESET, "half-close": Ending.HALF_CLOSE}


class Stage:
    """Passes everything on as it comes."""

    cut_at: int | None = None
    """When everything ends, whatever else passes then: what is due before still passes."""
    cut = Ending.CLOSE
    """How it ends."""
    makes_records = False
    """All that it makes of what begins a record does so too (FastCGI)."""

    def begin(self, at: int) -> None:
        """What it is for begins."""

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        """Bytes come. ``starts``: at their first a record begins (FastCGI)."""
        yield at, data

    def end(self, at: int) -> Iterator[Timed]:
        """The end comes."""
        yield at, Ending.EOF


class _ConnectDelay(Stage):
    def __init__(self, fault: kinds.ConnectDelay) -> None:
        self._delay = int(fault.delay_s * _S)
        self._until = 0

    def begin(self, at: int) -> None:
        self._until = at + self._delay

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        yield max(at, self._until), data

    def end(self, at: int) -> Iterator[Timed]:
        yield max(at, self._until), Ending.EOF


class _Close(Stage):
    def __init__(self, fault: kinds.Close) -> None:
        self._after = int(fault.after_s * _S)

    def begin(self, at: int) -> None:
        self.cut_at = at + self._after


class _CutAfterFirst(Stage):
    """Ends so long after the first bytes. ``grace``: what comes with these still passes."""

    def __init__(self, after_s: float, cut: Ending, *, grace: bool) -> None:
        self._after = int(after_s * _S) + grace
        self.cut = cut

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        if self.cut_at is None:
            self.cut_at = at + self._after
        yield at, data


class _Latency(Stage):
    def __init__(self, fault: kinds.Latency, random: Random) -> None:
        self._fault = fault
        self._random = random

    def _draw(self) -> int:
        mean, spread, random = self._fault.delay_s, self._fault.jitter_s, self._random
        distribution = self._fault.distribution
        if not spread:
            delay_s = mean
        elif distribution == "uniform":
            delay_s = random.uniform(mean - spread, mean + spread)
        elif distribution == "normal":
            delay_s = random.gauss(mean, spread)
        elif distribution == "pareto":
            drawn = random.paretovariate(_PARETO_SHAPE)
            delay_s = mean + spread * (drawn - _PARETO_MEAN) / _PARETO_DEVIATION
        else:
            assert_never(distribution)
        return int(max(0.0, delay_s) * _S)

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        yield at + self._draw(), data

    def end(self, at: int) -> Iterator[Timed]:
        yield at + self._draw(), Ending.EOF


class _Bandwidth(Stage):
    _TURNS = 50
    """A second's bytes come in so many pieces."""

    def __init__(self, fault: kinds.Bandwidth) -> None:
        self._rate = fault.rate
        self._piece = max(1, fault.rate // self._TURNS)
        self._free_at = 0

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        for start in range(0, len(data), self._piece):
            piece = data[start : start + self._piece]
            self._free_at = max(self._free_at, at) + len(piece) * _S // self._rate
            yield self._free_at, piece


class _Slicer(Stage):
    def __init__(self, fault: kinds.Slicer, random: Random) -> None:
        self._fault = fault
        self._random = random
        self._delay = int(fault.delay_s * _S)
        self._next_at = 0

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        start = 0
        while start < len(data):
            variation = self._fault.variation
            size = self._fault.size + (self._random.randint(-variation, variation) if variation else 0)
            at = max(at, self._next_at)
            self._next_at = at + self._delay
            yield at, data[start : start + size]
            start += size


class _Limit(Stage):
    def __init__(self, fault: kinds.Limit) -> None:
        self._left = fault.nbytes
        self._then = fault.then

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        passes, rest = data[: self._left], data[self._left :]
        self._left -= len(passes)
        if passes:
            yield at, passes
        if not self._left and self._then != "stall":
            yield at, _THEN[self._then]
        elif rest:
            yield FOREVER, rest


class _Stall(Stage):
    def __init__(self, fault: kinds.Stall) -> None:
        self._delay = None if fault.delay_s is None else int(fault.delay_s * _S)
        self._then = fault.then
        self._until: int | None = None

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        if self._until is None:
            self._until = FOREVER if self._delay is None else at + self._delay
            if self._then != "pass":
                self.cut_at, self.cut, self._until = self._until, _THEN[self._then], FOREVER
        yield max(at, self._until), data


class _Corrupt(Stage):
    """Which bytes are changed does not depend on how they are cut into chunks."""

    _PIECE = 4096
    """So many are done at a time: it takes a while."""

    def __init__(self, fault: kinds.Corrupt, random: Random) -> None:
        self._random = random
        self._scale = 0.0 if fault.share == 1 else 1 / math.log1p(-fault.share)
        self._left = self._gap()

    def _gap(self) -> int:
        """How many bytes stay as they are before the next that is changed: the geometric distribution."""
        return int(math.log(1 - self._random.random()) * self._scale)

    def feed(self, at: int, data: bytes, starts: bool) -> Iterator[Timed]:
        for start in range(0, len(data), self._PIECE):
            piece, position = bytearray(data[start : start + self._PIECE]), self._left
            while position < len(piece):
                piece[position] ^= 1 + int(self._random.random() * 255)
                position += 1 + self._gap()
            self._left = position - len(piece)
            yield at, bytes(piece)


class _SlowClose(Stage):
    def __init__(self, fault: kinds.SlowClose) -> None:
        self._delay = int(fault.delay_s * _S)

    def end(self, at: int) -> Iterator[Timed]:
        yield at + self._delay, Ending.EOF


def make_stage(fault: kinds.AnyStream, random: Random) -> Stage:
    """The stage of a fault, for one direction. ``random``: its chance."""
    match fault:
        case kinds.ConnectDelay():
            return _ConnectDelay(fault)
        case kinds.Close():
            return _Close(fault)
        case kinds.Reset():
            return _CutAfterFirst(fault.after_s, Ending.RESET, grace=False)
        case kinds.HalfClose():
            return _CutAfterFirst(fault.after_s, Ending.HALF_CLOSE, grace=True)
        case kinds.Latency():
            return _Latency(fault, random)
        case kinds.Bandwidth():
            return _Bandwidth(fault)
        case kinds.Slicer():
            return _Slicer(fault, random)
        case kinds.Limit():
            return _Limit(fault)
        case kinds.Stall():
            return _Stall(fault)
        case kinds.Corrupt():
            return _Corrupt(fault, random)
        case kinds.SlowClose():
            return _SlowClose(fault)
        case _:
            assert_never(fault)
