"""Every errno that Linux returns on a Unix socket for connect, accept, send, recv, bind and listen.

Read from net/unix/af_unix.c, net/socket.c, net/core/scm.c and fs/namei.c of Linux 6.18. ``send`` stands for write,
sendto and sendmsg too, ``recv`` for read, recvfrom and recvmsg. tests/explain/test_errors.py provokes each one.

Rules:

* Causes stand in order of likelihood, for who runs nginx with php-fpm first, true for any program.
* The first sentence of ``means`` is what the overview shows: short.
* ``PATH`` in a text is the socket: where it is known, it is put there.
* Running out of memory (ENOMEM) is left out: every call can return it, and it means nothing else.
"""

from __future__ import annotations

import errno as numbers
from typing import Literal, get_args

import msgspec

from udsproxy.events import errno_message

Call = Literal["connect", "accept", "send", "recv", "bind", "listen"]
CALLS: tuple[Call, ...] = get_args(Call)


class Cause(msgspec.Struct, frozen=True):
    """One cause; ``check``: how to tell that it is this one; ``do``: what to do about it."""

    text: str
    check: str
    do: str = ""


class Meaning(msgspec.Struct, frozen=True):
    """What ``errno`` means when ``call`` returns it on a Unix socket.

    ``fault`` is what reproduces it (docs/faults.md has the spelling), ``see`` pages of docs/, ``unprovoked`` why no
    test provokes it.
    """

    call: Call
    errno: str
    means: str
    causes: tuple[Cause, ...]
    fault: str | None = None
    see: tuple[str, ...] = ()
    unprovoked: str = ""

    @property
    def number(self) -> int:
        """11 for EAGAIN."""
        return number_of(self.errno)

    @property
    def words(self) -> str:
        """The kernel's: ``Resource temporarily unavailable`` for EAGAIN."""
        return errno_message(self.number)

    @property
    def short(self) -> str:
        """The first sentence."""
        return self.means.split(". ")[0].removesuffix(".") + "."


def number_of(name: str) -> int:
    """11 for EAGAIN. Raises `KeyError` where Linux has no such errno."""
    try:
        return int(getattr(numbers, name))
    except (AttributeError, ValueError):
        raise KeyError(name) from None


_QUEUE = "nginx-php-fpm.md#catch-error-11"

# --- connect ---

