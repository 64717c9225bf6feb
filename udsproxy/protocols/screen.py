"""What of the bytes of a connection may be shown (-vv, ``--log socat``), whatever they are decoded as.

Rules: as many bytes as there were, `*` in the place of what may be a secret. What is shown is decided by the bytes
so far and not by how they were cut. What begins as FastCGI does is taken for that, also with ``--decode raw``;
anything else is raw: shown, but for CGI's parameters in another wrapping and for HTTP's own headers.
"""

from __future__ import annotations

import re
from typing import Protocol

from udsproxy.events import Direction
from udsproxy.protocols import fastcgi as wire
from udsproxy.protocols.budget import Ledger
from udsproxy.protocols.fastcgi_screen import FastCGIScreen, cover
from udsproxy.protocols.secrets import Masking

_PARAMETERS = (
    *map(
        re.compile,
        b"HTTP_ REDIRECT_ PHP_AUTH_ _COOKIE _AUTHORIZATION SCRIPT_NAME SCRIPT_FILENAME REQUEST_URI REQUEST_METHOD"
        b" QUERY_STRING REMOTE_ADDR SERVER_PROTOCOL GATEWAY_INTERFACE".split(),
    ),
    re.compile(rb"\x01\x04\x00.{4}\x00", re.DOTALL),
)
"""What CGI's parameters are known by, each of one length: names, and the header of FastCGI's PARAMS."""
_HEADER = re.compile(rb"(?<![a-z0-9-])(?:set-cookie2?|cookie2?|authorization|proxy-authorization):", re.IGNORECASE)
"""HTTP's own; each ends at its only colon."""
_TAIL = 24
"""Bytes that are kept to find what was cut; more than any of these has."""


class Screen(Protocol):
    """One direction of one connection."""

    def feed(self, data: bytes) -> bytes:
        """These bytes, as they may be shown."""
        ...


class OpenScreen:
    """Everything is shown."""

    def feed(self, data: bytes) -> bytes:
        return data


class ClosedScreen:
    """Nothing is shown."""

    def feed(self, data: bytes) -> bytes:
        return b"*" * len(data)


class HeaderScreen:
    """The values of HTTP's headers that carry secrets are not shown, wherever they stand."""

    def __init__(self) -> None:
        self._tail = b""
        self._in_value = self._at_line = False

    def feed(self, data: bytes) -> bytes:
        out, pos, size = bytearray(data), 0, len(data)
        text, back = self._tail + data, len(self._tail)
        while pos < size:
            if self._at_line:
                self._at_line = False
                self._in_value = data[pos] in b" \t"  # the value goes on (RFC 9110, 5.5: obs-fold)
            if self._in_value:
                end = data.find(b"\n", pos)
                self._at_line, self._in_value = end >= 0, end < 0
                cover(out, pos, size if end < 0 else end)
                pos = size if end < 0 else end + 1
            else:
                found = _HEADER.search(text, max(0, pos + back - _TAIL))
                while found is not None and found.end() - back <= pos:
                    found = _HEADER.search(text, found.end())
                self._in_value = found is not None
                pos = size if found is None else found.end() - back
        self._tail = text[-_TAIL:]
        return bytes(out)


class RawScreen:
    """A client's bytes that are no FastCGI: up to what CGI's parameters are known by, but for HTTP's headers."""

    def __init__(self) -> None:
        self._tail = b""
        self._headers = HeaderScreen()
        self._closed = False

    def feed(self, data: bytes) -> bytes:
        out = bytearray(self._headers.feed(data))
        shown = 0
        if not self._closed:
            text, back = self._tail + data, len(self._tail)
            ends = [found.end() - back for each in _PARAMETERS if (found := each.search(text)) is not None]
            shown = min(ends, default=len(data))
            self._closed = bool(ends)
            self._tail = text[-_TAIL:]
        cover(out, max(0, shown), len(data))
        return bytes(out)


class ClientScreen:
    """What a client sends: FastCGI where it begins with the version of that, which no text does; else raw."""

    def __init__(self, masking: Masking, ledger: Ledger) -> None:
        self._fastcgi = FastCGIScreen(masking, ledger)
        self._screen: Screen | None = None

    def feed(self, data: bytes) -> bytes:
        if self._screen is None:
            if not data:
                return data
            self._screen = self._fastcgi if data[0] == wire.VERSION else RawScreen()
        return self._screen.feed(data)


def make_screens(masking: Masking | None, ledger: Ledger) -> dict[Direction, Screen]:
    """For both directions of a connection. ``masking`` None: everything is shown."""
    if masking is None:
        return {"c2s": OpenScreen(), "s2c": OpenScreen()}
    return {"c2s": ClientScreen(masking, ledger), "s2c": HeaderScreen()}
