"""``/proc/net/unix``: what is known of Unix sockets where the kernel has no unix_diag (net/unix/af_unix.c,
unix_seq_show).

Rules: it has neither a listener's backlog, nor peers, nor unread bytes, nor who made a socket. Those who wait in a
queue stand in it as sockets without an inode, under the listener's name and type. Names stand there as they are,
newlines included: whoever may make sockets can make lines.
"""

from __future__ import annotations

import re
from collections import Counter

from udsproxy.kernel.diag_codec import ESTABLISHED, LISTEN, UnixSocket

_PATH = "/proc/net/unix"
_LINE = re.compile(
    rb"[0-9a-fA-F]{8,16}: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) ([0-9A-F]{4}) ([0-9A-F]{2}) +(\d{1,20})(?: (.*))?"
)
"""Address of the socket, references, protocol, flags, type, state, inode, name."""
_SS_CONNECTING, _SS_CONNECTED = 2, 3
_ACCEPTS = 0x10000
"""__SO_ACCEPTCON: it listens."""
_UNCONNECTED = 7
"""TCP_CLOSE."""


def read() -> list[UnixSocket]:
    """Every socket of our network namespace; none where there is no such file."""
    try:
        with open(_PATH, "rb") as file:
            return parse(file.read())
    except OSError:
        return []


def parse(text: bytes) -> list[UnixSocket]:
    """The file's lines; one that cannot be read goes on with the name of that before it, or is left out."""
    rows: list[tuple[int, int, int, int, bytes | None]] = []
    for line in text.split(b"\n")[1:]:
        match = _LINE.fullmatch(line)
        if match:
            flags, kind, state = (int(match[group], 16) for group in (1, 2, 3))
            rows.append((flags, kind, state, int(match[4]), match[5]))
        elif rows and rows[-1][4] is not None:
            rows[-1] = (*rows[-1][:4], rows[-1][4] + b"\n" + line)
    if rows and rows[-1][4] is not None:
        # (What is behind the last newline is no line.)
        rows[-1] = (*rows[-1][:4], rows[-1][4].removesuffix(b"\n"))
    waiting = Counter((kind, name) for _, kind, state, inode, name in rows if not inode and state == _SS_CONNECTING)
    found = []
    for flags, kind, state, inode, name in rows:
        if not inode:
            continue
        listens = bool(flags & _ACCEPTS)
        known = LISTEN if listens else ESTABLISHED if state == _SS_CONNECTED else _UNCONNECTED
        queue = waiting[kind, name] if listens else 0
        found.append(UnixSocket(inode, kind, known, None if name is None else _name(name), queue=queue))
    return found


def _name(text: bytes) -> bytes:
    """An abstract name begins with ``@``, in place of its NUL (and has ``@`` for others)."""
    return b"\0" + text[1:] if text.startswith(b"@") else text
