"""What nginx's variables may be."""

from __future__ import annotations

import re
import time
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor.nginx_syntax import parse
from udsproxy.doctor.nginx_values import Values, may_be, text_of

WORDS = st.text("abc/.", max_size=3)
NAMES = st.sampled_from(["a", "b", "c", "nobody_knows"])


def values_of(text: str) -> Values:
    values = Values()
    for each in parse(text):
        values.add(each)
    return values


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.lists(WORDS, min_size=1, max_size=3)),
    st.lists(WORDS | NAMES.map("${{{}}}".format), max_size=4),
)
def test_every_value_is_found(constants: dict[str, list[str]], parts: list[str]) -> None:
    """Whatever a name's variables are set to, the name that comes of it is among what it can be; and where some of
    it is not known, any text in that place may be it."""
    text = " ".join(f'set ${name} "{value}";' for name, several in constants.items() for value in several)
    values = values_of(text)
    found = values.expand("".join(parts))
    whole = {text_of(each) for each in found}
    choices = [constants.get(part[2:-1], ["?!", ""]) if part.startswith("$") else [part] for part in parts]
    for chosen in product(*choices):
        wanted = "".join(chosen)
        assert any(may_be(each, wanted) for each in found)
        if all(not part.startswith("$") or part[2:-1] in constants for part in parts):
            assert wanted in whole


@given(
    st.lists(st.none() | st.text("ab", min_size=1, max_size=2), min_size=1, max_size=5), st.text("ab", max_size=6)
)
def test_what_may_be(pieces: list[str | None], text: str) -> None:
    """It is judged as a pattern with a `*` for what is not known."""
    pattern = "".join(".*" if each is None else each for each in pieces)
    assert may_be(tuple(pieces), text) == (re.fullmatch(pattern, text) is not None)


def test_tables() -> None:
    """Of map, geo and split_clients the values count, and not the keys, nor their own directives."""
    text = "map $h $v { hostnames; default 1; a 2; include x; } geo $g { ranges; 10.0.0.0/8 3; }"
    values = values_of(f"{text} split_clients $a $s {{ 5% 4; }}")
    assert [text_of(each) for each in values.expand("$v")] == ["1", "2"]
    assert [text_of(each) for each in values.expand("${g}-$S")] == ["3-4"]


def test_many_names_take_no_long_time() -> None:
    """What is left when the bound is reached is not known, and that takes no time."""
    values = values_of("".join(f"set $a {'$a' * 20}{number};" for number in range(20)))
    began = time.process_time()
    for _ in range(1000):
        assert may_be(values.expand("$a$a$a")[-1], "anything")
    assert time.process_time() - began < 20
