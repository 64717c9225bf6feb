"""A rule: a fault with when, how likely, and how often.

A rule that asks something of a request, and every FastCGI fault, is decided for each request; any other for each
connection.

Rules: chance is a function of (seed, rule, number of the connection, number of the request on it); the selector
counts the connections, or requests, that match.
"""

from __future__ import annotations

import fnmatch
import random
import re
from collections.abc import Mapping

import msgspec

from udsproxy.events import Client, Fault, printable
from udsproxy.faults.kinds import (
    AcceptDelay,
    AnyKind,
    Backlog,
    Corrupt,
    Eagain,
    FastCGI,
    Gate,
    Hold,
    Latency,
    Shut,
    Slicer,
    Workers,
)
from udsproxy.units import MAX_SECONDS, ConfigError

MAX_NAME = 200
CLIENT_KEYS = ("uid", "gid", "pid", "comm")
"""What a condition may ask of the process that connected (SO_PEERCRED)."""
REQUEST_KEYS = ("method", "uri", "script")
"""What it may ask of a request, besides any parameter by its name, which is in upper case."""

_NUMBERS = ("conn", "uid", "gid", "pid")
_NUMBER = re.compile(r"[0-9*?\[\]!-]+")
_PARAMETER = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)


def is_of_request(key: str) -> bool:
    """Does a condition with this key ask something of a request?"""
    return key in REQUEST_KEYS or _PARAMETER.fullmatch(key) is not None


