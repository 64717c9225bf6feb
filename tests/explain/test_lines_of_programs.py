"""Lines of many programs, each with its right answer: lines.txt.

There, a line of a log stands alone, and below it, indented: what is right; what the whole answer has (a regular
expression); what it does not have. Lines that begin with # are comments.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from udsproxy.explain.lines import parse
from udsproxy.explain.text import answer

FILE = Path(__file__).with_name("lines.txt")
_FIELD = re.compile(r"  (right|has|not): (.*)")


def cases() -> list[tuple[str, str, list[str], list[str]]]:
    found: list[tuple[str, dict[str, list[str]]]] = []
    for text in FILE.read_text(encoding="utf-8").splitlines():
        if (field := _FIELD.fullmatch(text)) is not None:
            found[-1][1].setdefault(field[1], []).append(field[2])
        elif text and not text.startswith("# "):
            found.append((text, {}))
    return [(line, fields["right"][0], fields["has"], fields.get("not", [])) for line, fields in found]


def said_of(line: str) -> str:
    found = parse(line)
    return "no error is known" if found is None else answer(found)


@pytest.mark.parametrize(("line", "right", "has", "has_not"), cases())
def test_the_answer_is_right(line: str, right: str, has: list[str], has_not: list[str]) -> None:
    """Each line gets the answer that ``right`` describes."""
    said = said_of(line)
    missing = [form for form in has if not re.search(form, said, re.DOTALL | re.MULTILINE)]
    wrong = [form for form in has_not if re.search(form, said, re.DOTALL | re.MULTILINE)]
    assert not missing, (right, missing, said)
    assert not wrong, (right, wrong, said)
