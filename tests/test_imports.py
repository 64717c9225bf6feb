"""Imports point one way: cli → {lab, control} → proxy → {faults, kernel, sinks} → protocols → events. The core does
no I/O.
"""

from __future__ import annotations

import ast
from pathlib import Path

import udsproxy

ROOT = Path(udsproxy.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"config", "endpoints", "proxy"},
    "__main__": {"cli"},
    "script": {"__main__"},
    "cli": {
        "__version__",
        "layout",
        "terminal",
        "units",
        "cli",
        "config",
        "control",
        "doctor",
        "endpoints",
        "events",
        "explain",
        "faults",
        "inspection",
        "kernel",
        "lab",
        "logs",
        "protocols",
        "proxy",
        "sinks",
        "takeover",
    },
    "control": {"control", "endpoints", "events", "faults", "kernel", "proxy", "units"},
    "lab": {
        "config",
        "endpoints",
        "events",
        "kernel",
        "lab",
        "layout",
        "protocols",
        "proxy",
        "sinks",
        "terminal",
    },
    "proxy": {
        "config",
        "endpoints",
        "events",
        "faults",
        "inspection",
        "kernel",
        "logs",
        "protocols",
        "proxy",
        "sinks",
        "takeover",
        "units",
    },
    "explain": {"events", "explain", "layout", "logs"},
    "logs": {"logs"},
    "faults": {"events", "faults", "protocols", "units"},
    "protocols": {"events", "protocols"},
    "doctor": {"doctor", "endpoints", "events", "inspection", "kernel", "logs", "units"},
    "inspection": {"endpoints", "events", "inspection", "kernel"},
    "kernel": {"events", "kernel"},
    "sinks": {"config", "events", "kernel", "layout", "sinks", "terminal"},
    "config": {"endpoints", "events", "faults", "units"},
    "takeover": {"endpoints", "events", "kernel", "layout", "takeover", "terminal"},
    "endpoints": {"endpoints", "events", "kernel", "units"},
    "layout": set(),
    "terminal": set(),
    "units": set(),
    "events": set(),
}
"""For each room, the rooms that it may know of."""

NO_IO = ("events", "layout", "units", "config", "explain", "faults", "logs", "protocols")
FORBIDDEN = {"trio", "structlog", "socket", "select", "threading", "subprocess", "time"}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def room(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


def test_every_room_is_listed() -> None:
    """A new room says here what it may know of."""
    assert {room(file) for file in FILES} == set(MAY_IMPORT)


def test_imports_point_one_way() -> None:
    """No module imports a room that is not below its own."""
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in FILES
        for name in imports(file)
        if name.startswith("udsproxy.") and name.split(".")[1] not in MAY_IMPORT[room(file)]
    ]
    assert not wrong


def test_the_core_does_no_io() -> None:
    """What bytes mean, what events are and what settings may be is decided without sockets, threads or clocks."""
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in FILES
        if room(file) in NO_IO
        for name in imports(file)
        if name.split(".")[0] in FORBIDDEN
    ]
    assert not wrong


def test_every_module_says_what_it_is() -> None:
    """A module opens with a docstring."""
    assert not [str(file) for file in FILES if not ast.get_docstring(ast.parse(file.read_text()))]
