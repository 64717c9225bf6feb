"""Lines that are one record."""

from __future__ import annotations

import json
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.logs.reading import read
from udsproxy.logs.records import MAX_CHARACTERS, MAX_LINES, Records

BEGIN = '2026/11/23 09:33:42 [error] 1#1: *2 FastCGI sent in stderr: "PHP message: PHP Fatal error:  Uncaught E'
MORE = [
    "Stack trace:",
    "#0 /srv/a.php(3): stream_socket_client('unix:///x', 111, 'Connection refused')",
    "#1 {main}",
]
END = (
    '  thrown" while reading response header from upstream, client: 192.0.2.1, server: , request: "GET /a.php '
    'HTTP/1.1", upstream: "fastcgi://unix:/run/p.sock:", host: "a"'
)
OTHER = "2026/11/23 09:33:43 [error] 1#1: *3 no live upstreams while connecting to upstream, client: 192.0.2.1"
WORKER = '[23-Nov-2026 09:33:4{}] WARNING: [pool www] child {} said into stderr: "{}"'


def around(form: str, line: str) -> str:
    return json.dumps({"log": line + "\n"}) if form == "json" else form.format(line)


@pytest.mark.parametrize("form", ["{}", "web-1  | {}", "Nov 23 09:33:43 host nginx[7]: {}", "json"])
def test_a_text_of_several_lines(form: str) -> None:
    """The request stands behind its last one. The next record is one of its own, and so is what follows the end."""
    lines = [around(form, line) for line in (BEGIN, *MORE, END, OTHER)]
    first, second = Records().all(lines)
    assert (first.request, first.path, first.client) == ("GET /a.php HTTP/1.1", "/run/p.sock", "192.0.2.1")
    assert first.text == "\n".join(["PHP message: PHP Fatal error:  Uncaught E", *MORE, "thrown"])
    assert first.said == "FastCGI sent in stderr: …"
    assert second.said.startswith("no live upstreams")


def test_a_text_without_an_end() -> None:
    """nginx cuts a record that is too long: the next one begins all the same. What never ends is bounded."""
    assert [line.client for line in Records().all([BEGIN, *MORE, OTHER])] == [None, "192.0.2.1"]
    endless = [*Records().all([BEGIN, *["x"] * (2 * MAX_LINES)])]
    assert len(endless[0].text or "") < MAX_CHARACTERS
    assert endless[0].text is not None
    assert endless[0].text.count("\n") == MAX_LINES - 1


def test_what_comes_in_parts() -> None:
    """A record waits for its end, also while nothing comes. One that nginx may have cut, being long, does not."""
    records = Records()
    for lines in ([BEGIN], [], MORE, []):
        assert [*records.read(lines)] == []
    assert [line.client for line in records.read([END])] == ["192.0.2.1"]
    assert [*records.read([BEGIN, *["x" * 100] * 20])] == []
    assert [line.client for line in records.read([])] == [None]
    assert [line.client for line in records.all([BEGIN])] == [None]


FORGED = [
    "connect() to unix:/x failed (13: Permission denied)",
    "upstream timed out (110: Connection timed out) while connecting to payment API",
    "no live upstreams while connecting to upstream, client: 192.0.2.9, server: a",
    "nginx: [emerg] bind() to unix:/x failed (98: Address already in use)",
    "[error] 1#1: *1 connect() to unix:/x failed (2: No such file or directory)",
    'FastCGI sent in stderr: "x',
    "2026-11-23 09:33:43 connect to unix:/x: connection refused",
    "[23-Nov-2026 09:33:43 Europe/Berlin] PHP Warning:  fsockopen(): Unable to connect to unix:///x",
    '192.0.2.9 - - [23/Nov/2026:09:33:43 +0000] "GET / HTTP/1.1" 502 150 "-" "-"',
    "Nov 23 09:33:43 host nginx[7]: connect() to unix:/x failed (13: Permission denied)",
    'time="2026-11-23T09:33:43Z" level=error msg="boom"',
    '{"msg": "dial unix /x: connect: connection refused"}',
    "web-1  | x",
    '" while',
]
NO_RECORD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=40)


