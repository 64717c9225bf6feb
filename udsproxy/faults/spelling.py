"""How people write a rule: on the command line, in a file, in the control API.

    KIND[=VALUE][@DIRECTION][,ATTRIBUTE=VALUE...][,KIND...] [if] [KEY=VALUE...]

``backlog=2,workers=2 for=30s`` is two faults with the same conditions; ``latency=250ms±50ms@s2c`` has a direction.
Keys: ``p`` (how likely), ``on`` (which of those that match: strace's ``first[..last][+[step]]``), ``for`` (how
long), ``name``, and the conditions: ``proxy``, ``conn``, ``uid``, ``gid``, ``pid``, ``comm``, ``method``, ``uri``,
``script``, and any parameter of the request by its name. Values with spaces stand in quotes; a comma in a text is
``\\,``. Toxiproxy's names are understood where they mean the same.

Rules: a mistake is a `ConfigError` of one line that names the word and what would do. What `format_rule` writes,
`parse_rules` reads as the same rule.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Literal, get_args, get_origin

import msgspec

from udsproxy.faults.kinds import KINDS, Directed, Kind, Latency, Size, Stderr
from udsproxy.faults.rules import CLIENT_KEYS, REQUEST_KEYS, Rule, Which, is_of_request
from udsproxy.units import ConfigError, hint, parse_duration, parse_size

_CONDITIONS = ("proxy", "conn", *CLIENT_KEYS, *REQUEST_KEYS)
_KEYS = ("p", "on", "for", "name", *_CONDITIONS)

_KINDS_ELSEWHERE = {
    "down": "refuse",
    "reset_peer": "reset",
    "slow_close": "slow-close",
    "limit_data": "limit",
    "timeout": "stall",
}
"""Toxiproxy's names of the same faults."""
_ATTRIBUTES_ELSEWHERE = {
    "latency": {"latency": "delay"},
    "reset": {"timeout": "after"},
    "stall": {"timeout": "delay"},
    "slicer": {"average_size": "size", "size_variation": "variation"},
    "limit": {"bytes": "nbytes"},
}
_ALSO_MEANT = {"timeout": {"then": "close"}}
_KEYS_ELSEWHERE = {"toxicity": "p"}
_WAYS_ELSEWHERE = {"upstream": "c2s", "downstream": "s2c"}
_DIRECTION = re.compile(r"@(c2s|s2c|both|upstream|downstream)\Z")
_JITTER = re.compile(r"(.+?)(?:±|\+-)(.+)")
_TEXTUAL = str(Stderr.__struct_config__.tag)
"""Its value is any text."""
_COMMA = re.compile(r"(?<!\\),")
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
    kind = rule.fault.kind
    words = [_quoted(format_fault(rule.fault))]
    if rule.when:
        words += ["if", *(f"{key}={_quoted(value)}" for key, value in rule.when.items())]
    if rule.probability < 1:
        words.append(f"p={_decimal(rule.probability)}")
    if rule.which is not None:
        words.append(f"on={rule.which}")
    if rule.for_s is not None:
        words.append(f"for={_decimal(rule.for_s)}s")
    if rule.name != kind:
        words.append(f"name={_quoted(rule.name)}")
    return " ".join(words)


def format_fault(fault: Kind) -> str:
    """A fault, normalised: the first word of a rule."""
    text, first = fault.kind, True
    for field in msgspec.structs.fields(fault):
        value = getattr(fault, field.name)
        if field.name == "direction" or (isinstance(fault, Latency) and field.name == "jitter_s"):
            continue
        if value != field.default:
            said = _format_value(field.name, value)
            if isinstance(fault, Latency) and first and fault.jitter_s:
                said += f"±{_format_value('jitter_s', fault.jitter_s)}"
            text += f"={said}" if first else f",{_attribute(field.name)}={said}"
        if first and isinstance(fault, Directed):
            text += f"@{fault.direction}"
        first = False
    return text


def explain_kind(name: str) -> tuple[str, str]:
    """How a fault is written, and what it does."""
    struct, text = KINDS[name], name
    for number, field in enumerate(each for each in msgspec.structs.fields(struct) if each.name != "direction"):
        value = _EXAMPLES.get(_attribute(field.name), "N")
        if not field.required and field.default:
            value = _format_value(field.name, field.default)
        if get_origin(field.type) is Literal:
            value = "|".join(get_args(field.type))
        said = f"={value}" if number == 0 else f",{_attribute(field.name)}={value}"
        text += said if field.required else f"[{said}]"
    if issubclass(struct, Directed):
        text += "[@c2s|s2c|both]"
    return text, " ".join((struct.__doc__ or "").replace("``", "").split())


