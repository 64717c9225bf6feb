"""The page docs/errors.md.

Rule: it is made of the tables alone, so that a test can compare it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from udsproxy.events import errno_message
from udsproxy.explain.errors import CALLS, ELSEWHERE, TABLE, Call, Meaning, number_of
from udsproxy.explain.symptoms import SYMPTOMS, Symptom
from udsproxy.explain.text import Paragraph, grouped, lay_out, reproduce, spelled

WIDTH = 112
"""Of its lines; the links in the table are longer."""

_HEAD = """\
# What does this errno, or this line of a log, mean?

Made by `udsproxy explain --markdown`. The same in a terminal, with the path of your socket in the commands:

```
udsproxy explain EAGAIN
udsproxy explain connect 11
udsproxy explain '2026/11/23 09:33:42 [error] 115#115: *37 connect() to unix:/run/php/p.sock failed (11: ...'
udsproxy explain /var/log/nginx/error.log /var/log/php8.2-fpm.log
udsproxy explain -f /var/log/nginx/error.log
```

Given logs it first sums them up: each error, how often, from when to when, its busiest minute, and for which
scripts; then the newest events of all logs in order of time, and then each error once. `-f` goes on with what
is written from then on (also after logrotate), and explains in short what comes for the first time. Of each log
the newest 8 MiB (100,000 lines) are read. A time without a zone is taken as local time (where the file was
written at another, it says that the log is likely to be of another zone); a line without a time has that of the
line before it; within a second, the log that is named first comes first. A script's text is one error, however
many lines it has; where it stands in nginx's log, php-fpm's copy of it is not counted.

It knows the lines of nginx, php-fpm, Apache, lighttpd, HAProxy, uWSGI, gunicorn, unicorn, puma, Caddy, Traefik,
MySQL, PostgreSQL, Redis, docker, ssh, supervisor, systemd, SELinux and AppArmor, and how Go, Java, Node.js,
PHP, Python, Ruby and Rust report an errno; also in JSON, and behind the words of the journal or of docker.
Where words and number do not fit together (a log of macOS, say), the words count. What a visitor or a script
wrote into a line (the request, the referrer, a header, the text behind `FastCGI sent in stderr`) decides
nothing.

Every errno that Linux returns on a Unix socket for connect, accept, send (write, sendto, sendmsg), recv (read,
recvfrom, recvmsg), bind and listen, but ENOMEM; the most likely cause first. A test provokes each on a real socket,
but for those that say why not. `PATH` is your socket's path, `PID` a process's number, `UNIT` a service of systemd;
php8.2-fpm and www-data are Debian's names.

strace, where it is named, makes a process several times slower while it is attached: in production, for a moment.

## Reproduce

On sockets of your own, never on one in use: a server, a proxy with the fault in front of it, and after 2 s a client
that meets the error, in a directory of their own. Ctrl-C ends all of it, and removes the directory. Until then
other clients meet the error, too, at the path that the proxy prints.

```
{}
```"""


def markdown() -> str:
    """The page docs/errors.md."""
    lines = [_HEAD.replace("{}", reproduce("eagain")), "", "| call | returns |", "| --- | --- |"]
    groups = sorted(grouped(TABLE), key=lambda group: len(group[0]) > 1)
    for call in CALLS:
        names = (
            f"[{meaning.errno}](#{_anchor(_heading(calls, meaning))})" for calls, meaning in groups if call in calls
        )
        lines.append(f"| {call}() | {', '.join(names)} |")
    lines += ["", "And [lines without an errno](#lines-without-an-errno)."]
    for call in CALLS:
        lines += ["", f"## {call}()"]
        for calls, meaning in groups:
            if calls == (call,):
                lines += _section(_heading(calls, meaning), meaning)
    lines += ["", "## Several calls"]
    for calls, meaning in groups:
        if len(calls) > 1:
            lines += _section(_heading(calls, meaning), meaning, about=f"From {spelled(calls)}. ")
    lines += ["", "## Lines without an errno"]
    for symptom in SYMPTOMS:
        lines += _section(f"`{symptom.words}`", symptom)
    lines += [
        "",
        "## Errors of others",
        "",
        "None of these calls returns them on a Unix socket (ENOMEM: all do).",
        "",
    ]
    for name, what in ELSEWHERE.items():
        lines += _item(f"- **{name}** ({number_of(name)}, {errno_message(number_of(name))}): {what}", "", "  ")
    return "\n".join(lines) + "\n"


def _heading(calls: tuple[Call, ...], meaning: Meaning) -> str:
    call = f"{calls[0]}(): " if len(calls) == 1 else ""
    return f"{call}{meaning.errno} ({meaning.number}, {meaning.words})"


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


def _item(text: str, first: str = "", rest: str = "") -> list[str]:
    return lay_out([Paragraph(text, first, rest)], WIDTH).split("\n")


def _section(heading: str, of: Meaning | Symptom, about: str = "") -> Iterator[str]:
    yield from ("", f"### {heading}", "")
    yield from _item(about + of.means)
    yield ""
    for number, cause in enumerate(of.causes, 1):
        place = f"{number}. " if len(of.causes) > 1 else "- "
        said = f"{cause.text} **Tell:** {cause.check}" + (f" **Do:** {cause.do}" if cause.do else "")
        yield from _item(place + said, "", " " * len(place))
    if of.fault is not None:
        yield from ("", f"Reproduce: `--fault '{of.fault}'` ([how](#reproduce))")
    if of.see:
        yield from ("", "See " + ", ".join(f"[{page}]({page})" for page in of.see) + ".")
    if isinstance(of, Meaning) and of.unprovoked:
        yield from ("", f"(No test provokes it: {of.unprovoked}.)")
