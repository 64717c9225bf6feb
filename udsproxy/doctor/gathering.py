"""Finds out what is known of a socket: sock_diag, /proc, the files of php-fpm and nginx.

Rules: it only looks. What cannot be read is a line of `Facts.unseen`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat
import time
from collections.abc import Callable

from udsproxy.doctor import configured_nginx, configured_php_fpm
from udsproxy.doctor.facts import Entry, Facts, Nginx, Process, User
from udsproxy.doctor.known import KnownSocket
from udsproxy.doctor.php_fpm import configuration_of
from udsproxy.doctor.reading import shown
from udsproxy.doctor.way import above, entry_of, way_to
from udsproxy.endpoints.ownership import group_name, user_name
from udsproxy.events import errno_name, printable
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.forwarding import Route, follow
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.sockets import SocketState
from udsproxy.inspection.systemd import SocketUnit, unit_at
from udsproxy.inspection.taps import SUFFIX
from udsproxy.kernel import namespaces, process_table, procfs
from udsproxy.kernel.roots import Root
from udsproxy.kernel.socket_file import SocketFile

_MAX_PROCESSES = 10_000
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISBLK, "a disk (a block device)"),
    (stat.S_ISCHR, "a device"),
)


def gather(path: str, client: User | None = None) -> Facts:
    """``path``: of a socket, or ``@NAME``. ``client``: who connects; else nginx does, where one is found."""
    abstract = path.startswith("@")
    if not abstract:
        path = os.path.abspath(path)
    machine = Machine()
    try:
        facts = _Gathering(path, abstract, machine).facts(client)
    finally:
        machine.close()
    return facts


def find_user(name: str) -> User | None:
    """A user of this machine, by name or number."""
    try:
        if name.isdecimal():
            number = int(name[:12])
            with contextlib.suppress(KeyError, OverflowError):
                name = pwd.getpwuid(number).pw_name
            if name.isdecimal():
                return User(name, number, (number,), "--client", name)
        entry = pwd.getpwnam(name)
        gids = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return User(shown(entry.pw_name), entry.pw_uid, gids, "--client", group_name(entry.pw_gid))
    except (KeyError, ValueError, OSError):
        return None


class _Gathering:
    def __init__(self, path: str, abstract: bool, machine: Machine) -> None:
        self._path = path
        self._abstract = abstract
        self._machine = machine
        self._real = None if abstract else os.path.realpath(path)
        self._paths: set[str] = set()
        """By which the server may know its socket."""
        self._unseen: list[str] = []
        self._kind: str | None = None

    def facts(self, client: User | None) -> Facts:
        entries, failure = ((), None) if self._abstract else self._entries()
        route = follow(self._machine, self._path, Doer())
        tap = route.tap
        if tap is not None and tap.case in ("killed", "moved"):
            route = follow(self._machine, os.path.realpath(self._path) + SUFFIX, Doer())
            failure = "ECONNREFUSED" if tap.case == "killed" else failure
        elif failure is not None:
            route = Route(address=route.address)
        self._paths = {path.removesuffix(SUFFIX) for path in route.paths} | {self._path}
        found = self._server_of(route)
        if route.error is not None and route.hops:
            failure = errno_name(route.error.errno or errno.EIO)
        elif route.error is not None and failure is None:
            self._unseen.append(f"{shown(self._path)}: {route.error.strerror}")
        if found is None:
            failure = failure or ("ECONNREFUSED" if self._abstract and not route.hops else None)
        elif found.state not in ("listening", "unseen") and found.type != "datagram":
            failure = "ECONNREFUSED"
        elif route.hops and found.file == "removed":
            failure = "ENOENT"
        servers = self._servers(found)
        known = KnownSocket(None if self._abstract else self._path, self._bound(found))
        php_fpm = configured_php_fpm.look(known.known_as(self._paths), servers)
        serving_nginx = configured_nginx.look(known, self._machine, _began(listeners(route, servers)))
        clients = (client,) if client is not None else self._clients(serving_nginx.found)
        unseen = [*self._machine.without, *self._unseen, *php_fpm.unseen, *serving_nginx.unseen]
        if _line_of("/sys/fs/selinux/enforce") == "1":
            unseen.append("what SELinux permits (it is enforcing): ausearch -m avc -ts recent")
        return Facts(
            path=printable(self._path),
            failure=failure,
            kind=self._kind,
            link=self._link(),
            type=None if found is None else found.type,
            state=None if found is None else found.state,
            namespace=None if found is None else found.namespace,
            sure=found is None or found.sure,
            queue=None if found is None else found.queue,
            backlog=None if found is None else found.backlog,
            gone=None if found is None else found.gone,
            tap=tap,
            tapped=tap.aside if tap is not None and tap.server_is_aside else None,
            hops=route.hops,
            behind=route.address if route.hops else None,
            inode=None if found is None else found.inode,
            onward=_onward(route),
            systemd=None if found is None or found.activator is None else found.activator.pid,
            unit=self._unit(found),
            mounted=None if found is None else found.mounted,
            somaxconn=self._somaxconn(found),
            entries=entries,
            servers=servers,
            idle=tuple(each.idle_client for each in found.processes if each.idle_client) if found else (),
            php_fpm=php_fpm.pid,
            pool=php_fpm.pool,
            nginx=serving_nginx.found,
            refused=(*php_fpm.refused, *serving_nginx.refused),
            clients=clients,
            unseen=tuple(dict.fromkeys(unseen)),
        )

    # --- the socket ---

    def _entries(self) -> tuple[tuple[Entry, ...], str | None]:
        """The directories and the file, and the errno of connect() where they lead to no socket."""
        if len(os.fsencode(self._path)) > 107:
            # sockaddr_un has 108 bytes, and most programs end them with a NUL.
            return (), "ENAMETOOLONG"
        found: list[Entry] = []
        try:
            directories = dict.fromkeys([*above(self._path), *above(self._real or self._path)])
            found += [entry_of(Root(), directory) for directory in directories]
            file = entry_of(Root(), self._path)
            mode = os.stat(self._path).st_mode
            if not stat.S_ISSOCK(mode):
                # unix_find_bsd() says so of every file that is no socket.
                self._kind = next((name for is_one, name in _KINDS if is_one(mode)), "a file")
                return (*found, file), "ECONNREFUSED"
        except (OSError, ValueError) as error:
            number = error.errno if isinstance(error, OSError) and error.errno else errno.ENOENT
            if number == errno.EACCES:
                self._unseen.append(f"{shown(self._path)}: we may not look there (run as root)")
                return (), None
            return tuple(found), errno_name(number)
        return (*found, file), None

    def _link(self) -> str | None:
        with contextlib.suppress(OSError, ValueError):
            return None if self._abstract else shown(os.readlink(self._path))
        return None

    def _server_of(self, route: Route) -> SocketState | None:
        """The socket that clients come to."""
        found = list(route.servers)
        if self._abstract and not route.hops:  # (names of other network namespaces lead nobody of ours there)
            found = [each for each in found if each.namespace is None]
        return next((each for each in found if each.state == "listening"), found[0] if found else None)

    def _unit(self, found: SocketState | None) -> SocketUnit | None:
        if found is not None and found.processes:
            return found.unit
        return unit_at(self._paths)  # (which nobody has started, perhaps)

    def _somaxconn(self, found: SocketState | None) -> int | None:
        """As it is where the server has its socket."""
        if found is None or found.namespace is None:
            return _somaxconn()
        with contextlib.suppress(OSError):
            return namespaces.within(self._machine.everywhere.space(found.namespace), _somaxconn)
        return None

    def _servers(self, found: SocketState | None) -> tuple[Process, ...]:
        if found is None:
            return ()
        holders = [each for each in found.processes if not each.heir][:_MAX_PROCESSES]
        titles = {each.pid: process_table.read_title(each.pid) for each in holders}
        return tuple(
            Process(
                each.pid,
                each.comm,
                process_table.read_descriptors(each.pid),
                # (A master that has forked nobody yet serves nobody either.)
                each.master or each.activator or configuration_of(titles[each.pid]) is not None,
                None if not each.serves or each.waits is None else not each.waits,
                None if each.doing is None else each.doing.text,
                each.stopped,
            )
            for each in holders
        )

    def _bound(self, found: SocketState | None) -> str | None:
        """The name that the server has given to the socket."""
        sock = None if found is None or found.inode is None else self._machine.unix.get(found.inode)
        name = None if sock is None or not sock.name else os.fsdecode(sock.name.partition(b"\0")[0])
        return name or None

    def _clients(self, found: tuple[Nginx, ...]) -> tuple[User, ...]:
        """The users of nginx's workers, each once."""
        users: dict[tuple[object, ...], User] = {}
        # (Whether the others pass requests on to the socket is not known.)
        for each in [each for each in found if each.is_sure] or found:
            for worker in each.workers:
                ids = procfs.read_ids(worker.pid)
                if ids is None:
                    continue
                uid, gid, more = ids
                users.setdefault(
                    (uid, (gid, *more), each.way),
                    User(
                        user_name(uid),
                        uid,
                        (gid, *more),
                        f"nginx's worker, pid {worker.pid}",
                        group_name(gid),
                        *((True, False) if each.way else self._is_seen_by(worker.pid, each.there)),
                        worker.pid,
                        each.way or (),
                    ),
                )
        return tuple(users.values())

    def _is_seen_by(self, pid: int, path: str | None) -> tuple[bool | None, bool]:
        """A service may have a /tmp of its own (PrivateTmp=), a container its own mounts: whether it finds the same
        socket there; and if not, whether that is a stale mount of the file. ``path``: where it looks for it, where
        known."""
        path = path or self._real or self._path
        try:
            if os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), os.stat("/proc/self/ns/mnt")):
                return None, False
            here = os.stat(self._path)
        except OSError:
            return None, False
        try:
            there = SocketFile.at(path, pid)
        except FileNotFoundError:
            return False, False
        except (OSError, ValueError):
            return None, False
        if os.path.samestat(there.stat, here):
            return True, False
        mount = there.mount
        return False, mount is not None and mount.is_replaced and mount.point == path


