"""The settings of a proxy and of its output, and how people write durations and sizes.

Rules: plain values, frozen, checked when they are made; nothing here does I/O. A mistake is a `ConfigError`
whose one line names the setting, what was given, and what would do.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from udsproxy.endpoints import Endpoint, same_place

Decode = Literal["auto", "fastcgi", "raw", "none"]
LogFormat = Literal["console", "json", "socat", "none"]
Color = Literal["auto", "always", "never"]

DEFAULT_SECRETS = frozenset({"HTTP_COOKIE", "HTTP_AUTHORIZATION", "PHP_AUTH_PW"})
"""Parameters whose values are masked in every output."""

MAX_BACKLOG = 2**31 - 1
"""listen(2) takes an int; the kernel cuts it to net.core.somaxconn."""


class ConfigError(ValueError):
    """A setting that cannot be meant. One line."""


class ProxyConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One proxy: where clients connect, where we connect, and how."""

    listen: Endpoint
    upstream: Endpoint
    name: str
    decode: Decode = "auto"
    backlog: int | None = None
    """None: as the upstream's, where that can be seen; else as long as the system allows (net.core.somaxconn)."""
    connect_timeout_s: float = 5.0
    """For a TCP upstream; on AF_UNIX connect() never waits."""

    def __post_init__(self) -> None:
        if self.backlog is not None and not 0 <= self.backlog <= MAX_BACKLOG:
            raise ConfigError(f"backlog {self.backlog}: a number from 0 to {MAX_BACKLOG} is needed")
        if same_place(self.listen, self.upstream):
            raise ConfigError(f"{self.listen} would forward to itself; LISTEN and UPSTREAM must differ")
        if self.connect_timeout_s <= 0:
            raise ConfigError(f"connect timeout {self.connect_timeout_s:g}: more than 0 is needed")


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is written about the traffic, and where."""

    format: LogFormat = "console"
    file: str | None = None
    """None: standard output."""
    verbosity: int = 0
    """0: exchanges; 1: messages too; 2: bytes too."""
    hexdump: int = 256
    """The most bytes of a chunk that a hexdump shows."""
    secrets: frozenset[str] = DEFAULT_SECRETS
    """Names of the parameters to mask, in upper case; empty: nothing is masked."""
    color: Color = "auto"


_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "kib": 1024,
    "m": 1000**2, "mb": 1000**2, "mib": 1024**2,
    "g": 1000**3, "gb": 1000**3, "gib": 1024**3,
}  # fmt: skip
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Zµ]*)")


def parse_duration(text: str) -> float:
    """Seconds, from ``250ms``, ``1.5s``, ``2m`` or a bare ``5`` (seconds). Raises `ConfigError`."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = match[2].lower().replace("µ", "u") or "s" if match else ""
    if match is None or unit not in _DURATION_UNITS:
        raise ConfigError(f"{text!r} is no duration; write 250ms, 1.5s or 2m")
    return float(match[1]) * _DURATION_UNITS[unit]


def parse_size(text: str) -> int:
    """Bytes, from ``64KiB``, ``1.5MB`` or a bare ``4096``. Raises `ConfigError`."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    if match is None or unit not in _SIZE_UNITS:
        raise ConfigError(f"{text!r} is no size; write 4096, 64KiB or 1MB")
    return int(float(match[1]) * _SIZE_UNITS[unit])
