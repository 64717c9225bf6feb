"""nginx's error log, line by line."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.logs.nginx_error import NginxError, parse_line

SOCKET = "/run/php/p.sock"
START = "2026/11/23 06:10:04 [error] 586#586: *1 "
CLIENT = ", client: 192.0.2.1, server: a.test, "
BEHIND = f'{CLIENT}request: "GET /x.php HTTP/1.1", upstream: "fastcgi://unix:{SOCKET}:", host: "a.test"'


def parsed(message: str) -> NginxError:
    found = parse_line(START + message)
    assert found is not None
    return found


def test_a_failed_connect() -> None:
    """Everything that nginx says of a full queue."""
    words = f"connect() to unix:{SOCKET} failed (11: Resource temporarily unavailable) while connecting to upstream"
    assert parsed(words + BEHIND) == NginxError(
        level="error",
        pid=586,
        message=words,
        at=datetime(2026, 11, 23, 6, 10, 4),  # noqa: DTZ001 - the line names no zone
        call="connect",
        errno=11,
        words="Resource temporarily unavailable",
        path=SOCKET,
        doing="connecting to upstream",
        client="192.0.2.1",
        request="GET /x.php HTTP/1.1",
        upstream=f"fastcgi://unix:{SOCKET}:",
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "upstream timed out (110: Connection timed out) while reading response header from upstream",
            {"timed_out": True, "errno": 110, "call": None, "path": SOCKET},
        ),
        (
            "recv() failed (104: Connection reset by peer) while reading response header from upstream",
            {"call": "recv", "errno": 104, "path": SOCKET, "doing": "reading response header from upstream"},
        ),
        (
            "writev() failed (32: Broken pipe) while sending to client",
            {"call": "writev", "errno": 32, "doing": "sending to client"},
        ),
        (
            'open() "/var/www/50x.html" failed (2: No such file or directory)',
            {"call": "open", "errno": 2, "file": "/var/www/50x.html"},
        ),
        (
            "upstream prematurely closed connection while reading response header from upstream",
            {"call": None, "errno": None, "path": SOCKET},
        ),
        (
            "connect() to unix:@name failed (111: Connection refused) while connecting to upstream",
            {"call": "connect", "errno": 111, "path": "@name"},
        ),
        (
            'FastCGI sent in stderr: "PHP message: connect() to unix:/other failed (13: Permission denied), '
            'client: 1, request: "GET /" while reading response header from upstream',
            {"stderr": True, "call": None, "errno": None, "path": SOCKET, "client": "192.0.2.1"},
        ),
    ],
)
def test_what_failed(message: str, expected: dict[str, object]) -> None:
    """The call, its errno and the socket; of a script's message none of that."""
    found = parsed(message + BEHIND)
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_backend_by_http() -> None:
    """Behind the socket's name stands the URI."""
    found = parsed(
        f"connect() to unix:{SOCKET} failed (2: No such file or directory) while connecting to upstream{CLIENT}"
        f'request: "GET /a:b HTTP/1.1", upstream: "http://unix:{SOCKET}:/a:b", host: "a.test"'
    )
    assert (found.path, found.errno) == (SOCKET, 2)


def test_the_stream_module() -> None:
    """Its lines have an upstream and no request."""
    found = parsed(
        "recv() failed (104: Connection reset by peer) while proxying and reading from upstream, client: ::1, "
        'server: 0.0.0.0:3306, upstream: "unix:/run/db.sock", bytes from/to client:10/0'
    )
    assert (found.path, found.request, found.doing) == (
        "/run/db.sock",
        None,
        "proxying and reading from upstream",
    )


def test_a_file_whose_name_looks_like_a_failure() -> None:
    """The name is a visitor's: what nginx says of it stands behind it."""
    found = parsed(
        f'open() "/var/www/a" failed (111: Connection refused) "" failed (2: No such file or directory){BEHIND}'
    )
    assert (found.call, found.errno) == ("open", 2)


def test_a_request_with_spaces() -> None:
    """The socket is known all the same."""
    found = parsed(
        f'connect() failed (2: No such file or directory) while connecting to upstream{CLIENT}request: "GET /a b c '
        f'HTTP/1.1", upstream: "fastcgi://unix:{SOCKET}:", host: "a.test"'
    )
    assert (found.path, found.request) == (SOCKET, "GET /a b c HTTP/1.1")


@pytest.mark.parametrize("line", ["", "connect: EAGAIN", "[12-Nov-2024 10:08:57] ERROR: no", "[error] words"])
def test_lines_of_others(line: str) -> None:
    """They are not nginx's."""
    assert parse_line(line) is None


_WRITTEN = st.text(
    st.characters(codec="utf-8", exclude_characters=" \r\n"), min_size=1, max_size=60
) | st.sampled_from(
    ['/",upstream:"fastcgi://unix:/evil:"', "/?(13:Permission denied)", '/", upstream: "fastcgi://unix:/evil:"']
).map(lambda text: text.replace(" ", ""))


@given(_WRITTEN, st.text(max_size=60), st.text(max_size=60))
def test_what_a_visitor_writes(uri: str, host: str, referrer: str) -> None:
    """It changes neither the call, nor the errno, nor the socket."""
    found = parsed(
        f"recv() failed (104: Connection reset by peer) while reading response header from upstream{CLIENT}"
        f'request: "GET {uri} HTTP/1.1", upstream: "fastcgi://unix:{SOCKET}:", '
        f'host: "{host}", referrer: "{referrer}"'
    )
    assert (found.call, found.errno, found.path, found.client) == ("recv", 104, SOCKET, "192.0.2.1")


@given(st.text(max_size=200))
def test_any_line(line: str) -> None:
    """It never raises."""
    parse_line(line)
    parse_line(START + line)
