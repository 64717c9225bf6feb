"""One direction of a connection that faults apply to: what passes goes from stage to stage, and waits where a stage
says so.

Rules:

* Nothing overtakes: a stage may say any time, what came in first goes out first. (But what a fault ends, it ends at
  its time, whatever waits.)
* Nothing is lost but what a stage does not let through; a stage that is taken away lets go of all that waits in it,
  at once and in order.
* Things are done as late as they can be, one at a time: what is taken next is all that is worked out.
* Time is an argument. Who moves the bytes asks when to come back (`Line.due`), and stops reading while `Line.held`
  is `Line.most` or more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from udsproxy.faults.kinds import Latency
from udsproxy.faults.rules import Rule
from udsproxy.faults.stages import FOREVER, Ending, Stage

MOST_DELAYED = 4 * 1024 * 1024
"""So many bytes wait in a direction at most where they are to be late, and not few at a time."""
MOST = 256 * 1024
"""And so many elsewhere."""
CARGO_BYTES = 256 * 1024
"""What is no bytes counts as so many: there are few places for descriptors."""
_BATCH_BYTES = 256
"""What keeping something costs besides its bytes, about."""


class Cargo(Protocol):
    """What travels with the bytes and is none (descriptors)."""

    def discard(self) -> None:
        """It will not arrive."""
        ...


class Exchange:
    """A request and its answer, as far as faults ask."""

    __slots__ = ("answered", "done", "number", "rules", "stages")

    def __init__(self, number: int) -> None:
        """``number``: which of its connection, from 1 on."""
        self.number = number
        self.rules: frozenset[str] = frozenset()
        """The names of the rules that apply to it."""
        self.answered = False
        """By us: the server is not to see it."""
        self.done = False
        self.stages: dict[Slot, Stage] = {}


Item = bytes | Ending | Cargo


class Passing(NamedTuple):
    """Something on its way."""

    at: int
    item: Item
    exchange: Exchange | None
    starts: bool
    """A record begins with it."""


class _Batch:
    """What a stage makes of something that came; it says it one by one."""

    __slots__ = ("came", "left", "says", "starts", "starts_all")

    def __init__(self, came: Passing, says: Iterator[tuple[int, Item]], nbytes: int, *, starts_all: bool) -> None:
        self.came = came
        self.says = says
        self.left = nbytes
        """So many of the bytes that came are still to be said."""
        self.starts = came.starts
        self.starts_all = starts_all


class Slot:
    """A rule's place in a line: its stage (one for each exchange, where it is for these), and what waits there."""

    def __init__(self, rule: Rule | None = None, make: Callable[[int], Stage] | None = None) -> None:
        """``make``: a stage for the exchange of this number; 0: for the connection. Without a rule everything
        passes as it comes."""
        self.rule = rule
        self.held = 0
        """What waits here, in bytes."""
        self._make = make
        self._stage: Stage | None = None
        self._exchanges: list[Exchange] = []
        """Those that have a stage here, and have not ended."""
        self._batches: deque[_Batch] = deque()
        self._head: Passing | None = None
        """What comes out next."""
        self._last_at = 0
        self._closed = False
        self._removed_at: int | None = None

    @property
    def empty(self) -> bool:
        """Nothing waits here."""
        return self._peek() is None

    def begin(self, at: int, exchange: Exchange | None = None) -> None:
        """The connection, or an exchange that the rule applies to, begins."""
        assert self._make is not None
        stage = self._make(exchange.number if exchange else 0)
        if exchange is None:
            self._stage = stage
        else:
            exchange.stages[self] = stage
            self._exchanges = [*(each for each in self._exchanges if not each.done), exchange]
        stage.begin(at)

    def feed(self, came: Passing) -> None:
        """Something comes."""
        if self._closed:
            discard(came.item)
            return
        stage = self._stage
        if came.exchange is not None and self._removed_at is None:
            stage = came.exchange.stages.get(self, stage)
        item, starts_all = came.item, False
        says: Iterator[tuple[int, Item]]
        nbytes = 0 if isinstance(item, Ending) else len(item) if isinstance(item, bytes) else CARGO_BYTES
        if stage is not None and isinstance(item, bytes):
            says, starts_all = stage.feed(came.at, item, came.starts), stage.makes_records
        elif stage is not None and item is Ending.EOF:
            says = stage.end(came.at)
        else:
            says = iter(((came.at, item),))
        self.held += nbytes + _BATCH_BYTES
        self._batches.append(_Batch(came, says, nbytes, starts_all=starts_all))

    def next(self) -> Passing | None:
        """What comes out next, in order, and when."""
        head, half_close = self._peek(), self._cut(in_order=True)
        if half_close is not None and (head is None or half_close[0] <= head.at):
            return Passing(*half_close, None, False)
        return head

    def pop(self, until: int) -> Passing | None:
        """What is due by then."""
        head = self.next()
        if head is None or head.at > until:
            return None
        if head is not self._head:
            self.close()
            self.forget()
            return head
        self._head = None
        batch = self._batches[0]
        taken = batch.left if not isinstance(head.item, bytes) else min(len(head.item), batch.left)
        batch.left -= taken
        self.held -= taken
        if isinstance(head.item, Ending):
            self.close()
        return head

    def remove(self, at: int) -> None:
        """Let go: all that waits is due, and whatever comes passes as it comes."""
        self._removed_at = at
        self.forget()
        if (head := self._head) is not None:
            self._head = head._replace(at=min(head.at, at))

    def close(self) -> None:
        """What waits will not arrive, nor what comes. (What is to end the connection still does.)"""
        self._closed = True
        for batch in self._batches:
            if batch.left:
                discard(batch.came.item)
        self._batches.clear()
        self._head = None
        self.held = 0

    def end(self) -> tuple[int, Ending] | None:
        """When a fault here ends the connection, and how."""
        return self._cut(in_order=False)

    def _cut(self, *, in_order: bool) -> tuple[int, Ending] | None:
        found = None
        stages = [] if self._stage is None else [self._stage]
        stages += [each.stages[self] for each in self._exchanges if not each.done]
        for stage in stages:
            if (
                stage.cut_at is not None
                and (stage.cut is Ending.HALF_CLOSE) is in_order
                and (found is None or stage.cut_at < found[0])
            ):
                found = stage.cut_at, stage.cut
        return found

    def forget(self) -> None:
        """What its stages would do they do no more."""
        self._stage = None
        self._exchanges = []

    def _peek(self) -> Passing | None:
        while self._head is None and self._batches:
            batch = self._batches[0]
            said = next(batch.says, None)
            if said is None:
                self.held -= batch.left + _BATCH_BYTES
                self._batches.popleft()
                continue
            at, item = said
            if self._removed_at is not None:
                at = min(at, max(batch.came.at, self._removed_at))
            else:
                at = self._last_at = max(at, self._last_at)
            self._head = Passing(at, item, batch.came.exchange, batch.starts)
            batch.starts = batch.starts and batch.starts_all
        return self._head


