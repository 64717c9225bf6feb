"""Finds out what is known of a socket: sock_diag, /proc, the files of php-fpm and nginx.

Rules: it only looks. What cannot be read is a line of `Facts.unseen`.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable

import msgspec

from udsproxy.doctor import nginx, php_fpm
from udsproxy.doctor.facts import Entry, Facts, Nginx, Pool, Process, User
from udsproxy.doctor.reading import Reader, shown
from udsproxy.doctor.rights import parse_acl
from udsproxy.endpoints.ownership import group_name, user_name
from udsproxy.events import errno_name, printable
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.forwarding import Route, follow
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.sockets import SUFFIX, SocketState
from udsproxy.inspection.stops import stops
from udsproxy.inspection.systemd import SocketUnit, unit_at
from udsproxy.kernel import namespaces, process_table, procfs

_MOST_PROCESSES = 10_000
_MOST_MASTERS = 16
_SETTINGS = ("listen", "pm", "process.", "request_", "rlimit_")
"""Of a pool: what these begin with."""
_ACL = "system.posix_acl_access"
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
        master, pool = self._php_fpm(servers)
        serving_nginx = () if self._abstract else self._nginx()
        clients = (client,) if client is not None else self._clients(serving_nginx)
        unseen = [*self._machine.without, *self._unseen]
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
            systemd=None if found is None or found.activator is None else found.activator.pid,
            unit=self._unit(found),
            somaxconn=self._somaxconn(found),
            entries=entries,
            servers=servers,
            php_fpm=master,
            pool=pool,
            nginx=serving_nginx,
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
            directories = dict.fromkeys([*_above(self._path), *_above(self._real or self._path)])
            found += [_entry(directory) for directory in directories]
            file = _entry(self._path)
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
        if self._abstract:  # (names of other network namespaces lead nobody of ours there)
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
        holders = [each for each in found.processes if not each.heir][:_MOST_PROCESSES]
        titles = {each.pid: process_table.read_title(each.pid) for each in holders}
        return tuple(
            Process(
                each.pid,
                each.comm,
                process_table.read_descriptors(each.pid),
                # (A master that has forked nobody yet serves nobody either.)
                each.master or each.activator or php_fpm.configuration_of(titles[each.pid]) is not None,
                None if not each.serves or each.waits is None else not each.waits,
                None if each.doing is None else each.doing.text,
                each.stopped,
            )
            for each in holders
        )

    # --- php-fpm ---

    def _php_fpm(self, servers: tuple[Process, ...]) -> tuple[int | None, Pool | None]:
        """The master, and the pool that listens here. Who serves may be hidden from us; titles are not."""
        pids = [each.pid for each in servers] or [pid for pid, _ in process_table.titled(php_fpm.TITLE)]
        notes: list[str] = []
        for pid in pids[:_MOST_PROCESSES]:
            file = php_fpm.configuration_of(process_table.read_title(pid))
            if file is None:
                continue
            if _is_elsewhere(pid):
                self._unseen.append(f"the configuration of php-fpm (pid {pid}): it has another root directory")
                continue
            reader = Reader()
            sections, files = php_fpm.read_sections(reader, file)
            name = php_fpm.pool_at(sections, self._is_servers)
            if name is not None:
                self._unseen += reader.notes
                return pid, _pool(name, sections, files)
            notes += [*reader.notes, f"{shown(file)}: no pool there has listen = {shown(self._path)}"]
            if servers:
                self._unseen += notes
                return pid, None
        return None, None

    # --- nginx ---

    def _nginx(self) -> tuple[Nginx, ...]:
        found = []
        masters = list(process_table.titled(nginx.TITLE))
        for pid, title in masters[:_MOST_MASTERS]:
            reader = Reader()
            file = self._nginx_file(pid, title)
            if file is None:
                continue
            seen = nginx.look(reader, file, pid, self._is_same)
            # What another nginx has that could not be read is of interest all the same.
            self._unseen += reader.notes
            if seen is not None:
                found.append(msgspec.structs.replace(seen, workers=self._nginx_workers(pid)))
        if len(masters) > _MOST_MASTERS:
            self._unseen.append(f"{len(masters) - _MOST_MASTERS} more nginx that run")
        return tuple(found)

    def _nginx_workers(self, master: int) -> tuple[Process, ...]:
        pids = process_table.titled_children(master, "nginx: worker process")
        stopped = stops(self._machine, pids)
        return tuple(
            Process(
                pid,
                printable(procfs.read_comm(pid) or "?"),
                process_table.read_descriptors(pid),
                stopped=stopped.get(pid),
            )
            for pid in pids
        )

    def _nginx_file(self, pid: int, title: str) -> str | None:
        if _is_elsewhere(pid):
            self._unseen.append(f"the configuration of nginx (pid {pid}): it has another root directory")
            return None
        file, prefix = nginx.configuration_of(title)
        if file is None:
            places = (
                nginx.DEFAULTS if prefix is None else (os.path.join(prefix, "conf/nginx.conf"), *nginx.DEFAULTS)
            )
            file = next((each for each in places if os.path.exists(each)), None)
        elif not file.startswith("/"):
            file = None if prefix is None else os.path.join(prefix, file)
        if file is None:
            self._unseen.append(f"the configuration of nginx (pid {pid}): nothing says where it is")
        return file

    def _clients(self, found: tuple[Nginx, ...]) -> tuple[User, ...]:
        """The users of nginx's workers, each once."""
        users: dict[tuple[int, tuple[int, ...]], User] = {}
        for each in found:
            for worker in each.workers:
                ids = procfs.read_ids(worker.pid)
                if ids is None:
                    continue
                uid, gid, more = ids
                users.setdefault(
                    (uid, (gid, *more)),
                    User(
                        user_name(uid),
                        uid,
                        (gid, *more),
                        f"nginx's worker, pid {worker.pid}",
                        group_name(gid),
                        self._is_seen_by(worker.pid),
                    ),
                )
        return tuple(users.values())

    def _is_seen_by(self, pid: int) -> bool | None:
        """A service may have a /tmp of its own (PrivateTmp=): whether it finds the same socket there."""
        try:
            if os.path.samestat(os.stat(f"/proc/{pid}/ns/mnt"), os.stat("/proc/self/ns/mnt")):
                return None
            here = os.stat(self._path)
        except OSError:
            return None
        try:
            return os.path.samestat(os.stat(f"/proc/{pid}/root{self._real}"), here)
        except FileNotFoundError:
            return False
        except OSError:
            return None

    def _is_servers(self, path: str) -> bool:
        """Does this path stand for the server's own socket, behind what stands in front of it?"""
        return self._is_same(path) or os.path.normpath(path) in self._paths

    def _is_same(self, path: str) -> bool:
        if os.path.normpath(path) == self._path:
            return True
        try:
            return path.startswith("/") and os.path.realpath(path) == self._real
        except (OSError, ValueError):
            return False


