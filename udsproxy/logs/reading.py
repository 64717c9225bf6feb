"""A line of any program, as a `LogLine`.

Rules: `read` never raises, and reads `MAX_LINE` characters at most. A line of a program that is not known is all
``said``, but for what looks like a request.
"""

from __future__ import annotations

import re
from datetime import date

import msgspec

from udsproxy.logs import nginx_error
from udsproxy.logs.forms import FORMS_OF_LINES, Form
from udsproxy.logs.line import CUT, LogLine
from udsproxy.logs.nginx_error import NginxError
from udsproxy.logs.times import parse_time
from udsproxy.logs.wrapping import MAX_LAYERS, unwrap

MAX_LINE = 16 * 1024
MAX_SAID = 4 * 1024
"""Of a program's own words, characters: of what is longer (a trace) the beginning and the end are kept."""

_BARE_NGINX = re.compile(
    r"nginx: \[[a-z]{4,6}\] |FastCGI sent in stderr: |upstream (?:timed|sent|prematurely|server) |no live upstreams"
    r"|(?:kevent\(\) reported that )?[a-zA-Z_]{3,20}\(\) (?:to \S{1,200} |\".*\" )?failed\b"
    r"|peer closed connection |client (?:closed|prematurely|timed|sent|intended) |epoll_wait\(\) reported "
)
"""The beginning of nginx's own words, where somebody pasted no more than them."""
_NGINX_LEVEL = re.compile(r"nginx: \[[a-z]{4,6}\] ")
_QUOTED = re.compile(r"\".*\"", re.DOTALL)
_REQUEST = re.compile(r"\"[A-Z]{1,20} [^\"]{0,4000} HTTP/\d(?:\.\d)?\"")
_STDERR = re.compile(
    r"FastCGI sent in stderr: \"(?P<own>Primary script unknown|Unable to open primary script|Access to the script)?"
)
"""What php-fpm itself says there; a script's messages begin with ``PHP message:``."""
_TCP = re.compile(r"(?:\w{1,12}://)?((?!unix:)[^/\"]{1,80})(?=/|$)(?<!:)")
_TO_TCP = re.compile(r"\w{4,10}\(\) to (\[?[\da-fA-F.:]{2,45}\]?:\d{1,5}) failed")


def read(text: str, today: date | None = None, layers: int = MAX_LAYERS) -> LogLine:
    """The record of ``text``. ``today`` gives a year to the times of the journal, which have none."""
    wrapped = unwrap(text[:MAX_LINE], today, layers)
    line = _nginx(wrapped.text) or _of_a_form(wrapped.text, today)
    if line is None:
        line = LogLine(said=_REQUEST.sub(CUT, wrapped.text), program=wrapped.program)
    said = line.said
    if len(said) > MAX_SAID:
        said = f"{said[: MAX_SAID // 2]} {CUT} {said[-MAX_SAID // 2 :]}"
    return msgspec.structs.replace(
        line,
        said=said,
        at=line.at or wrapped.at,
        program=line.program or wrapped.program,
        request=line.request or wrapped.request,
    )


def _nginx(text: str) -> LogLine | None:
    said = text
    if (level := _NGINX_LEVEL.match(text)) is not None:
        said = f"{level[0].removeprefix('nginx: ').rstrip()} 0#0: {text[level.end() :]}"
    elif _BARE_NGINX.match(text) is not None:
        said = f"[error] 0#0: {text}"
    found = nginx_error.parse_line(said)
    return None if found is None else _from_nginx(found)


def _from_nginx(found: NginxError) -> LogLine:
    if found.stderr:
        own = _STDERR.match(found.message)
        said = f"FastCGI sent in stderr: {(own and own['own']) or CUT}"
    else:
        said = _QUOTED.sub(CUT, found.message)
    return LogLine(
        program="nginx",
        said=said,
        at=found.at,
        call=found.call,
        number=found.errno,
        words=found.words,
        doing=found.doing,
        path=found.path,
        file=found.file,
        tcp=_first(_TO_TCP, said) or (None if found.upstream is None else _first(_TCP, found.upstream, whole=True)),
        client=found.client,
        request=found.request,
        text=found.text,
    )


def _first(form: re.Pattern[str], text: str, *, whole: bool = False) -> str | None:
    found = form.match(text) if whole else form.search(text)
    return None if found is None else found[1]


def _of_a_form(text: str, today: date | None) -> LogLine | None:
    for form in FORMS_OF_LINES:
        if (found := form.line.match(text)) is not None:
            return _of(form, found, today)
    return None


def _of(form: Form, found: re.Match[str], today: date | None) -> LogLine:
    fields = {name.rstrip("_"): value for name, value in found.groupdict().items() if value is not None}
    said = fields.pop("said")
    for foreign in form.foreign:
        if (of_others := foreign.search(said)) is not None:
            groups = of_others.groupdict()
            own = groups.pop("own", None) or ""
            said = f"{said[: of_others.start()]}{own}{CUT}{said[of_others.end() :]}"
            fields |= {name: value for name, value in groups.items() if value}
    number = fields.get("number")
    at = fields.get("at")
    if number is not None:  # Apache: (70007)The timeout specified has expired
        said = f"({number}){fields.get('words', '')}: {said}"
    return LogLine(
        program=form.program,
        said=_REQUEST.sub(CUT, said),
        at=None if at is None else parse_time(at, today),
        number=None if number is None else int(number),
        words=fields.get("words"),
        client=fields.get("client"),
        request=fields.get("request"),
        script=fields.get("script"),
        text=fields.get("text"),
    )
