"""Application servers, and lighttpd: uWSGI, gunicorn, unicorn.

Rules: as in `udsproxy.explain.symptoms.nginx`.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.causes import DIED, LINE_BEFORE, NOT_FASTCGI, RESTARTED, SLOW, TERMINATED
from udsproxy.explain.symptoms.model import Symptom

SERVERS: tuple[Symptom, ...] = (
    Symptom(
        "unexpected end-of-file (perhaps the fastcgi process died)",
        "lighttpd: the server closed before a whole answer had come. It is the twin of nginx's `upstream "
        "prematurely closed`.",
        (DIED, TERMINATED, RESTARTED, NOT_FASTCGI),
        pattern=r"unexpected end-of-file|response not received, request sent",
        programs=("lighttpd",),
        fault="close",
    ),
    Symptom(
        "backend died; we'll disable it",
        "lighttpd leaves this server out for some seconds after a failure. What failed is in the line before.",
        (
            LINE_BEFORE,
            Cause(
                "All servers are left out at the same time: requests get 503.",
                "`all handlers ... are down` follows; the lines before have `connect failed`.",
                "Explain that line first; disable-time in fastcgi.server.",
            ),
        ),
        pattern=r"backend died|all handlers for\b.*are down|we'll disable it for",
        programs=("lighttpd",),
        weak=True,
    ),
    Symptom(
        "uWSGI listen queue of socket full",
        "uWSGI's accept queue is full: who connects now gets EAGAIN (nginx: error 11), or waits. The numbers "
        "are how many wait, and the backlog.",
        (
            Cause(
                "All workers are busy with something slow.",
                "`udsproxy state PATH` shows what each waits for; uwsgitop, or --stats.",
                "Make that faster, or bound it (harakiri).",
            ),
            Cause(
                "There are too few workers, or the queue is short: listen = 100 by default.",
                "No single request is slow in `udsproxy tap PATH`.",
                "Raise processes; raise listen, and net.core.somaxconn to no less.",
            ),
        ),
        pattern=r"uWSGI listen queue of socket\b.*\bfull",
        programs=("uwsgi",),
        fault="workers=2",
        see=("nginx-php-fpm.md#catch-error-11",),
    ),
    Symptom(
        "Listen queue size is greater than the system max net.core.somaxconn",
        "uWSGI does not start: the kernel would cut its backlog to net.core.somaxconn.",
        (
            Cause(
                "listen = is larger than net.core.somaxconn (in this network namespace).",
                "`sysctl net.core.somaxconn`",
                "Raise it (a container has its own: --sysctl net.core.somaxconn=1024), or lower listen.",
            ),
        ),
        pattern=r"listen queue size is greater than",
    ),
    Symptom(
        "uwsgi_response_write_body_do() TIMEOUT",
        "nginx, or the visitor behind it, did not read for socket-timeout seconds (4 by default): uWSGI's own "
        "clock.",
        (
            Cause(
                "A slow visitor and a large answer, where nginx does not buffer it (uwsgi_buffering off).",
                "`udsproxy tap PATH`: the client of that request reads slowly.",
                "uwsgi_buffering on, or a longer socket-timeout.",
            ),
        ),
        pattern=r"uwsgi_\w+\(\) TIMEOUT",
        programs=("uwsgi",),
    ),
    Symptom(
        "HARAKIRI ON WORKER",
        "A request took longer than harakiri, and uWSGI killed its worker. nginx has `upstream prematurely "
        "closed connection`, and answers 502.",
        (
            SLOW,
            Cause(
                "The limit is shorter than the request may take.",
                "`grep harakiri` in uWSGI's configuration.",
                "Raise harakiri, and uwsgi_read_timeout of nginx with it.",
            ),
        ),
        pattern=r"\bHARAKIRI\b",
        programs=("uwsgi",),
    ),
    Symptom(
        "error removing unix socket",
        "The server found the file of an earlier run at its path, and may not remove it; bind() fails next "
        "(EADDRINUSE).",
        (
            Cause(
                "The file belongs to another user, and its directory is /tmp (sticky), or is not the server's.",
                "`ls -ld PATH $(dirname PATH)`; the user that the server starts as.",
                "Remove the file once, as its owner; use a directory of the server's own (RuntimeDirectory=).",
            ),
        ),
        pattern=r"error removing unix socket|unlink\(\): .*\[core/socket\.c",
        programs=("uwsgi",),
    ),
    Symptom(
        "chown(): Operation not permitted",
        "uWSGI could not give its socket's file to chown-socket, or change its mode: the socket itself was made.",
        (
            Cause(
                "uWSGI does not start as root, and only root may give a file to another user.",
                "`ps -o user,cmd -C uwsgi`",
                "Take chown-socket out, and use chmod-socket = 660 with a group that nginx is in; or start it "
                "as root, with uid and gid.",
            ),
        ),
        pattern=r"^(?:chown|chmod|lchown)\(\): ",
        elsewhere=True,
        programs=("uwsgi",),
    ),
    Symptom(
        "gunicorn: Can't connect to",
        "gunicorn says connect, and means bind(): it could not make its own socket, and gives up after five tries.",
        (
            Cause(
                "The directory does not exist, or its user may not write there.",
                "`gunicorn --log-level debug` says the errno; `namei -l PATH`.",
                "RuntimeDirectory= of the unit. See `udsproxy explain bind ENOENT`, `udsproxy explain bind "
                "EACCES`.",
            ),
            Cause(
                "The filesystem has no sockets (a shared folder of a virtual machine, /mnt/c of WSL).",
                "`df -T $(dirname PATH)`",
                "Put it below /run.",
            ),
        ),
        pattern=r"^can't connect to (?:/|unix:)|^gunicorn: can't connect to",
        programs=("gunicorn",),
    ),
    Symptom(
        "WORKER TIMEOUT",
        "gunicorn heard nothing from a worker for --timeout (30 s by default), and killed it. nginx has "
        "`upstream prematurely closed connection`, and answers 502.",
        (
            SLOW,
            Cause(
                "The limit is shorter than a request may take.",
                "The same request each time (`udsproxy tap PATH`).",
                "Raise --timeout; a worker class with threads (gthread) reports while a request runs.",
            ),
        ),
        pattern=r"\bWORKER TIMEOUT\b",
        programs=("gunicorn",),
    ),
    Symptom(
        "was sent SIGKILL! Perhaps out of memory?",
        "A worker was killed. nginx has `upstream prematurely closed connection` for its request, and answers 502.",
        (
            Cause(
                "The kernel, or the container, was out of memory.",
                "`journalctl -k | grep -i 'killed process'`; `systemctl show UNIT -p MemoryMax`.",
                "Less memory a worker, or fewer workers.",
            ),
            Cause(
                "The server itself killed it, after a timeout of its own (WORKER TIMEOUT, harakiri).",
                "That line stands before it.",
                "Explain that line first.",
            ),
        ),
        pattern=r"was sent SIG(?:KILL|SEGV|ABRT)|reaped #<Process::Status: pid \d+ SIG(?:KILL|SEGV|ABRT)"
        r"|DAMN ! worker .*killed by signal",
        programs=("gunicorn", "ruby", "uwsgi"),
    ),
    Symptom(
        "worker=0 timeout, killing",
        "unicorn killed a worker whose request took longer than timeout (60 s by default). nginx has `upstream "
        "prematurely closed connection`, and answers 502.",
        (SLOW,),
        pattern=r"worker=\d+ (?:PID:\d+ )?timeout\b.*killing",
        programs=("ruby",),
    ),
    Symptom(
        "spawning fcgi failed",
        "lighttpd starts this server itself (bin-path), and it ended, or could not be started.",
        (
            LINE_BEFORE,
            Cause(
                "The program of bin-path does not exist, or ends at once.",
                "Run it by hand, as lighttpd's user.",
                "Correct bin-path; php-cgi speaks FastCGI, php does not.",
            ),
        ),
        pattern=r"spawning \w+ failed|child exited with status|child signall?ed",
        programs=("lighttpd",),
    ),
    Symptom(
        "invalid request block size",
        "uWSGI speaks the uwsgi protocol at this socket, and got something else, or parameters that are too long.",
        (
            Cause(
                "Size 21573, or another large number: it is HTTP (GE of GET). The web server uses proxy_pass.",
                "`udsproxy tap PATH -vv` shows the bytes.",
                "uwsgi_pass in nginx; or http-socket instead of socket in uWSGI.",
            ),
            Cause(
                "A size just above the maximum: long cookies, or a long URI.",
                "The two numbers in the line.",
                "Raise buffer-size (32768).",
            ),
        ),
    ),
)
