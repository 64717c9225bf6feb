"""What programs say in words of their own of a call that failed: which call, and which errno.

Rules: patterns are for the program's own words. The first that matches counts.
"""

from __future__ import annotations

import re

import msgspec

from udsproxy.explain.errors import Call


class Phrase(msgspec.Struct, frozen=True):
    """``errno`` is None where the words leave it open."""

    pattern: re.Pattern[str]
    call: Call
    errno: str | None = None


def _phrase(pattern: str, call: Call, errno: str | None = None) -> Phrase:
    return Phrase(re.compile(pattern, re.IGNORECASE), call, errno)


ERRNOS: tuple[Phrase, ...] = (
    _phrase(r"check backlog size on the server", "connect", "EAGAIN"),  # HAProxy
    _phrase(r"backend is overloaded; we'll disable it", "connect", "EAGAIN"),  # lighttpd
    _phrase(r"SIGPIPE: writing to a closed pipe|^(?:IO|OS)Error: write error", "send", "EPIPE"),  # uWSGI
    _phrase(r"^(?:\[ERROR\] )?connection in use: ", "bind", "EADDRINUSE"),  # gunicorn
    _phrase(r"probably another instance of uWSGI is running on the same address", "bind", "EADDRINUSE"),
    _phrase(r"adding listener failed addr=.* \(in use\)", "bind", "EADDRINUSE"),  # unicorn
    _phrase(r"there is already a server bound to: ", "bind", "EADDRINUSE"),  # puma
    _phrase(r"another process with pid \d+ is using unix socket file", "bind", "EADDRINUSE"),  # MySQL
    _phrase(r"do you already have another mysqld server running on socket", "bind", "EADDRINUSE"),
    _phrase(r"another program is already listening on a port", "bind", "EADDRINUSE"),  # supervisord
    _phrase(r"ControlSocket .{1,200} already exists, disabling multiplexing", "bind", "EADDRINUSE"),  # ssh
    _phrase(r"^unix://\S{1,200} no such file", "connect", "ENOENT"),  # supervisorctl
    _phrase(r"^(?:unix|https?)://\S{1,200} refused connection", "connect", "ECONNREFUSED"),
)
"""Without the kernel's words."""

CALLS_IN_WORDS: tuple[Phrase, ...] = (
    _phrase(r"^connection to \S{1,200} failed: \[Errno", "bind"),  # gunicorn, of its own socket
    _phrase(r"\bunable to bind\b|\b(?:can(?:'|no)t|could not|failed to) bind\b|\bbind .{0,120}failed\b", "bind"),
    _phrase(r"\bbind on unix socket\b|\bfailed to create listening socket\b|\badd_unix_listener\b", "bind"),
    _phrase(r"some protocols failed to start their listeners|still could not bind\(\)", "bind"),
    _phrase(r"\berror adding listener addr=", "bind"),  # unicorn
    _phrase(r"SQLSTATE\[HY000\] \[2002\]|\(HY000/2002\)", "connect"),
    _phrase(r"\b(?:connect(?:ing|ion)?|connected) (?:to|on)\b|\bdial(?:ing)? (?:unix|tcp)\b", "connect"),
    _phrase(
        r"\b(?:connect(?:ion)?|establishing connection) failed\b|\b(?:could not|can(?:'|no)t) connect\b", "connect"
    ),
    _phrase(r"\bconnect [/@]|\bunable to connect to WSGI daemon\b", "connect"),
    _phrase(r"\binitial connection step\b|\blayer4 connection problem\b|\bconnecting to agent\b", "connect"),
    _phrase(r"\bunable to connect to cgi daemon\b|\bcontrol socket connect\(", "connect"),
    _phrase(r"\brecv failure\b", "recv"),
    _phrase(r"\bsend failure\b", "send"),
)
"""Which call, where the line names no function."""