def parse_all(texts: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of all these, each with a name of its own. Raises `ConfigError`."""
    return tuple(named_apart([rule for text in texts for rule in parse_rules(text)]))


def named_apart(rules: list[Rule]) -> list[Rule]:
    """The rules, each with a name of its own: where one comes again, it is numbered."""
    seen: set[str] = set()
    numbers: dict[str, int] = {}
    apart = []
    for rule in rules:
        name, number = rule.name, numbers.get(rule.name, 1)
        while name in seen:
            number += 1
            name = f"{rule.name}-{number}"
        numbers[rule.name] = number
        seen.add(name)
        apart.append(rule if name == rule.name else msgspec.structs.replace(rule, name=name))
    return apart


# --- the fault ---


def _parse_faults(word: str) -> Iterator[Kind]:
    """``backlog=2,workers=2``: what is a kind begins another fault, anything else is an attribute of the last."""
    kind, given = "", dict[str, str]()
    for part in _COMMA.split(word):
        way = None if kind == _TEXTUAL or part.startswith(_TEXTUAL) else _DIRECTION.search(part)
        name, equals, value = (part if way is None else part[: way.start()]).partition("=")
        value = value.replace("\\,", ",")
        begins = _KINDS_ELSEWHERE.get(name, name)
        if begins in KINDS and not (kind and name in _ATTRIBUTES_ELSEWHERE.get(kind, ())):
            if kind:
                yield _make(kind, given)
            kind, given = begins, dict(_ALSO_MEANT.get(name, {}))
            if equals:
                given[""] = value
        elif kind == _TEXTUAL:
            given[""] = f"{given.get('', '')},{part}".replace("\\,", ",")
        elif kind:
            given[_ATTRIBUTES_ELSEWHERE.get(kind, {}).get(name, name)] = value
        else:
            raise ConfigError(f"unknown fault {name!r}{hint(name, (*KINDS, *_KINDS_ELSEWHERE))}")
        if way is not None:
            given["direction"] = _WAYS_ELSEWHERE.get(way[1], way[1])
    yield _make(kind, given)


def _make(kind: str, given: dict[str, str]) -> Kind:
    struct = KINDS[kind]
    fields = {_attribute(field.name): field for field in msgspec.structs.fields(struct)}
    if "direction" in given and "direction" not in fields:
        raise ConfigError(f"{kind} has no direction: {'@' + given['direction']} cannot apply")
    if "" in given:
        if not fields.keys() - {"direction"}:
            raise ConfigError(f"{kind} takes no value")
        value = given.pop("")
        if struct is Latency and (both := _JITTER.fullmatch(value)):
            value, given["jitter"] = both[1], both[2]
        given = {next(iter(fields)): value} | given
    values: dict[str, object] = {}
    for name, text in given.items():
        if name not in fields:
            known = hint(name, fields) if fields else ", nor any other attribute"
            raise ConfigError(f"{kind} has no {name!r}{known}")
        values[fields[name].name] = _parse_value(kind, fields[name].name, fields[name].type, text)
    for name, field in fields.items():
        if field.name not in values and field.required:
            raise ConfigError(f"{kind} needs a value, {kind}={_EXAMPLES.get(name, 'N')}")
    return struct(**values)


_EXAMPLES = {
    "delay": "250ms",
    "jitter": "50ms",
    "after": "2s",
    "rate": "64KiB/s",
    "size": "64B",
    "variation": "10B",
    "nbytes": "1KiB",
    "text": "TEXT",
    "status": "503",
    "share": "0.1",
}
"""What an attribute may look like."""


def _quoted(word: str) -> str:
    """`shlex.quote`, where a reader can do without less often."""
    return word if _PLAIN.fullmatch(word) else shlex.quote(word)


_PLAIN = re.compile(r"[\w@%+=:,./±-]+")


def _attribute(field: str) -> str:
    """``delay`` for ``delay_s``: a value that is written has its unit with it."""
    return field.removesuffix("_s").replace("_", "-")


def _parse_value(kind: str, field: str, wanted: object, text: str) -> object:
    if field.endswith("_s"):
        return _with_unit(text, parse_duration, "ms", "s")
    if _is_size(wanted):
        return _with_unit(text.removesuffix("/s") if field == "rate" else text, parse_size, "B", "KB")
    if get_origin(wanted) is Literal:
        if text not in get_args(wanted):
            raise ConfigError(f"{kind}: {_attribute(field)}={text}{hint(text, get_args(wanted))}")
        return text
    if wanted is str:
        return text
    try:
        return int(text) if wanted is int else float(text)
    except ValueError:
        raise ConfigError(f"{kind}={text}: {text!r} is not a number") from None


def _is_size(wanted: object) -> bool:
    return wanted == Size or Size in get_args(wanted)


def _with_unit(text: str, parse: Callable[[str], float], *units: str) -> float:
    """Elsewhere a bare number means milliseconds, or kilobytes: here it has to say."""
    parsed = parse(text)
    if parsed and text.strip().replace(".", "").isdecimal():
        raise ConfigError(f"{text}: of what? write {text}{units[0]} or {text}{units[1]}")
    return parsed


def _format_value(field: str, value: float | str) -> str:
    if isinstance(value, str):
        return value.replace(",", "\\,")
    if field.endswith("_s"):
        return f"{_decimal(value)}s"
    if isinstance(value, int):
        return f"{value}B" if field in _SIZES else str(value)
    return _decimal(value)


_SIZES = {field.name for kind in KINDS.values() for field in msgspec.structs.fields(kind) if _is_size(field.type)}


def _decimal(value: float) -> str:
    """As it is, without an exponent."""
    text = f"{Decimal(repr(float(value))):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# --- the keys ---


def _parse_keys(words: Iterator[str]) -> dict[str, str]:
    keys = {}
    for word in words:
        key, equals, value = word.partition("=")
        key = _KEYS_ELSEWHERE.get(key, key)
        if key not in _KEYS and not is_of_request(key):
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
        raise ConfigError(f"p={keys['p']}: {keys['p']!r} is not a number") from None
    return Rule(
        fault=fault,  # type: ignore[arg-type]  # each of KINDS is one of AnyKind
        when={key: value for key, value in keys.items() if key in _CONDITIONS or is_of_request(key)},
        which=_parse_which(keys["on"]) if "on" in keys else None,
        probability=probability,
        for_s=_with_unit(keys["for"], parse_duration, "ms", "s") if "for" in keys else None,
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
