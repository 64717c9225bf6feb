"""``udsproxy completion``: what a shell needs to complete commands, options and their values.

Rules: names and choices are in the script; what a completer here gives is asked for at each TAB. So it is made
without opening or asking anything, and imports what it needs when it is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from udsproxy.cli.common import DONE
from udsproxy.cli.people import show

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext


def completion(shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(name="SHELL")], /) -> int:
    """Print a script that completes commands, options and their values in a shell.

    Parameters
    ----------
    shell
        The shell that it is for.
    """
    from udsproxy.cli import app

    show(app.generate_completion(shell=shell).removesuffix("\n"))
    return DONE


def commands(context: CompletionContext) -> list[str]:
    """The commands of the command that was written so far."""
    from udsproxy.cli import app
    from udsproxy.cli.mistakes import commands_of

    above = tuple(each.value for each in context.argument.tokens)
    return [chain[-1] for chain in commands_of(app) if chain[:-1] == above]


def faults(_: CompletionContext) -> list[tuple[str, str]]:
    """Each kind of fault as it is written at the least, with what it does."""
    from udsproxy.faults.kinds import KINDS
    from udsproxy.faults.spelling import explain_kind

    kinds = map(explain_kind, KINDS)
    return [(written.partition("[")[0], does.partition(". ")[0].removesuffix(".")) for written, does in kinds]


def errors(_: CompletionContext) -> list[tuple[str, str]]:
    """The names of errnos that are explained, with the kernel's words."""
    from udsproxy.explain.errors import TABLE

    return list({each.errno: (each.errno, each.words) for each in TABLE}.values())
