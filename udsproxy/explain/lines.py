"""What a person pastes: an errno, a call, or a line of a program's log, as what it is about.

Rules: `parse` never raises, whatever the text is, and reads `MAX` characters of it at most. Only the program's own
words decide (`udsproxy.logs`): what a visitor or a script wrote into a line does not. What was found has been
through `printable`.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from datetime import date, datetime

import msgspec

from udsproxy.events import printable
from udsproxy.explain.errors import TABLE, Call
from udsproxy.explain.phrases import CALLS_IN_WORDS, ERRNOS
from udsproxy.explain.symptoms import SYMPTOMS, Symptom
from udsproxy.explain.words import BY_NAME, by_number, by_words, errno_in
from udsproxy.logs.line import LogLine
from udsproxy.logs.reading import read

MAX = 16 * 1024
_MAX_SHOWN = 200
_LIKE = 0.75
"""How much what was meant resembles what was written, at least (difflib)."""


class Found(msgspec.Struct, frozen=True):
    """What is known of an error: an errno's name or a symptom, and what the line has besides; or only a call.

    With a symptom, ``errno`` is what the line has, and not what is explained. ``tcp``: the line is about this
    address, so not about a Unix socket. ``at``, ``script`` and ``program`` are the log's. ``texts`` are
    the messages that a script wrote, of each its first line. ``failed`` is
    the call, where it is not the one that the symptom's words name: mkdir.
    """

    call: Call | None = None
    errno: str | None = None
    symptom: Symptom | None = None
    path: str | None = None
    failed: str | None = None
    file: str | None = None
    client: str | None = None
    request: str | None = None
    script: str | None = None
    texts: tuple[str, ...] = ()
    tcp: str | None = None
    program: str = ""
    at: datetime | None = None


_ALONE = re.compile(r"(?:(?P<call>[a-z]\w{2,10})(?:\(\))?:? )?(?:errno )?(?P<what>\w{1,16})", re.IGNORECASE)
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
        rf"\.({_CALL})\w{{0,3}}\(Native Method\)",  # Java
        rf"\buwsgi_\w*?({_CALL})(?:v)?_\w+\(\)",
        rf"\b({_CALL}) E[A-Z]+\b",  # Node.js: connect ENOENT /run/x.sock
        rf"(?<![\w.])({_CALL}): ",  # Go: dial unix /x.sock: connect: resource temporarily unavailable
    )
)
_CALL_WORD = re.compile(rf"^({_CALL})\b", re.IGNORECASE)

_NAMED = r"(?:(?:/|@|\\x00|\\0)[^\s\"'<>|,:;()\[\]]+)"
_NUL = re.compile(r"^(?:@?\\x00|@?\\0|@@)")
"""How strace, Python and others write the first byte of an abstract name, for which there is an @ here."""
_SLASHES = re.compile(r"^/{2,}")
_PATHS = tuple(
    re.compile(form)
    for form in (
        r"\bsun_path=(@?)\"([^\"]{1,500})\"",
        rf"\bunix:(?://)?()({_NAMED})",
        rf"\bunix \S{{0,110}}->()({_NAMED})",
        rf"(?i:\bunix domain socket )()({_NAMED})",
        rf"(?i:\bunix socket )(?:path )?()({_NAMED})",
        rf"\bunix (?:unix@)?()({_NAMED})",
        r"(?i:\b(?:socket|path|name|address|AF=1) ?=?)()[\"']((?:[/@]|\\x00|\\0)[^\"']{1,200})[\"']",
        rf"(?i:\bcannot bind unix socket )(?:\([^()]{{1,60}}\) )?()\[({_NAMED})\]",
        rf"(?i:\b(?:addr=|bound to: |can't connect to |connection in use: |redis at |bind to path:? ))()({_NAMED})",
        rf"(?i:\bconnection to )()({_NAMED})",
        rf"(?i:\bon socket: )()({_NAMED})",
        rf"(?i:\bconnect\()()({_NAMED})\)",
        rf"(?i:\blistening socket )\(()({_NAMED})\)",
        rf"(?i: \(2\) for |\(2\) for |\(errno::\w+\) - | - )()({_NAMED})",
        rf"\bE[A-Z]{{3,15}}:? (?:[a-z ]{{1,40}} )?()({_NAMED})",
        rf"(?i:\bcannot bind to )()({_NAMED})",
        rf"(?i:\b(?:local)?socket:? )()({_NAMED})",
        rf"(?i:\bconnect(?:ing)?(?: to)? )()({_NAMED})",
        r"(?i:\bWSGI daemon process '[^']{1,80}' on )()'(/[^']{1,108})'",
        rf"()(?<![\w.~-])({_NAMED}\.sock(?:et)?(?:-\d+)?)\b",
    )
)
_FILE = re.compile(r"\((/[^()\"]{1,200})\)")
_TCP = re.compile(
    r"(?<![\w.:])(\[[\da-fA-F:.]{2,45}\]:\d{1,5}|\d{1,3}(?:\.\d{1,3}){3}:\d{1,5}|\*:\d{1,5})(?![\w.])"
    r"|^https?://([\w.-]{1,80}:\d{1,5})\b|\bhost (\S{1,80} port \d{1,5})\b|\(('[\d.:a-z]{1,45}', \d{1,5})\)"
    r"|\b(?:listen|dial) tcp[46]? (\S{1,80}):(?= )"
)
_MESSAGE = re.compile(r"(?:(?:; ?|^)(?:[A-Z]{5,7}: )?|\n)PHP message: |^(?:NOTICE|WARNING|ERROR|ALERT|DEBUG): ")
_BELOW_IT = re.compile(r"\n|\\n| Stack trace: ?#0 ")
"""Where a message's first line ends, also as Apache writes it, and as it is pasted."""
_MAX_MESSAGES = 10
_NUMBER_FIRST = frozenset({"apache", "access"})
"""Programs whose lines have a place for the errno, or none at all, and what visitors sent in many others."""
_LONG_NUMBER = re.compile(r"(?<!rrno)(?<!rror)(?<!code:)(?<!code)([ =])\d{3,}(?=[ ,.;\]]|$)")
"""None that could be an errno."""


