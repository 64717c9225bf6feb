"""How people write durations and sizes, and what they are told of a setting that cannot be meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

MAX_BACKLOG = 2**31 - 1
"""listen(2) takes an int; the kernel cuts it to net.core.somaxconn."""


class ConfigError(ValueError):
    """A setting that cannot be meant. One line."""


MAX_SECONDS = 1e9
"""Thirty years: nanoseconds of that fit any clock."""
MAX_BYTES = 1 << 60

_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE_UNITS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "kib": 1024,
    "m": 1000**2, "mb": 1000**2, "mib": 1024**2,
    "g": 1000**3, "gb": 1000**3, "gib": 1024**3,
}  # fmt: skip
_NUMBER_AND_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Zµ]*)")


def hint(word: str, known: Iterable[str], otherwise: str = "choose one of") -> str:
    """The end of a line that says that ``word`` is not known: what was meant, or all that would do."""
    names = list(known)
    if close := get_close_matches(word, names, n=1):
        return f"; did you mean {close[0]!r}?"
    return f"; {otherwise} {', '.join(names) or 'none'}"


def parse_duration(text: str) -> float:
    """Seconds, from ``250ms``, ``1.5s``, ``2m`` or a bare ``5`` (seconds). Raises `ConfigError`."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = match[2].lower().replace("µ", "u") or "s" if match else ""
    if match is None or unit not in _DURATION_UNITS:
        raise ConfigError(f"{text!r} is not a duration; write 250ms, 1.5s or 2m")
    seconds = float(match[1]) * _DURATION_UNITS[unit]
    if seconds > MAX_SECONDS:
        raise ConfigError(f"{text[:40]!r} is too long; the maximum is {MAX_SECONDS:.0f} seconds")
    return seconds


def parse_size(text: str) -> int:
    """Bytes, from ``64KiB``, ``1.5MB`` or a bare ``4096``. Raises `ConfigError`."""
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    unit = match[2].lower() if match else ""
    if match is None or unit not in _SIZE_UNITS:
        raise ConfigError(f"{text!r} is not a size; write 4096, 64KiB or 1MB")
    nbytes = float(match[1]) * _SIZE_UNITS[unit]
    if nbytes > MAX_BYTES:
        raise ConfigError(f"{text[:40]!r} is too much; the maximum is {MAX_BYTES} bytes")
    return int(nbytes)
