"""Where sockets are: one spelling for all of them, and the only place that makes sockets.

- ``spelling``: what an endpoint is, and how people write it
- ``connecting``: making sockets, connecting them
- ``listening``: a listening socket and its file, from opening to removing it
- ``naming``: that socket's name, which is not that of its file at first
- ``ownership``: owner, group, mode and ACL of that file

Rules: every socket is close-on-exec, and non-blocking or used with MSG_DONTWAIT.
"""

from udsproxy.endpoints.connecting import (
    Socket,
    connect,
    connect_tcp,
    dialer,
    plain_socket,
    tcp_socket,
    unix_socket,
)
from udsproxy.endpoints.listening import Listener
from udsproxy.endpoints.spelling import (
    MAX_PATH,
    Endpoint,
    EndpointError,
    ListenError,
    Pinned,
    Tcp,
    UnixAbstract,
    UnixPath,
    address_of,
    parse,
    same_place,
    unescaped,
)

__all__ = [
    "MAX_PATH",
    "Endpoint",
    "EndpointError",
    "ListenError",
    "Listener",
    "Pinned",
    "Socket",
    "Tcp",
    "UnixAbstract",
    "UnixPath",
    "address_of",
    "connect",
    "connect_tcp",
    "dialer",
    "parse",
    "plain_socket",
    "same_place",
    "tcp_socket",
    "unescaped",
    "unix_socket",
]
