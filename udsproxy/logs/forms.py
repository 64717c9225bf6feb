"""How the lines of each program but nginx are built: one table.

Rules:

* The first form that matches counts. Its groups are fields of `LogLine`; ``said`` is the message.
* ``foreign`` finds in the message what others wrote. It is cut out of it; groups in it are fields, too.
* Where a foreign text may hold anything, its pattern reaches to the end of the line, or to what the program puts
  last, so that nobody can end it early.
"""

from __future__ import annotations

import re

import msgspec

from udsproxy.logs.times import FORMS


class Form(msgspec.Struct, frozen=True):
    """The lines of one program."""

    program: str
    line: re.Pattern[str]
    foreign: tuple[re.Pattern[str], ...] = ()


def _form(program: str, line: str, *foreign: str) -> Form:
    return Form(program, re.compile(line, re.DOTALL), tuple(re.compile(each, re.DOTALL) for each in foreign))


_LEVEL = r"[A-Za-z]{1,9}"
_C_FILE = r"\(?[\w./]{1,40}\.c[.:]\d{1,5}\)?:? "

_OF_A_WORKER = (
    r"^(?P<own>\[pool [^\]\s]{1,100}\] child \d{1,10} said into std(?:err|out): )"
    r"\"?(?P<text>.*?)\"?(?:, pipe is closed)?$",
    r"(?P<own>, script )'(?P<script>.*)' \(request: \"(?P<request>.*)\"\)",
)
"""A script's text may hold the words of the second, and a script's name those of the first."""

