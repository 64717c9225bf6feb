"""Hypothesis strategies: any rule that can be meant."""

from __future__ import annotations

from hypothesis import strategies as st

from udsproxy.faults import kinds
from udsproxy.faults.rules import REQUEST_KEYS, Rule, Which

_durations = st.integers(0, 10_000_000).map(lambda us: us / 1_000_000)
_names = st.text("abcxyz-0123 '\"", min_size=1, max_size=8).filter(str.strip)

gate_kinds = st.one_of(
    st.builds(kinds.Backlog, st.integers(0, 2**31 - 1)),
    st.builds(kinds.Workers, st.integers(1, 1000)),
    st.builds(kinds.Eagain, st.integers(1, 100).map(lambda percent: percent / 100)),
    st.sampled_from([kinds.Refuse(), kinds.Missing(), kinds.Deny(), kinds.Hold()]),
)
_ways = st.sampled_from(["c2s", "s2c", "both"])
_sizes = st.integers(1, 100_000)
stream_kinds = st.one_of(
    st.builds(kinds.ConnectDelay, _durations),
    st.builds(kinds.Close, _durations),
    st.builds(kinds.Reset, _durations),
    st.builds(
        kinds.Latency,
        _durations,
        _durations,
        st.sampled_from(["uniform", "normal", "pareto"]),
        direction=_ways,
    ),
    st.builds(kinds.Bandwidth, _sizes, direction=_ways),
    st.builds(
        lambda size, share, delay_s, direction: kinds.Slicer(size, int(size * share), delay_s, direction=direction),
        _sizes,
        st.floats(0, 0.99),
        _durations,
        _ways,
    ),
    st.builds(
        kinds.Limit,
        st.integers(0, 100_000),
        st.sampled_from(["close", "reset", "half-close", "stall"]),
        direction=_ways,
    ),
    st.builds(
        kinds.Stall,
        _durations.filter(bool),
        st.sampled_from(["pass", "close", "reset"]),
        direction=_ways,
    )
    | st.builds(kinds.Stall, direction=_ways),
    st.builds(kinds.Corrupt, st.integers(1, 10**7).map(lambda share: share / 10**7), direction=_ways),
    st.builds(kinds.SlowClose, _durations, direction=_ways),
    st.builds(kinds.HalfClose, _durations, direction=_ways),
)
fastcgi_kinds = st.one_of(
    st.just(kinds.Overloaded()),
    st.builds(kinds.Truncate, st.none() | st.integers(0, 1000)),
    st.builds(kinds.Status, st.sampled_from([200, 404, 503])),
    st.builds(kinds.Stderr, st.text(min_size=1, max_size=20)),
    st.builds(kinds.Version, st.integers(2, 255)),
    st.builds(kinds.Type, st.integers(0, 255)),
    st.builds(kinds.HeaderTooBig, st.integers(16, 100_000)),
)
connection_kinds = st.builds(kinds.AcceptDelay, _durations)

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
delay_rules = st.builds(
    Rule,
    fault=connection_kinds,
    when=st.dictionaries(st.just("proxy"), _names),
    which=st.none() | whiches,
    probability=st.integers(1, 10**7).map(lambda share: share / 10**7),
    name=_names,
)
connection_rules = st.builds(
    Rule,
    fault=stream_kinds | fastcgi_kinds,
    when=st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("proxy", "comm", *REQUEST_KEYS, "QUERY_STRING", "HTTP_X_2"), _names),
            **dict.fromkeys(("conn", "uid", "gid", "pid"), st.text("0123456789*?", min_size=1, max_size=5)),
        },
    ),
    which=st.none() | whiches,
    probability=st.integers(1, 10**7).map(lambda share: share / 10**7),
    for_s=_for,
    name=_names,
)
rules = gate_rules | connection_rules | delay_rules
