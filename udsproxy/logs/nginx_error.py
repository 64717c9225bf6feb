"""One line of nginx's error log (src/core/ngx_log.c, src/http/ngx_http_request.c: ngx_http_log_error_handler).

A line is nginx's own words first (time, level, process, message, errno, what it was doing), then the client, the
server, the request, the upstream, the host and the referrer, in this order. All from the request on, and a file's
name and a script's message before it, is text that a visitor may have chosen.
"""

from __future__ import annotations

import re
from datetime import datetime

import msgspec

MAX_LINE = 4 * 2048
"""Characters of a line that are read: nginx cuts its lines at 2048 bytes (NGX_MAX_ERROR_STR), and a byte that is
no UTF-8 is shown as four characters."""

_LINE = re.compile(
    r"\s*(?:(?P<date>\d{4}/\d\d/\d\d) (?P<time>\d\d:\d\d:\d\d) )?"
    r"\[(?P<level>debug|info|notice|warn|error|crit|alert|emerg)\] (?P<pid>\d{1,10})#\d{1,10}: (?:\*\d{1,20} )?"
    r"(?P<message>.*)",
    re.DOTALL,
)
_UNIX = "unix:"
_CALL = re.compile(
    r"(?:could not open error log file: |kevent\(\) reported that )?(?P<call>[a-z]\w{1,20})\(\) "
    r"(?:to (?P<address>\S.{0,120}?) |\"(?P<file>.*)\" )?failed"
    r"(?: \((?P<errno>\d{1,5}): (?P<words>[^()]{1,100})\))?"
)
_TIMED_OUT = re.compile(r"upstream timed out \((?P<errno>\d{1,5}): (?P<words>[^()]{1,100})\)")
_STDERR = "FastCGI sent in stderr: "
_TEXT = re.compile(r"FastCGI sent in stderr: \"?(?P<text>.*?)(?:\"(?: while [a-zA-Z ]{1,60})?)?$", re.DOTALL)
_DOING = re.compile(r" while (?P<doing>[a-zA-Z ]{1,60})(?=,|$)")
_CLIENT = re.compile(r", client: (?P<client>[^,\s]{1,100})")
_REQUEST = re.compile(
    r", request: \"(?P<request>[^ \"]{1,40} [^ ]{1,2000}?(?: HTTP/\d\.\d)?)\""
    r"(?=$|, (?:subrequest|upstream|host|referrer): \")"
    r"(?:, subrequest: \"[^ \"]{0,2000}\")?"
    r"(?:, upstream: \"(?P<upstream>[^\"]{1,300})\")?"
)
_SPACED = re.compile(
    r", request: \"(?P<request>[^\"]{1,2000})\""
    r"(?=$|, (?:subrequest|upstream|host|referrer): \")(?:, upstream: \"(?P<upstream>[^\"]{1,300})\")?"
)
"""Of a request with spaces in its URI, which nginx took up to 1.21."""
_STREAM = re.compile(r"(?P<request>), server: [^,\"]{0,100}, upstream: \"(?P<upstream>[^\"]{1,300})\"")
"""The lines of the stream module, which knows no requests."""
_UPSTREAM_PATH = re.compile(r"(?:\w{1,12}://)?unix:(?P<path>[^\"]*)")


class NginxError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line. ``at``: in nginx's local time, which the line does not name; whole seconds."""

    level: str
    pid: int
    message: str
    """nginx's own words, up to and without the first of client, request and upstream."""
    at: datetime | None = None
    call: str | None = None
    """The system call that failed: connect, recv, open ..."""
    errno: int | None = None
    """The number, of the system that nginx ran on; 110 is nginx's own clock where ``timed_out``."""
    words: str | None = None
    timed_out: bool = False
    path: str | None = None
    """Of the upstream's Unix socket. An abstract name begins with @."""
    file: str | None = None
    """The file that open(), stat() and their like failed for: a visitor may have chosen its name."""
    stderr: bool = False
    """The message holds what the upstream's script said, and no failure of the socket."""
    text: str | None = None
    """What the script said."""
    doing: str | None = None
    """``connecting to upstream``, ``reading response header from upstream``, ``sending to client`` ..."""
    client: str | None = None
    request: str | None = None
    upstream: str | None = None
    """As nginx writes it: ``fastcgi://unix:/run/php.sock:``, ``http://127.0.0.1:80/``."""


def parse_line(line: str) -> NginxError | None:
    """The record of ``line``; None where it is not nginx's."""
    found = _LINE.match(line[:MAX_LINE].rstrip("\r\n"))
    if found is None:
        return None
    said = found["message"]
    stderr = said.startswith(_STDERR)
    # A script's message may hold anything, what nginx writes behind it included: the last is nginx's.
    client = _last(_CLIENT, said) if stderr else _CLIENT.search(said)
    own, behind = (said, "") if client is None else (said[: client.start()], said[client.start() :])
    request = _REQUEST.search(behind) or _SPACED.search(behind) or _STREAM.search(behind)
    upstream = None if request is None else request["upstream"]
    failed = None if stderr else (_CALL.match(own) or _TIMED_OUT.match(own))
    fields = {} if failed is None else failed.groupdict()
    doing = _last(_DOING, own)
    return NginxError(
        level=found["level"],
        pid=int(found["pid"]),
        at=_time(found["date"], found["time"]),
        message=own,
        call=fields.get("call"),
        errno=None if fields.get("errno") is None else int(fields["errno"]),
        words=fields.get("words"),
        timed_out=failed is not None and failed.re is _TIMED_OUT,
        path=_path(fields.get("address"), upstream),
        file=fields.get("file"),
        stderr=stderr,
        text=text["text"] if stderr and (text := _TEXT.match(own)) is not None else None,
        doing=None if doing is None else doing["doing"],
        client=None if client is None else client["client"],
        request=None if request is None else request["request"] or None,
        upstream=upstream,
    )


def _last(form: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = None
    for found in form.finditer(text):  # noqa: B007
        pass
    return found


def _path(address: str | None, upstream: str | None) -> str | None:
    """The socket's: of ``connect() to unix:/x.sock failed``, else of ``fastcgi://unix:/x.sock:``."""
    if address is not None and address.startswith(_UNIX):
        return address.removeprefix(_UNIX)
    found = None if upstream is None else _UPSTREAM_PATH.match(upstream)
    if found is None:
        return None
    # (nginx puts a colon, and for HTTP the URI, behind the socket's name.)
    return found["path"].partition(":")[0] or None


def _time(date: str | None, time: str | None) -> datetime | None:
    if date is None:
        return None
    try:
        return datetime.strptime(f"{date} {time}", "%Y/%m/%d %H:%M:%S")  # noqa: DTZ007 - the line names no zone
    except ValueError:
        return None
