"""One direction of a connection that faults apply to: what passes goes from stage to stage, and waits where a stage
says so.

Rules:

* Nothing overtakes: a stage may say any time, what came in first goes out first.
* Nothing is lost but what a stage does not let through; a stage that is taken away lets go of all that waits in it,
  at once and in order.
* Time is an argument. Who moves the bytes asks when to come back (`Line.due`), and stops reading while more than
  `Line.most` bytes wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from udsproxy.faults.rules import Rule
from udsproxy.faults.stages import FOREVER, Ending, Stage

MOST_DELAYED = 4 * 1024 * 1024
"""So many bytes wait in a direction at most where they are to be late, and not few at a time."""
MOST = 256 * 1024
"""And so many elsewhere."""


class Cargo(Protocol):
    """What travels with the bytes and is none (descriptors)."""

    def discard(self) -> None:
        """It will not arrive."""
        ...


class Exchange:
    """A request and its answer, as far as faults ask."""

    __slots__ = ("answered", "done", "number", "rules")

    def __init__(self, number: int) -> None:
        """``number``: which of its connection, from 1 on."""
        self.number = number
        self.rules: frozenset[str] = frozenset()
        """The names of the rules that apply to it."""
        self.answered = False
        """By us: the server is not to see it."""
        self.done = False


Item = bytes | Ending | Cargo
_Passing = tuple[int, Item, Exchange | None, bool]
"""When, what, whose, and whether a record begins with it."""


class _Batch:
    """What a stage makes of something that came; it says it one by one."""

    __slots__ = ("exchange", "left", "says", "starts")

    def __init__(
        self, says: Iterator[tuple[int, Item]], nbytes: int, exchange: Exchange | None, starts: bool
    ) -> None:
        self.says = says
        self.left = nbytes
        """So many of the bytes that came are still to be said."""
        self.exchange = exchange
        self.starts = starts


class Slot:
    """A rule's place in a line: its stage (one for each exchange, where it is for these), and what waits there."""

    def __init__(self, rule: Rule, make: Callable[[int], Stage]) -> None:
        """``make``: a stage for the exchange of this number; 0: for the connection."""
        self.rule = rule
        self.held = 0
        """Bytes that wait here, about."""
        self._make = make
        self._stages: dict[Exchange | None, Stage] = {}
        self._batches: deque[_Batch] = deque()
        self._head: _Passing | None = None
        """What comes out next."""
        self._last_at = 0
        self._closed = False

    def begin(self, at: int, exchange: Exchange | None = None) -> None:
        """The connection, or an exchange that the rule applies to, begins."""
        for old in [each for each in self._stages if each is not None and each.done]:
            del self._stages[old]
        stage = self._stages[exchange] = self._make(exchange.number if exchange else 0)
        stage.begin(at)

    def feed(self, passing: _Passing) -> None:
        at, item, exchange, starts = passing
        if self._closed:
            discard(item)
            return
        stage = self._stages.get(exchange if self.rule.is_for_requests else None)
        says: Iterator[tuple[int, Item]]
        nbytes = 0
        if isinstance(item, bytes):
            nbytes = len(item)
            says = iter(((at, item),)) if stage is None else stage.feed(at, item, starts)
        elif item is Ending.EOF and stage is not None:
            says = stage.end(at)
        else:
            says = iter(((at, item),))
        self.held += nbytes
        self._batches.append(_Batch(says, nbytes, exchange, starts))

    def due(self) -> int | None:
        """When something comes out next, if anything waits."""
        head = self._peek()
        cut = self._cut()
        if cut is not None and (head is None or cut[0] <= head[0]):
            return cut[0]
        return None if head is None else head[0]

    def pop(self, now: int) -> _Passing | None:
        """What is due."""
        head, cut = self._peek(), self._cut()
        if cut is not None and cut[0] <= now and (head is None or cut[0] <= head[0]):
            self.close()
            return cut[0], cut[1], None, False
        if head is None or head[0] > now:
            return None
        self._head = None
        if isinstance(head[1], Ending):
            self.close()
        return head

    def let_go(self, now: int) -> Iterator[_Passing]:
        """All that waits, now."""
        while (head := self._peek()) is not None:
            self._head = None
            yield min(head[0], now), *head[1:]

    def close(self) -> None:
        """Nothing more comes out."""
        self._closed = True
        if self._head is not None:
            discard(self._head[1])
        for batch in self._batches:
            for _, item in batch.says if not batch.left else ():
                discard(item)
        self._batches.clear()
        self._stages.clear()
        self._head = None
        self.held = 0

    def _cut(self) -> tuple[int, Ending] | None:
        cuts = [
            (stage.cut_at, stage.cut)
            for exchange, stage in self._stages.items()
            if stage.cut_at is not None and not (exchange and exchange.done)
        ]
        return min(cuts, key=lambda cut: cut[0]) if cuts else None

    def _peek(self) -> _Passing | None:
        while self._head is None and self._batches:
            batch = self._batches[0]
            said = next(batch.says, None)
            if said is None:
                self.held -= batch.left
                self._batches.popleft()
                continue
            at, item = said
            if isinstance(item, bytes):
                taken = min(len(item), batch.left)
                batch.left -= taken
                self.held -= taken
            self._last_at = max(at, self._last_at)
            self._head = self._last_at, item, batch.exchange, batch.starts
            batch.starts = False
        return self._head


