"""What connect() returns on a Unix socket."""

from __future__ import annotations

from udsproxy.explain.errors.model import Cause, Meaning

CONNECT: tuple[Meaning, ...] = (
    Meaning(
        "connect",
        "EAGAIN",
        "The server's accept queue is full. As many connections wait as its backlog allows (N lets N + 1 "
        "wait), and nobody accepts them. A non-blocking connect(), as nginx's, fails at once and leaves "
        "nothing behind; a blocking one waits, up to SO_SNDTIMEO.",
        (
            Cause(
                "All workers are busy with something slow: a script, a query, a call to another server.",
                "`udsproxy state PATH` while it lasts shows the queue, and what each worker waits for. "
                "`udsproxy tap PATH` afterwards: the requests that end first after `queue full` held the "
                "workers.",
                "Make that faster, or bound it (timeouts of the database and of other calls, "
                "request_terminate_timeout). A longer queue only makes more clients wait for longer.",
            ),
            Cause(
                "There are too few workers for the load.",
                "No single request is slow in `udsproxy tap PATH`; `udsproxy doctor PATH` compares the settings. "
                "With pm = dynamic or ondemand php-fpm's log has `server reached pm.max_children setting`; "
                "pm = static never logs that.",
                "Raise pm.max_children, as far as memory and the database allow.",
            ),
            Cause(
                "A burst came that is longer than the queue, and is over a moment later.",
                "`udsproxy state PATH` has the backlog, and how many wait now. In `udsproxy tap PATH`, `queue "
                "no longer full` soon follows `queue full`.",
                "Raise listen.backlog, and net.core.somaxconn to no less (the smaller one counts), then "
                "restart the server.",
            ),
            Cause(
                "New workers come too slowly: pm = dynamic adds some once a second, pm = ondemand starts from "
                "none.",
                "The errors come only when load begins; with pm = dynamic php-fpm's log may have `seems busy ... "
                "spawning` then.",
                "Raise pm.start_servers and pm.min_spare_servers, or use pm = static.",
            ),
            Cause(
                "The server accepts nobody: it is stopped, in a debugger, or hangs.",
                "`udsproxy doctor PATH` says who is stopped. `udsproxy state PATH` twice: the queue does not move.",
                "Let it go on (`kill -CONT`), or restart it.",
            ),
        ),
        fault="eagain",
        see=("nginx-php-fpm.md#catch-error-11",),
    ),
    Meaning(
        "connect",
        "ENOENT",
        "There is no file at this path. The server has not made its socket, has removed it, or has it elsewhere.",
        (
            Cause(
                "The server is not running: php-fpm removes its socket when it stops, and makes it anew.",
                "`systemctl status php8.2-fpm`; `journalctl -u php8.2-fpm` has why it stopped.",
                "Start it. Where it happens at each deployment, reload it (SIGUSR2) instead of restarting: the "
                "socket stays.",
            ),
            Cause(
                "Client and server have different paths (often after an update: php8.1-fpm.sock, php8.2-fpm.sock).",
                "`udsproxy state` lists the paths that are listened on; compare them with fastcgi_pass.",
                "Make both the same.",
            ),
            Cause(
                "Client and server see different files: containers, chroot, or PrivateTmp= with a socket in /tmp.",
                "`ls -l PATH`, and the same from the client's side: `sudo nsenter -t PID -m ls -l PATH`.",
                "Use a directory that both have, below /run.",
            ),
            Cause(
                "Somebody removed the file; the server listens on, and cannot be reached.",
                "`udsproxy state PATH` says that its file has been removed.",
                "Restart the server; find who cleans up (systemd-tmpfiles, a deployment).",
            ),
            Cause(
                "The path is relative, or an abstract name without its @.",
                "`strace -f -e trace=connect -p PID` shows it as the kernel gets it.",
                "Give the whole path.",
            ),
        ),
        fault="missing",
    ),
    Meaning(
        "connect",
        "ECONNREFUSED",
        "The file is there, and nobody listens on it. With an abstract name (@...): nobody has that name.",
        (
            Cause(
                "The server was killed, and its socket's file is left over.",
                "`udsproxy state PATH` says that nobody listens; `journalctl -k | grep -i 'killed process'` "
                "for the kernel's memory killer, `journalctl -u php8.2-fpm` for a crash.",
                "Start it: it replaces the file. (One that does not has EADDRINUSE then: `udsproxy explain "
                "bind EADDRINUSE`.)",
                only="path",
            ),
            Cause(
                "The server is not running: an abstract name goes away with it.",
                "`udsproxy state PATH`",
                "Start it.",
                only="abstract",
            ),
            Cause(
                "The file itself is mounted into a container (a bind mount), and the server was restarted "
                "since: the mount is stale. It still has the old file, whose server is gone.",
                "`findmnt -T PATH`, in the container: PATH itself is the mount, and its source ends with "
                "`//deleted`. `ls -i PATH` shows another number inside than outside.",
                "Mount the directory instead of the file (`-v /run/php:/run/php`), and start the container "
                "anew. To restart the server changes nothing.",
                only="path",
            ),
            Cause(
                "The client sees the file through another filesystem than the server: NFS, FUSE (a folder that "
                "is shared with a virtual machine), or another layer of an overlay (an image's file, or the "
                "directory below /var/lib/docker). A socket can be reached only through the filesystem it was "
                "bound on, on the same machine.",
                "`findmnt -T PATH`, for the server and for the client (`sudo nsenter -t PID -m findmnt -T PATH`).",
                "A directory on tmpfs or on a disk that both mount (a volume); over a network use TCP.",
                only="path",
            ),
            Cause(
                "A tap of this path was killed, and its guardian too: what is there is the tap's.",
                "`ls -l PATH.udsproxy`: that is the server's own socket then; `udsproxy doctor PATH` says so.",
                "`udsproxy tap --restore PATH`",
                only="path",
            ),
            Cause(
                "The server starts: it has called bind(), and listen() not yet.",
                "It is over in a moment.",
                "Try again, or start the client after the server (systemd: After=, or a .socket unit).",
            ),
            Cause(
                "The server stops: it has shut its listening socket down.",
                "`journalctl -u php8.2-fpm` at that time.",
            ),
            Cause(
                "The file is no socket.",
                "`ls -l PATH`: a socket's line begins with s.",
                "Correct the path.",
                only="path",
            ),
            Cause(
                "The abstract name belongs to another network namespace (each container has its own).",
                "`udsproxy state PATH`, here and there: `sudo nsenter -t PID -n udsproxy state PATH`.",
                "Use a path: a file can be shared.",
                only="abstract",
            ),
        ),
        fault="refuse",
    ),
    Meaning(
        "connect",
        "EACCES",
        "The client may not write to the socket's file, or not enter a directory before it.",
        (
            Cause(
                "Owner, group or mode of the socket leave the client's user out.",
                "`ls -l PATH`, and whom the client runs as: `ps -o user,group,cmd -C nginx`. `udsproxy doctor "
                "PATH` compares them.",
                "listen.owner, listen.group and listen.mode = 0660 of the pool; then restart php-fpm.",
            ),
            Cause(
                "A directory on the way may not be entered (x is needed on each).",
                "`namei -l PATH`; `sudo -u www-data stat PATH`.",
                "`chmod o+x` that directory, or put the socket below /run.",
            ),
            Cause(
                "SELinux or AppArmor forbids it, though the permissions are right.",
                "`ausearch -m avc -ts recent`, `journalctl -k | grep -i denied`.",
                "Change the policy: the label of the file (`restorecon -v PATH`), or the profile.",
            ),
            Cause(
                "The client has been added to a group, and was not restarted since.",
                "`grep Groups /proc/PID/status` of the client against `id www-data`.",
                "Restart it.",
            ),
        ),
        fault="deny",
    ),
    Meaning(
        "connect",
        "EPROTOTYPE",
        "The socket at this path is of another type. A stream, seqpacket or datagram socket reaches only its own.",
        (
            Cause(
                "The client uses SOCK_STREAM for a datagram socket, or the other way round (syslog: /dev/log "
                "is datagram).",
                "`ss -xa | grep PATH`: u_str is a stream, u_seq seqpacket, u_dgr datagram.",
                "Use the server's type.",
            ),
            Cause(
                "The path is that of another program's socket.",
                "`udsproxy state PATH` names the process.",
                "Correct the path.",
            ),
        ),
    ),
    Meaning(
        "connect",
        "EISCONN",
        "This socket is connected already.",
        (
            Cause(
                "connect() is called again on a socket in use, most often in a loop that tries again.",
                "`strace -f -e trace=connect -p PID`: an earlier connect() of the same descriptor returned 0.",
                "After success use it; for another connection make another socket.",
            ),
        ),
    ),
    Meaning(
        "connect",
        "EINVAL",
        "The path is too long, or no address of a Unix socket; or this socket listens.",
        (
            Cause(
                "The path is too long: 107 bytes with its ending zero, 108 at most (Go and others report it so).",
                "`printf %s PATH | wc -c`",
                "Use a shorter path, a symbolic link to its directory, or go there and use a relative one.",
            ),
            Cause(
                "The address is empty, or its family is not AF_UNIX.",
                "`strace -f -e trace=connect -p PID` shows the address.",
            ),
            Cause(
                "This socket listens.",
                "`strace` shows a listen() of the same descriptor.",
                "Make another socket to connect with.",
            ),
        ),
    ),
    Meaning(
        "connect",
        "EPERM",
        "It is not allowed, by something other than the file's permissions.",
        (
            Cause(
                "Datagram: the other socket is itself connected, to somebody else, and takes messages from "
                "there only.",
                "`ss -xa | grep PATH`: the last number of its line is its peer, not 0.",
            ),
            Cause(
                "A sandbox forbids it: Landlock (abstract names out of reach), seccomp, BPF on the cgroup.",
                "`grep -i seccomp /proc/PID/status`; `systemctl show UNIT -p SystemCallFilter`.",
                "Loosen that rule for this program.",
            ),
        ),
    ),
    Meaning(
        "connect",
        "EINTR",
        "A signal came while connect() waited in a full queue. The connection was not made.",
        (
            Cause(
                "A blocking connect() waits because the accept queue is full; the signal only shows it.",
                "`udsproxy state PATH` shows the queue. See EAGAIN.",
                "Call it again: on a Unix socket nothing goes on behind it.",
            ),
        ),
    ),
    Meaning(
        "connect",
        "ENFILE",
        "The system has too many sockets. There may be twice fs.file-max Unix sockets.",
        (
            Cause(
                "Some program leaks connections.",
                "`ss -xp | grep -o 'users:.*' | cut -d'\"' -f2 | sort | uniq -c | sort -n`; `sysctl fs.file-nr`.",
                "Restart that program; raise fs.file-max.",
            ),
        ),
        unprovoked="it would take the descriptors of the whole machine",
    ),
)