def parse(text: str, today: date | None = None) -> Found | None:
    """What ``text`` says; None where it names no error, nor is the name of a call alone."""
    if len(text) > MAX:
        text = text[: MAX // 2] + text[-MAX // 2 :]
    line = " ".join(text.split())
    return errno_or_call(line) or understand(read(line, today))


def understand(line: LogLine) -> Found | None:
    """What the line is about; None where it has no error."""
    decided = _decided(line.program, _LONG_NUMBER.sub(r"\g<1>0", line.said), line.call, line.number, line.words)
    if decided is None:
        return None
    call, errno, symptom = decided
    elsewhere = symptom is not None and symptom.elsewhere
    path = None if elsewhere else _shown(_plain(line.path)) or _path(line.said)
    return Found(
        call=call,
        errno=errno if symptom is None or elsewhere else None,
        symptom=symptom,
        path=path,
        failed=line.call if symptom is not None and symptom.named(line.call, None) != symptom.words else None,
        file=_shown(line.file) or (_file(symptom, line) if elsewhere else None),
        client=_shown(line.client),
        request=_shown(line.request),
        script=_shown(line.script),
        texts=tuple(each for each in _messages(line.text) if symptom is None or each != symptom.words),
        tcp=_shown(line.tcp) or (None if path is not None or elsewhere else _tcp(line.said)),
        program=line.program,
        at=line.at,
    )


@functools.lru_cache(maxsize=4096)
def _decided(
    program: str, said: str, in_call: str | None, number: int | None, words: str | None
) -> tuple[Call | None, str | None, Symptom | None] | None:
    """Logs repeat themselves: what a line says is found once, whatever long numbers (a process, a count) it has."""
    line = LogLine(said=said, program=program, call=in_call, number=number, words=words)
    errno = _errno(line)
    symptom = next((each for each in SYMPTOMS if each.is_in(line)), None)
    if symptom is not None and symptom.weak and errno is not None:
        symptom = None
    if errno is None and symptom is None and not _cannot_bind(line):
        return None
    return None if symptom is not None else _call(line, errno), errno, symptom


def errno_or_call(line: str) -> Found | None:
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
    errno = by_number(int(what)) if what.isascii() and what.isdigit() else BY_NAME.get(what)
    return None if errno is None else Found(call=call, errno=errno)


def nearest(text: str) -> str | None:
    """What was probably meant by one word or two, with letters left out or exchanged: ``connect EAGAIN``."""
    words = text[:_MAX_SHOWN].removesuffix("()").split()
    if not 1 <= len(words) <= 2:
        return None
    calls = [] if len(words) == 1 else [_nearest(words[0].removesuffix("()").lower(), _CALLS)]
    last = _nearest(words[-1].upper(), BY_NAME) or (_nearest(words[0].lower(), _CALLS) if len(words) == 1 else None)
    meant = [*calls, last]
    return None if None in meant else " ".join(word for word in meant if word is not None)


def _nearest(word: str, names: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=_LIKE)), None)