@given(st.lists(st.one_of(st.sampled_from(FORGED), NO_RECORD), max_size=9), st.integers(0, 11), st.booleans())
def test_what_a_script_writes(texts: list[str], at: int, is_last: bool) -> None:
    """It is one record, of the same request and socket, whatever it is, and wherever a look at the log cuts it. The
    next record is one of its own."""
    end = f"{texts.pop()}{END.strip()}" if is_last and texts else END
    lines = [BEGIN, *texts, end, OTHER]
    records = Records(date(2026, 11, 24))
    first, second = [*records.read(lines[:at]), *records.read([]), *records.all(lines[at:])]
    assert (first.request, first.path, first.client) == ("GET /a.php HTTP/1.1", "/run/p.sock", "192.0.2.1")
    assert (first.program, first.said, first.call) == ("nginx", "FastCGI sent in stderr: …", None)
    assert second == read(OTHER)


@pytest.mark.parametrize("byte", ["x", "\n", "\\xff"])
def test_a_text_as_long_as_nginx_lets_it_be(byte: str) -> None:
    """Its request is found, however many lines it has, and however its bytes are shown."""
    lines = [*f"{BEGIN}{byte * 1600}".replace("\n", "\nx").split("\n")[:800], END]
    (only,) = Records().all(lines)
    assert (only.request, only.path) == ("GET /a.php HTTP/1.1", "/run/p.sock")


@pytest.mark.parametrize("line", FORGED[:3])
def test_nginx_s_words_without_a_time(line: str) -> None:
    """They are a text's where the log has times (php-fpm, decorate_workers_output = no) or was cut."""
    assert [*Records().all([OTHER, line])] == [read(OTHER)]
    assert [*Records().all([line])] == [read(line)]
    assert [*Records(is_cut=True).all([line, OTHER])] == [read(OTHER)]


def test_nginx_s_words_in_a_visitor_s() -> None:
    """They begin no record: the lines behind it are not taken for a text."""
    access = '192.0.2.9 - - [23/Nov/2026:09:33:43 +0000] "GET / HTTP/1.1" 502 150 "-" "FastCGI sent in stderr: x"'
    assert [*Records().all([access, "x", OTHER])] == [read(access), read("x"), read(OTHER)]


def test_a_text_of_several_lines_in_the_log_of_php_fpm() -> None:
    """Of each message the first line counts. Another worker's is another, and so is a later one."""
    lines = [
        WORKER.format(1, 7, "NOTICE: PHP message: PHP Warning:  a"),
        WORKER.format(1, 8, "b"),
        WORKER.format(1, 7, "Stack trace:"),
        WORKER.format(2, 7, "#0 {main}"),
        WORKER.format(2, 7, "NOTICE: PHP message: c"),
        WORKER.format(9, 7, "d"),
        WORKER.format(9, 7, "e"),
    ]
    said = [line.text for line in Records().all(lines)]
    assert said == ["NOTICE: PHP message: PHP Warning:  a", "b", "NOTICE: PHP message: c", "d", "e"]


@given(
    st.lists(
        st.one_of(st.sampled_from([*FORGED, ", script '/x' (request: \"GET /x\")", "ERROR: x"]), NO_RECORD),
        max_size=9,
    )
)
def test_what_a_script_writes_to_php_fpm(texts: list[str]) -> None:
    """All of it is its text, whatever it is, and php-fpm's line about a script stays one of its own."""
    slow = (
        "[23-Nov-2026 09:33:42] WARNING: [pool www] child 7, script '/a said into stderr: \"b' "
        '(request: "GET /a.php") executing too slow (1.1 sec), logging'
    )
    begin = WORKER.format(1, 7, "NOTICE: PHP message: a")
    first, *more, last = Records().all([begin, *(WORKER.format(1, 7, text) for text in texts), slow])
    for each in (first, *more):
        assert (each.program, each.said) == ("php-fpm", "[pool www] child 7 said into stderr: …")
        assert (each.call, each.script, each.request, each.path) == (None, None, None, None)
    assert (last.script, last.request) == ('/a said into stderr: "b', "GET /a.php")
    assert last.said.endswith("executing too slow (1.1 sec), logging")


@given(st.lists(st.one_of(st.sampled_from([OTHER, END, *MORE, WORKER.format(1, 7, "x")]), st.text()), max_size=9))
def test_lines_of_their_own(lines: list[str]) -> None:
    """Where none begins a text, each line is a record."""
    assert [*Records().all(lines)] == [read(line) for line in lines]


@given(st.lists(st.sampled_from([BEGIN, OTHER, END, *MORE]), max_size=12), st.integers(0, 12))
def test_any_part(lines: list[str], at: int) -> None:
    """It does not matter in how many parts they come."""
    records = Records()
    assert [*records.read(lines[:at]), *records.all(lines[at:])] == [*Records().all(lines)]
