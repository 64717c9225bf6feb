"""What a person pastes, in the words of nginx, Apache, haproxy, PHP, Go, Python, strace, MySQL, PostgreSQL or none.

Rules: `parse` never raises, whatever the text is, and reads `MAX` characters of it at most. What it found has been
through `printable`.
"""

from __future__ import annotations

import errno as numbers
import re

import msgspec

from udsproxy.events import errno_message, printable
from udsproxy.explain.errors import ELSEWHERE, TABLE, Call
from udsproxy.explain.symptoms import SYMPTOMS, Symptom

MAX = 16 * 1024
_MAX_SHOWN = 200


class Found(msgspec.Struct, frozen=True):
    """What is known of an error: an errno's name or a symptom, and what the line has besides; or only a call.

    ``tcp``: the line is about this address, so not about a Unix socket.
    """

    call: Call | None = None
    errno: str | None = None
    symptom: Symptom | None = None
    path: str | None = None
    client: str | None = None
    request: str | None = None
    tcp: str | None = None


_NAMES = tuple(dict.fromkeys((*(meaning.errno for meaning in TABLE), *ELSEWHERE)))
_BY_NUMBER = {int(getattr(numbers, name)): name for name in _NAMES}
_BY_NAME = {name: _BY_NUMBER.get(number, name) for number, name in numbers.errorcode.items()} | {
    name: name for name in _NAMES
}
_BY_NAME["EWOULDBLOCK"] = "EAGAIN"
_BY_WORDS = {errno_message(number).lower(): name for number, name in _BY_NUMBER.items()}
_WORDS = re.compile("|".join(re.escape(words) for words in sorted(_BY_WORDS, key=len, reverse=True)))

_NAME = re.compile(r"\bE[A-Z0-9]{2,15}\b")
_ALONE = re.compile(r"(?:(?P<call>[a-z]\w{2,10})(?:\(\))?:? )?(?:errno )?(?P<what>\w{1,16})", re.IGNORECASE)
_NUMBER = re.compile(
    r"""
      \((\d{1,3}):\s                     # nginx: failed (11: Resource temporarily unavailable)
    | \((\d{1,3})\)(?=[A-Z])             # Apache: (11)Resource temporarily unavailable
    | \[Errno\ (\d{1,3})\]               # Python
    | \bError\ (\d{1,3})\ connecting\b   # redis-py
    | \bsocket\ '[^']{1,108}'\ \((\d{1,3})\)  # MySQL
    | \berrno[:= ]{1,2}(\d{1,3})\b
    """,
    re.VERBOSE,
)

_CALLS: dict[str, Call] = {
    "connect": "connect",
    **dict.fromkeys(("accept", "accept4"), "accept"),
    **dict.fromkeys(("send", "sendto", "sendmsg", "sendmmsg", "sendfile", "write", "writev"), "send"),
    **dict.fromkeys(("recv", "recvfrom", "recvmsg", "recvmmsg", "read", "readv"), "recv"),
    "bind": "bind",
    "listen": "listen",
}
_CALL = "|".join(sorted(_CALLS, key=len, reverse=True))
_CALL_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?<!\w)({_CALL})\(",  # nginx, strace, PHP
        rf"\b({_CALL}) E[A-Z]+\b",  # Node.js: connect ENOENT /run/x.sock
        rf"(?<![\w.])({_CALL}): ",  # Go: dial unix /x.sock: connect: resource temporarily unavailable
    )
)
_CONNECTING = re.compile(
    r"SQLSTATE\[HY000\] \[2002\]|\(HY000/2002\)|\bconnect(?:ing|ion)? (?:to|on)\b|\bdial unix\b"
    r"|\binitial connection step\b",
    re.IGNORECASE,
)
_BINDING = re.compile(
    r"\bunable to bind\b|\bcan(?:'|no)t bind\b|\bfailed to bind\b|\bbind .{0,120}failed\b", re.IGNORECASE
)
_CALL_WORD = re.compile(rf"^({_CALL})\b", re.IGNORECASE)

