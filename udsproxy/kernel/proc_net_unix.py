"""``/proc/net/unix``: what is known of Unix sockets where the kernel has no unix_diag (net/unix/af_unix.c,
unix_seq_show).

Rule: it has neither a listener's backlog, nor peers, nor who made a socket. Those who wait in a queue stand in it
as sockets without an inode, under the listener's name.
"""

from __future__ import annotations

from collections import Counter

from udsproxy.kernel.diag_codec import ESTABLISHED, LISTEN, UnixSocket

_PATH = "/proc/net/unix"
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
    """The file's lines; one that cannot be read is left out."""
    found: list[UnixSocket] = []
    waiting: Counter[bytes] = Counter()
    for line in text.split(b"\n")[1:]:
        parts = line.split(None, 7)
        try:
            flags, kind, state, inode = int(parts[3], 16), int(parts[4], 16), int(parts[5], 16), int(parts[6])
        except (ValueError, IndexError):
            continue
        name = _name(parts[7]) if len(parts) > 7 else None
        if inode == 0:
            if name is not None and state == _SS_CONNECTING:
                waiting[name] += 1
            continue
        listens = bool(flags & _ACCEPTS)
        known = LISTEN if listens else ESTABLISHED if state == _SS_CONNECTED else _UNCONNECTED
        found.append(UnixSocket(inode, kind, known, name))
    return [
        UnixSocket(each.inode, each.type, each.state, each.name, queue=waiting[each.name])
        if each.state == LISTEN and each.name is not None and each.name in waiting
        else each
        for each in found
    ]


def _name(text: bytes) -> bytes:
    """An abstract name begins with ``@``, in place of its NUL (and has ``@`` for others)."""
    return b"\0" + text[1:] if text.startswith(b"@") else text
