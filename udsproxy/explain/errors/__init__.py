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

from udsproxy.explain.errors.accept import ACCEPT
from udsproxy.explain.errors.bind import BIND
from udsproxy.explain.errors.connect import CONNECT
from udsproxy.explain.errors.listen import LISTEN
from udsproxy.explain.errors.model import CALLS, Call, Cause, Meaning, number_of
from udsproxy.explain.errors.recv import RECV
from udsproxy.explain.errors.send import SEND
from udsproxy.explain.errors.shared import mistakes, path_errors, read_only

__all__ = ["CALLS", "ELSEWHERE", "NOTES", "TABLE", "Call", "Cause", "Meaning", "number_of"]

TABLE: tuple[Meaning, ...] = (
    *CONNECT,
    *path_errors("connect"),
    read_only("connect"),
    *mistakes("connect"),
    *ACCEPT,
    *mistakes("accept"),
    *SEND,
    *path_errors("send"),
    read_only("send"),
    *mistakes("send"),
    *RECV,
    *mistakes("recv"),
    *BIND,
    *path_errors("bind"),
    *mistakes("bind"),
    *LISTEN,
    *mistakes("listen"),
)

NOTES: dict[tuple[Call, str], str] = {
    ("connect", "ENOBUFS"): "connect() does not return it on a Unix socket; Boost.Asio before 1.19 says it where "
    "connect() had EAGAIN, because the accept queue is full: see `udsproxy explain connect EAGAIN`.",
}
"""What a program may mean by an errno that this call does not return on a Unix socket."""

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