_NAMED = r"(?:/[^\s\"'<>|,:()\[\]]+|@[^\s\"'<>|,:()\[\]]+)"
_PATHS = tuple(
    re.compile(form)
    for form in (
        r"\bsun_path=(@?)\"([^\"]{1,108})\"",
        rf"\bunix:(?://)?()({_NAMED})",
        rf"\bunix \S{{0,110}}->()({_NAMED})",
        rf"(?i:\bunix domain socket )()({_NAMED})",
        rf"\bunix ()({_NAMED})",
        r"(?i:\bsocket )()[\"']([/@][^\"']{1,108})[\"']",
        r"()((?<![\w.~-])/[^\s\"'<>|,:()\[\]]{1,100}\.sock(?:et)?)\b",
    )
)
_OF_A_SCRIPT = "FastCGI sent in stderr"
"""The error is one of PHP's own connections, so the upstream's path is not where it was."""
_UPSTREAM = re.compile(rf"\", upstream: \"\w{{1,12}}://unix:({_NAMED})")
_TCP = re.compile(r"\bupstream: \"\w{1,12}://(?!unix:)([^/\"]{1,80})")
_CLIENT = re.compile(r"\bclient: ([^,\s]{1,80})")
_REQUEST = re.compile(r"\brequest: \"([^\"]{1,2000})\"")


def parse(text: str) -> Found | None:
    """What ``text`` says; None where it names no error, nor is the name of a call alone."""
    if len(text) > MAX:
        text = text[: MAX // 2] + text[-MAX // 2 :]
    line = " ".join(text.split())
    if (alone := _alone(line)) is not None:
        return alone
    said = line.partition(", client: ")[0]  # what follows in nginx's line is what a client wrote
    symptom = next((each for each in SYMPTOMS if each.is_in(said)), None)
    errno = _errno(said)
    if symptom is not None and symptom.weak and errno is not None:
        symptom = None
    if symptom is None and errno is None:
        return None
    return Found(
        call=None if symptom is not None else _call(said),
        errno=None if symptom is not None else errno,
        symptom=symptom,
        path=_path(said) or (None if errno is not None and _OF_A_SCRIPT in said else _first(_UPSTREAM, line)),
        client=_first(_CLIENT, line),
        request=_first(_REQUEST, line),
        tcp=_first(_TCP, line),
    )


def _alone(line: str) -> Found | None:
    """``EAGAIN``, ``11``, ``connect eagain``, ``errno 11``, ``connect``."""
    if (only := _CALLS.get(line.lower().removesuffix("()"))) is not None:
        return Found(call=only)
    said = _ALONE.fullmatch(line)
    if said is None:
        return None
    call = _CALLS.get((said["call"] or "").lower())
    if said["call"] and call is None and said["call"].lower() != "errno":
        return None
    what = said["what"].upper()
    errno = _by_number(what) if what.isascii() and what.isdigit() else _BY_NAME.get(what)
    return None if errno is None else Found(call=call, errno=errno)


def _by_number(digits: str) -> str | None:
    number = int(digits)
    return _BY_NUMBER.get(number, numbers.errorcode.get(number))


def _errno(line: str) -> str | None:
    """A number in a known place counts more than a name, and that more than the kernel's words."""
    for number in _NUMBER.finditer(line):
        if (found := _by_number(number[number.lastindex or 0])) is not None:
            return found
    for name in _NAME.findall(line):
        if name in _BY_NAME:
            return _BY_NAME[name]
    words = _WORDS.search(line.lower())
    return None if words is None else _BY_WORDS[words[0]]


def _call(line: str) -> Call | None:
    for form in _CALL_FORMS:
        if (said := form.search(line)) is not None:
            return _CALLS[said[1].lower()]
    if _BINDING.search(line) is not None:
        return "bind"
    if _CONNECTING.search(line) is not None:
        return "connect"
    said = _CALL_WORD.search(line)
    return None if said is None else _CALLS[said[1].lower()]


def _path(line: str) -> str | None:
    for form in _PATHS:
        if (said := form.search(line)) is not None:
            return _shown(said[1] + said[2])
    return None


def _first(form: re.Pattern[str], line: str) -> str | None:
    said = form.search(line)
    return None if said is None else _shown(said[1])


def _shown(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 3] + "..."
