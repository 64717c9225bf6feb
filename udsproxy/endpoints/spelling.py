"""How endpoints are written, and what they are.

An endpoint is a path, ``unix:PATH``, ``unix:@NAME`` (abstract) or ``tcp:HOST:PORT``, then options after commas
(``unix:/run/p.sock,mode=660,owner=www-data``). A backslash takes the meaning from the comma after it.

What udsproxy prints can be given back: `unescaped` undoes the escapes of `udsproxy.events.printable`. An abstract
name has no options, so a comma is part of it.
"""

from __future__ import annotations

import os
import re

import msgspec

from udsproxy.events import printable
from udsproxy.units import hint

MAX_PATH = 107
"""sockaddr_un.sun_path is 108 bytes with its final NUL (unix(7)). Longer paths go by way of /proc/self/fd."""


_OPTIONS = ("mode", "owner", "group")
"""Of a path."""
_MEANT_AS_OPTION = re.compile(rf"(?<!\\),((?:{'|'.join(_OPTIONS)})=[^,]*)")
"""Behind an abstract name."""
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0nrt])|(.))", re.DOTALL)
_LETTERS = {"0": "\0", "n": "\n", "r": "\r", "t": "\t"}
_NUL_FIRST = re.compile(r"\\(?:0|x00)")
"""How other programs write the first byte of an abstract name, for which there is an ``@`` here."""


class EndpointError(ValueError):
    """An endpoint that cannot be understood. One line."""


class ListenError(Exception):
    """An endpoint that cannot be listened on. One line: the thing, the operation, the errno, what to do."""


class UnixPath(msgspec.Struct, frozen=True, tag="unix"):
    """A socket in the file system. ``mode``, ``owner`` and ``group`` are for listening; None: not told."""

    path: str
    mode: int | None = None
    owner: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        return self.path


class Pinned(UnixPath, frozen=True, tag="pinned"):
    """A socket that a descriptor of ours stands for, whatever its file is called now: ``path`` is that of the
    descriptor in /proc, ``shown`` what people know it by."""

    shown: str = ""

    def __str__(self) -> str:
        return self.shown


class UnixAbstract(msgspec.Struct, frozen=True, tag="abstract"):
    """A socket in the abstract name space (unix(7)): ``name`` without the leading NUL."""

    name: str

    def __str__(self) -> str:
        return f"unix:@{printable(os.fsencode(self.name))}"


class Tcp(msgspec.Struct, frozen=True, tag="tcp"):
    """A TCP endpoint. ``host`` is a name or an address, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


Endpoint = UnixPath | UnixAbstract | Tcp


def parse(text: str) -> Endpoint:
    """The endpoint that ``text`` spells. Raises `EndpointError`."""
    if "\0" in text:
        raise EndpointError(f"endpoint {text!r}: a NUL cannot be part of it; of an abstract name, write it as \\0")
    name = _abstract_name(text)
    if name is not None:
        return _parse_abstract(text, name)
    address, *options = _split_commas(text)
    scheme, colon, rest = address.partition(":")
    if colon and scheme == "tcp":
        _options(text, options, ())
        return _parse_tcp(text, rest)
    if colon and "/" not in scheme and scheme != "unix":
        raise EndpointError(
            f"endpoint {text!r}: unknown kind {scheme!r}; write PATH, unix:PATH, unix:@NAME or tcp:HOST:PORT"
        )
    path = rest if colon and scheme == "unix" else address
    if not path:
        raise EndpointError(f"endpoint {text!r}: a path is missing")
    if "\0" in path:
        raise EndpointError(f"endpoint {text!r}: a NUL cannot be part of a path")
    given = _options(text, options, _OPTIONS)
    mode = _parse_mode(text, given["mode"]) if "mode" in given else None
    return UnixPath(path, mode, given.get("owner"), given.get("group"))


def address_of(text: str) -> str:
    """The path, or ``@NAME``, of a socket that is looked at: as `parse` takes it, or as udsproxy has printed it.

    Without ``unix:`` a path is taken as it stands, with its commas and backslashes. Raises `EndpointError`.
    """
    if text.startswith("unix:") or _NUL_FIRST.match(text):
        endpoint = parse(text)
        assert not isinstance(endpoint, Tcp)
        return f"@{endpoint.name}" if isinstance(endpoint, UnixAbstract) else endpoint.path
    return text


def unescaped(text: str) -> str:
    """Text without the escapes of `udsproxy.events.printable` (``\\n``, ``\\xff``, ``\\u202e``), and of ``\\0``. A
    backslash before any other character stands for that character. Bytes are as `os.fsdecode` has them."""
    return _ESCAPE.sub(_character, text)


def _character(escape: re.Match[str]) -> str:
    byte, short, long, letter, other = escape.groups()
    if byte is not None:
        return os.fsdecode(bytes([int(byte, 16)]))
    if short is not None or long is not None:
        number = int(short or long, 16)
        return chr(number) if number < 0x110000 else escape[0]
    return _LETTERS[letter] if letter is not None else other


def _abstract_name(text: str) -> str | None:
    """What follows the ``@`` of an abstract name; None: it is none."""
    address = text.removeprefix("unix:")
    if address.startswith("@"):
        return address[1:]
    first = _NUL_FIRST.match(address)
    return None if first is None else address[first.end() :]


def same_place(one: Endpoint, other: Endpoint) -> bool:
    """Do both lead to the same socket, as far as their spelling tells?"""
    if isinstance(one, UnixPath) and isinstance(other, UnixPath):
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    return one == other


def _split_commas(text: str) -> list[str]:
    """The parts between commas, without escapes."""
    parts, start = [], 0
    for found in re.finditer(r"\\.|,", text, re.DOTALL):
        if found[0] == ",":
            parts.append(text[start : found.start()])
            start = found.end()
    return [unescaped(part) for part in [*parts, text[start:]]]


def _options(text: str, options: list[str], known: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in known:
            raise EndpointError(f"endpoint {text!r}: unknown option {key!r}{hint(key, known, 'it takes')}")
        if not equals or not value:
            raise EndpointError(f"endpoint {text!r}: option {key!r} needs a value, {key}=...")
        found[key] = value
    return found


def _parse_mode(text: str, value: str) -> int:
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise EndpointError(f"endpoint {text!r}: mode {value!r} is not octal permissions, as in mode=660")
    return mode


def _parse_abstract(text: str, written: str) -> UnixAbstract:
    if meant := _MEANT_AS_OPTION.search(written):
        _options(text, [meant[1]], ())
    try:
        name = os.fsencode(unescaped(written))
    except UnicodeEncodeError:
        raise EndpointError(f"endpoint {text!r}: it has a character that cannot be encoded") from None
    if not 1 <= len(name) <= MAX_PATH:
        raise EndpointError(f"endpoint {text!r}: an abstract name has 1 to {MAX_PATH} bytes")
    return UnixAbstract(os.fsdecode(name))


def _parse_tcp(text: str, rest: str) -> Tcp:
    host, colon, port = rest.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise EndpointError(f"endpoint {text!r}: write tcp:HOST:PORT, with a port from 0 to 65535")
    if ":" in host and not bracketed:
        raise EndpointError(f"endpoint {text!r}: an IPv6 address goes in brackets, tcp:[::1]:9000")
    try:
        host.encode("idna")
    except UnicodeError:
        raise EndpointError(f"endpoint {text!r}: {host!r} cannot be the name of a host") from None
    return Tcp(host[1:-1] if bracketed else host, int(port))
