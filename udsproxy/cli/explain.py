"""``udsproxy explain``: what an error on a Unix socket means, and what causes it."""

from __future__ import annotations

import os
import re
from typing import Annotated

from cyclopts import Parameter

from udsproxy.cli import completion
from udsproxy.cli.arguments import OTHER, option
from udsproxy.cli.common import DONE, USAGE, Failure
from udsproxy.cli.mistakes import UnknownOption
from udsproxy.cli.people import read_input, show, tell, width
from udsproxy.events import printable
from udsproxy.explain import text
from udsproxy.explain.lines import Found, parse
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.taps import SUFFIX, tapped_at

MAX_INPUT = 64 * 1024
"""Of standard input, in bytes."""
MAX_ANSWERS = 20

_OPTION = re.compile(r"-[a-z]|--[a-z][a-z-]*(?:=.*)?")
"""What looks like one. (A line of a log may begin with a hyphen.)"""

_SAY = "give an errno (EAGAIN, 11, connect EAGAIN), or a line of a log in quotes"


def explain(
    *what: Annotated[str, Parameter(name="ERROR", allow_leading_hyphen=True, completer=completion.errors)],
    markdown: Annotated[bool, option(OTHER, show_default=False)] = False,
) -> int:
    """Explain an error on a Unix socket: its meaning, its causes, and how to tell which one it is.

    Without ERROR it lists all errors that it knows.

    Parameters
    ----------
    what
        An errno or its number (EAGAIN, 11), a call (connect), both (connect EAGAIN), or a line of a log in quotes.
        With - it reads lines from standard input.
    markdown
        Print the page docs/errors.md.
    """
    options = [word for word in what if _OPTION.fullmatch(word)]
    if options:
        raise UnknownOption(options[0], ("explain",))
    if markdown:
        show(text.markdown().removesuffix("\n"))
    elif not what:
        show(text.overview(width()))
    elif what == ("-",):
        _explain_input()
    else:
        said = " ".join(what)
        found = parse(said)
        if found is None:
            raise Failure(USAGE, f"no error is known in {_short(said)}: {_SAY}")
        tell(_on_this_machine(found) + text.answer(found, width()))
    return DONE


def _explain_input() -> None:
    """Each error that is in the lines of standard input, once, as it comes first."""
    data = read_input(MAX_INPUT + 1)
    lines = data[:MAX_INPUT].decode("utf-8", "backslashreplace").splitlines()
    first: dict[tuple[object, ...], Found] = {}
    counts: dict[tuple[object, ...], int] = {}
    for line in lines:
        if (found := parse(line)) is not None and (found.errno or found.symptom):
            key = (found.call, found.errno, found.symptom and found.symptom.words, found.path)
            first.setdefault(key, found)
            counts[key] = counts.get(key, 0) + 1
    if not first:
        raise Failure(USAGE, f"no error is known in standard input: {_SAY}")
    most = sorted(first, key=lambda key: -counts[key])[:MAX_ANSWERS]
    answers = [f"{counts[key]} x {_on_this_machine(first[key])}{text.answer(first[key], width())}" for key in most]
    tell("\n\n".join(answers))
    if len(first) > len(most):
        tell(f"\nand {len(first) - len(most)} others")
    if len(data) > MAX_INPUT:
        tell(f"\nOnly the first {MAX_INPUT // 1024} KiB were read.")


def _on_this_machine(found: Found) -> str:
    """Where a tap has to do with the path that was said, that is the first thing to know."""
    if found.path is None or not os.path.lexists(os.path.realpath(found.path) + SUFFIX):
        return ""
    machine = Machine()
    try:
        tap = tapped_at(machine, found.path)
    finally:
        machine.close()
    return "" if tap is None else f"On this machine: {tap.text}\n\n"


def _short(said: str) -> str:
    shown = printable(said[:60])
    return f"'{shown}...'" if len(said) > 60 else f"'{shown}'"