def _pool(name: str, sections: php_fpm.Sections, files: dict[str, str]) -> Pool:
    settings = {key: shown(value) for key, value in sections[name].items() if key.startswith(_SETTINGS)}
    owner = group = None
    if not any(settings.get(key) for key in ("listen.acl_users", "listen.acl_groups")):
        owner = _number_of(settings.get("listen.owner"), _uid)
        group = _number_of(settings.get("listen.group"), _gid)
    return Pool(
        name=shown(name),
        file=shown(files.get(name, "")),
        settings=settings,
        process_max=php_fpm.number(sections["global"].get("process.max"), 0),
        owner=owner,
        group=group,
    )


def _uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def _gid(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def _number_of(name: str | None, look_up: Callable[[str], int]) -> int | None:
    if not name:
        return None
    if name.isdecimal() and len(name) < 12:
        return int(name)
    try:
        return look_up(name)
    except (KeyError, ValueError, OSError):
        return None


def _is_elsewhere(pid: int) -> bool:
    """Its root directory is another than ours (a container, a chroot): paths mean something else there."""
    try:
        return not os.path.samestat(os.stat(f"/proc/{pid}/root/."), os.stat("/"))
    except OSError:
        return False


def _above(path: str) -> list[str]:
    """The directories above it, from the root on."""
    found = []
    while (parent := os.path.dirname(path)) != path:
        found.append(parent)
        path = parent
    return found[::-1]


def _entry(path: str) -> Entry:
    """Raises OSError."""
    seen = os.stat(path)
    acl = b""
    with contextlib.suppress(OSError):
        acl = os.getxattr(path, _ACL)
    owner = f"{user_name(seen.st_uid)}:{group_name(seen.st_gid)}"
    return Entry(shown(path), seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode), parse_acl(acl), owner)


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
