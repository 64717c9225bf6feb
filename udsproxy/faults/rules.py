"""A rule: a fault with when, how likely, and how often.

Rules: chance is a function of (seed, rule, number of the connection); the selector counts the connections that
match.
"""

from __future__ import annotations

import fnmatch
import random

import msgspec

from udsproxy.events import Client, Fault, printable
from udsproxy.faults.kinds import AcceptDelay, AnyKind, Backlog, Eagain, Gate, Hold, Shut, Workers
from udsproxy.units import ConfigError

CLIENT_KEYS = ("uid", "gid", "pid", "comm")
"""What a condition may ask of the process that connected (SO_PEERCRED)."""


class Which(msgspec.Struct, frozen=True):
    """Which of those that match, counted from 1; strace's selector ``first[..last][+[step]]``."""

    first: int
    last: int | None
    """None: there is no last."""
    step: int = 1

    def __post_init__(self) -> None:
        if self.first < 1 or self.step < 1 or (self.last is not None and self.last < self.first):
            raise ConfigError(f"{self}: counting goes from 1 on, and up")

    def __contains__(self, number: int) -> bool:
        if number < self.first or (self.last is not None and number > self.last):
            return False
        return (number - self.first) % self.step == 0

    def __str__(self) -> str:
        if self.last == self.first:
            return str(self.first)
        until = "" if self.last is None else f"..{self.last}"
        if self.step != 1:
            return f"{self.first}{until}+{self.step}"
        return f"{self.first}{until}" if until else f"{self.first}+"


class GateState(msgspec.Struct, frozen=True):
    """What the gate faults in force come to; of two that say the same thing, the last counts."""

    shut: int | None = None
    """connect() fails with this errno."""
    eagain: float | None = None
    """connect() fails with EAGAIN for this share of the time."""
    hold: bool = False
    backlog: int | None = None
    workers: int | None = None


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """See the module. Raises `ConfigError` where it could never apply."""

    fault: AnyKind
    when: dict[str, str] = {}
    """Conditions, all of which must hold: ``proxy``, and `CLIENT_KEYS`. Text is compared as a glob."""
    which: Which | None = None
    probability: float = 1.0
    for_s: float | None = None
    """It takes itself away after so long."""
    name: str

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"p={self.probability:g}: more than 0, and at most 1 is needed")
        if printable(self.name) != self.name or not self.name:
            raise ConfigError(f"name={printable(self.name)}: only what can be printed can be a name")
        if self.for_s is not None and self.for_s <= 0:
            raise ConfigError(f"for={self.for_s:g}s: more than 0 is needed")
        if not isinstance(self.fault, Gate | AcceptDelay):
            return
        kind = self.fault.kind
        if asked := [key for key in self.when if key != "proxy"]:
            raise ConfigError(f"{kind} acts before a client is accepted: it cannot depend on {asked[0]}")
        if isinstance(self.fault, Gate) and (self.which is not None or self.probability < 1):
            instead = "; eagain=0.3 is for a share of the time" if kind == "eagain" else ""
            raise ConfigError(f"{kind} acts on the socket, not on a connection: p= and on= cannot apply{instead}")

    @property
    def has_chance(self) -> bool:
        """Does the seed matter to it?"""
        return self.probability < 1 or (isinstance(self.fault, Eagain) and self.fault.share < 1)

    def event(self, at: int, proxy: str, detail: str, conn: int | None = None) -> Fault:
        """What it did."""
        return Fault(at=at, proxy=proxy, conn=conn, rule=self.name, kind=self.fault.kind, detail=detail)

    def is_for(self, proxy: str) -> bool:
        """Is the proxy meant?"""
        return fnmatch.fnmatchcase(proxy, self.when.get("proxy", "*"))

    def matches(self, client: Client | None) -> bool:
        """Is a connection of this client meant? (None: it is not known, and no condition on it holds.)"""
        return all(
            client is not None and fnmatch.fnmatchcase(str(getattr(client, key)), wanted)
            for key, wanted in self.when.items()
            if key != "proxy"
        )


class Book:
    """The rules in force, and who has matched how often. One for each proxy.

    ``seed``: of all chance.
    """

    def __init__(self, proxy: str, seed: int, rules: tuple[Rule, ...] = ()) -> None:
        self.proxy = proxy
        self.seed = seed
        self.rules: tuple[Rule, ...] = ()
        self.for_connections: tuple[Rule, ...] = ()
        """Those to be asked of each connection: mostly none."""
        self._counts: dict[str, int] = {}
        self.set(rules)

    def set(self, rules: tuple[Rule, ...]) -> None:
        """From now on, these. Counts go on for those that were there before."""
        self.rules = tuple(rule for rule in rules if rule.is_for(self.proxy))
        self.for_connections = tuple(rule for rule in self.rules if not isinstance(rule.fault, Gate))
        names = {rule.name for rule in self.rules}
        self._counts = {name: count for name, count in self._counts.items() if name in names}

    def gate(self) -> GateState:
        """What the gate faults in force come to."""
        shut = eagain = backlog = workers = None
        hold = False
        for rule in self.rules:
            fault = rule.fault
            if isinstance(fault, Shut):
                shut = fault.number
            elif isinstance(fault, Eagain):
                eagain = fault.share
            elif isinstance(fault, Hold):
                hold = True
            elif isinstance(fault, Backlog):
                backlog = fault.length
            elif isinstance(fault, Workers):
                workers = fault.count
        return GateState(shut, eagain, hold, backlog, workers)

    def apply(self, number: int, client: Client | None) -> list[Rule]:
        """The rules that apply to connection ``number``. To be asked once for each."""
        return [rule for rule in self.for_connections if rule.matches(client) and self._chosen(rule, number)]

    def chance(self, rule: Rule, number: int) -> random.Random:
        """The random numbers of a rule for a connection: the same, whatever else happens."""
        return random.Random(f"{self.seed}/{rule.name}/{number}")  # noqa: S311 - reproducible is what it must be

    def _chosen(self, rule: Rule, number: int) -> bool:
        if rule.which is not None:
            count = self._counts[rule.name] = self._counts.get(rule.name, 0) + 1
            if count not in rule.which:
                return False
        return rule.probability >= 1 or self.chance(rule, number).random() < rule.probability
