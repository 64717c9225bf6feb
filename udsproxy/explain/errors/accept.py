"""What accept() and accept4() return on a Unix socket."""

from __future__ import annotations

from udsproxy.explain.errors.model import Cause, Meaning

ACCEPT: tuple[Meaning, ...] = (
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
            Cause(
                "accept4() got a flag that it does not know.",
                "`strace -f -e trace=accept4 -p PID`",
            ),
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
