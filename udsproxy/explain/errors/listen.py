"""What listen() returns on a Unix socket."""

from __future__ import annotations

from udsproxy.explain.errors.model import Cause, Meaning

LISTEN: tuple[Meaning, ...] = (
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