class Line:
    """See the module."""

    def __init__(self) -> None:
        self._slots = [Slot()]
        """The first takes what comes, where nothing else does yet."""
        self.over = False
        """The sender's end has come."""
        self.most = MOST
        """While so much waits, nothing shall be fed."""
        self._latest: Exchange | None = None
        """Whose the end will be."""
        self._closed = False

    @property
    def held(self) -> int:
        """What waits, in bytes, with something for what keeping it costs."""
        return sum(slot.held for slot in self._slots)

    @property
    def waits(self) -> bool:
        """Does anything wait?"""
        return not all(slot.empty for slot in self._slots)

    @property
    def rules(self) -> list[Rule]:
        """Those that have a place here."""
        return [slot.rule for slot in self._slots if slot.rule is not None]

    def add(self, slot: Slot) -> None:
        """A place for a rule, behind the others."""
        self._slots.append(slot)
        self._count_most()

    def remove(self, at: int, names: frozenset[str]) -> None:
        """Take the places of these rules away; what waits there goes on, and then the place is gone."""
        for slot in self._slots:
            if slot.rule is not None and slot.rule.name in names:
                slot.remove(at)
                slot.rule = None
        self._count_most()

    def feed(self, at: int, item: Item, exchange: Exchange | None = None, *, starts: bool = False) -> None:
        """Something comes."""
        if self._closed:
            discard(item)
        else:
            self._slots[0].feed(Passing(at, item, exchange, starts))

    def end(self, at: int) -> None:
        """The sender's end comes."""
        self.over = True
        self.feed(at, Ending.EOF, self._latest)

    def meet(self, at: int, exchange: Exchange) -> None:
        """An exchange begins; its rules are known."""
        self._latest = exchange
        for slot in self._slots:
            if slot.rule is not None and slot.rule.name in exchange.rules:
                slot.begin(at, exchange)

    def take(self, now: int) -> Item | None:
        """What is to go on next; None: nothing, for now. An `Ending` is the last."""
        passing, ends_at = None, self.ends_at()
        if not self._closed:
            # What is due before the end still passes.
            passing = self._pull(len(self._slots) - 1, now if ends_at is None else min(now, ends_at - 1))
        if passing is not None:
            if isinstance(passing.item, Ending):
                self._closed = True
                if passing.item in (Ending.CLOSE, Ending.RESET):
                    self._end_nothing()
            return passing.item
        if len(self._slots) > 1 and any(slot.rule is None and slot.empty for slot in self._slots[1:]):
            self._slots[1:] = [slot for slot in self._slots[1:] if slot.rule is not None or not slot.empty]
        return self.ending(now)

    def ending(self, now: int) -> Ending | None:
        """How a fault ends the connection now, whatever waits; None: it does not."""
        end = self._next_end()
        if end is None or end[0] > now:
            return None
        self.close()
        self._end_nothing()
        return end[1]

    def due(self) -> int | None:
        """When there is something to take; None: when something has come."""
        end = self._next_end()
        earliest = FOREVER if end is None else end[0]
        if not self._closed:
            for slot in reversed(self._slots):
                if (passing := slot.next()) is not None:
                    earliest = min(earliest, passing.at)
                if not slot.empty:
                    break  # what is further up waits for this
        return earliest if earliest < FOREVER else None

    def ends_at(self) -> int | None:
        """When a fault ends the connection, whatever waits."""
        end = self._next_end()
        return None if end is None else end[0]

    def close(self) -> None:
        """What waits will not arrive. (What is to end the connection still does.)"""
        self._closed = True
        for slot in self._slots:
            slot.close()

    def _pull(self, number: int, until: int) -> Passing | None:
        """What comes out of a slot next, if it is due by then."""
        slot = self._slots[number]
        while number and slot.empty:
            before = self._pull(number - 1, until)
            if before is None:
                break
            slot.feed(before)
        return slot.pop(until)

    def _end_nothing(self) -> None:
        """The connection has been ended: once is enough."""
        for slot in self._slots:
            slot.forget()

    def _next_end(self) -> tuple[int, Ending] | None:
        found = [end for slot in self._slots if (end := slot.end()) is not None]
        return min(found, key=lambda each: each[0]) if found else None

    def _count_most(self) -> None:
        self.most = MOST_DELAYED if any(isinstance(rule.fault, Latency) for rule in self.rules) else MOST


def discard(item: Item) -> None:
    """It will not arrive."""
    if not isinstance(item, bytes | Ending):
        item.discard()
