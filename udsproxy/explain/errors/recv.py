"""What recv(), recvfrom(), recvmsg(), read() and their like return on a Unix socket."""

from __future__ import annotations

from udsproxy.explain.errors.model import Cause, Meaning

RECV: tuple[Meaning, ...] = (
    Meaning(
        "recv",
        "ECONNRESET",
        "The other side closed without reading all that was sent to it. What it had sent before can be read "
        "first; this comes once, then the end.",
        (
            Cause(
                "The server's worker died with the request unread or half read: a crash, SIGKILL, "
                "request_terminate_timeout.",
                "`journalctl -u php8.2-fpm`: `exited on signal 11`, `execution timed out`; `journalctl -k | "
                "grep -i 'killed process'`.",
                "Mend the crash; raise the limit that ended it.",
            ),
            Cause(
                "The server ended with this connection still in its accept queue.",
                "It was restarted or stopped at that time (`journalctl -u php8.2-fpm`); many clients have it "
                "at once.",
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
                "`udsproxy state PATH` shows who listens.",
                "`udsproxy tap PATH`, or `udsproxy run`, passes failures on as they are.",
            ),
        ),
        fault="reset",
    ),
    Meaning(
        "recv",
        "EAGAIN",
        "There is nothing to read yet. On a non-blocking socket that is no failure; on a blocking one "
        "SO_RCVTIMEO is over: the other side is late.",
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
