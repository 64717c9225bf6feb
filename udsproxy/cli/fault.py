"""``udsproxy fault``: the faults of a running proxy.

Rules: where several proxies could be meant, none is guessed; every list and every change names the proxies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import msgspec
from cyclopts import App, Group, Parameter

from udsproxy.cli import completion
from udsproxy.cli.arguments import OTHER, WHICH, FileName, option
from udsproxy.cli.common import DONE, FAILED, Failure
from udsproxy.cli.people import say, show, tell, width
from udsproxy.cli.tables import Table
from udsproxy.control import elsewhere, finding
from udsproxy.control.client import Client, ControlError
from udsproxy.control.finding import Running
from udsproxy.events import printable
from udsproxy.faults.kinds import KINDS
from udsproxy.faults.spelling import explain_kind, parse_rules
from udsproxy.units import ConfigError

fault = App(
    name="fault",
    help="List and change the faults of a running proxy.\n\n"
    "The proxy is found by itself; if several run, --proxy chooses one. One that was started with --control PATH "
    "is found with the same option only.",
    help_format="plaintext",
    group_commands=Group("Commands"),
)

_LISTED = Table(head=("NAME", "PROXY", "RULE"), gives_way=({"PROXY": 12}, {"NAME": 16}))

Control = Annotated[FileName | None, option(WHICH, "PATH", help="The control socket of the proxy.")]
Proxy = Annotated[
    FileName | None,
    option(WHICH, "PROXY", help="The name of the proxy, or the path of its socket, its server's or its control's."),
]
Name = Annotated[str, Parameter(name="NAME", help="The name of a fault, as udsproxy fault list shows it.")]
Json = Annotated[bool, option(OTHER, show_default=False, help="Print JSON.")]


@fault.command(name="list", sort_key=0)
def list_faults(*, control: Control = None, proxy: Proxy = None, json: Json = False) -> int:
    """List the faults of the running proxies."""
    chosen = _there(control, proxy)
    states: list[dict[str, Any]] = []
    for each in chosen:
        found = _ask(each, "GET", "faults")
        states += [{**state, "pid": each.client.pid, "control": printable(each.client.path)} for state in found]
        if not json:
            tell(str(each))
            _print(found, "  ")
    if json:
        show(msgspec.json.format(msgspec.json.encode(states), indent=2).decode())
    return DONE


@fault.command(sort_key=6)
def kinds() -> int:
    """List all kinds of faults and how each is written."""
    for name in KINDS:
        written, does = explain_kind(name)
        tell(written, 8)
        tell(f"    {does}", 0)
    return DONE


@fault.command(sort_key=1)
def add(
    *fault: Annotated[str, Parameter(name="FAULT", required=True, completer=completion.faults)],
    control: Control = None,
    proxy: Proxy = None,
) -> int:
    """Add faults, written as for udsproxy run --fault.

    They also act on connections that are open already. Faults for requests (fcgi-..., if script=...) act on new
    connections only.

    Parameters
    ----------
    fault
        A fault, for example 'latency=250ms if script=/slow.php p=0.1'.
    """
    texts = list(fault)
    chosen = _choose(control, proxy)
    meant = _meant_by(texts, chosen)
    body = {"fault": texts, "proxy": _only(chosen)}
    added = _request(chosen[0].client, "POST", "faults", body=body)
    _print(added)
    names = {state["proxy"] for state in added}
    _say_changed("added", len(added), "to", [each for each in meant if each.name in names])
    if any(state["for_requests"] for state in added):
        before = sum(len(_ask(each, "GET", "connections")) for each in meant)
        if before:
            say(f"rules for requests do not apply to connections that were open before: {before}")
    return DONE


def _meant_by(texts: list[str], chosen: list[Running]) -> list[Running]:
    """Of several proxies of a process, those that the rules name. Raises `Failure`: one names none."""
    try:
        rules = [rule for text in texts for rule in parse_rules(text)]
    except ConfigError as error:
        raise Failure(FAILED, str(error)) from None
    if len(chosen) > 1 and not all("proxy" in rule.when for rule in rules):
        raise Failure(
            FAILED,
            "several proxies run; choose one with --proxy NAME or PATH, or write proxy=NAME in the fault "
            f"(proxy=* for all): {finding.listed(chosen)}",
        )
    return [each for each in chosen if any(rule.is_for(each.name) for rule in rules)] or chosen


@fault.command(sort_key=2)
def remove(*name: Annotated[Name, Parameter(required=True)], control: Control = None, proxy: Proxy = None) -> int:
    """Remove faults. The data that they hold is sent on, in order."""
    chosen = _choose(control, proxy)
    for each in name:
        _change(chosen, "DELETE", each)
    return DONE


@fault.command(sort_key=3)
def clear(*, control: Control = None, proxy: Proxy = None) -> int:
    """Remove all faults."""
    _change(_choose(control, proxy), "DELETE")
    return DONE


@fault.command(sort_key=4)
def enable(name: Name, /, *, control: Control = None, proxy: Proxy = None) -> int:
    """Switch a fault on again."""
    _change(_choose(control, proxy), "PATCH", name, body={"enabled": True}, done="switched on")
    return DONE


@fault.command(sort_key=5)
def disable(name: Name, /, *, control: Control = None, proxy: Proxy = None) -> int:
    """Switch a fault off without removing it."""
    _change(_choose(control, proxy), "PATCH", name, body={"enabled": False}, done="switched off")
    return DONE


def _there(control: str | None, proxy: str | None) -> list[Running]:
    """Those to be listed: all that run, unless one is asked for. Raises `Failure`."""
    if proxy is not None:
        return _choose(control, proxy)
    try:
        found = finding.running(control)
    except ControlError as error:
        raise Failure(FAILED, str(error)) from None
    for line in found.silent:
        say(line)
    if found.hidden:
        say(f"not listed: {elsewhere.listed(found.hidden)}; name its control socket with --control PATH")
    return list(found.proxies)


def _choose(control: str | None, proxy: str | None) -> list[Running]:
    """Those to be changed: one, or those of one process. Raises `Failure`."""
    try:
        return finding.choose(control, proxy)
    except ControlError as error:
        raise Failure(FAILED, str(error)) from None


def _change(chosen: list[Running], method: str, *name: str, body: object = None, done: str = "removed") -> None:
    """Of all that are chosen and have such a fault; says what was ``done`` to how many, and where. Raises
    `Failure`."""
    having = []
    for each in chosen:
        names = {state["name"] for state in _ask(each, "GET", "faults")}
        if names.intersection(name) if name else names:
            having.append(each)
    answer = _request(chosen[0].client, method, "faults", *name, body=body, proxy=_only(chosen))
    for count in answer.values():
        _say_changed(done, count, "from" if done == "removed" else "of", having or chosen)


def _only(chosen: list[Running]) -> str | None:
    """The name of the proxy that is chosen; None: all of the process are."""
    return chosen[0].name if len(chosen) == 1 else None


def _ask(of: Running, method: str, *path: str) -> Any:
    """Of one proxy. Raises `Failure`."""
    return _request(of.client, method, *path, proxy=of.name)


def _request(client: Client, method: str, *path: str, body: object = None, proxy: str | None = None) -> Any:
    """Raises `Failure`."""
    try:
        return client.ask(method, *path, body=body, proxy=proxy)
    except ControlError as error:
        raise Failure(FAILED, str(error)) from None


def _say_changed(done: str, count: int, where: str, proxies: list[Running]) -> None:
    """``removed 2 faults from www (...)``."""
    tell(f"{done} {count or 'no'} fault{'' if count == 1 else 's'} {where} {'; '.join(map(str, proxies))}")


def _print(states: list[dict[str, Any]], indent: str = "") -> None:
    """Aligned: name, proxy, rule."""
    if not states:
        tell(f"{indent}no faults")
    rows = []
    for state in states:
        off = "" if state["enabled"] else "  (off)"
        if "left_s" in state:
            off += f"  ({state['left_s']:.0f} s left)"
        rows.append((printable(state["name"]), printable(state["proxy"]), printable(state["text"]) + off))
    for line in replace(_LISTED, indent=indent).lines(rows, width()):
        show(line.plain)