_CONNECT = (
    Meaning(
        "connect",
        "EAGAIN",
        "The server's accept queue is full. As many connections wait as its backlog allows (N lets N + 1 wait), "
        "and "
        "nobody accepts them. A non-blocking connect(), as nginx's, fails at once and leaves nothing behind; a "
        "blocking one waits, up to SO_SNDTIMEO.",
        (
            Cause(
                "All workers are busy with something slow: a script, a query, a call to another server.",
                "`udsproxy state PATH` while it lasts shows the queue, and what each worker waits for. "
                "`udsproxy tap PATH` afterwards: the requests that end first after `queue full` held the workers.",
                "Make that faster, or bound it (timeouts of the database and of other calls, "
                "request_terminate_timeout). A longer queue only makes more clients wait for longer.",
            ),
            Cause(
                "There are too few workers for the load.",
                "php-fpm's log has `server reached pm.max_children setting`, and no single request is slow in "
                "`udsproxy tap PATH`; `udsproxy doctor PATH` compares the settings.",
                "Raise pm.max_children, as far as memory and the database allow.",
            ),
            Cause(
                "A burst came that is longer than the queue, and is over a moment later.",
                "`ss -xl`: Send-Q of the listening socket is its backlog, Recv-Q how many wait now. In `udsproxy "
                "tap "
                "PATH`, `queue no longer full` soon follows `queue full`.",
                "Raise listen.backlog, and net.core.somaxconn to no less (the smaller one counts), then restart "
                "the "
                "server.",
            ),
            Cause(
                "New workers come too slowly: pm = dynamic adds some once a second, pm = ondemand starts from "
                "none.",
                "php-fpm's log has `seems busy ... spawning`; the errors come only when load begins.",
                "Raise pm.start_servers and pm.min_spare_servers, or use pm = static.",
            ),
            Cause(
                "The server accepts nobody: it is stopped, in a debugger, or hangs.",
                "`udsproxy doctor PATH` says who is stopped. `udsproxy state PATH` twice: the queue does not move.",
                "Let it go on (`kill -CONT`), or restart it.",
            ),
        ),
        fault="eagain",
        see=(_QUEUE,),
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
                "socket "
                "stays.",
            ),
            Cause(
                "Client and server have different paths (often after an update: php8.1-fpm.sock, php8.2-fpm.sock).",
                "`ss -xl | grep php` has the path that is listened on; compare it with fastcgi_pass.",
                "Make both the same.",
            ),
            Cause(
                "Client and server see different files: containers, chroot, or PrivateTmp= with a socket in /tmp.",
                "`ls -l PATH`, and the same from the client's side: `sudo nsenter -t PID -m ls -l PATH`.",
                "Use a directory that both have, below /run.",
            ),
            Cause(
                "Somebody removed the file; the server listens on, and cannot be reached.",
                "`ss -xl | grep PATH` shows a listener, `ls PATH` no file.",
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
                "`ss -xl | grep PATH` shows no listener; `journalctl -k | grep -i 'killed process'` for the "
                "kernel's "
                "memory killer, `journalctl -u php8.2-fpm` for a crash.",
                "Start it: it replaces the file (a server that does not needs the file removed first).",
            ),
            Cause(
                "A tap of this path was killed, and its guardian too: what is there is the tap's.",
                "`ls -l PATH.udsproxy`: that is the server's own socket then; `udsproxy doctor PATH` says so.",
                "`udsproxy tap --restore PATH`",
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
            ),
            Cause(
                "The abstract name is of another network namespace (a container has its own).",
                "`ss -xl | grep NAME` on both sides.",
                "Use a path; a file can be shared.",
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
                "PATH` "
                "compares them.",
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
                "The client uses SOCK_STREAM for a datagram socket, or the other way round (syslog: /dev/log is "
                "datagram).",
                "`ss -xa | grep PATH`: u_str is a stream, u_seq seqpacket, u_dgr datagram.",
                "Use the server's type.",
            ),
            Cause(
                "The path is that of another program's socket.",
                "`ss -xap | grep PATH` names the process.",
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
                "Datagram: the other socket is itself connected, to somebody else, and takes messages from there "
                "only.",
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

# --- paths: connect, bind, and send to an address ---


def _path_errors(call: Literal["connect", "send", "bind"]) -> tuple[Meaning, ...]:
    return (
        Meaning(
            call,
            "ENOTDIR",
            "Something on the way to this path is a file, not a directory.",
            (
                Cause(
                    "The path has a / too many, or a socket's path is used as if it were a directory.",
                    "`namei -l PATH` shows each part of it.",
                    "Correct the path.",
                ),
            ),
        ),
        Meaning(
            call,
            "ELOOP",
            "There are too many symbolic links on the way.",
            (
                Cause(
                    "A symbolic link leads to itself, or two to each other.",
                    "`namei -l PATH` ends with `exceeded limit of symlinks`.",
                    "Remove the link.",
                ),
            ),
        ),
        Meaning(
            call,
            "ENAMETOOLONG",
            "A symbolic link leads to a name of more than 255 bytes.",
            (
                Cause(
                    "The link is wrong; a path that is too long by itself is EINVAL.",
                    "`namei -l PATH`",
                    "Correct the link.",
                ),
            ),
        ),
    )


# --- accept ---

_ACCEPT = (
    Meaning(
        "accept",
        "EAGAIN",
        "Nobody waits to be accepted. For a non-blocking listener that is no failure.",
        (
            Cause(
                "Another worker that listens on the same socket was faster.",
                "`strace -f -e trace=accept4 -p PID`: each connection wakes several, and one gets it.",
                "Wait until it is readable again; EPOLLEXCLUSIVE wakes fewer.",
            ),
            Cause(
                "The program calls accept() until nobody is left, which is right.",
                "There is one such call after each connection.",
            ),
            Cause(
                "The listener has SO_RCVTIMEO, and the time is over.",
                "`strace` shows setsockopt(..., SO_RCVTIMEO, ...), or the call lasts that long (`strace -T`).",
            ),
        ),
    ),
    Meaning(
        "accept",
        "EMFILE",
        "The process has no descriptor left. Clients stay in the accept queue, and the listener stays readable.",
        (
            Cause(
                "Its limit is too low for so many connections.",
                "`grep 'open files' /proc/PID/limits` against `ls /proc/PID/fd | wc -l`.",
                "Raise it: LimitNOFILE= of the unit, worker_rlimit_nofile of nginx, rlimit_files of php-fpm.",
            ),
            Cause(
                "It leaks descriptors.",
                "`ls -l /proc/PID/fd` later again: the same kind grows with each request.",
                "Close them; until then restart it now and then (pm.max_requests).",
            ),
        ),
    ),
    Meaning(
        "accept",
        "ENFILE",
        "The whole system has no file left.",
        (
            Cause(
                "All programs together have as many files open as fs.file-max allows.",
                "`sysctl fs.file-nr`: the first number has reached the third.",
                "Find who holds them (`lsof | awk '{print $1}' | sort | uniq -c | sort -n`); raise fs.file-max.",
            ),
        ),
        unprovoked="it would take the descriptors of the whole machine",
    ),
    Meaning(
        "accept",
        "EINVAL",
        "This socket does not listen, or was shut down.",
        (
            Cause(
                "listen() was not called, or on another descriptor.",
                "`ss -xlp`: the process has no listening socket there.",
                "Call bind(), listen(), accept(), in this order.",
            ),
            Cause(
                "A blocking accept(), and the listener was shut down by another thread or process: the program "
                "ends.",
                "`strace -f -e trace=shutdown -p PID`",
            ),
            Cause("accept4() got a flag that it does not know.", "`strace -f -e trace=accept4 -p PID`"),
        ),
    ),
    Meaning(
        "accept",
        "EOPNOTSUPP",
        "This is a datagram socket. It has no connections.",
        (
            Cause(
                "The socket was made with SOCK_DGRAM.",
                "`ss -xap | grep PATH`: u_dgr.",
                "Receive messages from it, or make it SOCK_STREAM or SOCK_SEQPACKET.",
            ),
        ),
    ),
    Meaning(
        "accept",
        "EINTR",
        "A signal came while accept() waited. Nobody was accepted, and nobody lost.",
        (
            Cause(
                "A handler ran (SIGCHLD, SIGTERM, SIGHUP) that was installed without SA_RESTART.",
                "`strace -f -e trace=accept4 -p PID` shows the signal after the call.",
                "Call it again, or end, if that is what the signal asks.",
            ),
        ),
    ),
)

# --- send ---

_SEND = (
    Meaning(
        "send",
        "EPIPE",
        "The other side has closed, or takes nothing any more. On a stream SIGPIPE comes with it, where "
        "MSG_NOSIGNAL is "
        "not given.",
        (
            Cause(
                "The client gave up before the answer was written. In php-fpm's worker: nginx ran into "
                "fastcgi_read_timeout, or its client left.",
                "nginx's log at that time: error 110, or 499 in the access log; `udsproxy tap PATH` has `client "
                "left`.",
                "Find what made the answer late; a longer timeout if it may be late.",
            ),
            Cause(
                "The server closed while the client still wrote: its worker crashed, was killed, or ran into "
                "request_terminate_timeout.",
                "`journalctl -u php8.2-fpm`: `exited on signal`, `execution timed out`.",
                "Mend the crash; raise the limit that ended it.",
            ),
            Cause(
                "A kept connection was closed by the other side in its idle time.",
                "The error comes with the first bytes of a request; `udsproxy tap PATH -v` shows `closed by "
                "upstream` "
                "before it.",
                "Let the client close first (its keepalive_timeout shorter than the server's), and try again once.",
            ),
            Cause(
                "The server ended with this connection still in its accept queue.",
                "It was restarted at that time (`systemctl status php8.2-fpm`).",
                "Reload instead of restart.",
            ),
            Cause(
                "This side called shutdown(SHUT_WR) itself.",
                "`strace -f -e trace=shutdown -p PID`",
            ),
        ),
        fault="close",
    ),
    Meaning(
        "send",
        "EAGAIN",
        "The other side does not read, and what the kernel keeps for it is full. On a non-blocking socket that "
        "is no "
        "failure: wait until it is writable.",
        (
            Cause(
                "The reader is slower than the writer, or busy with something else.",
                "`ss -xp | grep PATH`: Recv-Q of the reader's socket stays large. `udsproxy state PATH` shows "
                "what a "
                "worker waits for.",
                "Wait for EPOLLOUT; find what holds the reader.",
            ),
            Cause(
                "The connection still waits in the accept queue: nobody reads it.",
                "`udsproxy state PATH`",
                "See EAGAIN of connect().",
            ),
            Cause(
                "Datagram: the receiver's queue is full (net.unix.max_dgram_qlen messages and one more, 10 by "
                "default).",
                "`sysctl net.unix.max_dgram_qlen`; `ss -xa | grep PATH`.",
                "Let the receiver read faster, or raise it before that socket is made.",
            ),
            Cause(
                "A blocking socket has SO_SNDTIMEO, and the time is over.",
                "`strace -T -f -e trace=sendto,sendmsg,write -p PID`: the call lasts that long.",
            ),
            Cause(
                "The send buffer is small, or filled by many small writes (each counts with what the kernel adds).",
                "`ss -xm | grep -A1 PATH`: tb is the limit.",
                "Write larger pieces; SO_SNDBUF.",
            ),
        ),
        fault="stall@c2s",
    ),
    Meaning(
        "send",
        "ECONNRESET",
        "The other side closed, and had not read all that was sent to it. Seqpacket and datagram only: on a stream "
        "send() has EPIPE for it, and recv() this.",
        (
            Cause(
                "The receiver ended, crashed, or gave up on purpose with messages unread.",
                "Its log at that time; `udsproxy tap PATH` says who closed.",
            ),
            Cause(
                "Datagram: the peer of a connected pair has connected elsewhere.",
                "`strace -f -e trace=connect -p PID` of the peer.",
            ),
        ),
    ),
    Meaning(
        "send",
        "ENOTCONN",
        "This socket is connected to nobody, and no address was given.",
        (
            Cause(
                "connect() failed, and its result was not looked at. After EAGAIN the socket is not connected, and "
                "never becomes so by itself, as it would with TCP.",
                "`strace -f -e trace=connect,sendto,sendmsg,write -p PID`",
                "Look at what connect() returns; after EAGAIN call it again later.",
            ),
            Cause(
                "Datagram: the receiver is gone. The first send() after that had ECONNREFUSED, and disconnected "
                "it.",
                "`ss -xa | grep PATH`",
                "Connect again, as syslog() does.",
            ),
            Cause(
                "Data is sent on the listening socket in place of the accepted one.",
                "`strace -f -e trace=accept4,sendto,write -p PID`: compare the descriptors.",
            ),
        ),
    ),
    Meaning(
        "send",
        "ECONNREFUSED",
        "Datagram: nobody receives at that address. The file is there, its owner is gone.",
        (
            Cause(
                "The receiver was restarted or has died (a syslog daemon, say).",
                "`ss -xa | grep PATH` shows no socket.",
                "Start it; connect again.",
            ),
            Cause("The file is no socket.", "`ls -l PATH`: a socket's line begins with s.", "Correct the path."),
        ),
    ),
    Meaning(
        "send",
        "EMSGSIZE",
        "The message is too long. A datagram or a seqpacket message has to fit into the send buffer as a whole.",
        (
            Cause(
                "It is longer than SO_SNDBUF less 32 bytes (212,992 by default).",
                "`strace -f -e trace=sendto,sendmsg -p PID` shows the length; `sysctl net.core.wmem_default`.",
                "Send less at once, raise SO_SNDBUF (up to net.core.wmem_max), or pass a descriptor of a file "
                "(memfd).",
            ),
            Cause(
                "sendmsg() got more than 1024 pieces (IOV_MAX); of any type.",
                "`getconf IOV_MAX`",
                "Send it in several calls.",
            ),
        ),
    ),
    Meaning(
        "send",
        "EISCONN",
        "An address was given, and this stream is connected.",
        (
            Cause(
                "sendto() with an address is used on a stream.",
                "`strace -f -e trace=sendto,sendmsg -p PID`",
                "Leave the address out.",
            ),
        ),
    ),
    Meaning(
        "send",
        "EOPNOTSUPP",
        "This type of socket cannot do what was asked.",
        (
            Cause(
                "MSG_OOB on a seqpacket or datagram socket; or on a kernel before 5.15.",
                "`strace -f -e trace=sendto,sendmsg -p PID`",
                "Leave the flag out.",
            ),
            Cause(
                "An address was given, and the socket is a stream that is not connected.",
                "`strace -f -e trace=sendto,sendmsg -p PID`",
                "Connect it first.",
            ),
        ),
    ),
    Meaning(
        "send",
        "EINVAL",
        "An argument is wrong.",
        (
            Cause(
                "More than 253 descriptors in one message (SCM_RIGHTS), or a control message that is malformed.",
                "`strace -f -e trace=sendmsg -p PID`",
                "Send fewer at once.",
            ),
            Cause(
                "Datagram: the address is empty, too long (108 bytes at most), or of another family.",
                "`strace -f -e trace=sendto,sendmsg -p PID`",
            ),
        ),
    ),
    Meaning(
        "send",
        "EPERM",
        "It is not allowed, by something other than the file's permissions.",
        (
            Cause(
                "Credentials of another process, user or group were put into the message (SCM_CREDENTIALS).",
                "`strace -f -e trace=sendmsg -p PID` shows them.",
                "Send one's own; others need CAP_SYS_ADMIN, CAP_SETUID or CAP_SETGID.",
            ),
            Cause(
                "Datagram: the receiver is connected to somebody else, and takes messages from there only.",
                "`ss -xa | grep PATH`: the last number of its line is its peer, not 0.",
            ),
        ),
    ),
    Meaning(
        "send",
        "ESRCH",
        "The credentials in the message name a process that does not exist.",
        (
            Cause(
                "The pid in SCM_CREDENTIALS has ended, or is of another pid namespace.",
                "`strace -f -e trace=sendmsg -p PID`; `ps -p` that pid.",
                "Send one's own pid.",
            ),
        ),
    ),
    Meaning(
        "send",
        "ETOOMANYREFS",
        "Too many descriptors of this user are on their way (SCM_RIGHTS). Counted are those that nobody has "
        "received "
        "yet, against the sender's limit of open files.",
        (
            Cause(
                "The receiver does not read, or not as fast as descriptors are sent.",
                "`grep scm_fds /proc/PID/fdinfo/*` shows how many wait in each socket.",
                "Read them; send fewer; raise LimitNOFILE= of the sender.",
            ),
            Cause(
                "Another process of the same user has sent many.",
                "`grep -H scm_fds /proc/*/fdinfo/* 2>/dev/null | grep -v ' 0$'`",
            ),
        ),
    ),
    Meaning(
        "send",
        "ENOBUFS",
        "The kernel has no memory in one piece for this message.",
        (
            Cause(
                "The datagram is of megabytes, and SO_SNDBUF was raised to allow it.",
                "`strace -f -e trace=sendto,sendmsg -p PID` shows the length.",
                "Send less at once, use a stream, or pass a descriptor of a file (memfd).",
            ),
            Cause(
                "The machine, or the cgroup, is out of memory.",
                "`free -m`; `journalctl -k | grep -i oom`; `systemctl show UNIT -p MemoryCurrent -p MemoryMax`.",
            ),
        ),
    ),
    Meaning(
        "send",
        "EINTR",
        "A signal came while send() waited, and nothing had been sent yet.",
        (
            Cause(
                "The other side does not read (see EAGAIN); the signal only shows it.",
                "`strace -f -e trace=sendto,sendmsg,write -p PID` shows the signal after the call.",
                "Call it again.",
            ),
        ),
    ),
    Meaning(
        "send",
        "ENOENT",
        "Datagram: there is no file at the address given.",
        (
            Cause(
                "The receiver is not running, or has its socket elsewhere.",
                "`ls -l PATH`; `ss -xa | grep PATH`.",
                "Start it; correct the path. In a chroot or a container the file may be missing: make it there "
                "(/dev/log).",
            ),
        ),
    ),
    Meaning(
        "send",
        "EACCES",
        "Datagram: the sender may not write to the receiver's file, or not reach it.",
        (
            Cause(
                "Owner, group or mode leave the sender's user out.",
                "`namei -l PATH`; `ps -o user,group,cmd -p PID` of the sender.",
                "Change them, where the receiver makes the socket.",
            ),
            Cause("SELinux or AppArmor forbids it.", "`journalctl -k | grep -i denied`", "Change the policy."),
        ),
    ),
    Meaning(
        "send",
        "EPROTOTYPE",
        "Datagram: the socket at the address given is of another type.",
        (
            Cause(
                "The receiver listens for streams.",
                "`ss -xa | grep PATH`: u_str is a stream, u_dgr datagram.",
                "Use the receiver's type.",
            ),
        ),
    ),
)

# --- recv ---

_RECV = (
    Meaning(
        "recv",
        "ECONNRESET",
        "The other side closed without reading all that was sent to it. What it had sent before can be read first; "
        "this comes once, then the end.",
        (
            Cause(
                "The server's worker died with the request unread or half read: a crash, SIGKILL, "
                "request_terminate_timeout.",
                "`journalctl -u php8.2-fpm`: `exited on signal 11`, `execution timed out`; `journalctl -k | grep "
                "-i "
                "'killed process'`.",
                "Mend the crash; raise the limit that ended it.",
            ),
            Cause(
                "The server ended with this connection still in its accept queue.",
                "It was restarted or stopped at that time (`journalctl -u php8.2-fpm`); many clients have it at "
                "once.",
                "Reload instead of restart; process_control_timeout lets workers finish.",
            ),
            Cause(
                "The server answered early and closed without reading the body (a body that is too large, say).",
                "`udsproxy tap PATH`: `reset by upstream` after an answer, or SENT of many bytes.",
                "Let the server read the whole body, or refuse it before (client_max_body_size of nginx).",
            ),
            Cause(
                "In the server: the client left, and had not read the whole answer.",
                "499 in nginx's access log; `udsproxy tap PATH` has `reset by client`.",
            ),
            Cause(
                "A proxy on the way (socat, nginx stream) turned another failure of the server's into this one.",
                "`ss -xlp | grep PATH` shows who listens.",
                "`udsproxy tap PATH`, or `udsproxy run`, passes failures on as they are.",
            ),
        ),
        fault="reset",
    ),
    Meaning(
        "recv",
        "EAGAIN",
        "There is nothing to read yet. On a non-blocking socket that is no failure; on a blocking one "
        "SO_RCVTIMEO is "
        "over: the other side is late.",
        (
            Cause(
                "Non-blocking: the program reads until nothing is left, which is right.",
                "`strace -f -e trace=recvfrom,recvmsg,read -p PID`: it waits with epoll or poll afterwards.",
                "Wait until it is readable.",
            ),
            Cause(
                "The other side takes long to answer.",
                "`udsproxy tap PATH`: a long TTFB; `udsproxy state PATH` shows what the worker waits for.",
                "Find what holds it; a longer timeout if it may take so long.",
            ),
            Cause(
                "The connection still waits in the accept queue: nobody has read the request.",
                "`udsproxy state PATH`; `udsproxy tap PATH` says `after ... in the queue`.",
                "See EAGAIN of connect().",
            ),
        ),
        fault="stall",
    ),
    Meaning(
        "recv",
        "ENOTCONN",
        "Seqpacket: this socket is not connected.",
        (
            Cause(
                "connect() failed and its result was not looked at, or this is the listening socket.",
                "`strace -f -e trace=connect,accept4,recvmsg,recvfrom -p PID`",
                "Look at what connect() returns.",
            ),
        ),
    ),
    Meaning(
        "recv",
        "EINVAL",
        "This stream is not connected, or there is no urgent byte.",
        (
            Cause(
                "connect() failed and its result was not looked at, or this is the listening socket.",
                "`strace -f -e trace=connect,accept4,recvmsg,recvfrom,read -p PID`",
                "Look at what connect() returns.",
            ),
            Cause(
                "MSG_OOB, and no urgent byte came, or SO_OOBINLINE is set.",
                "`strace -f -e trace=recvmsg,recvfrom -p PID`",
                "Read it when EPOLLPRI says that it is there.",
            ),
        ),
    ),
    Meaning(
        "recv",
        "EOPNOTSUPP",
        "Only a stream has urgent bytes.",
        (
            Cause(
                "MSG_OOB on a seqpacket or datagram socket; or on a kernel before 5.15.",
                "`strace -f -e trace=recvmsg,recvfrom -p PID`",
                "Leave the flag out.",
            ),
        ),
    ),
    Meaning(
        "recv",
        "EMSGSIZE",
        "recvmsg() got more than 1024 pieces to fill (IOV_MAX).",
        (
            Cause(
                "The program joins too many buffers in one call.",
                "`getconf IOV_MAX`; `strace -f -e trace=recvmsg -p PID`.",
                "Use several calls. (A message that is longer than the buffer is no error: it is cut, with "
                "MSG_TRUNC.)",
            ),
        ),
    ),
    Meaning(
        "recv",
        "EINTR",
        "A signal came while recv() waited, and nothing had been read yet.",
        (
            Cause(
                "A handler ran that was installed without SA_RESTART, or the socket has SO_RCVTIMEO.",
                "`strace -f -e trace=recvfrom,recvmsg,read -p PID` shows the signal after the call.",
                "Call it again.",
            ),
        ),
    ),
)

# --- bind ---

_BIND = (
    Meaning(
        "bind",
        "EADDRINUSE",
        "There is something at this path already, of whatever kind. SO_REUSEADDR changes nothing here. With an "
        "abstract name: another socket has it.",
        (
            Cause(
                "The file of an earlier run is left over: a socket's file stays until somebody removes it.",
                "`ss -xl | grep PATH` shows no listener, `ls -l PATH` a file.",
                "Remove it and start again. The program should do so itself, after a connect() that was refused.",
            ),
            Cause(
                "The server runs already, or two pools have the same path.",
                "`ss -xlp | grep PATH` names the process; `grep -rn 'listen =' /etc/php`.",
                "Stop one, or give it another path.",
            ),
            Cause(
                "A tap or another tool stands at this path while the server starts.",
                "`ls -l PATH PATH.udsproxy`",
                "End the tool first; `udsproxy tap --restore PATH` where it was killed.",
            ),
            Cause(
                "It is a symbolic link, even one that leads nowhere; bind() does not follow it.",
                "`ls -l PATH`",
                "Remove the link, or bind where it leads.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "ENOENT",
        "The directory does not exist.",
        (
            Cause(
                "/run is empty after a restart of the machine, and nobody made the directory.",
                "`ls -ld $(dirname PATH)`",
                "RuntimeDirectory= of the unit, or a line in /etc/tmpfiles.d.",
            ),
            Cause(
                "The path is relative, or ends with a /.",
                "`strace -f -e trace=bind` shows it as the kernel gets it.",
                "Give the whole path of the socket.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EACCES",
        "This user may not make files in that directory, or not enter one before it.",
        (
            Cause(
                "The server starts as a user who may not write there (/run belongs to root).",
                "`namei -l PATH`; `ps -o user,cmd -p PID`, or User= of the unit.",
                "A directory of its own: RuntimeDirectory= of the unit.",
            ),
            Cause(
                "SELinux, AppArmor or Landlock forbids it, though the permissions are right.",
                "`journalctl -k | grep -i denied`; `ausearch -m avc -ts recent`.",
                "Change the policy.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EINVAL",
        "The path is too long, or this socket has a name already.",
        (
            Cause(
                "The path has more than 108 bytes (107 with its ending zero).",
                "`printf %s PATH | wc -c`",
                "Use a shorter one; below /run there is room.",
            ),
            Cause(
                "bind() is called a second time on the same socket.",
                "`strace -f -e trace=bind` shows both.",
                "Make another socket.",
            ),
            Cause("The address is of another family.", "`strace -f -e trace=bind` shows it."),
        ),
    ),
    Meaning(
        "bind",
        "EPERM",
        "The filesystem cannot hold a socket, or the directory must not change.",
        (
            Cause(
                "The filesystem has no sockets: vfat, some network and shared folders (of virtual machines, say), "
                "/sys.",
                "`df -T $(dirname PATH)`",
                "Put it below /run.",
            ),
            Cause(
                "The directory is immutable.",
                "`lsattr -d $(dirname PATH)` shows i.",
                "`chattr -i` it.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EROFS",
        "The filesystem is read-only.",
        (
            Cause(
                "A container or a unit with ProtectSystem= has this directory read-only.",
                "`findmnt -T PATH`; `systemctl show UNIT -p ProtectSystem -p ReadOnlyPaths`.",
                "RuntimeDirectory= or ReadWritePaths= of the unit; a volume of the container.",
            ),
            Cause(
                "The kernel made it read-only after an error of the disk.",
                "`journalctl -k | grep -i 'remounting filesystem read-only'`",
                "Mend the disk.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "ENOSPC",
        "No space, or no inode, is left for the socket's file. An empty address: every automatic name is taken.",
        (
            Cause(
                "The filesystem is full, of bytes or of files.",
                "`df -h $(dirname PATH)`, `df -i $(dirname PATH)`",
                "Remove files, or put it below /run.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EDQUOT",
        "This user has as many files as the quota allows.",
        (Cause("The quota is used up.", "`quota -s`", "Remove files, or put it below /run."),),
        unprovoked="it needs a filesystem with quotas",
    ),
)

# --- listen ---

_LISTEN = (
    Meaning(
        "listen",
        "EINVAL",
        "This socket has no name, or is connected.",
        (
            Cause(
                "bind() was not called, or failed and its result was not looked at.",
                "`strace -f -e trace=bind,listen` shows both.",
                "Call bind() first. (A Unix socket gets no name by itself, as a TCP port would.)",
            ),
            Cause(
                "The socket is connected.",
                "`strace -f -e trace=connect,listen`",
                "Make another socket.",
            ),
        ),
    ),
    Meaning(
        "listen",
        "EOPNOTSUPP",
        "This is a datagram socket. It has no connections.",
        (
            Cause(
                "The socket was made with SOCK_DGRAM.",
                "`strace -f -e trace=socket,listen`",
                "Receive messages without listen(), or make it SOCK_STREAM or SOCK_SEQPACKET.",
            ),
        ),
    ),
)

# --- any ---


def _read_only(call: Literal["connect", "send"]) -> Meaning:
    return Meaning(
        call,
        "EROFS",
        "This is a file, or a directory, of a read-only filesystem.",
        (
            Cause(
                "The path is wrong: a socket could be connected to, also on a read-only filesystem.",
                "`ls -ld PATH`: a socket's line begins with s.",
                "Correct the path.",
            ),
        ),
    )


def _mistakes(call: Call) -> tuple[Meaning, ...]:
    meanings = (
        Meaning(
            call,
            "EBADF",
            "This descriptor is not open.",
            (
                Cause(
                    "It was closed before, often by another thread, or twice; a descriptor to be passed on "
                    "(SCM_RIGHTS) counts too.",
                    "`strace -f -e trace=desc,network -p PID`: who closed this number.",
                    "Close once, and forget the number then.",
                ),
            ),
        ),
        Meaning(
            call,
            "ENOTSOCK",
            "This descriptor is no socket.",
            (
                Cause(
                    "Its number was closed, and has been given to a file or a pipe since; or descriptors were "
                    "handed "
                    "over in another order (LISTEN_FDS).",
                    "`ls -l /proc/PID/fd` shows what each number is.",
                    "Close once, and forget the number then.",
                ),
            ),
        ),
    )
    if call == "listen":
        return meanings
    return (
        *meanings,
        Meaning(
            call,
            "EFAULT",
            "A pointer leads to memory that is not the program's.",
            (
                Cause(
                    "A bug in the program, or in a library of C that it calls.",
                    "`strace -f -e trace=network -p PID` shows the address.",
                    "Report it to who maintains the program.",
                ),
            ),
        ),
    )


TABLE: tuple[Meaning, ...] = (
    *_CONNECT,
    *_path_errors("connect"),
    _read_only("connect"),
    *_mistakes("connect"),
    *_ACCEPT,
    *_mistakes("accept"),
    *_SEND,
    *_path_errors("send"),
    _read_only("send"),
    *_mistakes("send"),
    *_RECV,
    *_mistakes("recv"),
    *_BIND,
    *_path_errors("bind"),
    *_mistakes("bind"),
    *_LISTEN,
    *_mistakes("listen"),
)

ELSEWHERE = {
    "ETIMEDOUT": "A program's own clock, or TCP. nginx logs 110 when a timeout of its own is over: see "
    "`udsproxy explain upstream timed out`.",
    "EINPROGRESS": "TCP: a Unix socket is connected at once, or not at all (EAGAIN).",
    "EALREADY": "TCP: a Unix socket is connected at once, or not at all (EAGAIN).",
    "ECONNABORTED": "TCP: on a Unix socket accept() returns also a connection whose client has left.",
    "EADDRNOTAVAIL": "TCP: no local address or port is left, or the address is not of this machine.",
    "EAFNOSUPPORT": "socket(), or TCP: an address of another family is EINVAL on a Unix socket.",
    "EDESTADDRREQ": "Other systems, and UDP: on Linux a Unix socket without an address to send to has ENOTCONN.",
    "EHOSTUNREACH": "TCP: no way to that host.",
    "ENETUNREACH": "TCP: no way to that network.",
    "EPROTONOSUPPORT": "socket(): AF_UNIX has no such protocol.",
    "ESOCKTNOSUPPORT": "socket(): AF_UNIX has no such type.",
    "ENXIO": "open(): a socket's file cannot be opened, only connected to.",
    "ENOPROTOOPT": "getsockopt() and setsockopt(): there is no such option.",
    "ENOMEM": "Any call: the machine, or the cgroup, is out of memory; `journalctl -k | grep -i oom` may tell.",
}
"""What people meet, and none of these calls returns on a Unix socket (or, ENOMEM, each): what returns it."""
