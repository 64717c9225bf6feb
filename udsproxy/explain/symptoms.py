"""Lines without an errno, or with one that is not the kernel's: nginx's about an upstream, php-fpm's of a pool.

Rules: as in `udsproxy.explain.errors`. The first that matches counts; a *weak* one only where no errno is found.
"""

from __future__ import annotations

import re

import msgspec

from udsproxy.explain.errors import Cause


class Symptom(msgspec.Struct, frozen=True):
    """``words`` is what is logged; ``pattern`` finds it in a line, where the words themselves would not do."""

    words: str
    means: str
    causes: tuple[Cause, ...]
    pattern: str = ""
    fault: str | None = None
    see: tuple[str, ...] = ()
    weak: bool = False

    def is_in(self, line: str) -> bool:
        """Whether ``line`` says so."""
        return re.search(self.pattern or re.escape(self.words), line, re.IGNORECASE) is not None


_DIED = Cause(
    "The worker died: a crash, SIGKILL, the kernel out of memory.",
    "`journalctl -u php8.2-fpm`: `exited on signal`; `journalctl -k | grep -i 'killed process'`.",
    "Mend the crash; less memory a worker, or fewer workers.",
)
_TERMINATED = Cause(
    "The request ran into request_terminate_timeout.",
    "php-fpm's log: `execution timed out (...), terminating`.",
    "Find what was slow (request_slowlog_timeout), or raise the limit.",
)
_RESTARTED = Cause(
    "php-fpm was restarted or stopped with requests open.",
    "`journalctl -u php8.2-fpm` at that time.",
    "Reload instead, with process_control_timeout set.",
)
_NOT_FASTCGI = Cause(
    "What listens there does not speak FastCGI: an HTTP server, say, behind fastcgi_pass.",
    "`ss -xlp | grep PATH` names the process; `udsproxy tap PATH -vv` shows its bytes.",
    "proxy_pass for HTTP, uwsgi_pass for uwsgi, fastcgi_pass for FastCGI.",
)
_CORRUPT = Cause(
    "A FastCGI server that loses count of its bytes (seldom php-fpm; an extension that writes to its descriptor).",
    "`udsproxy tap PATH -v`: `not fastcgi from upstream's byte ...` says where.",
    "Report it to who maintains that server.",
)
_TOO_BIG_HEADER = Cause(
    "The response's header is larger than fastcgi_buffer_size: many cookies, or long ones; a debugger's header.",
    "`udsproxy tap PATH -vv` shows the header.",
    "Fewer or smaller headers; else fastcgi_buffer_size 32k and fastcgi_buffers 8 32k.",
)
_QUEUED = Cause(
    "It waits in the accept queue, because all workers are busy. fastcgi_connect_timeout does not apply to a Unix "
    "socket: who is never accepted has this after fastcgi_read_timeout.",
    "`udsproxy tap PATH` says `after ... in the queue`; `udsproxy state PATH` while it lasts.",
    "See `udsproxy explain connect EAGAIN`.",
)
_SLOW = Cause(
    "The script waits for something slow: a query, another server, a lock (of the session's file, say).",
    "`udsproxy tap PATH`: a long TTFB; `udsproxy state PATH` shows what each worker waits for; "
    "request_slowlog_timeout writes where the script was.",
    "Make that faster, or bound it; raise fastcgi_read_timeout only if it may take so long.",
)

