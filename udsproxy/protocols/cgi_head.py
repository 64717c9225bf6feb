"""The head of a CGI answer (RFC 3875, section 6): its status and content type, from STDOUT as it comes.

What is read is what the server says; a web server may make something else of it.

* The head ends with the first empty line, which may be the very first. A line ends with LF or CR LF.
* A line that begins with a blank continues the header before it (section 6.3).
* The status is that of the first ``Status`` header; else of a status line (``HTTP/1.1 404 Not Found``), which some
  servers send first; else 302 with a ``Location``; else 200.
* An interim answer (1xx, but for 101) is followed by another head: the last one counts.
* A head may be long: `MAX_HEAD` bytes of it are read, and about `MAX_KEPT` bytes kept at a time.
"""

from __future__ import annotations

import re

MAX_HEAD = 256 * 1024
"""Bytes in which the head must end, interim answers included; else the status stays unknown."""
MAX_KEPT = 8 * 1024
"""Bytes kept of headers that have not been read, about."""
_TAIL = 4
"""Bytes kept of the end of a very long line, so that the empty line behind it is found."""

_HEADER = re.compile(
    rb"^(status|content-type|location)[ \t]*:(?:\r?\n?[ \t])*([^\n]*(?:\n[ \t][^\n]*)*)",
    re.MULTILINE | re.IGNORECASE,
)
_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?!\d)")


class CGIHead:
    """Reads one head."""

    __slots__ = (
        "_bytes",
        "_header",
        "_is_first",
        "_line",
        "_location",
        "_read_bytes",
        "_type",
        "content_type",
        "status",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        """Of the last head that has ended; None: none has, or its status is no number."""
        self.content_type: bytes | None = None
        """Of the same head."""
        self._bytes = b""
        """What has come and is not read: it begins where a line begins."""
        self._read_bytes = 0
        """What came before that."""
        self._begin()

    def _begin(self) -> None:
        self._is_first = True
        self._header: bytes | None = None
        """The first three bytes of the Status header."""
        self._line: bytes | None = None
        """The number of the status line."""
        self._location = False
        self._type: bytes | None = None

    @property
    def kept(self) -> int:
        """How many bytes are kept."""
        return len(self._bytes)

    def feed(self, piece: bytes) -> bool:
        """Take the next bytes of STDOUT. Returns whether that is all: the head has ended, or is too long."""
        since = max(0, len(self._bytes) - 2)  # the empty line may begin in what came before
        head = self._bytes + piece if self._bytes else piece
        while (end := _empty_line(head, since)) is not None:
            start, stop = end
            if self._read_bytes + start > MAX_HEAD + 1:
                return True
            self._read(head[:start])
            if not self._finish():
                return True
            self._begin()
            self._read_bytes += stop
            head, since = head[stop:], 0
        if len(head) > MAX_KEPT:
            head = self._shorten(head)
        self._bytes = head
        return self._read_bytes + len(head) > MAX_HEAD + 2

    def _read(self, lines: bytes) -> None:
        """Whole lines, with those that continue them."""
        if self._is_first:
            self._is_first = False
            if (line := _STATUS_LINE.match(lines)) is not None:
                self._line = line[1]
        for name, value in _HEADER.findall(lines):
            kind = name.lower()
            if kind == b"location":
                self._location = True
            elif kind == b"content-type":
                self._type = value.rstrip()
            elif self._header is None:
                self._header = value[:3]

    def _finish(self) -> bool:
        """The head has ended. Returns whether another one follows."""
        code = self._header or self._line or (b"302" if self._location else b"200")
        self.status = int(code) if len(code) == 3 and code.isdigit() else None
        self.content_type = self._type
        return code.startswith(b"1") and self.status not in (None, 101)

    def _shorten(self, head: bytes) -> bytes:
        """Read the lines that are whole, and keep little of the one that is not. Returns what is left."""
        cut = head.rfind(b"\n", 0, -1)
        while cut >= 0 and head[cut + 1] in b" \t":
            cut = head.rfind(b"\n", 0, cut)
        if cut >= 0:
            self._read(head[:cut])
            self._read_bytes += cut + 1
            head = head[cut + 1 :]
        if len(head) > MAX_KEPT:
            self._read_bytes += len(head) - MAX_KEPT // 2 - _TAIL
            head = head[: MAX_KEPT // 2] + head[-_TAIL:]
        return head


def _empty_line(head: bytes, since: int) -> tuple[int, int] | None:
    """Where the first empty line begins and ends."""
    if head.startswith((b"\n", b"\r\n")):
        return 0, head.index(b"\n") + 1
    lf, crlf = head.find(b"\n\n", since), head.find(b"\n\r\n", since)
    if crlf < 0 or 0 <= lf < crlf:
        return None if lf < 0 else (lf + 1, lf + 2)
    return crlf + 1, crlf + 3
