"""What the arguments of the commands are made of: the groups that options stand in, and their types.

Rules:

* Each option stands in a group. `option(GROUP)` says which; the order of the groups here is that of the help.
* A type says how its value is shown in the help (DURATION) and how a shell completes it. None checks the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

OTHER = Group.create_ordered("Options")
SETTINGS = Group.create_ordered("Configuration")
LOG = Group.create_ordered("What is logged")
SHOWN = Group.create_ordered("What is shown")
REPORTS = Group.create_ordered("Slow requests and incidents")
FAULTS = Group.create_ordered("Faults")
CONNECTIONS = Group.create_ordered("Who connects")
ENDING = Group.create_ordered("When it ends")
INPUT = Group.create_ordered("What is known of the load")
REQUEST = Group.create_ordered("The request")
LOAD = Group.create_ordered("The load")
WHICH = Group.create_ordered("Which proxy")

if TYPE_CHECKING:
    FileName = str
else:
    from pathlib import Path

    FileName = Annotated[str | Path, Parameter(metavar="FILE")]
    """It stays a string, exactly as it was typed; with Path among the types cyclopts completes names of files."""

Duration = Annotated[str, Parameter(metavar="DURATION")]
"""250ms, 1.5s, 2m (`common.duration_option`)."""
Size = Annotated[str, Parameter(metavar="SIZE")]
"""4096, 64KiB (`common.size_option`)."""


def option(group: Group, metavar: str | None = None, **others: Any) -> Parameter:
    """An option of this group. A flag has no --no-... beside it."""
    if metavar is not None:
        others["metavar"] = metavar
    return Parameter(group=group, negative="", **others)
