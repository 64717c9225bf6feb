"""Which rules apply to which connection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.faults import strategies
from udsproxy.events import Client
from udsproxy.faults import kinds
from udsproxy.faults.rules import Book, GateState, Rule, Which
from udsproxy.faults.spelling import parse_rules

NGINX = Client(pid=100, uid=33, gid=33, comm="nginx")


@given(which=strategies.whiches, number=st.integers(1, 500))
def test_the_selector(which: Which, number: int) -> None:
    """first..last+step is what a range is."""
    assert (number in which) == (number in range(which.first, (which.last or 1000) + 1, which.step))


@given(
    rules=st.lists(strategies.connection_rules, max_size=5),
    seed=st.integers(0, 2**32),
    order=st.permutations(range(1, 15)),
)
def test_the_same_seed_gives_the_same_faults(rules: list[Rule], seed: int, order: list[int]) -> None:
    """Chance depends on the seed and the connection's number alone, not on the order in which they come."""
    free = tuple(rule for rule in rules if rule.which is None)
    one, other = Book("p", seed, free), Book("p", seed, free)
    in_order = {number: one.for_connection(number, NGINX) for number in sorted(order)}
    assert {number: other.for_connection(number, NGINX) for number in order} == in_order


def test_chance_is_as_likely_as_it_says() -> None:
    """Of 4,000 connections a tenth, about; with another seed, others."""
    (rule,) = parse_rules("close p=0.1")
    book, other = Book("p", 1, (rule,)), Book("p", 2, (rule,))
    chosen = {number for number in range(4000) if book.for_connection(number, None)[0]}
    assert 300 < len(chosen) < 500
    assert chosen != {number for number in range(4000) if other.for_connection(number, None)[0]}


def test_conditions() -> None:
    """All must hold; text is a glob; a client that is not known meets none."""
    rules = (
        *parse_rules("close if comm=ng* uid=33 name=a"),
        *parse_rules("close if uid=0 name=b"),
        *parse_rules("close if proxy=other name=c"),
        *parse_rules("close name=d"),
    )
    book = Book("mine", 1, rules)
    assert [rule.name for rule in book.for_connection(1, NGINX)[0]] == ["a", "d"]
    assert [rule.name for rule in book.for_connection(2, None)[0]] == ["d"]


def test_the_selector_counts_those_that_match() -> None:
    """``on=2`` is the second of nginx's connections, whatever others do; a rule that stays goes on counting."""
    rules = tuple(parse_rules("close if comm=nginx on=2"))
    book, other = Book("p", 1, rules), Client(1, 1, 1, "curl")
    comers = [other, NGINX, other, NGINX, NGINX]
    assert [bool(book.for_connection(number, who)[0]) for number, who in enumerate(comers)] == [False] * 3 + [
        True,
        False,
    ]
    book = Book("p", 1, rules)
    book.for_connection(1, NGINX)[0]
    book.set(rules + tuple(parse_rules("hold")))
    assert [rule.name for rule in book.for_connection(2, NGINX)[0]] == ["close"]


def test_what_gate_faults_come_to() -> None:
    """Each says its own; where two say the same thing, the last counts; connection faults say nothing."""
    rules = [rule for text in ("backlog=2,workers=3", "refuse", "missing", "close") for rule in parse_rules(text)]
    assert Book("p", 1, tuple(rules)).gate() == GateState(shut=kinds.Missing.number, backlog=2, workers=3)
    assert Book("p", 1).gate() == GateState()
    (held, share) = (*parse_rules("hold"), *parse_rules("eagain=0.3"))
    assert Book("p", 1, (held, share)).gate() == GateState(hold=True, eagain=0.3)