class Line:
    """See the module."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.over = False
        """The sender's end has come."""
        self._latest: Exchange | None = None
        """Whose the end will be."""
        self._out: deque[Item] = deque()
        self._out_bytes = 0
        self._closed = False

    @property
    def held(self) -> int:
        """Bytes that wait, about."""
        return self._out_bytes + sum(slot.held for slot in self.slots)

    @property
    def most(self) -> int:
        """While more wait, nothing shall be fed."""
        return MOST_DELAYED if any(slot.rule.fault.kind == "latency" for slot in self.slots) else MOST

    def feed(self, at: int, item: Item, exchange: Exchange | None = None, *, starts: bool = False) -> None:
        """Something comes."""
        self._pass((at, item, exchange, starts), 0)

    def end(self, at: int) -> None:
        """The sender's end comes."""
        self.over = True
        self.feed(at, Ending.EOF, self._latest)

    def meet(self, at: int, exchange: Exchange) -> None:
        """An exchange begins; its rules are known."""
        self._latest = exchange
        for slot in self.slots:
            if slot.rule.name in exchange.rules:
                slot.begin(at, exchange)

    def take(self, now: int) -> Item | None:
        """What is to go on next; None: nothing, for now. An `Ending` is the last."""
        if not self._out:
            self._advance(now)
        if not self._out:
            return None
        item = self._out.popleft()
        if isinstance(item, bytes):
            self._out_bytes -= len(item)
        return item

    def due(self) -> int | None:
        """When there is something to take; None: when something has come."""
        if self._out:
            return 0
        times = [at for slot in self.slots if (at := slot.due()) is not None and at < FOREVER]
        return min(times) if times else None

    def remove(self, now: int, names: frozenset[str]) -> None:
        """Take the slots of these rules out; what waits there goes on."""
        for number in reversed(range(len(self.slots))):
            slot = self.slots[number]
            if slot.rule.name in names:
                # All before it is due first: what is further on must not be overtaken.
                waiting = list(slot.let_go(now))
                del self.slots[number]
                for passing in waiting:
                    self._pass(passing, number)

    def close(self) -> None:
        """What waits will not arrive."""
        self._closed = True
        for slot in self.slots:
            slot.close()
        while self._out:
            discard(self._out.popleft())
        self._out_bytes = 0

    def _advance(self, now: int) -> None:
        for number, slot in enumerate(self.slots):
            while (passing := slot.pop(now)) is not None:
                self._pass(passing, number + 1)

    def _pass(self, passing: _Passing, number: int) -> None:
        """On to the slot of this number, or out."""
        if number < len(self.slots):
            self.slots[number].feed(passing)
            return
        item = passing[1]
        if self._closed:
            discard(item)
            return
        self._out.append(item)
        if isinstance(item, bytes):
            self._out_bytes += len(item)
        elif isinstance(item, Ending):
            self._closed = True


def discard(item: Item) -> None:
    """It will not arrive."""
    if not isinstance(item, bytes | Ending):
        item.discard()
