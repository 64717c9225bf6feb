"""nginx's lines about an upstream, and about what a script wrote to it.

Rules: as in `udsproxy.explain.errors`. Patterns are for the program's own words: what a visitor or a script wrote
stands there as an ellipsis.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.causes import (
    CORRUPT,
    DIED,
    NOT_FASTCGI,
    QUEUED,
    RESTARTED,
    SLOW,
    TERMINATED,
    TOO_BIG_HEADER,
)
from udsproxy.explain.symptoms.model import Symptom

STDERR: tuple[Symptom, ...] = (
    Symptom(
        "Primary script unknown",
        "php-fpm finds no file at SCRIPT_FILENAME, and answers 404 (`File not found.`).",
        (
            Cause(
                "root of nginx and the place of the files differ; in containers php-fpm sees other paths than "
                "nginx.",
                "`udsproxy tap PATH -v` shows SCRIPT_FILENAME; `sudo -u www-data ls -l` that file, where "
                "php-fpm runs.",
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
        pattern=r"primary script unknown|unable to open primary script",
        programs=("nginx", "apache"),
    ),
    Symptom(
        "Access to the script has been denied (see security.limit_extensions)",
        "php-fpm runs only files whose names end with what security.limit_extensions allows (.php by default).",
        (
            Cause(
                "SCRIPT_FILENAME is a directory, or another file: nginx passes on more than it should.",
                "`udsproxy tap PATH -v` shows SCRIPT_FILENAME.",
                "Correct the location block: `location ~ \\.php$`, and an index for directories.",
            ),
            Cause(
                "The request is for /image.png/x.php, to have php-fpm run an uploaded file. The refusal is right.",
                "The request in the web server's line.",
                "`try_files $fastcgi_script_name =404;` lets nginx answer that.",
            ),
        ),
        pattern=r"access to the script\b",
        programs=("nginx", "apache"),
    ),
    Symptom(
        "FastCGI sent in stderr",
        "The script, or PHP about the script, wrote this text, and php-fpm sent it along with the answer. The "
        "socket to php-fpm works.",
        (
            Cause(
                "The script has an error or a warning, or calls error_log().",
                "The text in quotes; `udsproxy tap PATH` shows it below the request.",
                "Correct the script; php_admin_value[error_log] of the pool writes such texts to a file instead.",
            ),
            Cause(
                "The text names an error of a connection that the script itself makes: to a database, Redis, "
                "another server.",
                "Give that text alone to `udsproxy explain`.",
            ),
        ),
        pattern=r"FastCGI sent in stderr|AH01071",
        programs=("nginx", "apache"),
        fault="fcgi-stderr=TEXT",
    ),
    Symptom(
        "child said into stderr",
        "A worker's script, or PHP about the script, wrote this text, and php-fpm logged it, as "
        "catch_workers_output is on. The socket works.",
        (
            Cause(
                "The script has an error or a warning, or calls error_log().",
                "The text in quotes; nginx's error log has the same text, with the request.",
                "Correct the script.",
            ),
            Cause(
                "The text names an error of a connection that the script itself makes: to a database, Redis, "
                "another server.",
                "Give that text alone to `udsproxy explain`.",
            ),
        ),
        pattern=r"said into std(?:err|out)|child process said",
        programs=("php-fpm",),
    ),
)

UPSTREAM: tuple[Symptom, ...] = (
    Symptom(
        "upstream prematurely closed FastCGI stdout",
        "The answer ended without the end of its output. nginx got part of it, or nothing.",
        (DIED, TERMINATED, RESTARTED),
        fault="fcgi-truncate=0B",
    ),
    Symptom(
        "upstream prematurely closed connection",
        "The server closed in an orderly way before a whole answer had come. There is no errno, as all that "
        "nginx had sent was read.",
        (
            DIED,
            TERMINATED,
            RESTARTED,
            Cause(
                "A kept connection (fastcgi_keep_conn, keepalive) was closed by the server in its idle time.",
                "The line comes for the second request of a connection or later, with nothing in php-fpm's log.",
                "keepalive_timeout of nginx's upstream shorter than the server's.",
            ),
            NOT_FASTCGI,
        ),
        pattern=r"(?<!client )prematurely closed connection",
        fault="close",
    ),
    Symptom(
        "upstream timed out (110: Connection timed out)",
        "nginx gave up waiting: 110 is its own clock, not the socket's. After fastcgi_read_timeout between two "
        "reads (60 s by default) it answers 504.",
        (
            SLOW,
            QUEUED,
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
        pattern=r"no live upstreams|upstream server temporarily disabled",
        fault="eagain",
        see=("nginx-php-fpm.md#catch-error-11",),
    ),
    Symptom(
        "upstream sent too big header while reading response header from upstream",
        "The header of the answer does not fit into nginx's buffer; it answers 502.",
        (
            TOO_BIG_HEADER,
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
        "The answer does not begin with FastCGI's version, 1. The number is the first byte that came: 72 is "
        "the H of HTTP.",
        (NOT_FASTCGI, CORRUPT),
        fault="fcgi-version",
    ),
    Symptom(
        "upstream sent unexpected FastCGI record",
        "A record came where nginx expects another. 3 is the end of the request, without any output before it.",
        (
            Cause(
                "3: the server refused the request, or ended it without an answer (a server that is overloaded "
                "says so like this).",
                "`udsproxy tap PATH -v`: END_REQUEST and its protocol_status.",
                "OVERLOADED: more workers; CANT_MPX_CONN: the client mixes requests on one connection.",
            ),
            CORRUPT,
        ),
        fault="fcgi-overloaded",
    ),
    Symptom(
        "upstream sent invalid FastCGI record type",
        "A record came of a type that no server sends.",
        (NOT_FASTCGI, CORRUPT),
        fault="fcgi-type=11",
    ),
    Symptom(
        "499 in the access log",
        "The client left before nginx had an answer for it. The worker still runs its script, and has EPIPE "
        "when it writes.",
        (
            SLOW,
            QUEUED,
            Cause(
                "A load balancer, or a script that asks, has a shorter timeout than nginx.",
                "Many 499 after the same time ($request_time in the access log).",
                "Make the outer timeout the longer one.",
            ),
        ),
        pattern=r'^499\b|" 499 \d|client prematurely closed connection',
        programs=("nginx", "access"),
    ),
    Symptom(
        "502 Bad Gateway",
        "nginx could not connect to the server, or got no proper answer. The errno is in nginx's error log, "
        "with the same request.",
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
            TOO_BIG_HEADER,
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
        "No answer came in time: fastcgi_read_timeout (60 s by default) was over. error.log has `upstream "
        "timed out (110: Connection timed out)`.",
        (SLOW, QUEUED),
        pattern=r'^504\b|" 504 \d|504 gateway time-?out',
        fault="hold",
        weak=True,
    ),
)
