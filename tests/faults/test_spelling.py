"""How rules are written: what is written reads back the same, and a mistake says what would do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import strategies
from udsproxy.faults import kinds
from udsproxy.faults.rules import Rule, Which
from udsproxy.faults.spelling import explain_kind, format_rule, named_apart, parse_rules
from udsproxy.units import ConfigError


@given(rule=strategies.rules)
def test_what_is_written_reads_the_same(rule: Rule) -> None:
    """Reading what a rule is written as gives that rule."""
    assert parse_rules(format_rule(rule)) == [rule]


@given(text=st.text() | st.text("abcdefklorsu=,.+p0123456789 ifgn'\"-"))
def test_any_text_is_rules_or_a_mistake(text: str) -> None:
    """Reading ends, or raises a `ConfigError` of one line, and does nothing else."""
    try:
        found = parse_rules(text)
    except ConfigError as error:
        said = str(error)
    else:
        assert [rule for each in found for rule in parse_rules(format_rule(each))] == found
        return
    assert "\n" not in said


def test_toxiproxys_names() -> None:
    """Its toxics and their attributes, where they mean the same."""
    for theirs, ours in (
        ("latency,latency=1s,jitter=100ms", kinds.Latency(1.0, 0.1)),
        ("latency@upstream,latency=1s", kinds.Latency(1.0, direction="c2s")),
        ("bandwidth,rate=100KB/s@downstream", kinds.Bandwidth(100_000)),
        ("slow_close,delay=1s", kinds.SlowClose(1.0)),
        ("timeout,timeout=5s", kinds.Stall(5.0, "close")),
        ("reset_peer,timeout=2s", kinds.Reset(2.0)),
        ("slicer,average_size=64B,size_variation=32B,delay=10ms", kinds.Slicer(64, 32, 0.01)),
        ("limit_data,bytes=1KiB", kinds.Limit(1024)),
        ("down", kinds.Refuse()),
    ):
        assert [rule.fault for rule in parse_rules(theirs)] == [ours]
    assert parse_rules("latency=1s toxicity=0.5")[0].probability == 0.5


def test_texts() -> None:
    """A text may have commas; what follows one is another fault only where it is one's name."""
    assert parse_rules('fcgi-stderr="PHP Warning: a, b@s2c"')[0].fault == kinds.Stderr("PHP Warning: a, b@s2c")
    assert [rule.fault for rule in parse_rules("fcgi-stderr=a,close")] == [kinds.Stderr("a"), kinds.Close()]
    assert parse_rules("'fcgi-stderr=a\\,close'")[0].fault == kinds.Stderr("a,close")


def test_one_word_can_be_several_faults() -> None:
    """Faults that share their conditions, attributes that belong to the fault before them, toxiproxy's names."""
    assert parse_rules("backlog=2,workers=3 for=1m") == [
        Rule(fault=kinds.Backlog(2), for_s=60.0, name="backlog"),
        Rule(fault=kinds.Workers(3), for_s=60.0, name="workers"),
    ]
    assert parse_rules("connect-delay,delay=250ms,reset_peer if comm=nginx p=0.5 on=3..9+2 name=x") == [
        Rule(fault=fault, when={"comm": "nginx"}, probability=0.5, which=Which(3, 9, 2), name="x")
        for fault in (kinds.ConnectDelay(0.25), kinds.Reset())
    ]
    assert parse_rules("down")[0].fault == kinds.Refuse()


