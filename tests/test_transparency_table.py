"""docs/transparency.md and the tests that it speaks of: each test has one row, and each row a test.

Rule: the tests are read, not imported.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
TESTS = REPOSITORY / "tests" / "transparency"
PAGE = REPOSITORY / "docs" / "transparency.md"

_HEADING = re.compile(r"^From \[`(\w+)\.py`\]\(\.\./tests/transparency/\1\.py\)\.$")
_ROW = re.compile(r"^\| [^|]+ \| [^|]+ \| [^|]+ \| `(test_\w+)` \|$")
_RULES = ("| what | directly | through udsproxy | test |", "| --- | --- | --- | --- |")


def existing_tests() -> list[tuple[str, str]]:
    """Each with its module, in no particular order."""
    return [
        (file.stem, each.name)
        for file in TESTS.glob("test_*.py")
        for each in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name.startswith("test_")
    ]


def rows() -> list[tuple[str, str]]:
    """Those of the page, each with the module that its table is from."""
    module, found = "", []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if (heading := _HEADING.match(line)) is not None:
            module = heading[1]
        elif line.startswith("|") and line not in _RULES:
            row = _ROW.match(line)
            assert row is not None, f"not a row of four columns with a test: {line}"
            found.append((module, row[1]))
    return found


def test_each_test_has_one_row() -> None:
    """What is compared is in the table, once; and nothing that is not."""
    assert sorted(rows()) == sorted(existing_tests())


def test_links_within_the_page_lead_somewhere() -> None:
    """Each link to a part of the page has a heading of that name."""
    text = PAGE.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