SYMPTOMS: tuple[Symptom, ...] = (
    Symptom(
        "upstream prematurely closed FastCGI stdout",
        "The answer ended without the end of its output. nginx got part of it, or nothing.",
        (_DIED, _TERMINATED, _RESTARTED),
        fault="fcgi-truncate=0B",
    ),
    Symptom(
        "upstream prematurely closed connection",
        "The server closed in an orderly way before a whole answer had come. There is no errno, as all that "
        "nginx had "
        "sent was read.",
        (
            _DIED,
            _TERMINATED,
            _RESTARTED,
            Cause(
                "A kept connection (fastcgi_keep_conn, keepalive) was closed by the server in its idle time.",
                "The line comes for the second request of a connection or later, with nothing in php-fpm's log.",
                "keepalive_timeout of nginx's upstream shorter than the server's.",
            ),
            _NOT_FASTCGI,
        ),
        pattern=r"(?<!client )prematurely closed connection",
        fault="close",
    ),
    Symptom(
        "upstream timed out (110: Connection timed out)",
        "nginx gave up waiting: 110 is its own clock, not the socket's. After fastcgi_read_timeout between two "
        "reads "
        "(60 s by default) it answers 504.",
        (
            _SLOW,
            _QUEUED,
            Cause(
                "The server accepts nobody, or the worker hangs for good.",
                "`udsproxy state PATH` twice: nothing moves.",
                "Restart it; request_terminate_timeout ends such a worker.",
            ),
            Cause(
                "`while sending request to upstream`: the server does not read the body.",
                "`udsproxy state PATH` shows what the worker waits for.",
                "See `udsproxy explain send EAGAIN`.",
            ),
        ),
        pattern=r"upstream timed out",
        fault="hold",
        see=("nginx-php-fpm.md#read-the-lines",),
    ),
    Symptom(
        "no live upstreams while connecting to upstream",
        "nginx left all servers of the upstream { } block out, and asked none. One that failed is left out for "
        "fail_timeout (10 s): one burst becomes an outage.",
        (
            Cause(
                "Each of them failed shortly before, mostly with error 11.",
                "nginx's log, the seconds before: `connect() to unix:... failed`.",
                "Explain that line first. max_fails=0 of the server line keeps it in.",
            ),
        ),
        pattern=r"no live upstreams",
        fault="eagain",
        see=("nginx-php-fpm.md#catch-error-11",),
    ),
    Symptom(
        "upstream sent too big header while reading response header from upstream",
        "The header of the answer does not fit into nginx's buffer; it answers 502.",
        (
            _TOO_BIG_HEADER,
            Cause(
                "PHP writes its errors to nginx (FastCGI's stderr), and they fill that buffer first.",
                "The line before it in nginx's log: `FastCGI sent in stderr`.",
                "Mend the errors; php_admin_value[error_log] of the pool takes them to a file.",
            ),
        ),
        pattern=r"upstream sent too big header",
        fault="fcgi-header-too-big",
    ),
    Symptom(
        "upstream sent unsupported FastCGI protocol version",
        "The answer does not begin with FastCGI's version, 1. The number is the first byte that came: 72 is the "
        "H of "
        "HTTP.",
        (_NOT_FASTCGI, _CORRUPT),
        fault="fcgi-version",
    ),
    Symptom(
        "upstream sent unexpected FastCGI record",
        "A record came where nginx expects another. 3 is the end of the request, without any output before it.",
        (
            Cause(
                "3: the server refused the request, or ended it without an answer (a server that is overloaded "
                "says "
                "so like this).",
                "`udsproxy tap PATH -v`: END_REQUEST and its protocol_status.",
                "OVERLOADED: more workers; CANT_MPX_CONN: the client mixes requests on one connection.",
            ),
            _CORRUPT,
        ),
        fault="fcgi-overloaded",
    ),
    Symptom(
        "upstream sent invalid FastCGI record type",
        "A record came of a type that no server sends.",
        (_NOT_FASTCGI, _CORRUPT),
        fault="fcgi-type=11",
    ),
    Symptom(
        "Primary script unknown",
        "php-fpm finds no file at SCRIPT_FILENAME, and answers 404 (`File not found.`).",
        (
            Cause(
                "root of nginx and the place of the files differ; in containers php-fpm sees other paths than "
                "nginx.",
                "`udsproxy tap PATH -v` shows SCRIPT_FILENAME; `sudo -u www-data ls -l` that file, where php-fpm "
                "runs.",
                "fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name, with the root that php-fpm "
                "sees.",
            ),
            Cause(
                "php-fpm's user may not read the file, or not enter a directory before it.",
                "`namei -l` that file.",
                "`chmod o+x` the directories, or another owner.",
            ),
            Cause(
                "Somebody asks for a script that does not exist (a scanner, say).",
                "The request in nginx's line.",
                "`try_files $fastcgi_script_name =404;` lets nginx answer that.",
            ),
        ),
    ),
    Symptom(
        "server reached pm.max_children setting",
        "All workers of the pool are busy, and no more may be started. Who comes now waits in the accept queue, "
        "then "
        "gets EAGAIN.",
        (
            Cause(
                "All workers are busy with something slow.",
                "`udsproxy state PATH` shows what each waits for; `udsproxy tap PATH` which requests take long.",
                "Make that faster, or bound it.",
            ),
            Cause(
                "There are too few workers for the load.",
                "No single request is slow in `udsproxy tap PATH`.",
                "Raise pm.max_children, as far as memory and the database allow.",
            ),
        ),
        pattern=r"reached (?:pm\.)?max_children",
        fault="workers=2",
    ),
    Symptom(
        "Another FPM instance seems to already listen on",
        "php-fpm does not start, because somebody answered at its socket's path.",
        (
            Cause(
                "php-fpm runs already, or two pools have the same path.",
                "`ss -xlp | grep PATH`; `grep -rn 'listen =' /etc/php`.",
                "Stop one, or give it another path.",
            ),
            Cause(
                "A tap or a proxy stands at this path.",
                "`ls -l PATH PATH.udsproxy`",
                "End it, and start php-fpm then.",
            ),
        ),
        pattern=r"another FPM instance seems to already listen",
    ),
    Symptom(
        "AF_UNIX path too long",
        "Python refused the path by itself: a Unix socket's has 107 bytes at most. Other programs report EINVAL, "
        "or "
        "ENAMETOOLONG, for it.",
        (
            Cause(
                "The path is too long.",
                "`printf %s PATH | wc -c`",
                "Use a shorter path, a symbolic link to its directory, or go there and use a relative one.",
            ),
        ),
        pattern=r"AF_UNIX path too long|too long path in the unix domain socket|unix socket path .{0,200}too long",
    ),
    Symptom(
        "499 in the access log",
        "The client left before nginx had an answer for it. The worker still runs its script, and has EPIPE when "
        "it "
        "writes.",
        (
            _SLOW,
            _QUEUED,
            Cause(
                "A load balancer, or a script that asks, has a shorter timeout than nginx.",
                "Many 499 after the same time ($request_time in the access log).",
                "Make the outer timeout the longer one.",
            ),
        ),
        pattern=r'^499\b|" 499 \d|client prematurely closed connection',
        weak=True,
    ),
    Symptom(
        "502 Bad Gateway",
        "nginx could not connect to the server, or got no proper answer. The errno is in nginx's error log, with "
        "the "
        "same request.",
        (
            Cause(
                "connect() failed with EAGAIN: the accept queue is full.",
                "error.log: `connect() ... failed (11: ...)`",
                "See `udsproxy explain connect EAGAIN`.",
            ),
            Cause(
                "connect() failed with ENOENT or ECONNREFUSED: the server is not running.",
                "error.log: `connect() ... failed (2: ...)`, `(111: ...)`",
                "See `udsproxy explain connect ENOENT`, `udsproxy explain connect ECONNREFUSED`.",
            ),
            Cause(
                "The worker died in the middle.",
                "error.log: `recv() failed (104: ...)`, `upstream prematurely closed connection`",
                "See `udsproxy explain recv ECONNRESET`.",
            ),
            Cause(
                "connect() failed with EACCES: nginx may not use the socket.",
                "error.log: `connect() ... failed (13: ...)`",
                "See `udsproxy explain connect EACCES`.",
            ),
            _TOO_BIG_HEADER,
            Cause(
                "All servers of the upstream { } block were left out.",
                "error.log: `no live upstreams`",
                "See `udsproxy explain no live upstreams`.",
            ),
        ),
        pattern=r'^502\b|" 502 \d|502 bad gateway',
        fault="eagain",
        see=("nginx-php-fpm.md#catch-error-11",),
        weak=True,
    ),
    Symptom(
        "504 Gateway Time-out",
        "No answer came in time: fastcgi_read_timeout (60 s by default) was over. error.log has `upstream timed "
        "out "
        "(110: Connection timed out)`.",
        (_SLOW, _QUEUED),
        pattern=r'^504\b|" 504 \d|504 gateway time-?out',
        fault="hold",
        weak=True,
    ),
    Symptom(
        "FastCGI sent in stderr",
        "PHP wrote this to its log, and php-fpm sent it to nginx with the answer. The socket works.",
        (
            Cause(
                "The script has an error or a warning, or calls error_log().",
                "The text in quotes; `udsproxy tap PATH` shows it below the request.",
                "Mend the script; php_admin_value[error_log] of the pool takes it to a file.",
            ),
        ),
        fault="fcgi-stderr=TEXT",
        weak=True,
    ),
)