@pytest.mark.parametrize("name", kinds.KINDS)
def test_what_is_explained_can_be_written(name: str) -> None:
    """Each kind, as it is explained: without what may be left out, and with all of it."""
    written, does = explain_kind(name)
    assert does
    written = re.sub(r"[a-z-]+(\|[a-z0-9-]+)+", lambda match: match[0].partition("|")[0], written)
    written = written.replace("N", "2").replace("[@c2s]", "")
    least, most = re.sub(r"\[.*?\]", "", written), written.replace("[", "").replace("]", "")
    for text in (least, most):
        assert parse_rules(text)[0].fault.kind == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a fault is missing; write one of: backlog, "),
        ("refus", "unknown fault 'refus'; did you mean 'refuse'?"),
        ("fire", "unknown fault 'fire'; choose one of backlog, "),
        ("backlog", "backlog needs a value, backlog=N"),
        ("connect-delay", "connect-delay needs a value, connect-delay=250ms"),
        ("backlog=many", "'many' is not a number"),
        ("backlog=-1", "a number from 0 to"),
        ("workers=0", "1 or more are needed; hold is for none"),
        ("eagain=2", "a share of the time is needed"),
        ("hold=3", "hold takes no value"),
        ("close=3", "3: of what? write 3ms or 3s"),
        ("latency=1000", "1000: of what? write 1000ms or 1000s"),
        ("bandwidth=100", "100: of what? write 100B or 100KB"),
        ("bandwidth=0", "at least 1B is needed; stall is for nothing at all"),
        ("bandwidth", "bandwidth needs a value, bandwidth=64KiB/s"),
        ("latency=1s,distribution=norml", "did you mean 'normal'?"),
        ("latency=1s±fast", "'fast' is not a duration"),
        ("refuse@s2c", "refuse has no direction: @s2c cannot apply"),
        ("reset@c2s", "reset has no direction"),
        ("slicer=10B,variation=10B", "size must be more than variation"),
        ("stall,then=close", "write stall=5s,then=close"),
        ("timeout=0", "without a time it is for good"),
        ("corrupt=2", "a share of the bytes is needed"),
        ("fcgi-status=99", "it is not an HTTP status"),
        ("fcgi-version=1", "1 is the right one"),
        ("fcgi-type=256", "0 to 255 are needed"),
        ("fcgi-stderr=", "a text is needed"),
        ("fcgi-header-too-big=1GiB", "bytes are needed"),
        ("refuse if script=/a.php", "it cannot depend on script"),
        ("accept-delay=1s if HTTP_HOST=x", "it cannot depend on HTTP_HOST"),
        ("connect-delay=1s,jiter=3", "connect-delay has no 'jiter'; choose one of delay"),
        ("connect-delay=fast", "'fast' is not a duration"),
        ("close wen=3", "unknown key 'wen'; choose one of p, on, "),
        ("close com=nginx", "unknown key 'com'; did you mean 'comm'?"),
        ("close p=2", "more than 0, and at most 1 is needed"),
        ("close p=often", "'often' is not a number"),
        ("close p=0.1 p=0.2", "p is there twice"),
        ("close p", "p needs a value, p=..."),
        ("close on=x", "write 3, 3+, 3..8, 3+2 or 3..8+2"),
        ("close on=8..3", "counting goes from 1 on, and up"),
        ("close on=" + "9" * 5000, "write 3, 3+"),
        ("connect-delay=" + "9" * 400, "is too long"),
        ("close 'name=a\x1b[31m'", "only what can be printed can be a name"),
        ("close for=30", "30: of what? write 30ms or 30s"),
        ("close uid=www-data", "uid=www-data: a number is needed"),
        ("close if conn=abc", "conn=abc: a number is needed"),
        ("close for=0s", "1us to 1e+09s can be meant"),
        ("close name=" + "x" * 201, "at most 200 characters"),
        ("close if comm='x", "No closing quotation"),
        ("refuse if uid=33", "refuse acts before a client is accepted: it cannot depend on uid"),
        ("refuse p=0.1", "p= and on= cannot apply"),
        ("eagain p=0.1", "eagain=0.3 is for a share of the time"),
    ],
)
def test_mistakes(text: str, says: str) -> None:
    """One line, with the text, and what would do."""
    with pytest.raises(ConfigError) as caught:
        parse_rules(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(rules=st.lists(strategies.rules, max_size=6))
def test_names_are_made_apart(rules: list[Rule]) -> None:
    """Each rule has a name of its own, the first of a name keeps it, and nothing else of a rule changes."""
    apart = named_apart(rules)
    assert len({rule.name for rule in apart}) == len(rules)
    assert [rule.fault for rule in apart] == [rule.fault for rule in rules]
    if rules:
        assert apart[0] == rules[0]
