"""``udsproxy fault``: the faults of a running proxy."""

from __future__ import annotations

import sys
import textwrap
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from udsproxy.cli.common import DONE, FAILED, Failure
from udsproxy.control.client import Client, ControlError
from udsproxy.events import printable
from udsproxy.faults.kinds import KINDS
from udsproxy.faults.spelling import explain_kind

fault = App(
    name="fault",
    help="The faults of a running proxy. It is found by itself; of several: udsproxy fault list --control PATH",
    help_format="plaintext",
)

Control = Annotated[str | None, Parameter(name="--control", help="The control socket of the process.")]
Proxy = Annotated[str | None, Parameter(name="--proxy", help="Only this proxy; without it all of the process.")]


@fault.command(name="list")
def list_faults(
    *, control: Control = None, proxy: Proxy = None, json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Show the faults.

    Parameters
    ----------
    json
        As JSON, for programs.
    """
    found = _ask(control, "GET", "faults", proxy=proxy)
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    elif not found:
        print("no faults")
    else:
        _print(found)
    return DONE


@fault.command
def kinds() -> int:
    """Show what faults there are, and how each is written."""
    for name in KINDS:
        written, does = explain_kind(name)
        print(written)
        print(textwrap.fill(does, 90, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    return DONE


@fault.command
def add(rule: str, /, *rules: str, control: Control = None, proxy: Proxy = None) -> int:
    """Add faults, written as for run --fault: 'latency=250ms if script=/slow.php p=0.1'.

    They act on open connections too; those for requests (fcgi-..., if script=...) on the connections that begin.

    Parameters
    ----------
    rule
        A fault.
    """
    added = _ask(control, "POST", "faults", body={"fault": [rule, *rules], "proxy": proxy})
    _print(added)
    if any(state["for_requests"] for state in added):
        before = len(_ask(control, "GET", "connections", proxy=proxy))
        if before:
            line = f"rules for requests do not apply to connections that were open before: {before}"
            print(f"udsproxy: {line}", file=sys.stderr)
    return DONE


@fault.command
def remove(name: str, /, *names: str, control: Control = None, proxy: Proxy = None) -> int:
    """Take faults away, by the names that list shows. What they hold goes on, in order.

    Parameters
    ----------
    name
        A fault's name.
    """
    for each in (name, *names):
        _say_count(_ask(control, "DELETE", "faults", each, proxy=proxy))
    return DONE


@fault.command
def clear(*, control: Control = None, proxy: Proxy = None) -> int:
    """Take all faults away."""
    _say_count(_ask(control, "DELETE", "faults", proxy=proxy))
    return DONE


@fault.command
def enable(name: str, /, *, control: Control = None, proxy: Proxy = None) -> int:
    """Put a fault in force again.

    Parameters
    ----------
    name
        Its name.
    """
    _say_count(_ask(control, "PATCH", "faults", name, body={"enabled": True}, proxy=proxy))
    return DONE


@fault.command
def disable(name: str, /, *, control: Control = None, proxy: Proxy = None) -> int:
    """Keep a fault, but out of force.

    Parameters
    ----------
    name
        Its name.
    """
    _say_count(_ask(control, "PATCH", "faults", name, body={"enabled": False}, proxy=proxy))
    return DONE


def _ask(control: str | None, method: str, *path: str, body: object = None, proxy: str | None = None) -> Any:
    try:
        return Client(control).ask(method, *path, body=body, proxy=proxy)
    except ControlError as error:
        raise Failure(FAILED, str(error)) from None


def _say_count(answer: dict[str, int]) -> None:
    for what, count in answer.items():
        print(f"{what}: {count}")


def _print(states: list[dict[str, Any]]) -> None:
    """Aligned: name, proxy, rule."""
    names, proxies = ([printable(state[key]) for state in states] for key in ("name", "proxy"))
    for state, name, proxy in zip(states, names, proxies, strict=True):
        off = "" if state["enabled"] else "  (off)"
        if "left_s" in state:
            off += f"  ({state['left_s']:.0f} s left)"
        print(f"{name:<{max(map(len, names))}}  {proxy:<{max(map(len, proxies))}}  {printable(state['text'])}{off}")
