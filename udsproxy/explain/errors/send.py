"""What send(), sendto(), sendmsg(), write() and their like return on a Unix socket."""

from __future__ import annotations

from udsproxy.explain.errors.model import Cause, Meaning

SEND: tuple[Meaning, ...] = (
    Meaning(
        "send",
        "EPIPE",
        "The other side has closed, or takes nothing any more. On a stream SIGPIPE comes with it, where "
        "MSG_NOSIGNAL is not given.",
        (
            Cause(
                "The client gave up before the answer was written. In php-fpm's worker: nginx ran into "
                "fastcgi_read_timeout, or its client left.",
                "nginx's log at that time: error 110, or 499 in the access log; `udsproxy tap PATH` has "
                "`client left`.",
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
                "upstream` before it.",
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
        "is no failure: wait until it is writable.",
        (
            Cause(
                "The reader is slower than the writer, or busy with something else.",
                "`ss -xp | grep PATH`: Recv-Q of the reader's socket stays large. `udsproxy state PATH` shows "
                "what a worker waits for.",
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
        "The other side closed, and had not read all that was sent to it. Seqpacket and datagram only: on a "
        "stream send() has EPIPE for it, and recv() this.",
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
                "connect() failed, and its result was not looked at. After EAGAIN the socket is not connected, "
                "and never becomes so by itself, as it would with TCP.",
                "`strace -f -e trace=connect,sendto,sendmsg,write -p PID`",
                "Look at what connect() returns; after EAGAIN call it again later.",
            ),
            Cause(
                "Datagram: the receiver is gone. The first send() after that had ECONNREFUSED, and "
                "disconnected it.",
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
            Cause(
                "The file is no socket.",
                "`ls -l PATH`: a socket's line begins with s.",
                "Correct the path.",
            ),
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
        "received yet, against the sender's limit of open files.",
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
            Cause(
                "SELinux or AppArmor forbids it.",
                "`journalctl -k | grep -i denied`",
                "Change the policy.",
            ),
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
