"""Hypothesis strategies: any rule that can be meant."""

from __future__ import annotations

from hypothesis import strategies as st

from udsproxy.faults import kinds
from udsproxy.faults.rules import CLIENT_KEYS, Rule, Which

_durations = st.integers(0, 10_000_000).map(lambda us: us / 1_000_000)
_names = st.text("abcxyz-0123 '\"", min_size=1, max_size=8).filter(str.strip)

gate_kinds = st.one_of(
    st.builds(kinds.Backlog, st.integers(0, 2**31 - 1)),
    st.builds(kinds.Workers, st.integers(1, 1000)),
    st.builds(kinds.Eagain, st.integers(1, 100).map(lambda percent: percent / 100)),
    st.sampled_from([kinds.Refuse(), kinds.Missing(), kinds.Deny(), kinds.Hold()]),
)
connection_kinds = st.one_of(
    st.builds(kinds.ConnectDelay, _durations), st.sampled_from([kinds.Close(), kinds.Reset()])
)

whiches = st.builds(
    lambda first, length, step: Which(first, None if length is None else first + length, step),
    st.integers(1, 100),
    st.none() | st.integers(0, 100),
    st.integers(1, 10),
).map(lambda which: Which(which.first, which.last, 1) if which.first == which.last else which)

_for = st.none() | st.integers(1, 10**13).map(lambda us: us / 1_000_000)

gate_rules = st.builds(
    Rule,
    fault=gate_kinds,
    when=st.just({}) | st.fixed_dictionaries({"proxy": _names}),
    for_s=_for,
    name=_names,
)
connection_rules = st.builds(
    Rule,
    fault=connection_kinds,
    when=st.dictionaries(st.sampled_from(["proxy", *CLIENT_KEYS]), _names),
    which=st.none() | whiches,
    probability=st.integers(1, 10**7).map(lambda share: share / 10**7),
    for_s=_for,
    name=_names,
)
rules = gate_rules | connection_rules
