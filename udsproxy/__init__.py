"""udsproxy: see, explain and reproduce what happens on a Unix domain socket.

The architecture in a page::

    client ──► listener ──► connection ──► relay ──────────────► upstream
                  │          │               │ bytes, both ways: one trio task, one epoll, all connections
                  gate       stream faults   │
                  faults     (a detour)      │
                                             ▼
                                tap (bounded; forwards first) ──► decoders ──► events ──► sinks

* ``endpoints``  where sockets are; the only module that makes them
* ``proxy``      the traffic's path: server, listener, connection, relay; ``records`` for SOCK_SEQPACKET, and
  ``datagrams``, where nobody is accepted and each message is sent on
* ``takeover``   a listener in place of a live socket, and the guardian that puts that back when we are killed
* ``faults``     what is done wrong on purpose: rules, kinds, and pure stages that bytes pass through
* ``control``    HTTP over a Unix socket of its own, to look at a running process and change its faults
* ``protocols``  what bytes mean: the tap, the decoders (FastCGI), their registry
* ``kernel``     what the kernel and /proc tell of sockets and processes; being a client for one system call
* ``inspection`` what sockets and processes are at this moment; the observer, a process that looks for a proxy
* ``sinks``      where events go: console, JSON lines, socat's format; each writes in a thread of its own
* ``events``     every record that leaves the traffic's path
* ``config``     the settings of a proxy and of its output
* ``doctor``     what will go wrong at a socket: limits, owners, backlog, the settings of php-fpm and nginx
* ``lab``        something to call and to call it with: a FastCGI server, a client, the demonstration
* ``explain``    what an errno, or a line of nginx's log, means: one table, of which docs/errors.md is made
* ``cli``        the command line, a module a command

Where no fault is asked for client and server are to notice nothing (docs/transparency.md has what they do):
what comes is looked at, forwarded, and then read, but for a last byte that can still become a reset; descriptors,
and the credentials of who sent it, go with it.

What waits is a task; what need not wait is a call; bytes have one engine. Observers never touch the path: what
they cannot keep up with they lose, and say how much. Imports point one way, ``cli → {lab, control} → proxy →
{takeover, faults, inspection, sinks} → {kernel, protocols} → events``; tests/test_imports.py holds that.
"""

TYPE_CHECKING = False
"""That of `typing`. Nothing is imported here: a signal that comes before ``__main__`` has begun is not taken."""

if TYPE_CHECKING:
    from udsproxy.config import LogConfig, ProxyConfig
    from udsproxy.endpoints import Tcp, UnixAbstract, UnixPath
    from udsproxy.endpoints import parse as parse_endpoint
    from udsproxy.proxy.server import Server

__all__ = ["LogConfig", "ProxyConfig", "Server", "Tcp", "UnixAbstract", "UnixPath", "parse_endpoint"]
__version__ = "0.1.0"

_FROM = {
    "LogConfig": ("config", "LogConfig"),
    "ProxyConfig": ("config", "ProxyConfig"),
    "Server": ("proxy.server", "Server"),
    "Tcp": ("endpoints", "Tcp"),
    "UnixAbstract": ("endpoints", "UnixAbstract"),
    "UnixPath": ("endpoints", "UnixPath"),
    "parse_endpoint": ("endpoints", "parse"),
}


def __getattr__(name: str) -> object:
    """The public names, each when it is asked for (PEP 562): the observer is a process that needs none of them."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _FROM[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
