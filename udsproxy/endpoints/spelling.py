"""How endpoints are written, and what they are.

An endpoint is a path, ``unix:PATH``, ``unix:@NAME`` (abstract) or ``tcp:HOST:PORT``, then options after commas
(``unix:/run/p.sock,mode=660,owner=www-data``). A backslash takes the meaning from the comma after it.
"""

from __future__ import annotations

import os

import msgspec

from udsproxy.units import hint

MAX_PATH = 107
"""sockaddr_un.sun_path is 108 bytes with its final NUL (unix(7)). Longer paths go by way of /proc/self/fd."""


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
        return f"unix:@{self.name}"


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
    address, *options = _split_commas(text)
    if "\0" in text:
        raise EndpointError(f"endpoint {text!r}: a NUL cannot be part of it")
    scheme, colon, rest = address.partition(":")
    if colon and scheme == "tcp":
        _options(text, options, ())
        return _parse_tcp(text, rest)
    if colon and "/" not in scheme and scheme != "unix":
        raise EndpointError(
            f"endpoint {text!r}: unknown kind {scheme!r}; write PATH, unix:PATH, unix:@NAME or tcp:HOST:PORT"
        )
    path = rest if colon and scheme == "unix" else address
    if path.startswith("@"):
        _options(text, options, ())
        return _parse_abstract(text, path[1:])
    if not path:
        raise EndpointError(f"endpoint {text!r}: a path is missing")
    given = _options(text, options, ("mode", "owner", "group"))
    mode = _parse_mode(text, given["mode"]) if "mode" in given else None
    return UnixPath(path, mode, given.get("owner"), given.get("group"))


def same_place(one: Endpoint, other: Endpoint) -> bool:
    """Do both lead to the same socket, as far as their spelling tells?"""
    if isinstance(one, UnixPath) and isinstance(other, UnixPath):
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    return one == other


def _split_commas(text: str) -> list[str]:
    parts, current, chars = [], "", iter(text)
    for char in chars:
        if char == "\\":
            current += next(chars, "\\")
        elif char == ",":
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]


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


def _parse_abstract(text: str, name: str) -> UnixAbstract:
    if not name or len(os.fsencode(name)) > MAX_PATH:
        raise EndpointError(f"endpoint {text!r}: an abstract name has 1 to {MAX_PATH} bytes")
    return UnixAbstract(name)


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