def listeners(route: Route, servers: tuple[Process, ...]) -> list[int]:
    """The pids of who listens at the path: a ``run``, or else the servers (a tap comes and goes before them)."""
    run = next((hop for hop in route.hops if hop.kind == "run"), None)
    if run is None:
        return [each.pid for each in servers]
    return [] if run.process is None else [run.process.pid]


def _began(pids: list[int]) -> float | None:
    """When the first of them was started (seconds since 1970). A reload of php-fpm keeps it, and its socket."""
    ages = [age for pid in pids if (age := procfs.read_age(pid)) is not None]
    return time.time() - max(ages) if ages else None


def _line_of(path: str) -> str | None:
    """A file of one short line; None: there is none."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(64).strip()
    except OSError:
        return None


def _somaxconn() -> int | None:
    text = _line_of("/proc/sys/net/core/somaxconn")
    return int(text) if text and text.isdecimal() else None


def _onward(route: Route) -> User | None:
    """As whom the last ``run`` of them connects: root does as its clients, and everybody else as itself."""
    for hop, path in reversed(list(zip(route.hops, route.paths[1:], strict=False))):
        if hop.kind != "run" or hop.process is None or not path.startswith("/"):
            continue
        ids = procfs.read_ids(hop.process.pid)
        if ids is None or ids[0] == 0:
            return None
        uid, gid, more = ids
        root = Root(hop.process.pid)
        try:
            way = way_to(root, path)
        except (OSError, ValueError):
            return None
        finally:
            root.close()
        where = f"udsproxy run, pid {hop.process.pid}"
        return User(user_name(uid), uid, (gid, *more), where, group_name(gid), pid=hop.process.pid, way=way)
    return None