class Which(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See the module. Raises `ConfigError` where it could never apply."""

    fault: AnyKind
    when: dict[str, str] = {}
    """Conditions, all of which must hold: ``proxy``, ``conn`` (the connection's number), `CLIENT_KEYS`, and those
    of a request (`is_of_request`). Values are globs."""
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
        if len(self.name) > MAX_NAME:
            raise ConfigError(f"name={self.name[:20]}...: at most {MAX_NAME} characters")
        if self.for_s is not None and not 1e-6 <= self.for_s <= MAX_SECONDS:
            raise ConfigError(f"for={self.for_s:g}s: 1us to {MAX_SECONDS:g}s can be meant")
        for key in self.when:
            if key not in ("proxy", "conn", *CLIENT_KEYS) and not is_of_request(key):
                raise ConfigError(f"unknown condition {printable(key)!r}")
            if key in _NUMBERS and not _NUMBER.fullmatch(self.when[key]):
                raise ConfigError(f"{key}={printable(self.when[key])}: a number is needed; * and ? stand for any")
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
        fault = self.fault
        return (
            self.probability < 1
            or (isinstance(fault, Eagain) and fault.share < 1)
            or (isinstance(fault, Latency) and fault.jitter_s > 0)
            or (isinstance(fault, Slicer) and fault.variation > 0)
            or isinstance(fault, Corrupt)
        )

    @property
    def is_for_requests(self) -> bool:
        """Is it decided for each request, and not for each connection?"""
        return isinstance(self.fault, FastCGI) or any(is_of_request(key) for key in self.when)

    def event(self, at: int, proxy: str, detail: str, conn: int | None = None) -> Fault:
        """What it did."""
        return Fault(at=at, proxy=proxy, conn=conn, rule=self.name, kind=self.fault.kind, detail=detail)

    def is_for(self, proxy: str) -> bool:
        """Is the proxy meant?"""
        return fnmatch.fnmatchcase(proxy, self.when.get("proxy", "*"))

    def matches(self, number: int, client: Client | None) -> bool:
        """Is connection ``number`` of this client meant, as far as is known without its requests? (None: it is not
        known, and no condition on it holds.)"""
        asked = {key: wanted for key, wanted in self.when.items() if key == "conn" or key in CLIENT_KEYS}
        if client is None and asked.keys() - {"conn"}:
            return False
        return all(
            fnmatch.fnmatchcase(str(number if key == "conn" else getattr(client, key)), wanted)
            for key, wanted in asked.items()
        )

    def matches_request(self, params: Mapping[str, str]) -> bool:
        """Is a request with these parameters meant?"""
        return all(
            any(fnmatch.fnmatchcase(found, wanted) for found in _found(key, params))
            for key, wanted in self.when.items()
            if is_of_request(key)
        )


def parameters_of(rules: tuple[Rule, ...]) -> frozenset[str]:
    """The names of the parameters that it takes to decide these for a request, and to name it."""
    keys = {key for rule in rules for key in rule.when if key not in REQUEST_KEYS and is_of_request(key)}
    return frozenset(
        {"REQUEST_METHOD", "REQUEST_URI", "SCRIPT_NAME", "SCRIPT_FILENAME", "QUERY_STRING", *keys},
    )


def _found(key: str, params: Mapping[str, str]) -> list[str]:
    """What a request says to a condition."""
    if key == "method":
        names = ["REQUEST_METHOD"]
    elif key == "uri":
        names = ["REQUEST_URI"]
        if "REQUEST_URI" not in params and "SCRIPT_NAME" in params:
            query = params.get("QUERY_STRING")
            return [params["SCRIPT_NAME"] + (f"?{query}" if query else "")]
    elif key == "script":
        names = ["SCRIPT_NAME", "SCRIPT_FILENAME"]
    else:
        names = [key]
    return [params[name] for name in names if name in params]


class Book:
    """The rules in force, and who has matched how often. One for each proxy.

    ``seed``: of all chance.
    """

    def __init__(self, proxy: str, seed: int, rules: tuple[Rule, ...] = ()) -> None:
        self.proxy = proxy
        self.seed = seed
        self.rules: tuple[Rule, ...] = ()
        """All that there are for this proxy."""
        self.off: frozenset[str] = frozenset()
        """The names of those that are there, but not in force."""
        self.in_force: tuple[Rule, ...] = ()
        self.for_connections: tuple[Rule, ...] = ()
        """Those to be asked of each connection: mostly none."""
        self._counts: dict[str, int] = {}
        self.set(rules)

    def set(self, rules: tuple[Rule, ...], off: frozenset[str] = frozenset()) -> None:
        """From now on, these, but not those whose names are in ``off``. Counts go on for those that were there
        before."""
        self.rules = tuple(rule for rule in rules if rule.is_for(self.proxy))
        names = {rule.name for rule in self.rules}
        self.off = off & names
        self.in_force = tuple(rule for rule in self.rules if rule.name not in off)
        self.for_connections = tuple(rule for rule in self.in_force if not isinstance(rule.fault, Gate))
        self._counts = {name: count for name, count in self._counts.items() if name in names}

    def gate(self) -> GateState:
        """What the gate faults in force come to."""
        shut = eagain = backlog = workers = None
        hold = False
        for rule in self.in_force:
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

    def for_connection(self, number: int, client: Client | None) -> tuple[list[Rule], tuple[Rule, ...]]:
        """The rules that apply to connection ``number``, and those to be asked of each of its requests. To be asked
        once for each connection."""
        matching = [rule for rule in self.for_connections if rule.matches(number, client)]
        return (
            [rule for rule in matching if not rule.is_for_requests and self.chooses(rule, number)],
            tuple(rule for rule in matching if rule.is_for_requests),
        )

    def applies_to_open(self, rule: Rule, number: int, client: Client | None) -> bool:
        """Does a rule that is new apply to this connection, which is open? To be asked once for each."""
        return not rule.is_for_requests and rule.matches(number, client) and self.chooses(rule, number)

    def chance(self, rule: Rule, *what: object) -> random.Random:
        """The random numbers of a rule for a connection, or whatever else ``what`` numbers: the same, whatever else
        happens."""
        return random.Random(repr((self.seed, self.proxy, rule.name, *what)))  # noqa: S311 - reproducible on purpose

    def chooses(self, rule: Rule, *what: object) -> bool:
        """Does the rule apply to this, which matches? To be asked once for each: it is counted."""
        if rule.which is not None:
            count = self._counts[rule.name] = self._counts.get(rule.name, 0) + 1
            if count not in rule.which:
                return False
        return rule.probability >= 1 or self.chance(rule, *what).random() < rule.probability
