"""Clients, databases, ssh, systemd and the kernel.

Rules: as in `udsproxy.explain.symptoms.nginx`.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.causes import DIED, NOT_FASTCGI, RESTARTED, SLOW
from udsproxy.explain.symptoms.model import Symptom


def _ordinary(language: str) -> str:
    """The name of a file that is not a socket's by its looks, as a group."""
    return rf"(?P<{language}>(?!\S*sock)/[^'\",:()]{{1,200}}?)"


_OPENING = r"(?:open|stat|lstat|mkdir|rename|remove|readlink|chdir|scandir|access|rmdir|fork/exec)"
_FILES = "|".join(
    (
        rf"\[Errno \d+\] [^:'\"]{{3,60}}: '{_ordinary('python')}'$",
        rf"(?:^|: ){_OPENING} {_ordinary('go')}: [a-z]",
        rf"\bE[A-Z]+: [a-z ]{{3,60}}, {_OPENING} '{_ordinary('node')}'",
        rf"@ \w+ - {_ordinary('ruby')}(?= \(|$)",
        rf"^[\w.-]{{1,30}}: (?:cannot \w+ )?'?{_ordinary('shell')}'?: (?:No such|Permission|Read-only)",
        rf"\bopen\({_ordinary('php')}, O_\w+\) failed: ",
        r"\): failed to open stream: (?!Connection)",
        r"^a file that could not be opened$",
    )
)

