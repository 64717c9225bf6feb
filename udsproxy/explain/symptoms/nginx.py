"""nginx's lines: of an upstream, and of its own files and clients.

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
                "php-fpm "
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
        "socket "
        "to php-fpm works.",
        (
            Cause(
                "The script has an error or a warning, or calls error_log().",
                "The text in quotes; `udsproxy tap PATH` shows it below the request.",
                "Correct the script; php_admin_value[error_log] of the pool writes such texts to a file instead.",
            ),
            Cause(
                "The text names an error of a connection that the script itself makes: to a database, Redis, "
                "another "
                "server.",
                "Give that text alone to `udsproxy explain`.",
            ),
        ),
        pattern=r"FastCGI sent in stderr|AH01071|said into std(?:err|out)|child process said",
        programs=("nginx", "apache", "php-fpm"),
        fault="fcgi-stderr=TEXT",
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
        "nginx had "
        "sent was read.",
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
        "reads "
        "(60 s by default) it answers 504.",
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
        "the "
        "H of "
        "HTTP.",
        (NOT_FASTCGI, CORRUPT),
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
        "when "
        "it "
        "writes.",
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
        "with "
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
        "timed "
        "out "
        "(110: Connection timed out)`.",
        (SLOW, QUEUED),
        pattern=r'^504\b|" 504 \d|504 gateway time-?out',
        fault="hold",
        weak=True,
    ),
)

OWN: tuple[Symptom, ...] = (
    Symptom(
        "upstream sent unexpected FastCGI request id",
        "The answer carries another request id than the request: the server does not copy it. nginx answers 502.",
        (
            Cause(
                "A FastCGI library that always answers with id 0, or with a number of its own.",
                "`udsproxy tap PATH -vv` shows the id of each record.",
                "Update the library, or report it: the id of BEGIN_REQUEST has to be in each record of the answer.",
            ),
            CORRUPT,
        ),
    ),
    Symptom(
        "upstream sent no valid HTTP/1.0 header",
        "The answer does not begin with an HTTP status line, and proxy_pass expects one.",
        (
            Cause(
                "The server behind proxy_pass speaks FastCGI, uwsgi or another protocol.",
                "`udsproxy state PATH` names the process; `udsproxy tap PATH -vv` shows its bytes.",
                "fastcgi_pass for FastCGI (php-fpm), uwsgi_pass for uwsgi.",
            ),
            Cause(
                "The server wrote something before its answer: a warning, or an answer to an earlier request.",
                "`udsproxy tap PATH -vv` shows its bytes.",
                "Correct the server.",
            ),
        ),
        pattern=r"upstream sent no valid HTTP/1\.0 header|upstream sent invalid header",
    ),
    Symptom(
        "worker_connections are not enough",
        "nginx has as many connections open as one of its processes may have. The server is not asked.",
        (
            Cause(
                "Requests stay open for long, because the server is slow: each takes two connections.",
                "`udsproxy state PATH`: many connections, and a queue.",
                "See `udsproxy explain connect EAGAIN`.",
            ),
            Cause(
                "The limit is too low for the number of clients.",
                "`nginx -T | grep worker_`",
                "Raise worker_connections, and worker_rlimit_nofile to twice that.",
            ),
        ),
    ),
    Symptom(
        "socket() failed",
        "nginx could not make a socket to connect with. The server is not asked.",
        (
            Cause(
                "EMFILE: this nginx process has no descriptor left.",
                "`grep 'open files' /proc/PID/limits` against `ls /proc/PID/fd | wc -l`, PID being the worker's.",
                "Raise worker_rlimit_nofile (or LimitNOFILE= of the unit).",
            ),
            Cause(
                "ENFILE: the whole system has no file left.",
                "`sysctl fs.file-nr`: the first number has reached the third.",
                "Find who holds them (`lsof | awk '{print $1}' | sort | uniq -c | sort -n`); raise fs.file-max.",
            ),
        ),
        pattern=r"^socket\(\) (?:\S+ )?failed",
        elsewhere=True,
        programs=("nginx",),
    ),
    Symptom(
        "a response is buffered to a temporary file",
        "This is no failure: the answer (or the visitor's request) is larger than nginx's buffers in memory, "
        "so nginx "
        "writes the rest to a file.",
        (
            Cause(
                "A large answer, and a visitor who reads more slowly than the server writes.",
                "SENT and RECEIVED of the request in `udsproxy tap PATH`.",
                "Nothing; or raise fastcgi_buffers (proxy_buffers), or fastcgi_max_temp_file_size 0.",
            ),
        ),
        pattern=r"is buffered to a temporary file",
    ),
    Symptom(
        'open() "FILE" failed',
        "nginx could not use a file of its own. The socket and the server behind it have no part in this, "
        "though the "
        "line may name them.",
        (
            Cause(
                "ENOENT: the file does not exist. For an error page: error_page names a file that is not below "
                "root.",
                "`ls -l FILE`; `nginx -T | grep -nE 'root|alias|error_page|try_files'`.",
                "Make the file, or correct the setting. (A line before this one, of the same request, says "
                "what went "
                "wrong first.)",
            ),
            Cause(
                "EACCES: nginx's user may not read it, or not enter a directory before it.",
                "`namei -l FILE`; `ps -o user,cmd -C nginx`.",
                "`chmod o+x` the directories; for nginx's temporary files, give them to its user.",
            ),
            Cause(
                "ENOSPC: the disk with nginx's temporary files is full.",
                "`df -h FILE`; `df -i FILE`.",
                "Make room.",
            ),
            Cause(
                "EMFILE: this nginx process has no descriptor left.",
                "`grep 'open files' /proc/PID/limits` against `ls /proc/PID/fd | wc -l`.",
                "Raise worker_rlimit_nofile.",
            ),
        ),
        pattern=r"^(?:open|stat|lstat|fstat|opendir|readdir|mkdir|chmod|chown|utimes|rename|unlink|realpath|access|exec\w*"
        r"|pread|pwrite|pwritev|read|ftruncate|link|openat)\(\) …",
        elsewhere=True,
        programs=("nginx",),
    ),
    Symptom(
        "directory index is forbidden",
        "The request is for a directory without an index file, and nginx does not list it: 403. No socket is "
        "involved.",
        (
            Cause(
                "index does not name the file that is there (index.php), or the directory is empty.",
                "`nginx -T | grep -nE 'root|index|try_files'`; `ls` of that directory.",
                "`index index.php index.html;`, or correct root.",
            ),
        ),
        pattern=r"^directory index of .* is forbidden|directory index is forbidden",
    ),
    Symptom(
        "no path in the unix domain socket",
        "nginx does not start: an address in its configuration is `unix:` with an empty path.",
        (
            Cause(
                "A variable was empty when a template made the configuration (envsubst, Ansible, a chart).",
                "The file and line that are named.",
                "Set the variable, and make the configuration anew.",
            ),
        ),
        programs=("nginx",),
    ),
    Symptom(
        "SSL handshake with the upstream failed",
        "nginx speaks TLS to a server (https:// in proxy_pass), and that failed. This is TCP, as a rule: "
        "PHP-FPM and "
        "other servers on a Unix socket speak no TLS.",
        (
            Cause(
                "The server at that address speaks no TLS, or other versions of it.",
                "`openssl s_client -connect` with the address in the line.",
                "http:// in proxy_pass; proxy_ssl_protocols.",
            ),
        ),
        pattern=r"while SSL handshaking to upstream|SSL handshake with the upstream failed",
        programs=("nginx",),
    ),
    Symptom(
        "failed while sending to client",
        "This is about a visitor's own connection to nginx (TCP): the visitor left, or its network failed. The "
        "socket between nginx and the server has no part in it.",
        (
            Cause(
                "The visitor closed the page, pressed stop, or lost its network. That is common, and no fault.",
                "499 in the access log for the same request, or a status with fewer bytes than the answer has.",
                "Nothing. Many at once, after the same time: find what makes the answers late "
                "(`udsproxy tap PATH`).",
            ),
            Cause(
                "A load balancer or a CDN in front of nginx has a shorter timeout, or checks the port and leaves.",
                "The client's address in the line is the balancer's.",
                "Make the outer timeout the longer one.",
            ),
            Cause(
                "TLS: a scanner, or an old client that offers no version or cipher that nginx accepts.",
                "`SSL` in the line, and addresses that you do not know.",
                "Nothing; ssl_protocols only if real visitors are concerned.",
            ),
        ),
        pattern=r"^(?!(?:recv|readv)\(\) .*while sending to client$).*\bwhile (?:sending (?:response )?to client"
        r"|reading client|waiting for request|SSL handshaking$|keepalive|closing request|processing HTTP/[23]"
        r"|handling (?:client|QUIC)|reading PROXY protocol|logging request"
        r"|proxying and (?:reading from|sending to) client)|^client (?:closed|timed out)"
        r"|^failed while sending to client",
        elsewhere=True,
        programs=("nginx",),
    ),
)
