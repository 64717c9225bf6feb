"""Apache: mod_proxy_fcgi, mod_proxy_http, mod_fcgid, and its own files.

Rules: as in `udsproxy.explain.symptoms.nginx`.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.causes import DIED, LINE_BEFORE, NOT_FASTCGI, QUEUED, RESTARTED, SLOW, TERMINATED
from udsproxy.explain.symptoms.model import Symptom

APACHE: tuple[Symptom, ...] = (
    Symptom(
        "(70007)The timeout specified has expired",
        "Apache gave up waiting: 70007 is its own clock (APR_TIMEUP), not the socket's. After ProxyTimeout, or "
        "timeout= of the worker (60 s by default), it answers 504 or 503. It is the twin of nginx's `upstream "
        "timed out (110`.",
        (
            SLOW,
            QUEUED,
            Cause(
                "The time is shorter than the script may take.",
                "`apachectl -t -D DUMP_CONFIG | grep -iE 'timeout|ProxyPass'`",
                "ProxyTimeout, or timeout= of ProxyPass; `<Proxy>` with ProxySet timeout= for a SetHandler.",
            ),
        ),
        pattern=r"^\(70007\)|the timeout specified has expired",
        programs=("apache",),
        fault="hold",
    ),
    Symptom(
        "(70014)End of file found",
        "The server closed before a whole answer had come: 70014 is APR_EOF. It is the twin of nginx's "
        "`upstream prematurely closed`.",
        (DIED, TERMINATED, RESTARTED, NOT_FASTCGI),
        pattern=r"^\(70014\)|end of file found|AH01067: Failed to read FastCGI header"
        r"|(?:end of script output before|premature end of script) headers",
        programs=("apache",),
        fault="close",
    ),
    Symptom(
        "AH01079: failed to make connection to backend",
        "Apache could not connect. httpd-UDS stands for a Unix socket; the path and the errno are in the line "
        "before, AH02454 (or AH00957 for TCP).",
        (
            LINE_BEFORE,
            Cause(
                "The server is not running, its queue is full, or Apache may not use its socket.",
                "`udsproxy state PATH`, with the path of SetHandler or ProxyPass.",
                "See `udsproxy explain connect`.",
            ),
        ),
        pattern=r"failed to make connection to backend",
        programs=("apache",),
        weak=True,
    ),
    Symptom(
        "AH00898: Error reading from remote server",
        "Apache got no proper answer. Why is in the line before, of the same request.",
        (LINE_BEFORE,),
        pattern=r"AH00898|error reading from remote server",
        programs=("apache",),
        weak=True,
    ),
    Symptom(
        "AH00959: ap_proxy_connect_backend disabling worker",
        "Apache leaves this server out after a failed connect(), for retry= seconds (60 by default): one "
        "failure becomes a minute of 503. It is the twin of nginx's fail_timeout.",
        (
            LINE_BEFORE,
            Cause(
                "A short failure (a reload, a full queue) is made longer by that.",
                "Later requests have 503 at once, without a line of their own.",
                'retry=0 of ProxyPass, or `<Proxy "unix:PATH|fcgi://localhost">` with ProxySet retry=0.',
            ),
        ),
        pattern=r"disabling worker|disabled connection for",
        programs=("apache",),
    ),
    Symptom(
        "AH01068: Got bogus version",
        "The answer does not begin with FastCGI's version, 1. The number is the first byte that came: 72 is "
        "the H of HTTP.",
        (NOT_FASTCGI,),
        pattern=r"AH0106[89]|got bogus (?:version|rid|type)",
        programs=("apache",),
    ),
    Symptom(
        "mod_fcgid: read data timeout",
        "The application behind mod_fcgid sent nothing for FcgidIOTimeout (40 s by default): Apache's own "
        "clock. It answers 500.",
        (
            SLOW,
            Cause(
                "The time is shorter than the script may take.",
                "The seconds in the line.",
                "Raise FcgidIOTimeout.",
            ),
        ),
        pattern=r"mod_fcgid: (?:read data timeout|ap_pass_brigade failed|error reading data from FastCGI)",
        programs=("apache",),
        weak=True,
    ),
    Symptom(
        "Apache: a file of its own",
        "Apache could not use a file or a directory. The line does not speak of a connection to a server; no "
        "socket is blamed.",
        (
            Cause(
                "EACCES: Apache's user may not read it, or not enter a directory before it.",
                "`namei -l` the path in the line; `ps -o user,cmd -C apache2`.",
                "`chmod o+x` the directories, or `Require all granted` where it is the configuration.",
                errno="EACCES",
            ),
            Cause(
                "ENOENT: it does not exist.",
                "`ls -l` the path in the line.",
                "Make it, or correct DocumentRoot, Alias or ErrorDocument.",
                errno="ENOENT",
            ),
        ),
        pattern=r"^\(\d{1,3}\)[^:]{1,80}: (?!.*(?:attempt to connect|backend|dispatching|remote server|cgi daemon"
        r"|fcgid|make_sock|could not bind|unable to connect|fastcgi|proxy|socket|reading|sending|writing"
        r"|AH(?:008[5-9]|009\d|010\d|011[0-5]|012\d|024\d)\d))",
        elsewhere=True,
        rest=True,
        programs=("apache",),
    ),
    Symptom(
        "AH01144: No protocol handler was valid",
        "Apache has no module for the scheme of ProxyPass or SetHandler: it answers 500, and connects to nobody.",
        (
            Cause(
                "mod_proxy_fcgi (fcgi://) or mod_proxy_http (http://) is not loaded.",
                "`apachectl -M | grep proxy`",
                "`a2enmod proxy_fcgi`, and restart Apache.",
            ),
            Cause(
                "The address has no scheme behind the path: unix:PATH|fcgi://localhost/ is meant.",
                "`grep -rn 'unix:' /etc/apache2`",
                "Add `|fcgi://localhost/`, in quotes.",
            ),
        ),
        pattern=r"no protocol handler was valid",
        programs=("apache",),
    ),
    Symptom(
        "server reached MaxRequestWorkers setting",
        "All workers of Apache are busy, and no more may be started: clients wait in Apache's own queue.",
        (
            SLOW,
            Cause(
                "There are too few workers for the load.",
                "`apachectl fullstatus`: all slots are W, and no single request is slow.",
                "Raise MaxRequestWorkers, and pm.max_children of php-fpm with it.",
            ),
        ),
        pattern=r"reached (?:MaxRequestWorkers|MaxClients)",
        programs=("apache",),
    ),
)
