"""Causes that several lines share."""

from __future__ import annotations

from udsproxy.explain.errors import Cause

DIED = Cause(
    "The worker died: a crash, SIGKILL, the kernel out of memory.",
    "`journalctl -u php8.2-fpm`: `exited on signal`; `journalctl -k | grep -i 'killed process'`.",
    "Mend the crash; less memory a worker, or fewer workers.",
)
TERMINATED = Cause(
    "The request ran into request_terminate_timeout.",
    "php-fpm's log: `execution timed out (...), terminating`.",
    "Find what was slow (request_slowlog_timeout), or raise the limit.",
)
RESTARTED = Cause(
    "php-fpm was restarted or stopped with requests open.",
    "`journalctl -u php8.2-fpm` at that time.",
    "Reload instead, with process_control_timeout set.",
)
NOT_FASTCGI = Cause(
    "What listens there does not speak FastCGI: an HTTP server, say, behind fastcgi_pass.",
    "`udsproxy state PATH` names the process; `udsproxy tap PATH -vv` shows its bytes.",
    "proxy_pass for HTTP, uwsgi_pass for uwsgi, fastcgi_pass for FastCGI.",
)
CORRUPT = Cause(
    "A FastCGI server that loses count of its bytes (seldom php-fpm; an extension that writes to its descriptor).",
    "`udsproxy tap PATH -v`: `not fastcgi from upstream's byte ...` says where.",
    "Report it to who maintains that server.",
)
TOO_BIG_HEADER = Cause(
    "The response's header is larger than fastcgi_buffer_size: many cookies, or long ones; a debugger's header.",
    "`udsproxy tap PATH -vv` shows the header.",
    "Fewer or smaller headers; else fastcgi_buffer_size 32k and fastcgi_buffers 8 32k.",
)
QUEUED = Cause(
    "It waits in the accept queue, because all workers are busy. On a Unix socket that counts as waiting for "
    "the answer: nginx's fastcgi_connect_timeout does not apply, and fastcgi_read_timeout does.",
    "`udsproxy tap PATH` says `after ... in the queue`; `udsproxy state PATH` while it lasts.",
    "See `udsproxy explain connect EAGAIN`.",
)
SLOW = Cause(
    "The script waits for something slow: a query, another server, a lock (of the session's file, say).",
    "`udsproxy tap PATH`: a long TTFB; `udsproxy state PATH` shows what each worker waits for; "
    "request_slowlog_timeout writes where the script was.",
    "Make that faster, or bound it; a longer timeout only if it may take so long.",
)
LINE_BEFORE = Cause(
    "The line before it has the call and the errno.",
    "The same process and time in the log.",
    "Give that line to `udsproxy explain`.",
)
