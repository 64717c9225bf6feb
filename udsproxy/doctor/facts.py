"""All that findings are made from.

Rules: values only. What is not known is None, or empty; `Facts.unseen` says what and why. Text that others wrote is
printable by then.
"""

from __future__ import annotations

import shlex

import msgspec

from udsproxy.inspection.forwarding import Hop
from udsproxy.inspection.mounted import Mounted
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
    stale_mount: bool = False
    """Where it does not: the file is mounted there by itself, and was removed or replaced since."""
    pid: int | None = None
    way: tuple[Entry, ...] = ()
    """As `Facts.entries`, where this process finds the socket by another way (in a container)."""


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


class Refused(msgspec.Struct, frozen=True):
    """A file of a configuration that keeps a program from starting anew, or from reloading."""

    program: str
    path: str
    at: str
    """Where it is included: ``/etc/nginx/nginx.conf:62``."""
    why: str
    """``a link to /etc/nginx/sites-available/x, which is not there``."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of php-fpm, as its configuration has it."""

    name: str
    file: str
    """Where its section begins first: a file, and a line."""
    settings: dict[str, str]
    """Those that matter here (an environment may have passwords), without quotes; the last of each."""
    places: dict[str, str] = {}
    """Where each of them stands: ``/etc/php/8.2/fpm/pool.d/www.conf:7``."""
    unknown: tuple[str, ...] = ()
    """Settings that php-fpm takes from its environment, which nobody else sees."""
    process_max: int = 0
    """``process.max``, of all pools together; 0: no limit."""
    process_max_at: str = ""
    error_log: str = ""
    """php-fpm's own; empty: where that is is not known, or it is no file."""
    pools: int = 1
    """How many php-fpm has."""
    all_children: int = 0
    """The sum of their pm.max_children."""
    owner: int | None = None
    group: int | None = None
    """Numbers of listen.owner and listen.group, where they are set, known and not ignored for an ACL."""

    @property
    def has_acl(self) -> bool:
        """php-fpm gives the file an ACL; listen.owner and listen.group are ignored then (fpm_unix.c)."""
        return any(self.settings.get(key) for key in ("listen.acl_users", "listen.acl_groups"))

    @property
    def log(self) -> str:
        """php-fpm's own log, as it stands in a command."""
        return shlex.quote(self.error_log) if self.error_log else "php-fpm's error_log"

    def at(self, key: str) -> str:
        """Where a setting stands; where it is not set, where its section begins."""
        return self.places.get(key, self.file)


class Peer(msgspec.Struct, frozen=True):
    """A ``server`` of an upstream block."""

    address: str
    here: bool
    """It is the socket that is looked at."""
    max_fails: int = 1
    fail_timeout_s: float = 10.0
    backup: bool = False
    missing: str | None = None
    """Why nobody can be reached at this Unix socket: ``no such file``, ``a file, and no socket``, ``a socket that
    nobody has``. None: somebody can, or that is not known."""


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
    variable: str | None = None
    """What stands there, where it has a variable: ``unix:/run/php/$pool.sock``."""
    is_sure: bool = True
    """False: the variable may have another value; what it can be is not known."""


class Logged(msgspec.Struct, frozen=True):
    """Lines of nginx's error log that are about the socket, and of one kind."""

    kind: str
    """``connect 11``, ``recv 104``, ``timed out 110``, ``closed``, ``no live upstreams``."""
    words: str
    """Each of them has it, as it stands here: ``connect() to unix:/x.sock failed (11: Resource temporarily
    unavailable)``; where they name several paths, only what comes after these."""
    count: int
    last: str
    """When, in nginx's local time: ``2026-11-29 03:12:44``."""
    since_start: int | None
    """How many of them since the process that listens at the path was started (the server, or a ``udsproxy run``);
    None: that is not known, or nobody listens."""
    upstream: str = ""
    """What of the upstream's name is in each of them, too, where `words` has no path: ``fastcgi://unix:/x.sock:``."""


class ErrorLog(msgspec.Struct, frozen=True):
    """One of nginx's error logs, of the places that lead to the socket."""

    path: str
    begin: str = ""
    """The first line that was looked at is of this time, in nginx's local time."""
    zone: str = ""
    """Of that time: ``+0100``; empty: it cannot be told."""
    is_whole: bool = True
    """False: only the end of the file was read."""
    level: str = "error"
    """What is less severe is not logged."""
    logged: tuple[Logged, ...] = ()
    files: tuple[str, ...] = ()
    """Those that were read, the oldest first, by the names that they have here."""


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
    logs: tuple[ErrorLog, ...] = ()
    there: str | None = None
    """Where it has other mounts than we: the path in its configuration that stands for the socket."""
    way: tuple[Entry, ...] | None = None
    """The way to the socket by that path; empty: it leads to no such file. None: it has our mounts."""

    @property
    def is_sure(self) -> bool:
        """It is known that requests are passed on to the socket."""
        return bool(self.upstreams) or any(each.is_sure for each in self.passes)


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
    onward: User | None = None
    """As whom the last ``run`` connects, where that is not as its clients, and its way there."""
    somaxconn: int | None = None
    """Of that network namespace."""
    mounted: Mounted | None = None
    """How the file is mounted, where nobody is behind it."""
    systemd: int | None = None
    """The pid of the systemd that holds the socket for a service."""
    unit: SocketUnit | None = None
    """systemd's, that listens at this path, or shall when it is started."""
    entries: tuple[Entry, ...] = ()
    """Directories from the root on, then the file; no file: an abstract name, or there is none."""
    servers: tuple[Process, ...] = ()
    """Who holds the listening socket."""
    idle: tuple[str, ...] = ()
    """Where every worker stays with a connection on which nothing flows: whose, of each."""
    php_fpm: int | None = None
    """The pid of the php-fpm master among them."""
    pool: Pool | None = None
    nginx: tuple[Nginx, ...] = ()
    refused: tuple[Refused, ...] = ()
    clients: tuple[User, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def run(self) -> Hop | None:
        """The ``udsproxy run`` that listens at the path. (A tap has put it aside where that comes first.)"""
        return next((hop for hop in self.hops if hop.kind == "run"), None)

    @property
    def server_path(self) -> str:
        """Of the server's own socket."""
        return self.behind or self.tapped or self.path

    @property
    def nginx_logs(self) -> tuple[str, ...]:
        """The error logs of all nginx, by the names that they have here."""
        return tuple(dict.fromkeys(file for nginx in self.nginx for log in nginx.logs for file in log.files))

    @property
    def has_no_server(self) -> bool:
        """Nobody is seen to serve there, and clients do get an error."""
        return self.failure is not None and not self.servers

    @property
    def was_full(self) -> bool:
        """nginx was refused for a full queue since who listens was started, or that may be."""
        logged = (each for nginx in self.nginx for log in nginx.logs for each in log.logged)
        return any(each.kind == "connect 11" and each.since_start != 0 for each in logged)

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