FORMS_OF_LINES: tuple[Form, ...] = (
    _form(
        "audit",
        r"(?P<said>(?:\[ *[\d.]{1,20}\] )?(?:audit: )?(?:type=\w{1,12} )?(?:(?:msg=)?audit\([\d.:]{1,40}\): )?"
        r"(?:AVC )?(?:avc: {1,2}(?:denied|granted)|apparmor=\").*)",
    ),
    _form(
        "php-fpm",
        rf"(?:\[(?P<at>{FORMS['php']})\] )(?:DEBUG|NOTICE|WARNING|ERROR|ALERT): "
        r"(?:pid \d{1,10}, \w{1,60}\(\), line \d{1,6}: )?(?P<said>.*)",
        *_OF_A_WORKER,
    ),
    _form(
        "php-fpm",
        r"(?:(?:DEBUG|NOTICE|WARNING|ERROR|ALERT): )?(?P<said>\[pool [^\]\s]{1,100}\] .*)",
        *_OF_A_WORKER,
    ),
    _form(
        "apache",
        rf"(?:\[(?P<at>{FORMS['apache']})\] )?(?:\[(?:\w{{1,30}}:)?{_LEVEL}\d?\] )?(?:\[pid \d+(?::tid \d+)?\] )?"
        r"(?:\((?P<number>\d{1,6})\)(?P<words>[^:]{1,80}): )?(?:\[(?:client|remote) (?P<client>[^\]]{1,80})\] )?"
        r"(?:\((?P<number_>\d{1,6})\)(?P<words_>[^:]{1,80}): )?(?P<said>(?:AH\d{5}|mod_fcgid): .*)",
        r"(?P<own>Got error )'(?!Primary script unknown|Unable to open primary script|Access to the script)"
        r"(?P<text>.*?)(?:'(?:, referer: .*)?)?$",
        r"(?P<own>Got error '(?:Unable to open primary script|Access to the script)).*",
        r"(?P<own>returned by |after multiple tries: |Error dispatching request to ).*",
        r", referer: .*",
        r"(?P<own>\bin request ).*",
        r"(?<!domain socket )(?<=[ :'(])/.*",
    ),
    _form(
        "apache",
        rf"\[(?P<at>{FORMS['apache']})\] \[wsgi:{_LEVEL}\] (?:\[pid \d+(?::tid \d+)?\] )?"
        r"(?:\((?P<number>\d{1,6})\)(?P<words>[^:]{1,80}): )?(?:\[(?:client|remote) (?P<client>[^\]]{1,80})\] )?"
        r"(?P<said>mod_wsgi \(pid=\d{1,10}\): .*)",
        r", referer: .*",
    ),
    _form(
        "apache",
        rf"\[(?P<at>{FORMS['apache']})\] (?:\[(?:\w{{1,30}}:)?{_LEVEL}\d?\] )(?:\[pid \d+(?::tid \d+)?\] )?"
        r"(?:\((?P<number>\d{1,6})\)(?P<words>[^:]{1,80}): )?(?:\[(?:client|remote) (?P<client>[^\]]{1,80})\] )?"
        r"(?P<said>.*)",
        r"/.*",
    ),
    _form(
        "lighttpd",
        rf"(?P<at>{FORMS['iso']}): {_C_FILE}(?P<said>.*)",
        r"(?P<own> for )(?P<request>/.*), closing connection$",
        r"(?P<own>all handlers for )(?P<request>/.*)(?= on \S{1,40} are down)",
    ),
    _form("uwsgi", r"\[pid: \d+\|app: .*(?P<said>)"),  # its access log
    _form(
        "uwsgi",
        rf"(?:\[?(?P<at>{FORMS['apache']})\]? - )?(?P<said>(?:SIGPIPE: |uwsgi_|\*\*\* (?:uWSGI|HARAKIRI)"
        r"|Listen queue size |(?:IO|OS)Error: write error|error removing unix socket"
        r"|\w{4,8}\(\): [A-Z].*\[core/).*)",
        r"(?P<own> during )(?P<request>[A-Z]{1,20} .*)",
        r"(?P<own> on request )(?P<request>.*?)(?: \(ip (?P<client>[^\s()]{0,80})\) !!!)?$",
    ),
    _form(
        "gunicorn",
        rf"\[?(?P<at>{FORMS['iso']})\]? \[\d{{1,10}}\] \[(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\] (?P<said>.*)",
        r"(?P<own>Invalid request from ip=|Error handling request ).*",
    ),
    _form("ruby", rf"[DIWEFA], \[(?P<at>{FORMS['iso']}) #\d{{1,10}}\] +[A-Z]{{1,8}} -- [^:]{{0,40}}: (?P<said>.*)"),
    _form(
        "haproxy", r"\[(?:ALERT|WARNING|NOTICE)\] +(?:[\d/]{1,20} )?\(\d{1,10}\) : (?P<said>.*)", r"\[/[^\]]*:\d+\]"
    ),
    _form(
        "haproxy",
        rf"(?P<client>[^\s\[]{{1,80}}) \[(?P<at>{FORMS['access']})\] \S{{1,200}} \S{{1,200}} [-+\d/]{{5,40}} "
        r"(?:-?\d+ )?\+?\d+ (?:\S+ \S+ )?(?P<said>[A-Za-z-]{2}(?:[A-Za-z-]{2})?) [\d/+]{9,60} [\d/]+"
        r"(?: (?:\{.*\} )*\"(?P<request>.*)\")?$",
    ),
    _form(
        "access",
        rf"[^\"]{{0,400}}\[(?P<at>{FORMS['access']})\] \"(?P<request>(?:[^\"\\]|\\.)*)\" (?P<said>\d{{3}}) "
        r"(?:\d+|-).*",
    ),
    _form("postgres", rf"(?P<at>{FORMS['iso']}) .{{0,120}}?(?:ERROR|STATEMENT|DETAIL|CONTEXT|QUERY):  ?(?P<said>)"),
    _form("postgres", rf"(?P<at>{FORMS['iso']}) .{{0,120}}?(?:LOG|FATAL|PANIC|WARNING|HINT):  ?(?P<said>.*)"),
    _form(
        "mysql",
        rf"(?:(?P<at>{FORMS['iso']}) \d{{1,20}} )?\[(?:ERROR|Warning|Note|System)\] (?:\[MY-\d{{6}}\] )?"
        r"(?:\[\w{1,30}\] )?(?P<said>.*)",
    ),
    _form("redis", rf"\d{{1,10}}:[XCSM] (?P<at>{FORMS['redis']}) [.*#-] (?P<said>.*)"),
    _form("", rf"\[?(?P<at>{FORMS['iso']}|{FORMS['nginx']}|{FORMS['php']}|{FORMS['apache']})\]?:? (?P<said>.*)"),
)
