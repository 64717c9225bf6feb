"""The words for an errno, as the C libraries write them, and the errno of a line.

Rules:

* Words beside a number count more than the number: it may be another system's (61 is ECONNREFUSED on macOS,
  ENODATA on Linux), or the program's own (70007 of Apache).
* Short words that any sentence may hold ("Not supported") count only where an error stands: alone, or after
  a colon.
"""

from __future__ import annotations

import errno as numbers
import re

from udsproxy.events import errno_message
from udsproxy.explain.errors import ELSEWHERE, TABLE

_NAMES = tuple(dict.fromkeys((*(meaning.errno for meaning in TABLE), *ELSEWHERE)))
_BY_NUMBER = {int(getattr(numbers, name)): name for name in _NAMES}
BY_NAME = {name: _BY_NUMBER.get(number, name) for number, name in numbers.errorcode.items()} | {
    name: name for name in _NAMES
}
BY_NAME["EWOULDBLOCK"] = "EAGAIN"

_MUSL = {
    "Address in use": "EADDRINUSE",
    "Address not available": "EADDRNOTAVAIL",
    "Connection aborted": "ECONNABORTED",
    "Filename too long": "ENAMETOOLONG",
    "Host is unreachable": "EHOSTUNREACH",
    "Message too large": "EMSGSIZE",
    "Network unreachable": "ENETUNREACH",
    "No file descriptors available": "EMFILE",
    "Not a socket": "ENOTSOCK",
    "Not supported": "EOPNOTSUPP",
    "Operation in progress": "EINPROGRESS",
    "Operation timed out": "ETIMEDOUT",
    "Out of memory": "ENOMEM",
    "Quota exceeded": "EDQUOT",
    "Socket is connected": "EISCONN",
    "Socket not connected": "ENOTCONN",
    "Symbolic link loop": "ELOOP",
    "Too many references: cannot splice": "ETOOMANYREFS",
}
"""src/errno/__strerror.h of musl (Alpine), where it differs from glibc."""
_BSD = {
    "Address family not supported by protocol family": "EAFNOSUPPORT",
    "Can't assign requested address": "EADDRNOTAVAIL",
    "Disc quota exceeded": "EDQUOT",
    "Operation not supported on socket": "EOPNOTSUPP",
    "Socket is already connected": "EISCONN",
    "Socket is not connected": "ENOTCONN",
    "Software caused connection abort": "ECONNABORTED",
    "Too many references: can't splice": "ETOOMANYREFS",
}
"""sys/errno.h of macOS and FreeBSD, where they differ from glibc."""
_SHORT = ("bad address", "message too large", "not a directory", "not a socket", "not supported", "out of memory")

_BY_WORDS = {
    **{words.lower(): name for words, name in (_MUSL | _BSD).items()},
    **{errno_message(number).lower(): name for number, name in _BY_NUMBER.items()},
}


def _one_of(words: list[str]) -> str:
    return "|".join(re.escape(each) for each in sorted(words, key=len, reverse=True))


_ALL = _one_of([*_BY_WORDS])
_WORDS = re.compile(
    rf"(?<!\w)(?:(?P<plain>{_one_of([each for each in _BY_WORDS if each not in _SHORT])})"
    rf"|(?:(?<=: )|(?<=^)|(?<=\()|(?<=- ))(?P<short>{_one_of(list(_SHORT))})(?=$|[.,;)]| \(| \[| -))(?!\w)"
)
_NUMBER = re.compile(
    rf"""
      \((\d{{1,5}}):\ ({_ALL})?            # nginx: failed (11: Resource temporarily unavailable)
    | \((\d{{1,5}})\)({_ALL})              # Apache: (11)Resource temporarily unavailable
    | \[errno\ (\d{{1,5}})\]\ ?({_ALL})?   # Python
    | ({_ALL})\ \((?:os\ error\ )?(\d{{1,5}})\)   # php-fpm, Rust
    | \berror\ (\d{{1,5}})\ connecting\b()   # redis-py
    | \bsocket\ '[^']{{0,108}}'\ \((\d{{1,5}})\)()   # MySQL
    | \berrno[:= ]{{1,2}}(\d{{1,5}})\b:?\ ?({_ALL})?
    | error\((\d{{1,5}}),\ '({_ALL})?         # Python's repr: FileNotFoundError(2, 'No such ...')
    | \bos\ {{\ code:\ (\d{{1,5}})()        # Rust
    """,
    re.VERBOSE,
)
_NAME = re.compile(r"\bE[A-Z0-9]{2,15}\b")


def by_words(words: str) -> str | None:
    """EAGAIN for ``Resource temporarily unavailable``, in any library's words."""
    return _BY_WORDS.get(words.strip().lower())


def by_number(number: int) -> str | None:
    """EAGAIN for 11. (Linux's; None for a number that it does not have.)"""
    return _BY_NUMBER.get(number, numbers.errorcode.get(number))


def errno_in(text: str, *, only_numbers: bool = False) -> str | None:
    """A number in a known place counts most, then a name, then words; but words beside a number more than it.
    ``only_numbers``: where a program always writes one."""
    lowered = text.lower()
    for pair in _NUMBER.finditer(lowered):
        given = [each for each in pair.groups() if each]
        number = next((int(each) for each in given if each.isdigit()), 0)
        words = next((each for each in given if not each.isdigit()), "")
        if (found := _BY_WORDS.get(words) or by_number(number)) is not None:
            return found
    if only_numbers:
        return None
    for name in _NAME.findall(text):
        if name in BY_NAME:
            return BY_NAME[name]
    words_found = _WORDS.search(lowered)
    return None if words_found is None else _BY_WORDS[words_found["plain"] or words_found["short"]]
