"""The faults of a running process: adding, removing, switching, and what there is.

Rules: a change is a plain call, and whole: what cannot be meant changes nothing. What changes is told (`Fault`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio
from msgspec.structs import replace

from udsproxy.config import ProxyConfig
from udsproxy.faults.rules import Book, Rule
from udsproxy.faults.spelling import format_rule, named_apart
from udsproxy.proxy.listener import AcceptLoop
from udsproxy.proxy.socket_types import require_fit
from udsproxy.units import ConfigError, hint

_MAX_EXPIRED = 100


class NoSuch(LookupError):
    """There is no proxy, or no fault, of that name. One line."""


class FaultState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule of a proxy, as it is now."""

    proxy: str
    name: str
    enabled: bool
    text: str
    """As people write it."""
    for_requests: bool
    """It is decided for each request: so it does not apply to connections that were open before it."""
    rule: Rule
    left_s: float | None = None
    """When it takes itself away."""


class RunningFaults:
    """See the module."""

    def __init__(self, proxies: Sequence[tuple[ProxyConfig, AcceptLoop]], nursery: trio.Nursery) -> None:
        """``nursery``: for rules that take themselves away."""
        self._proxies = {config.name: (config, loop) for config, loop in proxies}
        self._ends_at: dict[tuple[str, str], float] = {}
        """When rules take themselves away, by proxy and name."""
        self._expired: dict[str, None] = {}
        """The names of the last that took themselves away."""
        self._nursery = nursery

    def states(self, proxy: str | None = None) -> list[FaultState]:
        """All rules, proxy by proxy; or of this proxy. Raises `NoSuch`."""
        return [
            FaultState(
                proxy=name,
                name=rule.name,
                enabled=rule.name not in book.off,
                text=format_rule(rule),
                for_requests=rule.is_for_requests,
                rule=rule,
                left_s=self._left_s(name, rule),
            )
            for name in self._meant(proxy)
            for book in [self._proxies[name][1].book]
            for rule in book.rules
        ]

    def _left_s(self, proxy: str, rule: Rule) -> float | None:
        ends_at = self._ends_at.get((proxy, rule.name))
        return None if rule.for_s is None or ends_at is None else max(0.0, ends_at - trio.current_time())

    def check(self, proxy: str, rules: tuple[Rule, ...]) -> None:
        """May these be meant there? Raises `ConfigError`."""
        config, loop = self._proxies[proxy]
        require_fit(replace(config, faults=rules), rules, loop.listener.kind)

    def set(self, proxy: str, rules: tuple[Rule, ...], off: frozenset[str] = frozenset()) -> None:
        """These rules, which have been checked, and no others. Not in force are those named in ``off``."""
        loop = self._proxies[proxy][1]
        book = loop.book
        before, forced = _by_name(book.rules), book.in_force
        # One that was there stays the same one: its time goes on.
        book.set(tuple(old if (old := before.get(rule.name)) == rule else rule for rule in rules), off)
        loop.apply_faults()
        loop.connections.change_faults(forced)
        was, now, there = _by_name(forced), _by_name(book.in_force), _by_name(book.rules)
        for name in before.keys() - there.keys():
            self._ends_at.pop((proxy, name), None)
        for rule in forced:
            if now.get(rule.name) != rule:
                loop.tell_fault(rule, "switched off" if there.get(rule.name) == rule else "taken away")
        for rule in book.in_force:
            if was.get(rule.name) != rule:
                seed = f"; seed {book.seed}" if rule.has_chance else ""
                loop.tell_fault(rule, f"in force: {format_rule(rule)}{seed}")
        for rule in book.rules:
            if rule.for_s is not None and before.get(rule.name) != rule:
                self._ends_at[proxy, rule.name] = trio.current_time() + rule.for_s
                self._nursery.start_soon(self._take_away_in, rule.for_s, rule, proxy)

    def add(self, rules: list[Rule], proxy: str | None = None) -> list[FaultState]:
        """These too, for the proxies that they are for. Returns what they are now, with names of their own. Raises
        `ConfigError`, `NoSuch`."""
        meant = self._meant(proxy)
        if missed := [rule for rule in rules if not any(rule.is_for(name) for name in meant)]:
            raise ConfigError(
                f"fault {format_rule(missed[0])!r}: no proxy of that name{hint('', meant, 'there is')}"
            )
        added = {}
        for name in meant:
            book = self._proxies[name][1].book
            new = [rule for rule in rules if rule.is_for(name)]
            there = {rule.name for rule in book.rules}
            if taken := [rule.name for rule in new if rule.name != rule.fault.kind and rule.name in there]:
                raise ConfigError(
                    f"there is already a fault called {taken[0]!r}; remove that first, or choose another name"
                )
            added[name] = tuple(named_apart([*book.rules, *new])[len(book.rules) :])
            self.check(name, book.rules + added[name])
        for name, new_rules in added.items():
            book = self._proxies[name][1].book
            self.set(name, book.rules + new_rules, book.off)
        return [state for state in self.states() if state.rule in added.get(state.proxy, ())]

    def remove(self, fault: str, proxy: str | None = None) -> int:
        """Take the rules of that name away. Returns how many there were. Raises `NoSuch`."""
        count = 0
        for name, book in self._having(fault, proxy):
            self.set(name, tuple(rule for rule in book.rules if rule.name != fault), book.off)
            count += 1
        return count

    def clear(self, proxy: str | None = None) -> int:
        """Take all away. Returns how many there were. Raises `NoSuch`."""
        count = 0
        for name in self._meant(proxy):
            count += len(self._proxies[name][1].book.rules)
            self.set(name, ())
        return count

    def enable(self, fault: str, proxy: str | None = None, *, on: bool) -> int:
        """Put the rules of that name in force, or keep them but out of force. Returns how many there are. Raises
        `NoSuch`."""
        count = 0
        for name, book in self._having(fault, proxy):
            self.set(name, book.rules, book.off - {fault} if on else book.off | {fault})
            count += 1
        return count

    def _meant(self, proxy: str | None) -> list[str]:
        if proxy is None:
            return list(self._proxies)
        if proxy not in self._proxies:
            raise NoSuch(f"no proxy is called {proxy!r}{hint(proxy, self._proxies, 'there is')}")
        return [proxy]

    def _having(self, fault: str, proxy: str | None) -> list[tuple[str, Book]]:
        books = [(name, self._proxies[name][1].book) for name in self._meant(proxy)]
        having = [(name, book) for name, book in books if fault in {rule.name for rule in book.rules}]
        if not having:
            if fault in self._expired:
                raise NoSuch(f"no fault is called {fault!r} any more: its time is over")
            names = sorted({rule.name for _, book in books for rule in book.rules})
            raise NoSuch(f"no fault is called {fault!r}{hint(fault, names, 'there is')}")
        return having

    async def _take_away_in(self, seconds: float, rule: Rule, proxy: str) -> None:
        await trio.sleep(seconds)
        book = self._proxies[proxy][1].book
        if any(each is rule for each in book.rules):
            self.set(proxy, tuple(each for each in book.rules if each is not rule), book.off)
            self._expired[rule.name] = None
            while len(self._expired) > _MAX_EXPIRED:
                self._expired.pop(next(iter(self._expired)))


def _by_name(rules: tuple[Rule, ...]) -> dict[str, Rule]:
    return {rule.name: rule for rule in rules}
