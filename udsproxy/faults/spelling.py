"""How people write a rule: on the command line, in a file, in the control API.

    KIND[=VALUE][,ATTRIBUTE=VALUE...][,KIND...] [if] [KEY=VALUE...]

``backlog=2,workers=2 for=30s`` is two faults with the same conditions. Keys: ``p`` (how likely), ``on`` (which of
those that match: strace's ``first[..last][+[step]]``), ``for`` (how long), ``name``, and the conditions: ``proxy``,
``uid``, ``gid``, ``pid``, ``comm``. Values with spaces stand in quotes.

Rules: a mistake is a `ConfigError` of one line that names the word and what would do. What `format_rule` writes,
`parse_rules` reads as the same rule.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from decimal import Decimal

import msgspec

from udsproxy.faults.kinds import ALIASES, KINDS, Kind
from udsproxy.faults.rules import CLIENT_KEYS, Rule, Which
from udsproxy.units import ConfigError, hint, parse_duration

_CONDITIONS = ("proxy", *CLIENT_KEYS)
_KEYS = ("p", "on", "for", "name", *_CONDITIONS)
_WHICH = re.compile(r"(\d{1,18})(?:\.\.(\d{1,18}))?(\+(\d{1,18})?)?", re.ASCII)


def parse_rules(text: str) -> list[Rule]:
    """The rules that ``text`` spells, one for each fault in it. Raises `ConfigError`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"fault {text!r}: {error}") from None
    if not words:
        raise ConfigError(f"a fault is missing; write one of: {', '.join(KINDS)}")
    try:
        faults = list(_parse_faults(words[0]))
        keys = _parse_keys(word for word in words[1:] if word != "if")
        return [_rule(fault, keys) for fault in faults]
    except ConfigError as error:
        raise ConfigError(f"fault {text!r}: {error}") from None


def format_rule(rule: Rule) -> str:
    """A rule, normalised."""
    fault = rule.fault
    kind, fields = fault.kind, msgspec.structs.fields(fault)
    given = [
        (field.name, _format_value(field.name, getattr(fault, field.name)))
        for field in fields
        if getattr(fault, field.name) != field.default
    ]
    text = kind
    for number, (name, value) in enumerate(given):
        text += f"={value}" if number == 0 and name == fields[0].name else f",{_attribute(name)}={value}"
    words = [text]
    if rule.when:
        words += ["if", *(f"{key}={shlex.quote(value)}" for key, value in rule.when.items())]
    if rule.probability < 1:
        words.append(f"p={_decimal(rule.probability)}")
    if rule.which is not None:
        words.append(f"on={rule.which}")
    if rule.for_s is not None:
        words.append(f"for={_decimal(rule.for_s)}s")
    if rule.name != kind:
        words.append(f"name={shlex.quote(rule.name)}")
    return " ".join(words)


def parse_all(texts: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of all these, each with a name of its own. Raises `ConfigError`."""
    return tuple(named_apart([rule for text in texts for rule in parse_rules(text)]))


def named_apart(rules: list[Rule]) -> list[Rule]:
    """The rules, each with a name of its own: where one comes again, it is numbered."""
    seen: set[str] = set()
    apart = []
    for rule in rules:
        name, number = rule.name, 1
        while name in seen:
            number += 1
            name = f"{rule.name}-{number}"
        seen.add(name)
        apart.append(msgspec.structs.replace(rule, name=name))
    return apart


# --- the fault ---


def _parse_faults(word: str) -> Iterator[Kind]:
    """``backlog=2,workers=2``: what is a kind begins another fault, anything else is an attribute of the last."""
    kind, given = "", dict[str, str]()
    for part in word.split(","):
        name, equals, value = part.partition("=")
        name = ALIASES.get(name, name)
        if name in KINDS:
            if kind:
                yield _make(kind, given)
            kind, given = name, {}
            if equals:
                given[""] = value
        elif kind:
            given[name] = value
        else:
            raise ConfigError(f"unknown fault {name!r}{hint(name, (*KINDS, *ALIASES))}")
    yield _make(kind, given)


def _make(kind: str, given: dict[str, str]) -> Kind:
    struct = KINDS[kind]
    fields = {_attribute(field.name): field for field in msgspec.structs.fields(struct)}
    if "" in given:
        if not fields:
            raise ConfigError(f"{kind} takes no value")
        given = {next(iter(fields)): given.pop("")} | given
    values: dict[str, object] = {}
    for name, text in given.items():
        if name not in fields:
            known = hint(name, fields) if fields else ", nor any other attribute"
            raise ConfigError(f"{kind} has no {name!r}{known}")
        values[fields[name].name] = _parse_value(kind, fields[name].name, fields[name].type, text)
    for name, field in fields.items():
        if field.name not in values and field.required:
            raise ConfigError(f"{kind} needs a value, {kind}={'250ms' if name == 'delay' else 'N'}")
    return struct(**values)


def _attribute(field: str) -> str:
    """``delay`` for ``delay_s``: a value that is written has its unit with it."""
    return field.removesuffix("_s").replace("_", "-")


def _parse_value(kind: str, field: str, wanted: object, text: str) -> object:
    if field.endswith("_s"):
        return parse_duration(text)
    try:
        return int(text) if wanted is int else float(text)
    except ValueError:
        raise ConfigError(f"{kind}={text}: {text!r} is no number") from None


def _format_value(field: str, value: int | float) -> str:  # noqa: PYI041 - integers are written whole
    if field.endswith("_s"):
        return f"{_decimal(value)}s"
    return str(value) if isinstance(value, int) else _decimal(value)


def _decimal(value: float) -> str:
    """As it is, without an exponent."""
    text = f"{Decimal(repr(float(value))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- the keys ---


def _parse_keys(words: Iterator[str]) -> dict[str, str]:
    keys = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in _KEYS:
            raise ConfigError(f"unknown key {key!r}{hint(key, _KEYS)}")
        if not equals or not value:
            raise ConfigError(f"{key} needs a value, {key}=...")
        if key in keys:
            raise ConfigError(f"{key} is there twice")
        keys[key] = value
    return keys


def _rule(fault: Kind, keys: dict[str, str]) -> Rule:
    try:
        probability = float(keys.get("p", "1"))
    except ValueError:
        raise ConfigError(f"p={keys['p']}: {keys['p']!r} is no number") from None
    return Rule(
        fault=fault,  # type: ignore[arg-type]  # each of KINDS is one of AnyKind
        when={key: value for key, value in keys.items() if key in _CONDITIONS},
        which=_parse_which(keys["on"]) if "on" in keys else None,
        probability=probability,
        for_s=parse_duration(keys["for"]) if "for" in keys else None,
        name=keys.get("name", fault.kind),
    )


def _parse_which(text: str) -> Which:
    match = _WHICH.fullmatch(text)
    if match is None:
        raise ConfigError(f"on={text}: write 3, 3+, 3..8, 3+2 or 3..8+2")
    first, last, plus, step = match.groups()
    if last is None and not plus:
        last = first
    if last is not None and int(last) == int(first):
        step = None
    return Which(int(first), None if last is None else int(last), int(step or 1))
