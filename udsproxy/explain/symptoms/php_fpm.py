"""php-fpm's own log.

Rules: as in `udsproxy.explain.symptoms.nginx`.
"""

from __future__ import annotations

from udsproxy.explain.errors import Cause
from udsproxy.explain.symptoms.causes import QUEUED, SLOW
from udsproxy.explain.symptoms.model import Symptom

PHP_FPM: tuple[Symptom, ...] = (
    Symptom(
        "server reached pm.max_children setting",
        "All workers of the pool are busy, and no more may be started. Who comes now waits in the accept "
        "queue, then gets EAGAIN. pm = dynamic and ondemand log this; pm = static never does.",
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
                "`udsproxy state PATH`; `grep -rn 'listen =' /etc/php`.",
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
        "seems busy (you may need to increase pm.start_servers, or pm.min/max_spare_servers)",
        "pm = dynamic is behind the load: too few workers are idle, and it starts more, once a second. Until "
        "they are there, clients wait in the accept queue, and get EAGAIN when that is full.",
        (
            Cause(
                "Load comes faster than workers are started (at first one a second, then 2, 4 ... 32).",
                "The lines follow each other, with more children each time; `udsproxy tap PATH` has `queue "
                "full` then.",
                "Raise pm.start_servers and pm.min_spare_servers, or use pm = static.",
            ),
            Cause(
                "All workers are busy with something slow.",
                "`udsproxy state PATH` shows what each waits for.",
                "Make that faster, or bound it.",
            ),
        ),
        pattern=r"\] seems busy\b|^seems busy\b",
        programs=("php-fpm",),
        see=("nginx-php-fpm.md#catch-error-11",),
    ),
    Symptom(
        "execution timed out, terminating",
        "The request ran into request_terminate_timeout, and php-fpm killed its worker (SIGTERM). nginx has "
        "`recv() failed (104: Connection reset by peer)` or `upstream prematurely closed` for it, and answers "
        "502.",
        (
            SLOW,
            Cause(
                "The limit is shorter than the script may take.",
                "The seconds in the line; `grep -rn request_terminate_timeout /etc/php`.",
                "Raise request_terminate_timeout, and fastcgi_read_timeout with it.",
            ),
        ),
        pattern=r"execution timed out\b.*terminating",
        programs=("php-fpm",),
    ),
    Symptom(
        "executing too slow, logging",
        "The request takes longer than request_slowlog_timeout; where the script was is in the slowlog. It "
        "goes on.",
        (SLOW, QUEUED),
        pattern=r"executing too slow\b.*logging",
        programs=("php-fpm",),
    ),
    Symptom(
        "exited on signal",
        "A worker ended in the middle of its work. nginx has `recv() failed (104: Connection reset by peer)` "
        "or `upstream prematurely closed` for its request, and answers 502.",
        (
            Cause(
                "SIGSEGV (11), SIGBUS (7), SIGABRT (6): a crash of PHP or of an extension (opcache, a profiler).",
                "`journalctl -k | grep -i segfault` names the library; `coredumpctl list php-fpm8.2`.",
                "Update PHP; leave out one extension after the other.",
            ),
            Cause(
                "SIGKILL (9): the kernel or the container was out of memory, or somebody killed it.",
                "`journalctl -k | grep -i 'killed process'`; `systemctl show UNIT -p MemoryMax`.",
                "Less memory a worker (memory_limit), or fewer workers.",
            ),
            Cause(
                "SIGTERM (15): request_terminate_timeout, or php-fpm is being stopped.",
                "The lines before: `execution timed out`, or `Terminating`.",
                "Reload instead of restart, with process_control_timeout set.",
            ),
        ),
        pattern=r"\bexited on signal\b",
        programs=("php-fpm",),
    ),
    Symptom(
        "path is too long, trying cut socket path instead",
        "php-fpm listens at a path that is cut to what fits (107 bytes). Clients that use the whole path get "
        "ENOENT or EINVAL, and nginx may refuse it when it starts.",
        (
            Cause(
                "listen = of the pool has more than 107 bytes.",
                "`udsproxy state` lists the paths that are listened on.",
                "Use a shorter path, below /run.",
            ),
        ),
        pattern=r"path is too long\b.*trying cut socket path",
        programs=("php-fpm",),
    ),
    Symptom(
        "listen.backlog was too low for the ondemand process manager",
        "With pm = ondemand php-fpm takes at least 511 (on Linux) as its backlog, whatever the file says.",
        (
            Cause(
                "listen.backlog of the pool is smaller than that.",
                "`udsproxy state PATH` has the backlog that counts.",
                "Nothing, or another pm where a short queue is wanted.",
            ),
        ),
        pattern=r"listen\.backlog.{0,20} was too low for the ondemand",
        programs=("php-fpm",),
    ),
    Symptom(
        "unable to read what child say",
        "This is about the pipe with a worker's output (catch_workers_output), not about the socket.",
        (
            Cause(
                "php-fpm is ending or reloading, and the pipes are closed already. It can be ignored.",
                "`Terminating`, `Finishing` or `exiting, bye-bye!` beside it.",
            ),
        ),
        pattern=r"unable to read what child",
        programs=("php-fpm",),
    ),
    Symptom(
        "failed to open error_log",
        "php-fpm could not open a file of its own: a log, or its configuration. The socket has no part in it.",
        (
            Cause(
                "The directory does not exist, or php-fpm's user may not write there.",
                "`namei -l FILE`",
                "Make the directory, and give it to the user who writes it.",
            ),
        ),
        pattern=r"(?:failed|unable) to (?:re-?)?open(?:ed)? (?:the )?(?:error_log|error log|access[_ ]log|slowlog"
        r"|configuration|pid)",
        elsewhere=True,
        programs=("php-fpm",),
    ),
    Symptom(
        "unable to set listen address as it's already used in another pool",
        "php-fpm does not start: two pools have the same listen =.",
        (
            Cause(
                "A pool's file was copied, and its listen = was left as it was.",
                "`grep -rn 'listen =' /etc/php`",
                "Give each pool a path of its own.",
            ),
        ),
        programs=("php-fpm",),
    ),
    Symptom(
        "failed to chown() the socket",
        "php-fpm could not give the socket to listen.owner and listen.group.",
        (
            Cause(
                "php-fpm was not started as root (a container with a user of its own).",
                "`ps -o user,cmd -C php-fpm8.2`",
                "Leave listen.owner and listen.group out, and run the web server as the same user or group.",
            ),
        ),
        pattern=r"failed to ch(?:own|mod)\(\) the socket",
        programs=("php-fpm",),
    ),
    Symptom(
        "ACL set, listen.owner is ignored",
        "Where listen.acl_users or listen.acl_groups is set, php-fpm ignores listen.owner and listen.group: "
        "the ACL decides who may connect, and its mask.",
        (
            Cause(
                "The pool has both.",
                "`getfacl PATH`",
                "Name the web server's user in listen.acl_users, or take the ACL settings out.",
            ),
        ),
        pattern=r"ACL set, listen\.(?:owner|group)\b.*is ignored",
        programs=("php-fpm",),
    ),
    Symptom(
        "exited with code",
        "A worker ended by itself in the middle of its work (code 0 after pm.max_requests is usual). nginx has "
        "`upstream prematurely closed` or 104 where it had a request.",
        (
            Cause(
                "An extension called exit(), or PHP met a fatal error while it started (255).",
                "The lines before; error_log of the pool.",
                "Correct that; leave out one extension after the other.",
            ),
        ),
        pattern=r"\bexited with code [1-9]|^exited with code$",
        programs=("php-fpm",),
    ),
    Symptom(
        "failed processes threshold is reached, initiating reload",
        "Workers crashed emergency_restart_threshold times in emergency_restart_interval, so php-fpm restarts "
        "all of them.",
        (
            Cause(
                "A crash of PHP or of an extension, again and again.",
                "The lines before: `exited on signal 11`; `journalctl -k | grep -i segfault` names the library.",
                "Update PHP; leave out one extension after the other.",
            ),
        ),
        pattern=r"failed processes threshold",
        programs=("php-fpm",),
    ),
    Symptom(
        "php-fpm: a call of its own failed",
        "The error is not one of the listening socket's: php-fpm says what it was about (an ACL, a process, a "
        "setting).",
        (
            Cause(
                "ACL: the filesystem of the socket has none (EOPNOTSUPP), or php-fpm was not started as root "
                "(EPERM).",
                "`getfacl PATH`; `ps -o user,cmd -C php-fpm8.2`.",
                "listen.owner, listen.group and listen.mode instead of listen.acl_users.",
            ),
            Cause(
                "Something that only root may do: setgid, process.priority, rlimit_files.",
                "`ps -o user,cmd -C php-fpm8.2`",
                "Leave that setting out, or start php-fpm as root.",
            ),
        ),
        pattern=r"^(?!.*(?:listening socket|listen to|accept|bind)).*: [A-Z][^:]{3,80} \(\d+\)$",
        elsewhere=True,
        rest=True,
        programs=("php-fpm",),
    ),
)