OTHERS: tuple[Symptom, ...] = (
    Symptom(
        "Peer authentication failed",
        "PostgreSQL refused the login: it asked the kernel who connects (SO_PEERCRED), and that system user is "
        "not the database user that was named. connect() succeeded; this is no errno.",
        (
            Cause(
                "The program runs as one system user (www-data), and names another database user.",
                "`ps -o user,cmd -p PID` of the client; `SELECT pg_hba_file_rules()` or pg_hba.conf: `local "
                "... peer`.",
                "Run it as that user, map the names in pg_ident.conf, or use scram-sha-256 with a password for "
                "`local`.",
            ),
            Cause(
                "A proxy stands between, and the server sees the proxy's user.",
                "`udsproxy state PATH`",
                "As root, udsproxy connects as its clients do (`--credentials`).",
            ),
        ),
        pattern=r"\bpeer authentication failed",
    ),
    Symptom(
        "sorry, too many clients already",
        "PostgreSQL has max_connections clients (or no slot left for this user). connect() succeeded; this is "
        "its answer, not an errno.",
        (
            Cause(
                "Connections are kept open and not used, one for each worker.",
                "`SELECT state, count(*) FROM pg_stat_activity GROUP BY state`",
                "A pool of connections (pgbouncer), fewer workers, or a higher max_connections.",
            ),
        ),
        pattern=r"too many clients already|remaining connection slots are reserved|too many connections for",
    ),
    Symptom(
        "lock file already exists",
        "PostgreSQL does not start: beside its socket lies a lock file, .s.PGSQL.5432.lock, that names a process.",
        (
            Cause(
                "Another PostgreSQL runs already, with the same port and directory.",
                "`cat` that file: its first line is the pid; `ps -p` that pid.",
                "Stop one, or give it another port, or unix_socket_directories of its own.",
            ),
            Cause(
                "It is left over, and its pid is another program's by now (a container that was started anew).",
                "`ps -p` that pid: it is no postgres.",
                "With no postgres running, put it out of the way (`mv`), and start again.",
            ),
        ),
        pattern=r"lock file .{0,200}already exists",
    ),
    Symptom(
        "EOF",
        "The server closed in an orderly way before a whole answer had come. Caddy, and other programs in Go, "
        "say it like this.",
        (DIED, RESTARTED, NOT_FASTCGI),
        pattern=r"(?:^|: )(?:unexpected )?EOF$",
        fault="close",
    ),
    Symptom(
        "AF_UNIX path too long",
        "The program refused the path by itself: a Unix socket's has 107 bytes at most (108 with the zero byte "
        "at its end). Other programs report EINVAL, or ENAMETOOLONG, for it.",
        (
            Cause(
                "The path is too long. ssh binds at ControlPath plus 17 characters, and renames.",
                "`printf %s PATH | wc -c`",
                "Use a shorter path, a symbolic link to its directory, or go there and use a relative one. "
                "ssh: ControlPath ~/.ssh/%C.",
            ),
        ),
        pattern=r"AF_UNIX path too long|too long path in the unix domain socket|unix socket path .{0,200}too long"
        r"|too long for unix domain socket|socket (?:file )?path .{0,200}\btoo long|ControlPath .{0,200}too long"
        r"|path must be (?:no longer|shorter) than|path too long for unix domain socket",
    ),
    Symptom(
        "Cannot connect to the Docker daemon",
        "connect() to docker's socket failed, with ENOENT (no file at this path) or ECONNREFUSED (nobody listens).",
        (
            Cause(
                "docker is not running.",
                "`systemctl status docker docker.socket`",
                "`systemctl start docker`",
            ),
            Cause(
                "The client uses another path: DOCKER_HOST, or a context (rootless docker: "
                "/run/user/1000/docker.sock).",
                "`echo $DOCKER_HOST`; `docker context ls`.",
                "`docker context use`, or set DOCKER_HOST.",
            ),
            Cause(
                "In a container: the socket is not mounted, or was mounted before docker restarted, and is stale.",
                "`ls -l PATH` inside it; `udsproxy doctor PATH`.",
                "Mount it, and start the container anew.",
            ),
        ),
        pattern=r"cannot connect to the docker daemon",
    ),
    Symptom(
        "i/o timeout",
        "The program's own deadline (Go: SetDeadline, a context) was over. The socket works; the other side is "
        "late.",
        (
            SLOW,
            Cause(
                "The connection waits in the accept queue: nobody has read the request.",
                "`udsproxy state PATH`; `udsproxy tap PATH` says `after ... in the queue`.",
                "See `udsproxy explain connect EAGAIN`.",
            ),
        ),
        pattern=r"\bunix\b.*\bi/o timeout|^i/o timeout$|context deadline exceeded",
    ),
    Symptom(
        "use of closed network connection",
        "The program closed its own connection or listener itself, and used it once more. The other side has "
        "no part in it.",
        (
            Cause(
                "It is ending: the line is harmless then.",
                "Other lines of its end beside it.",
            ),
            Cause(
                "Two of its goroutines share a connection, and one closes it.",
                "The program's trace; `udsproxy tap PATH -v`: `closed by` its side.",
                "Correct the program.",
            ),
        ),
    ),
    Symptom(
        "Could not open a connection to your authentication agent",
        "ssh-add found no agent: SSH_AUTH_SOCK is not set, or nobody listens where it leads.",
        (
            Cause(
                "No agent was started in this session, or the variable was not passed on (sudo, cron, tmux).",
                "`echo $SSH_AUTH_SOCK`; `ls -l $SSH_AUTH_SOCK`.",
                "`eval $(ssh-agent)`; `sudo --preserve-env=SSH_AUTH_SOCK`.",
            ),
        ),
    ),
    Symptom(
        "Empty reply from server",
        "The server closed in an orderly way without an answer (curl's error 52).",
        (
            DIED,
            RESTARTED,
            Cause(
                "The server does not speak HTTP.",
                "`udsproxy tap PATH -vv` shows its bytes.",
                "Ask it in its own protocol (`udsproxy request` for FastCGI).",
            ),
        ),
        pattern=r"empty reply from server",
        fault="close",
    ),
    Symptom(
        "Trigger limit hit, refusing further activation",
        "systemd started the service for this socket too often (TriggerLimitBurst=, 20 in 2 s), and gave up: "
        "it closes the socket, and clients get ECONNREFUSED.",
        (
            Cause(
                "The service ends, or fails, without accepting the connection, so that the socket stays readable.",
                "`journalctl -u UNIT` of the service, for its own error.",
                "Correct that first; then `systemctl reset-failed` and `systemctl start` the socket unit.",
            ),
            Cause(
                "The service does not use the socket that it is given (it binds its own).",
                "`systemctl cat UNIT`; whether the program knows LISTEN_FDS.",
                "Accept=no and a program that knows LISTEN_FDS, or no socket unit.",
            ),
        ),
    ),
    Symptom(
        "Main process exited, code=killed",
        "The server was killed. Its socket's file stays, and clients get ECONNREFUSED until it runs again; "
        "those that were connected get ECONNRESET.",
        (
            Cause(
                "status=9/KILL: the kernel was out of memory, or it did not end in TimeoutStopSec=.",
                "`journalctl -k | grep -i 'killed process'`; `systemctl show UNIT -p MemoryMax -p Result`.",
                "Less memory a worker, or fewer workers; Restart=on-failure.",
            ),
            Cause(
                "status=11/SEGV, 6/ABRT: it crashed.",
                "`coredumpctl list`; `journalctl -k | grep -i segfault`.",
                "Update it; Restart=on-failure.",
            ),
        ),
        pattern=r"main process exited, code=(?:killed|dumped)"
        r"|failed with result '(?:signal|core-dump|oom-kill|watchdog)'",
    ),
    Symptom(
        "Out of memory: Killed process",
        "The kernel, or a container's limit, was out of memory and killed this process. If it was a worker, "
        "its client has ECONNRESET, or `upstream prematurely closed`; if it was the server, ECONNREFUSED comes "
        "next.",
        (
            Cause(
                "All workers together need more memory than there is.",
                "The process and its anon-rss in the line; `systemctl show UNIT -p MemoryMax`.",
                "Fewer workers (pm.max_children), or less memory a worker (memory_limit).",
            ),
        ),
        pattern=r"out of memory.*\bkilled process|killed by the OOM killer|memory cgroup out of memory",
    ),
    Symptom(
        "segfault at",
        "A process crashed. If it was a worker, its client has ECONNRESET, or `upstream prematurely closed`.",
        (
            Cause(
                "A bug in the program, or in an extension; the library is named behind `in`.",
                "`coredumpctl list`; `coredumpctl info` has the functions.",
                "Update it; leave out one extension after the other.",
            ),
        ),
        pattern=r"\bsegfault at\b|\bgeneral protection fault ip:",
        programs=("kernel",),
    ),
    Symptom(
        "a file that could not be opened",
        "The line names a file that is no socket: a program's open(), mkdir() or the like failed. No socket is "
        "involved.",
        (
            Cause(
                "ENOENT: the file, or the directory before it, does not exist.",
                "`ls -l FILE`; a relative name counts from `readlink /proc/PID/cwd`.",
                "Make it, or correct the setting that names it.",
                errno="ENOENT",
            ),
            Cause(
                "EACCES, EPERM: the program's user may not read or write it, or not enter a directory before it.",
                "`namei -l FILE`; `ps -o user,cmd -p PID`.",
                "Give it to that user, or start the program as another one.",
            ),
            Cause(
                "ENOSPC, EDQUOT, EROFS: the disk is full, or read-only.",
                "`df -h FILE`; `findmnt -T FILE`.",
                "Make room, or use another directory.",
            ),
        ),
        pattern=_FILES,
        elsewhere=True,
    ),
)
