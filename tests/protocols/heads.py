"""Heads of CGI answers: what the server says by each, and what nginx 1.22 makes of it."""

from __future__ import annotations

from typing import NamedTuple

_MANY = b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(20))


class Head(NamedTuple):
    """A head with its empty line; ``body`` follows."""

    data: bytes
    says: int | None
    nginx: int
    body: bytes = b"body"


HEADS = {
    "status": Head(b"Status: 404 Not Found\r\n\r\n", 404, 404),
    "lower case, line feeds": Head(b"status:503\n\n", 503, 503),
    "none": Head(b"Content-Type: text/html\r\n\r\n", 200, 200),
    "location": Head(b"Location: http://a.test/\r\n\r\n", 302, 302),
    "location and status": Head(b"Location: http://a.test/\r\nStatus: 201\r\n\r\n", 201, 201),
    "behind the head": Head(b"X: y\r\n\r\n", 200, 200, b"Status: 500\r\n\r\n"),
    "empty": Head(b"\r\n", 200, 200),
    "empty, line feed": Head(b"\n", 200, 200, b"Status: 404\r\n\r\nbody"),
    "status line": Head(b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n", 404, 200),
    "status line and status": Head(b"HTTP/1.1 404 Not Found\r\nStatus: 500\r\n\r\n", 500, 500),
    "status line and location": Head(b"HTTP/1.1 301 Moved\r\nLocation: http://a.test/\r\n\r\n", 301, 302),
    "status line, not first": Head(b"X: y\r\nHTTP/1.1 404 Not Found\r\n\r\n", 200, 200),
    "folded": Head(b"X: y\r\n Status: 500\r\n\r\n", 200, 502),
    "folded status": Head(b"Status:\r\n 404 Not Found\r\n\r\n", 404, 502),
    "folded, nothing before": Head(b" Status: 404\r\n\r\n", 200, 502),
    "behind many": Head(_MANY + b"Status: 404\r\n\r\n", 404, 404),
    "before many": Head(b"Status: 404\r\n" + _MANY + b"\r\n", 404, 404),
    "behind a long one": Head(b"X: " + b"y" * 20_000 + b"\r\nStatus: 404\r\n\r\n", 404, 404),
    "before a long one": Head(b"Status: 404\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 404, 404),
    "interim": Head(b"Status: 103 Early Hints\r\nLink: </a>\r\n\r\nStatus: 404\r\n\r\n", 404, 103),
    "interim status lines": Head(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 404 Not Found\r\n\r\n", 404, 200),
    "interim alone": Head(b"Status: 103 Early Hints\r\n\r\n", 103, 103),
    "switching protocols": Head(b"Status: 101 Switching Protocols\r\n\r\n", 101, 101, b"Status: 500\r\n\r\n"),
    "twice": Head(b"Status: 404\r\nStatus: 500\r\n\r\n", 404, 404),
    "no number": Head(b"Status: gone\r\n\r\n", None, 502),
    "space before the colon": Head(b"Status : 404\r\n\r\n", 404, 502),
    "no header": Head(b"words\r\n\r\n", 200, 200),
}
