"""What a visitor, or a script, writes into a line decides nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from udsproxy.explain.lines import parse

BEHIND = (
    ', client: 192.0.2.1, server: a.test, request: "GET {} HTTP/1.1", upstream: "fastcgi://unix:/run/p.sock:", '
)
HOST = 'host: "{}", referrer: "{}"'
NGINX = "2026/11/23 09:33:42 [error] 115#115: *37 "
APACHE = "[Wed May 24 09:28:16 2023] [proxy_fcgi:error] [pid 1252:tid 1] "
SYSLOG = "Nov 23 09:33:42 host "
TEMPLATES = {
    "connect": NGINX + "connect() to unix:/run/p.sock failed (11: Resource temporarily unavailable) while "
    "connecting to upstream" + BEHIND + HOST,
    "nothing": NGINX + "access forbidden by rule" + BEHIND + HOST,
    "timed out": NGINX + "upstream timed out (110: Connection timed out) while reading upstream" + BEHIND + HOST,
    "a visitor's": NGINX + "writev() failed (32: Broken pipe) while sending to client" + BEHIND + HOST,
    "a file": NGINX + 'open() "/var/www/{}" failed (2: No such file or directory)' + BEHIND + HOST,
    "a directory": NGINX + 'directory index of "/var/www/{}/" is forbidden' + BEHIND + HOST,
    "stderr": NGINX + 'FastCGI sent in stderr: "PHP message: {}" while reading response header from upstream'
    + BEHIND + HOST,
    "access log": '192.0.2.1 - - [23/Nov/2026:09:33:42 +0000] "GET {} HTTP/1.1" 502 157 "{}" "{}"',
    "apache, stderr": APACHE + "[client 192.0.2.1:5] AH01071: Got error 'PHP message: {}', referer: {}",
    "apache, reset": APACHE + "(104)Connection reset by peer: [client 192.0.2.1:5] AH01075: Error dispatching "
    "request to : (reading), referer: {}",
    "apache, returned": APACHE + "[client 192.0.2.1:5] AH00898: Error reading from remote server returned by /{}",
    "apache, a URL": APACHE + "[client 192.0.2.1:5] AH01144: No protocol handler was valid for the URL /{} (scheme "
    "'unix').",
    "apache, a file": APACHE + "(13)Permission denied: [client 192.0.2.1:5] AH00035: access to /{} denied "
    "(filesystem path '/home/u') because of permissions",
    "apache, a method": APACHE + "[client 192.0.2.1:5] AH00135: Invalid method in request {}",
    "gunicorn": "[2024-05-01 10:00:00 +0000] [9] [WARNING] Invalid request from ip=192.0.2.1: {}",
    "nginx, a method": NGINX + "client sent invalid method while reading client request line, client: 192.0.2.1, "
    'server: _, request: "{}"',
    "lighttpd": "2017-02-19 16:13:56: (mod_fastcgi.c.3326) response not received, request sent: 908 on socket: "
    "unix:/tmp/s-0 for /{}, closing connection",
    "lighttpd, down": "2017-02-19 16:13:56: (mod_fastcgi.c.3001) all handlers for /{} on .php are down.",
    "uwsgi": "uwsgi_response_write_body_do(): Broken pipe [core/writer.c line 341] during GET /{} (192.0.2.1)",
    "uwsgi, log": "[pid: 1|app: 0|req: 1/9] 192.0.2.1 () {{44 vars in 875 bytes}} [Tue Oct  4 10:34:14 2016] "
    "GET /{} => generated 0 bytes in 1747 msecs (HTTP/1.1 200) 5 headers in 0 bytes (0 switches on core 0)",
    "php-fpm": "[21-Oct-2014 16:52:34] WARNING: [pool o1] child 27299, script '/srv/{}' (request: \"GET /{}\") "
    "execution timed out (186.444499 sec), terminating",
    "php-fpm, output": "[21-Oct-2014 16:52:34] WARNING: [pool www] child 7 said into stderr: \"{}\"",
    "haproxy": SYSLOG + "haproxy[7]: 192.0.2.1:5000 [23/Nov/2026:09:33:42.123] fe be_php/s1 0/0/-1/-1/3 503 217 - "
    "- SC-- 1/1/0/0/3 0/0 \"GET /{} HTTP/1.1\"",
    "postgres": "2025-01-01 10:00:00.000 UTC [123] app@db ERROR:  relation \"{}\" does not exist at character 15",
}  # fmt: skip
HOSTILE = (
    "(111: Connection refused)",
    "connect() to unix:/evil failed (13: Permission denied) while connecting to upstream",
    "EACCES",
    "upstream prematurely closed connection",
    "no live upstreams",
    "upstream timed out",
    "Primary script unknown",
    '" while reading response header from upstream',
    '" failed (13: Permission denied)',
    "bind(): Address already in use",
    "said into stderr",
    "server reached pm.max_children",
    'avc: denied { write } tclass=sock_file apparmor="DENIED"',
    "AH01079: failed to make connection to backend: httpd-UDS",
    "dial unix /evil: connect: connection refused",
    "[ERROR] WORKER TIMEOUT",
    "exited on signal 11",
    "SIGPIPE: writing to a closed pipe",
)
WRITTEN = st.one_of(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=80),
    st.lists(st.sampled_from(HOSTILE), max_size=3).map(" ".join),
)


def decided(line: str) -> tuple[object, ...] | None:
    found = parse(line)
    return None if found is None else (found.call, found.errno, found.symptom and found.symptom.words)


def filled(template: str, written: str) -> str:
    return template.replace("{}", written).replace("{{", "{").replace("}}", "}")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@given(written=WRITTEN)
@example(written=HOSTILE[0])
@example(written=HOSTILE[1])
def test_a_line_says_the_same_whatever_is_quoted_in_it(template: str, written: str) -> None:
    """The call, the errno and the symptom are those of the same line with a harmless text."""
    if "access log" in template or "[23/Nov" in template:
        written = written.replace("\\", "").replace('"', "\\x22")  # as the servers write it
    if "/var/www/{}" in template:
        # A file's name that holds all that nginx writes after one cannot be told from it.
        written = written.replace(", client: ", "")
    assert decided(filled(template, written)) == decided(filled(template, "x"))


@given(WRITTEN)
def test_json(written: str) -> None:
    """Only the message and the error of a JSON line count."""
    said = {
        "level": "error",
        "request": {"uri": written, "headers": {"Referer": [written], "User-Agent": [written]}},
        "user_id": written,
        "status": 502,
        "msg": "dialing backend: dial unix /run/p.sock: connect: permission denied",
    }
    assert decided(json.dumps(said)) == ("connect", "EACCES", None)
    assert decided(json.dumps({**said, "msg": "handled request"})) is None
