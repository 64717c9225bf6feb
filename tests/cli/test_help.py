"""The help of every command: its groups, its sentences, its examples, at each width; and the man pages of it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.tools import program, udsproxy
from udsproxy.cli import app
from udsproxy.cli.helping import print_help
from udsproxy.cli.man import page_of
from udsproxy.cli.mistakes import commands_of
from udsproxy.cli.pages import PAGES

COMMANDS = [(), *commands_of(app)]
REPOSITORY = Path(__file__).parents[2]


def help_of(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, width: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        print_help(app, command)
    return output.getvalue().splitlines()


def test_every_command_has_a_page() -> None:
    """Each command tells how it is called, and has two examples or more."""
    assert set(PAGES) == set(COMMANDS)
    assert not [command for command, page in PAGES.items() if len(page.examples) < 2]


def test_every_argument_is_explained() -> None:
    """Each option stands in a group, and its help is a sentence that says more than its name."""
    for command in COMMANDS[1:]:
        found = app
        for name in command:
            found = found[name]
        if found.default_command is None:
            continue
        for argument in found.assemble_argument_collection(parse_docstring=True):
            if argument.parse and argument.show:
                assert "Parameters" not in str(argument.parameter.group), (command, argument)
                said = argument.parameter.help or ""
                assert re.fullmatch(r"[A-Z].{9,}\.", said, re.DOTALL), (command, argument.name, said)


def test_summaries_are_short() -> None:
    """The first sentence of each fits into one line, and into the list that a shell shows."""
    for command in COMMANDS[1:]:
        found = app
        for name in command:
            found = found[name]
        summary = found.help.partition("\n\n")[0]
        assert summary.endswith(".")
        assert len(summary) <= 80, summary


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_too_wide(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the width, no line is longer, but for usage and examples, which can be copied."""
    for command in COMMANDS:
        lines = help_of(command, monkeypatch, width)
        examples = lines.index("Examples:")
        for number, line in enumerate(lines):
            is_usage = line.startswith(("Usage: ", "       udsproxy"))
            assert len(line) <= width or is_usage or (number > examples and line.startswith("    ")), line


def test_the_whole_lists_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The help of the whole names each command with what it is for."""
    lines = help_of((), monkeypatch, 200)
    for command in COMMANDS:
        if len(command) == 1:
            [line] = [line for line in lines if line.startswith(f"│ {command[0]} ")]
            assert len(line.split()) > 5


def udsproxy_words(line: str) -> list[str]:
    """Of an example, what follows udsproxy, as a shell has it."""
    line = re.sub(r'^eval "\$\((.*)\)"$', r"\1", line)
    words = [word.removeprefix(".venv/bin/") for word in shlex.split(line, comments=True)]
    words = words[words.index("udsproxy") + 1 :]
    ends = [number for number, word in enumerate(words) if word in ("|", ">", "2>&1", "&")]
    return words[: ends[0]] if ends else words


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_understood(command: tuple[str, ...]) -> None:
    """Each example is a call of the command that it is an example of, without a mistake."""
    for example in PAGES[command].examples:
        words = udsproxy_words(example.line)
        assert tuple(words[: len(command)]) == command
        if "--" in words:
            words = words[: words.index("--")]
        app.parse_args(words, exit_on_error=False, print_error=False)
        assert re.fullmatch(r"[A-Z].*:", example.does)


DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_COMMAND = re.compile(r"(?:\$ )?(?:sudo (?:-u \S+ )?)?(?:\S*/)?udsproxy (?=[a-z-])")


def commands_in(document: Path) -> list[str]:
    """The lines of a document's examples that are calls of udsproxy, each with those that it goes on in."""
    fences = document.read_text().split("```")[1::2]
    lines = "\n".join(fences).replace("\\\n", " ").splitlines()
    return [line for line in lines if _COMMAND.match(line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_documents_name_what_there_is(document: Path) -> None:
    """Each command line in a document is understood: there is such a command, with such options."""
    for line in commands_in(document):
        words = udsproxy_words(re.sub(r"  +.*", "", line.removeprefix("$ ")))
        if "--" in words:
            words = words[: words.index("--")]
        app.parse_args(words, exit_on_error=False, print_error=False)


def test_readme_names_the_packages() -> None:
    """What tests/run installs is said in the README."""
    packages = re.findall(r"^need (\S+)", (REPOSITORY / "tests" / "run").read_text(), re.MULTILINE)
    readme = (REPOSITORY / "README.md").read_text()
    assert not [package for package in packages if package not in readme]


# --- man pages ---


@pytest.mark.parametrize("command", COMMANDS)
def test_man_page(command: tuple[str, ...], tmp_path: Path) -> None:
    """groff and mandoc find nothing wrong with it (but that it has no date)."""
    page = tmp_path / "page.1"
    page.write_text(page_of(app, command) + "\n", "ascii")
    done = subprocess.run(
        [program("groff"), "-ww", "-man", "-Tutf8", page], check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert PAGES[command].examples[0].line in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    linted = subprocess.run(
        [program("mandoc"), "-Tlint", "-Wwarning", page], check=False, capture_output=True, text=True
    )
    assert [line for line in linted.stdout.splitlines() if "missing date" not in line] == []


def test_man_pages_are_installed(tmp_path: Path) -> None:
    """All are written, readable by all; a link that has the name of one is replaced and not followed."""
    kept = tmp_path / "kept"
    kept.write_text("kept")
    directory = tmp_path / "new" / "man1"
    directory.mkdir(parents=True)
    (directory / "udsproxy.1").symlink_to(kept)
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "udsproxy", "man", "--directory", directory], check=True, umask=0o077)
    names = {"-".join(("udsproxy", *command)) + ".1" for command in COMMANDS}
    assert set(os.listdir(directory)) == names
    assert kept.read_text() == "kept"
    assert {os.lstat(directory / name).st_mode for name in names} == {0o100644}


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["state", "--watch", "--help"], ["state"]),
        (["tap", "/x.sock", "-h"], ["tap"]),
        (["fault", "list", "--proxy", "x", "--help"], ["fault", "list"]),
    ],
)
def test_arguments_before_help(words: list[str], command: list[str]) -> None:
    """The help is that of the command, whatever stands between."""
    assert udsproxy(*words).stdout == udsproxy(*command, "--help").stdout != b""
