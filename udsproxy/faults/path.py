"""The faults of one connection: its two directions, and its requests where rules ask for these.

Rules: what applies is decided when the connection begins, or a request on it; what it came to is told to ``tell``.
No I/O: who moves the bytes feeds this, and takes from its lines.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from udsproxy.events import Direction
from udsproxy.faults.kinds import FastCGI, Limit, Reset, Stall, Stream
from udsproxy.faults.line import Cargo, Line, Slot
from udsproxy.faults.requests import Requests, make_answer_stage
from udsproxy.faults.rules import Book, Rule, parameters_of
from udsproxy.faults.stages import Stage, make_stage


class Path:
    """See the module."""

    def __init__(
        self,
        book: Book,
        number: int,
        at: int,
        rules: list[Rule],
        for_requests: tuple[Rule, ...],
        tell: Callable[[Rule, int | None], None],
    ) -> None:
        """``number``: the connection's. ``rules``: of stream faults, those that apply to all of it.
        ``for_requests``: those to be decided for each request. ``tell``: is called with each rule that applies, and
        the FastCGI id of the request that it applies to."""
        self._book = book
        self._number = number
        self._tell = tell
        self.lines: dict[Direction, Line] = {"c2s": Line(), "s2c": Line()}
        self._for_requests = for_requests
        self.may_reset = False
        """It may end with a reset."""
        self._requests: Requests | None = None
        if for_requests:
            wanted = parameters_of(for_requests)
            self._requests = Requests(self.lines["c2s"], self.lines["s2c"], wanted, self._choose)
        # What changes records acts before what may cut them.
        for rule in sorted(for_requests, key=lambda rule: not isinstance(rule.fault, FastCGI)):
            self._add_slots(rule)
        for rule in rules:
            self.add(at, rule)

    def add(self, at: int, rule: Rule) -> None:
        """A rule applies from now on; it is of a stream fault, and not for requests."""
        for slot in self._add_slots(rule):
            slot.begin(at)
        self._tell(rule, None)

    def remove(self, at: int, names: frozenset[str]) -> None:
        """The rules of these names apply no more."""
        for line in self.lines.values():
            line.remove(at, names)
        self._for_requests = tuple(rule for rule in self._for_requests if rule.name not in names)
        if self._requests is not None and not self._for_requests:
            self._requests.let_go(at)
            self._leave_requests(at)
        self.may_reset = any(_may_reset(rule) for line in self.lines.values() for rule in line.rules)

    @property
    def is_over(self) -> bool:
        """No rule applies any more, and nothing waits."""
        return self._requests is None and not any(line.rules or line.waits for line in self.lines.values())

    def feed(self, direction: Direction, at: int, data: bytes) -> None:
        """Bytes come."""
        if self._requests is not None:
            self._requests.feed(direction, at, data)
            if not self._for_requests:
                self._leave_requests(at)
        else:
            self.lines[direction].feed(at, data)

    def cargo(self, direction: Direction, at: int, item: Cargo) -> None:
        """What travels with the bytes that come next."""
        if self._requests is not None:
            self._requests.cargo(direction, at, item)
        else:
            self.lines[direction].feed(at, item)

    def end(self, direction: Direction, at: int) -> None:
        """The end of a direction comes."""
        if self._requests is not None:
            self._requests.end(direction, at)
        else:
            self.lines[direction].end(at)

    def close(self, direction: Direction) -> None:
        """What waits in a direction will not arrive."""
        self.lines[direction].close()
        if direction == "c2s" and self._requests is not None:
            self._requests.close()

    def _leave_requests(self, at: int) -> None:
        """No rule is for requests any more: bytes pass as they come, as soon as that can be."""
        if self._requests is not None and self._requests.leave(at):
            self._requests = None

    def _add_slots(self, rule: Rule) -> list[Slot]:
        fault = rule.fault
        ways = fault.ways if isinstance(fault, Stream) else ("s2c",)
        slots = []
        for direction, line in self.lines.items():
            if direction in ways:
                slot = Slot(rule, partial(self._make_stage, rule, direction))
                line.add(slot)
                slots.append(slot)
        self.may_reset = self.may_reset or _may_reset(rule)
        return slots

    def _make_stage(self, rule: Rule, direction: Direction, exchange: int) -> Stage:
        fault = rule.fault
        if isinstance(fault, FastCGI):
            return make_answer_stage(fault)
        assert isinstance(fault, Stream)
        return make_stage(fault, self._book.chance(rule, self._number, exchange, direction))

    def _choose(self, exchange: int, request_id: int, params: dict[str, str]) -> list[Rule]:
        rules = [
            rule
            for rule in self._for_requests
            if rule.matches_request(params) and self._book.chooses(rule, self._number, exchange)
        ]
        for rule in rules:
            self._tell(rule, request_id)
        return rules


def _may_reset(rule: Rule) -> bool:
    fault = rule.fault
    return isinstance(fault, Reset) or (isinstance(fault, Limit | Stall) and fault.then == "reset")
