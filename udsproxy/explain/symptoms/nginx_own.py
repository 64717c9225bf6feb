"""nginx's lines about its own limits, files and clients, and answers that it does not accept.

Rules: as in `udsproxy.explain.symptoms.nginx`.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.causes import CORRUPT, NOT_FASTCGI
from udsproxy.explain.symptoms.model import Symptom

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
        pattern=r"upstream sent no valid HTTP/1\.0 header",
    ),
    Symptom(
        "upstream sent invalid header",
        "nginx does not accept a line of the answer's header (or its status), and answers 502.",
        (
            Cause(
                "The script sends a header with a space or a control character in its name, or a Status: that "
                "is no number.",
                "`udsproxy tap PATH -vv` shows the header.",
                "Correct the script's header() call.",
            ),
            Cause(
                "Something else is printed in front of the header: a warning, a byte order mark.",
                "`udsproxy tap PATH -vv` shows the first bytes.",
                "Correct the script; display_errors = Off.",
            ),
            NOT_FASTCGI,
        ),
        pattern=r"upstream sent (?:invalid|duplicate|more data than|unexpected (?!FastCGI)|closing|wrong)"
        r"(?! FastCGI)",
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
                errno="EMFILE",
            ),
            Cause(
                "ENFILE: the whole system has no file left.",
                "`sysctl fs.file-nr`: the first number has reached the third.",
                "Find who holds them (`lsof | awk '{print $1}' | sort | uniq -c | sort -n`); raise fs.file-max.",
                errno="ENFILE",
            ),
        ),
        pattern=r"^socket\(\) (?:\S+ )?failed",
        elsewhere=True,
        programs=("nginx",),
    ),
    Symptom(
        "a response is buffered to a temporary file",
        "This is no failure: the answer (or the visitor's request) is larger than nginx's buffers in memory, "
        "so nginx writes the rest to a file.",
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
        "though the line may name them.",
        (
            Cause(
                "ENOENT: the file does not exist. For an error page: error_page names a file that is not below "
                "root.",
                "`ls -l FILE`; `nginx -T | grep -nE 'root|alias|error_page|try_files'`.",
                "Make the file, or correct the setting. (A line before this one, of the same request, says "
                "what went wrong first.)",
                errno="ENOENT",
            ),
            Cause(
                "EACCES: nginx's user may not read it, or not enter a directory before it.",
                "`namei -l FILE`; `ps -o user,cmd -C nginx`.",
                "`chmod o+x` the directories; for nginx's temporary files, give them to its user.",
                errno="EACCES",
            ),
            Cause(
                "ENOSPC: the disk with nginx's temporary files is full.",
                "`df -h FILE`; `df -i FILE`.",
                "Make room.",
                errno="ENOSPC",
            ),
            Cause(
                "EMFILE: this nginx process has no descriptor left.",
                "`grep 'open files' /proc/PID/limits` against `ls /proc/PID/fd | wc -l`.",
                "Raise worker_rlimit_nofile.",
                errno="EMFILE",
            ),
        ),
        pattern=r"(?:^|: )(?:open|stat|lstat|fstat|opendir|readdir|mkdir|chmod|chown|utimes|rename|unlink|realpath"
        r"|access|exec\w*|pread|pwrite|pwritev|read|ftruncate|link|openat)\(\) …",
        elsewhere=True,
        programs=("nginx",),
    ),
    Symptom(
        "nginx: another call of its own failed",
        "The error is not one of a connection: nginx says which call it was (of a process, a limit, a setting).",
        (
            Cause(
                "EPERM: only root may do that, and the main process is not root's (a container with a user of "
                "its own).",
                "`ps -o user,cmd -C nginx`",
                "Leave that setting out (user, worker_rlimit_nofile, worker_priority), or start nginx as root.",
                errno="EPERM",
            ),
            Cause(
                "ESRCH: the process that it wanted to tell something has ended (kill()).",
                "The pid in the line, or in nginx's pid file.",
                "Nothing, where nginx runs; else remove the old pid file.",
                errno="ESRCH",
            ),
        ),
        pattern=r"^(?!(?:connect|bind|listen|accept4?|send\w*|recv\w*|readv?|writev?|kevent|epoll_wait|socket|SSL_\w+)"
        r"\()\w+\([^()]*\)(?: \S+)? failed \(\d+: ",
        elsewhere=True,
        rest=True,
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
        "PHP-FPM and other servers on a Unix socket speak no TLS.",
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
                "Nothing. Many at once, after the same time: find what makes the answers late (`udsproxy tap "
                "PATH`).",
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