def _errno(line: LogLine) -> str | None:
    """By what the format has a place for; else by the program's own words."""
    if line.words is not None or line.number is not None:
        return by_words(line.words or "") or (None if line.number is None else by_number(line.number))
    if line.program in _NUMBER_FIRST:
        return None
    for phrase in ERRNOS:
        if phrase.errno is not None and phrase.pattern.search(line.said) is not None:
            return phrase.errno
    return errno_in(line.said, only_numbers=line.program == "nginx")


def _call(line: LogLine, errno: str | None) -> Call | None:
    call = _call_in(line)
    if call == "listen" and not _returns("listen", errno) and _returns("bind", errno):
        return "bind"  # Node.js, and others who say listen and mean both
    return call


def _returns(call: Call, errno: str | None) -> bool:
    return any(each.call == call and each.errno == errno for each in TABLE)


def _call_in(line: LogLine) -> Call | None:
    if line.call is not None:
        return _CALLS.get(line.call)
    for phrase in (*ERRNOS, *CALLS_IN_WORDS[:1]):
        if phrase.pattern.search(line.said) is not None:
            return phrase.call
    for form in _CALL_FORMS:
        if (said := form.search(line.said)) is not None:
            return _CALLS[said[1].lower()]
    for phrase in CALLS_IN_WORDS:
        if phrase.pattern.search(line.said) is not None:
            return phrase.call
    said = _CALL_WORD.search(line.said)
    return None if said is None else _CALLS[said[1].lower()]


def _cannot_bind(line: LogLine) -> bool:
    """Its own words for bind() tell of a failure, though not of which."""
    return any(phrase.call == "bind" and phrase.pattern.search(line.said) is not None for phrase in CALLS_IN_WORDS)


def _messages(text: str | None) -> tuple[str, ...]:
    """PHP writes several into one record, each with its trace."""
    parts = _MESSAGE.split(text or "")
    first = (_shown(" ".join(_BELOW_IT.split(part.lstrip(), maxsplit=1)[0].split())) for part in parts)
    return tuple(each for each in first if each)[:_MAX_MESSAGES]


def _path(said: str) -> str | None:
    for form in _PATHS:
        if (found := form.search(said)) is not None:
            return _shown(_plain(found[1] + found[2].rstrip(".")))
    return None


def _plain(path: str | None) -> str | None:
    """An abstract name begins with @, and unix:///x is /x."""
    return path and _SLASHES.sub("/", _NUL.sub("@", path))


def _file(symptom: Symptom | None, line: LogLine) -> str | None:
    named = None if symptom is None else symptom.file_in(line)
    return _shown(named) or _first(_FILE, line.said)


def _tcp(said: str) -> str | None:
    found = _TCP.search(said)
    return None if found is None else _shown(next(each for each in found.groups() if each))


def _first(form: re.Pattern[str], text: str) -> str | None:
    found = form.search(text)
    return None if found is None else _shown(found[1])


def _shown(text: str | None) -> str | None:
    if not text:
        return None
    shown = printable(text)
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 3] + "..."
