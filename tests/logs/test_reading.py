"""Lines of any program, as records."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.logs.line import CUT
from udsproxy.logs.reading import MAX_SAID, read

TODAY = date(2026, 11, 29)
LOCAL = datetime(2026, 11, 23, 9, 33, 42)  # noqa: DTZ001 - local time
NGINX = (
    "2026/11/23 09:33:42 [error] 1#1: *1 connect() to unix:/run/p.sock failed (2: No such file or directory) while "
    'connecting to upstream, client: 192.0.2.1, server: _, request: "GET /x HTTP/1.1", upstream: '
    '"fastcgi://unix:/run/p.sock:"'
)


@pytest.mark.parametrize(
    ("line", "program", "said"),
    [
        (
            NGINX,
            "nginx",
            "connect() to unix:/run/p.sock failed (2: No such file or directory) while connecting to upstream",
        ),
        ("[23-Nov-2026 09:33:42] NOTICE: ready to handle connections", "php-fpm", "ready to handle connections"),
        (
            "[Mon Nov 23 09:33:42.1 2026] [proxy:error] [pid 7:tid 8] (2)No such file or directory: AH02454: words",
            "apache",
            "(2)No such file or directory: AH02454: words",
        ),
        ("2026-11-23 09:33:42: (gw_backend.c.1) words", "lighttpd", "words"),
        ("Mon Nov 23 09:33:42 2026 - *** uWSGI listen queue", "uwsgi", "*** uWSGI listen queue"),
        ("[2026-11-23 09:33:42 +0000] [9] [INFO] words", "gunicorn", "words"),
        ("E, [2026-11-23T09:33:42.1 #9] ERROR -- : words", "ruby", "words"),
        ("9:M 23 Nov 2026 09:33:42.123 # words", "redis", "words"),
        ("2026-11-23 09:33:42.1 UTC [9] LOG:  words", "postgres", "words"),
        ("2026-11-23T09:33:42.1Z 0 [ERROR] [MY-010267] [Server] words", "mysql", "words"),
        ('192.0.2.1 - - [23/Nov/2026:09:33:42 +0000] "GET / HTTP/1.1" 502 157 "-" "x"', "access", "502"),
        ("Nov 23 09:33:42 host systemd[1]: words", "systemd", "words"),
        ("2026/11/23 09:33:42 words", "", "words"),
    ],
)
def test_programs(line: str, program: str, said: str) -> None:
    """Each program's line has its time, and its own words."""
    found = read(line, TODAY)
    assert (found.program, found.said) == (program, said)
    assert found.at is not None
    assert found.at.replace(microsecond=0, tzinfo=None) == LOCAL


@pytest.mark.parametrize(
    "around",
    [
        "web-1  | {}",
        "Nov 23 09:33:43 host nginx[7]: {}",
        "2026-11-23T09:33:43.123456789Z {}",
        "2026-11-23T09:33:43.123456789Z stderr F {}",
        "web-1 | Nov 23 09:33:43 host nginx: {}",
    ],
)
def test_what_stands_around(around: str) -> None:
    """The journal's and docker's words are taken off; the program's own time counts."""
    found = read(around.format(NGINX), TODAY)
    assert found == read(NGINX)


def test_json() -> None:
    """The message, the error and the time of JSON; other keys are a visitor's."""
    found = read(
        json.dumps({"ts": 1_763_890_422.5, "msg": "m", "error": "e", "request": {"method": "GET", "uri": "/u"}})
    )
    assert (found.said, found.request) == ("m: e", "GET /u")
    assert found.at == datetime(2025, 11, 23, 9, 33, 42, 500_000, tzinfo=UTC)
    assert read(json.dumps({"log": NGINX + "\n", "stream": "stderr"})) == read(NGINX)


def test_logfmt() -> None:
    """The same of key="value"."""
    found = read('time="2026-11-23T09:33:42Z" level=error msg="a \\"b\\"" error=c user_agent="d"')
    assert found.said == 'a "b": c'


@pytest.mark.parametrize("line", ["{", '{"a":', "[1]", '{"msg": 1}', "{" * 10_000, '{"a":' * 10_000, "null"])
def test_what_is_no_json(line: str) -> None:
    """It is a line like any other."""
    read(line)


def test_a_long_line() -> None:
    """Of long words the beginning and the end are kept."""
    found = read("begin " + "x" * 15_000 + " end")
    assert len(found.said) <= MAX_SAID + len(CUT) + 2
    assert found.said.startswith("begin ")
    assert found.said.endswith(" end")


@given(
    st.one_of(
        st.text(),
        st.lists(st.sampled_from([NGINX, "{", '"', "[23-Nov-2026 09:33:42]", " ", "AH01079: "])).map("".join),
    )
)
def test_nothing_raises(line: str) -> None:
    """Whatever the line is."""
    read(line, TODAY)
