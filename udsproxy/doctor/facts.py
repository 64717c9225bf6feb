"""All that findings are made from.

Rules: values only. What is not known is None, or empty; `Facts.unseen` says what and why. Text that others wrote is
printable by then.
"""

from __future__ import annotations

import msgspec

from udsproxy.inspection.forwarding import Hop
from udsproxy.inspection.stops import Stop
from udsproxy.inspection.systemd import SocketUnit
from udsproxy.inspection.taps import Tapped
from udsproxy.kernel.process_table import Descriptors

Acl = tuple[tuple[int, int, int], ...]
"""Of POSIX ACLs (acl(5)): tag, permissions, id of each entry."""


class Entry(msgspec.Struct, frozen=True):
    """A socket's file, or a directory above it."""

    path: str
    uid: int
    gid: int
    mode: int
    """The permission bits."""
    acl: Acl = ()
    owner: str = ""
    """``user:group``."""


class User(msgspec.Struct, frozen=True):
    """Who connects."""

    name: str
    uid: int
    gids: tuple[int, ...]
    where: str
    """``nginx's worker (pid 7)``, ``--client``."""
    group: str = ""
    sees: bool | None = None
    """The path leads this process to the same socket; None: it cannot be told, or it is as here."""


class Process(msgspec.Struct, frozen=True):
    """A process that serves, or an nginx worker."""

    pid: int
    comm: str
    descriptors: Descriptors = Descriptors()
    master: bool = False
    """It holds the socket for others: a master, or systemd."""
    busy: bool | None = None
    """It waits for something else than the next connection. None: it cannot be told."""
    doing: str | None = None
    stopped: Stop | None = None
    """It stands still."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of php-fpm, as its configuration has it."""

    name: str
    file: str
    settings: dict[str, str]
    """Those that matter here (an environment may have passwords), without quotes; the last of each."""
    process_max: int = 0
    """``process.max``, of all pools together; 0: no limit."""
    owner: int | None = None
    group: int | None = None
    """Numbers of listen.owner and listen.group, where they are set and known."""


class Peer(msgspec.Struct, frozen=True):
    """A ``server`` of an upstream block."""

    address: str
    here: bool
    """It is the socket that is looked at."""
    max_fails: int = 1
    fail_timeout_s: float = 10.0
    backup: bool = False


class Upstream(msgspec.Struct, frozen=True):
    """An ``upstream { }`` that has the socket."""

    name: str
    at: str
    """``/etc/nginx/nginx.conf:12``."""
    peers: tuple[Peer, ...]
    keepalive: int = 0


class Pass(msgspec.Struct, frozen=True):
    """Where nginx passes requests on to the socket, and with which settings."""

    directive: str
    """``fastcgi_pass``."""
    at: str
    read_timeout_s: float = 60.0
    next_upstream: tuple[str, ...] = ("error", "timeout")
    keep_conn: bool = False
    upstream: str | None = None
    """The block's name; None: the socket's path stands here."""


class Nginx(msgspec.Struct, frozen=True, kw_only=True):
    """A running nginx whose configuration mentions the socket."""

    pid: int
    conf: str
    user: str | None = None
    """The ``user`` directive."""
    worker_connections: int = 512
    workers: tuple[Process, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    passes: tuple[Pass, ...] = ()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a socket, of who serves it and of who asks it."""

    path: str
    failure: str | None = None
    """The errno that clients get, by name, where nobody can be reached: ENOENT, ECONNREFUSED, ENOTDIR, ..."""
    kind: str | None = None
    """What stands at the path and is no socket: ``a directory``, ``a device``; None: a socket does, or nothing."""
    link: str | None = None
    """Where the path itself, a symbolic link, leads."""
    type: str | None = None
    state: str | None = None
    """As `udsproxy.inspection.sockets.SocketState`."""
    namespace: int | None = None
    """The network namespace of the server's socket, where that is not ours."""
    sure: bool = True
    """That the socket is this file's."""
    queue: int | None = None
    backlog: int | None = None
    gone: int | None = None
    """Of those in the queue, how many have left."""
    tap: Tapped | None = None
    """What a tap has to do with the path."""
    tapped: str | None = None
    """The server's own socket, where that is not at the path, but where a tap has put it; what is told of the
    server is of that one."""
    hops: tuple[Hop, ...] = ()
    """Each udsproxy (a tap, a ``run``) between the path and the server."""
    behind: str | None = None
    """The socket that the last of them forwards to: what is told of the server is of that one. None: there is no
    such hop, or the socket is not to be seen."""
    inode: int | None = None
    """Of the server's socket."""
    somaxconn: int | None = None
    """Of that network namespace."""
    systemd: int | None = None
    """The pid of the systemd that holds the socket for a service."""
    unit: SocketUnit | None = None
    """systemd's, that listens at this path, or shall when it is started."""
    entries: tuple[Entry, ...] = ()
    """Directories from the root on, then the file; no file: an abstract name, or there is none."""
    servers: tuple[Process, ...] = ()
    """Who holds the listening socket."""
    php_fpm: int | None = None
    """The pid of the php-fpm master among them."""
    pool: Pool | None = None
    nginx: tuple[Nginx, ...] = ()
    clients: tuple[User, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def server_path(self) -> str:
        """Of the server's own socket."""
        return self.behind or self.tapped or self.path

    @property
    def is_lost(self) -> bool:
        """A tap was killed, and the server's socket is not at its path."""
        return self.tap is not None and self.tap.case in ("killed", "moved")

    @property
    def workers(self) -> tuple[Process, ...]:
        """Those that serve."""
        return tuple(each for each in self.servers if not each.master)

    @property
    def most_workers(self) -> int | None:
        """How many there can be, each with one request at a time; None: it is no such pool, or not known. (Several
        processes may be event loops, which serve many at once.)"""
        number = "" if self.pool is None else self.pool.settings.get("pm.max_children", "")
        return int(number) if number.isdecimal() and len(number) < 10 and int(number) else None

    @property
    def busy(self) -> int | None:
        """How many workers are; None: it cannot be told of all."""
        told = [each.busy for each in self.workers]
        return sum(map(bool, told)) if self.servers and None not in told else None
