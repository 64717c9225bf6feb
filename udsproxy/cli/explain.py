"""``udsproxy explain``: what an error on a Unix socket means, and what causes it; and what logs say together."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Annotated

import msgspec
from cyclopts import Parameter

from udsproxy.cli import completion, people
from udsproxy.cli.arguments import OTHER, option
from udsproxy.cli.common import DONE, FAILED, USAGE, Failure
from udsproxy.cli.mistakes import UnknownOption
from udsproxy.cli.people import show, tell, width
from udsproxy.cli.tailing import MAX_LINES, MAX_READ, STANDARD_INPUT, Log, are_logs, look_like_logs
from udsproxy.events import printable
from udsproxy.explain import page, report, text, zones
from udsproxy.explain.doubles import Doubles
from udsproxy.explain.lines import Found, errno_or_call, nearest, parse
from udsproxy.explain.summary import Meant, Reader, Run, Stamped, Summary, Tally, meant, merged, runs_of
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.taps import SUFFIX, tapped_at

MAX_ANSWERS = 20
_MAX_EVENTS = 50
"""Lines that are shown at once while a log is followed."""
_LOOK_S = 0.25
"""How often a file that is followed is looked at."""

_OPTION = re.compile(r"-[a-z]|--[a-z][a-z-]*(?:=.*)?")
"""What looks like one. (A line of a log may begin with a hyphen.)"""

_SAY = "give an errno (EAGAIN, 11, connect EAGAIN), a line of a log in quotes, or a log's file"


def explain(
    *what: Annotated[str, Parameter(name="ERROR", allow_leading_hyphen=True, completer=completion.errors)],
    follow: Annotated[bool, option(OTHER, name=("--follow", "-f"), show_default=False)] = False,
    markdown: Annotated[bool, option(OTHER, show_default=False)] = False,
) -> int:
    """Explain an error on a Unix socket: what it means, and how to find its cause.

    Given logs it sums them up first, in order of time: each error, how often, when, and for which scripts. Without
    ERROR it lists all errors that it knows.

    Parameters
    ----------
    what
        An errno or its number (EAGAIN, 11), a call (connect), both (connect EAGAIN), a line of a log in quotes, or
        the files of logs: nginx's and php-fpm's together, say. With - it reads lines from standard input.
    follow
        Go on with what is written to the logs from now on, until Ctrl-C.
    markdown
        Print the page docs/errors.md.
    """
    options = [word for word in what if _OPTION.fullmatch(word)]
    if options:
        raise UnknownOption(options[0], ("explain",))
    if markdown:
        show(page.markdown().removesuffix("\n"))
    elif not what and not follow:
        show(text.overview(width()))
    elif follow or (are_logs(what) and errno_or_call(" ".join(what)) is None):
        _explain_logs(what or (STANDARD_INPUT,), follow=follow)
    else:
        _explain_text(what)
    return DONE


def _explain_text(words: tuple[str, ...]) -> None:
    said = " ".join(words)
    found = parse(said, _today())
    if found is not None:
        tell(_on_this_machine(found) + text.answer(found, width()))
    elif look_like_logs(words):
        _explain_logs(words, follow=False)
    else:
        near = nearest(said)
        meant = _SAY if near is None else f"did you mean {near}?"
        raise Failure(USAGE, f"no error is known in {_short(said)}: {meant}")


def _explain_logs(names: tuple[str, ...], *, follow: bool) -> None:
    if STANDARD_INPUT in names and sys.stdin is None:
        raise Failure(FAILED, "cannot read standard input: it is closed")
    logs = [Log(name) for name in dict.fromkeys(names)]
    summary = Summary()
    # Of a pipe that is followed nothing can be said to be all.
    whole = [log for log in logs if log.is_file or not follow]
    lines = {log.name: log.newest() for log in whole}
    readers = {log.name: Reader(_today(), is_cut=log.is_cut) for log in logs}
    newest = [readers[log.name].read(lines[log.name], whole=not follow) for log in whole]
    for at, found in Doubles().without(merged(newest)):
        summary.add(found, at)
    if summary.runs:
        clocks = [_clock(log, readers[log.name]) for log in whole]
        _show_all(summary, zones.notes(clocks, datetime.now().astimezone()), in_full=not follow)
    elif whole:
        tell(f"no error in {', '.join(map(_name, whole))}: {_extent(sum(map(len, lines.values())))}")
    for log in logs:
        if log.is_cut:
            tell(f"\nOnly the end of {_name(log)} was read: {MAX_READ // 2**20} MiB, or {MAX_LINES:,} lines.")
    if follow:
        _follow(logs, readers, summary)


def _clock(log: Log, reader: Reader) -> zones.Clock:
    written = None if log.written is None else datetime.fromtimestamp(log.written, UTC).astimezone()
    return zones.Clock(_name(log), reader.last, reader.has_zone, written)


def _extent(count: int) -> str:
    return f"{count:,} line{'s' if count > 1 else ''}, none with an error that is known" if count else "empty"


def _name(log: Log) -> str:
    return "standard input" if log.name == STANDARD_INPUT else printable(log.name)


def _show_all(summary: Summary, notes: Iterable[str], *, in_full: bool) -> None:
    columns = width()
    tallies = summary.tallies()
    show("\n".join(report.table(tallies[:MAX_ANSWERS], columns)))
    if summary.others or len(tallies) > MAX_ANSWERS:
        tell(f"and {sum(each.count for each in tallies[MAX_ANSWERS:]) + summary.others} lines of other errors")
    if len(summary.runs) > 1:
        show("\nThe newest, in order of time:\n" + "\n".join(report.in_order(summary.runs, columns)))
    for note in notes:
        tell(f"\n{note}")
    kinds: dict[Meant, list[Tally]] = {}
    for tally in tallies[:MAX_ANSWERS]:
        kinds.setdefault(meant(tally.example), []).append(tally)
    if not in_full:
        show("\nWhat they mean, and how to find the cause:")
        show("\n".join(dict.fromkeys(f"    {text.command(kind[0].example)}" for kind in kinds.values())))
        return
    for kind in kinds.values():
        file = kind[0].example.file if len({file for tally in kind for file in tally.files}) == 1 else None
        call = kind[0].example.failed if len({tally.example.failed for tally in kind}) == 1 else None
        found = msgspec.structs.replace(
            kind[0].example, client=None, request=None, script=None, texts=(), file=file, failed=call
        )
        answer = text.answer(found, columns, "the newest of these lines")
        tell(f"\n{sum(tally.count for tally in kind)} x {_on_this_machine(found)}{answer}")


def _follow(logs: list[Log], readers: dict[str, Reader], summary: Summary) -> None:
    """Until Ctrl-C, or all pipes have ended and there is no file."""
    show("\nFollowing; Ctrl-C ends it." if any(log.is_file for log in logs) else "")
    doubles = Doubles()
    told = {meant(tally.example) for tally in summary.tallies()}
    try:
        while logs and not people.output_is_lost():
            ready, _, _ = select.select([log for log in logs if not log.is_file], [], [], _LOOK_S)
            newest = []
            for log in logs:
                lines = log.more() if log.is_file or log in ready else []
                newest.append(readers[log.name].read(lines, whole=log.is_at_end))
            logs = [log for log in logs if not log.is_at_end]
            _show_events(doubles.without(merged(newest), last=not logs), summary, told)
    except KeyboardInterrupt:
        pass
    if summary.runs:
        show("\n" + "\n".join(report.table(summary.tallies()[:MAX_ANSWERS], width())))


def _show_events(stamped: list[Stamped], summary: Summary, told: set[Meant]) -> None:
    """Each error is explained when it comes for the first time, whatever socket and script it is about."""
    columns = width()
    runs: list[Run] = []
    runs_of(stamped, runs)
    for run in runs[:_MAX_EVENTS]:
        show(report.event(run, columns))
    if len(runs) > _MAX_EVENTS:
        tell(f"and {sum(run.count for run in runs[_MAX_EVENTS:])} more lines")
    for at, found in stamped:
        summary.add(found, at)
        if meant(found) not in told and len(told) < MAX_ANSWERS:
            told.add(meant(found))
            show("".join(f"    {line}\n" for line in text.brief(found, columns and columns - 4).splitlines()))


def _today() -> date:
    return datetime.now().astimezone().date()


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
