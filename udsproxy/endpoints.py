"""Where sockets are: one spelling for all of them, and the only place that makes sockets.

An endpoint is a path, ``unix:PATH``, ``unix:@NAME`` (abstract) or ``tcp:HOST:PORT``, then options after commas
(``unix:/run/p.sock,mode=660,owner=www-data``). A backslash takes the meaning from the comma after it.

Rules:

* Every socket is non-blocking and close-on-exec.
* connect() on AF_UNIX succeeds or fails at once, EAGAIN meaning "the accept queue is full" and never "in
  progress" (net/unix/af_unix.c, unix_stream_connect): `connect` is a plain call that returns the errno.
* A socket file never exists, not for a moment, with more permissions than it shall have.
* Only a socket that nobody listens on is ever replaced; only a file that we made is ever removed.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import functools
import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal

import msgspec
import trio

from udsproxy.events import errno_message, errno_name

_ACL = "system.posix_acl_access"

MAX_PATH = 107
"""sockaddr_un.sun_path is 108 bytes with its final NUL (unix(7)). Longer paths go by way of /proc/self/fd."""

# Plain numbers: the enumerations of the socket module cost more than the system calls they are passed to.
_AF_UNIX, _STREAM = int(socket.AF_UNIX), int(socket.SOCK_STREAM)
_STREAM_NONBLOCK = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


Socket = _socket.socket
"""The class under `socket.socket`, without its detours in Python."""


class EndpointError(ValueError):
    """An endpoint that cannot be understood. One line."""


class ListenError(Exception):
    """An endpoint that cannot be listened on. One line: the thing, the operation, the errno, what to do."""


class UnixPath(msgspec.Struct, frozen=True, tag="unix"):
    """A socket in the file system. ``mode``, ``owner`` and ``group`` are for listening; None: not told."""

    path: str
    mode: int | None = None
    owner: str | None = None
    group: str | None = None

    def __str__(self) -> str:
        return self.path


class UnixAbstract(msgspec.Struct, frozen=True, tag="abstract"):
    """A socket in the abstract name space (unix(7)): ``name`` without the leading NUL."""

    name: str

    def __str__(self) -> str:
        return f"unix:@{self.name}"


class Tcp(msgspec.Struct, frozen=True, tag="tcp"):
    """A TCP endpoint. ``host`` is a name or an address, without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


Endpoint = UnixPath | UnixAbstract | Tcp


# --- the spelling ---


def parse(text: str) -> Endpoint:
    """The endpoint that ``text`` spells. Raises `EndpointError`."""
    address, *options = _split_commas(text)
    if "\0" in text:
        raise EndpointError(f"endpoint {text!r}: a NUL cannot be part of it")
    scheme, colon, rest = address.partition(":")
    if colon and scheme == "tcp":
        _options(text, options, ())
        return _parse_tcp(text, rest)
    if colon and "/" not in scheme and scheme != "unix":
        raise EndpointError(
            f"endpoint {text!r}: unknown kind {scheme!r}; write PATH, unix:PATH, unix:@NAME or tcp:HOST:PORT"
        )
    path = rest if colon and scheme == "unix" else address
    if path.startswith("@"):
        _options(text, options, ())
        return _parse_abstract(text, path[1:])
    if not path:
        raise EndpointError(f"endpoint {text!r}: a path is missing")
    given = _options(text, options, ("mode", "owner", "group"))
    mode = _parse_mode(text, given["mode"]) if "mode" in given else None
    return UnixPath(path, mode, given.get("owner"), given.get("group"))


def same_place(one: Endpoint, other: Endpoint) -> bool:
    """Do both lead to the same socket, as far as their spelling tells?"""
    if isinstance(one, UnixPath) and isinstance(other, UnixPath):
        return os.path.realpath(one.path) == os.path.realpath(other.path)
    return one == other


def _split_commas(text: str) -> list[str]:
    parts, current, chars = [], "", iter(text)
    for char in chars:
        if char == "\\":
            current += next(chars, "\\")
        elif char == ",":
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current]


def _options(text: str, options: list[str], known: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it takes {', '.join(known) or 'none'}"
            raise EndpointError(f"endpoint {text!r}: unknown option {key!r}{hint}")
        if not equals or not value:
            raise EndpointError(f"endpoint {text!r}: option {key!r} needs a value, {key}=...")
        found[key] = value
    return found


def _parse_mode(text: str, value: str) -> int:
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise EndpointError(f"endpoint {text!r}: mode {value!r} is not octal permissions, as in mode=660")
    return mode


def _parse_abstract(text: str, name: str) -> UnixAbstract:
    if not name or len(os.fsencode(name)) > MAX_PATH:
        raise EndpointError(f"endpoint {text!r}: an abstract name has 1 to {MAX_PATH} bytes")
    return UnixAbstract(name)


def _parse_tcp(text: str, rest: str) -> Tcp:
    host, colon, port = rest.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise EndpointError(f"endpoint {text!r}: write tcp:HOST:PORT, with a port from 0 to 65535")
    if ":" in host and not bracketed:
        raise EndpointError(f"endpoint {text!r}: an IPv6 address goes in brackets, tcp:[::1]:9000")
    try:
        host.encode("idna")
    except UnicodeError:
        raise EndpointError(f"endpoint {text!r}: {host!r} cannot be the name of a host") from None
    return Tcp(host[1:-1] if bracketed else host, int(port))


# --- connecting ---


def unix_socket() -> socket.socket:
    """A new non-blocking AF_UNIX stream socket. Raises OSError (EMFILE, ENFILE, ENOBUFS, ENOMEM)."""
    return socket.socket(_AF_UNIX, _STREAM_NONBLOCK)


def plain_socket() -> Socket:
    """`unix_socket` without the comforts of `socket.socket`, for one in each connection. Raises as that."""
    return Socket(_AF_UNIX, _STREAM_NONBLOCK)


def connect(sock: Socket, upstream: UnixPath | UnixAbstract) -> int:
    """connect() of an AF_UNIX socket, which never waits. Returns 0 or the errno.

    After EAGAIN the same socket can be tried again; poll never tells when.
    """
    return dialer(upstream)(sock)


def dialer(upstream: UnixPath | UnixAbstract) -> Callable[[Socket], int]:
    """`connect` to one upstream, for who does it often."""
    if isinstance(upstream, UnixPath) and len(os.fsencode(upstream.path)) > MAX_PATH:
        return functools.partial(_connect_far, upstream.path)
    address = upstream.path if isinstance(upstream, UnixPath) else b"\0" + os.fsencode(upstream.name)
    return lambda sock: sock.connect_ex(address)


def _connect_far(path: str, sock: Socket) -> int:
    """`connect` where the path is longer than an address can be."""
    try:
        pinned = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        return error.errno or errno.EIO
    try:
        return sock.connect_ex(f"/proc/self/fd/{pinned}")
    finally:
        os.close(pinned)


def tcp_socket(family: int) -> socket.socket:
    """A new non-blocking TCP socket that sends at once (TCP_NODELAY): a proxy adds no delay of its own."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def connect_tcp(upstream: Tcp) -> socket.socket:
    """A connection to the first address of the host that answers. Waits; the caller sets the limit.

    Raises socket.gaierror, OSError.
    """
    found = await trio.socket.getaddrinfo(upstream.host, upstream.port, type=socket.SOCK_STREAM)
    failed = OSError(errno.EHOSTUNREACH, errno_message(errno.EHOSTUNREACH))
    for family, _, _, _, address in found:
        sock = trio.socket.from_stdlib_socket(tcp_socket(family))
        try:
            await sock.connect(address)
            return socket.socket(fileno=sock.detach())
        except OSError as error:
            failed = error
        finally:
            sock.close()
    raise failed


# --- listening ---


class Listener:
    """A listening socket and, where it has one, its file. Close it to remove the file.

    ``note`` is a warning for people, where owner or group could not be made the same as the upstream's.
    """

    def __init__(self, sock: socket.socket, endpoint: Endpoint, backlog: int, note: str | None = None) -> None:
        self.sock = sock
        self.endpoint = endpoint
        self.backlog = backlog
        self.note = note
        self.is_unix = not isinstance(endpoint, Tcp)
        self.mode: str | None = None
        """The file's, as chmod writes it; None where there is no file."""
        self.owner: str | None = None
        """The file's, as ``owner:group``."""
        self._file: tuple[int, int] | None = None
        if isinstance(endpoint, UnixPath):
            made = os.stat(endpoint.path, follow_symlinks=False)
            self._file = made.st_dev, made.st_ino
            self.mode = f"{stat.S_IMODE(made.st_mode):o}"
            self.owner = f"{_user_name(made.st_uid)}:{_group_name(made.st_gid)}"

    def accept(self) -> Socket:
        """accept(), non-blocking. Raises OSError (EAGAIN: nobody waits; EMFILE, ENFILE, ENOMEM).

        A Unix socket that it returns is to be used with MSG_DONTWAIT: it has not been made non-blocking.
        """
        if self.is_unix:
            return Socket(_AF_UNIX, _STREAM, 0, self.sock._accept()[0])  # type: ignore[attr-defined]
        accepted, _ = self.sock.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return accepted

    def remove_file(self) -> None:
        """Remove the socket's file if it is still ours: nobody new can connect, who is in the queue stays."""
        if self._file is not None and isinstance(self.endpoint, UnixPath):
            with contextlib.suppress(OSError):
                found = os.stat(self.endpoint.path, follow_symlinks=False)
                if (found.st_dev, found.st_ino) == self._file:
                    os.unlink(self.endpoint.path)
            self._file = None

    def close(self) -> None:
        """Remove the file and close the socket. Who is still in the queue gets ECONNRESET."""
        self.remove_file()
        self.sock.close()


def listen(endpoint: Endpoint, *, like: Endpoint | None = None, backlog: int | None = None) -> Listener:
    """Listen on ``endpoint``.

    A socket file takes owner, group and mode of ``like`` (the upstream) where ``endpoint`` does not say, and
    mode 600 where there is none to copy. Raises `ListenError`.
    """
    with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
        somaxconn = int(file.read())
    backlog = somaxconn if backlog is None else min(backlog, somaxconn)
    if isinstance(endpoint, UnixPath):
        return _listen_path(endpoint, like, backlog)
    try:
        if isinstance(endpoint, UnixAbstract):
            sock = _listening(unix_socket(), b"\0" + os.fsencode(endpoint.name), backlog)
        else:
            family, _, _, _, address = socket.getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = _listening(tcp_socket(family), address, backlog)
            endpoint = Tcp(endpoint.host, sock.getsockname()[1])
    except OSError as error:
        raise ListenError(f"cannot listen on {endpoint}: {_reason(error)}") from None
    return Listener(sock, endpoint, backlog)


def _listening(sock: socket.socket, address: bytes | tuple[Any, ...], backlog: int) -> socket.socket:
    """``sock``, bound and listening; closed where that fails. Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # on AF_UNIX it means nothing
        sock.bind(address)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _listen_path(endpoint: UnixPath, like: Endpoint | None, backlog: int) -> Listener:
    """Bind beside the path, set owner and mode, listen, and only then rename over the path."""
    path = endpoint.path
    directory, name = os.path.split(path)
    _require_replaceable(path)
    try:
        at = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ListenError(f"cannot listen on {path}: {_reason(error)}") from None
    # The name shows in `ss -xl` and in getpeername() for as long as the socket lives: keep the path in it.
    beside = os.path.join(directory, f"{name}.udsproxy-{os.getpid()}")
    if len(os.fsencode(beside)) > MAX_PATH or len(os.fsencode(name)) > 200:
        beside = f"/proc/self/fd/{at}/.udsproxy-{os.getpid()}"
    sock = unix_socket()
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)  # of a process that had our number and was killed in this function
        # bind() makes the file with the mode of the socket's inode, less the umask: closed until we are done.
        os.fchmod(sock.fileno(), 0)
        sock.bind(beside)
        try:
            # By descriptor, not by name: nobody can put another file in between.
            pinned = os.open(beside, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                note = _set_owner_and_mode(f"/proc/self/fd/{pinned}", endpoint, like)
            finally:
                os.close(pinned)
            sock.listen(backlog)
            os.rename(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
        return Listener(sock, endpoint, backlog, note)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {_reason(error)}") from None
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(at)


def _require_replaceable(path: str) -> None:
    """Nothing there, or a socket that nobody listens on (ECONNREFUSED). Raises `ListenError`."""
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise ListenError(f"cannot listen on {path}: it is there and is no socket; choose another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"cannot listen on {path}: {_reason(error)}") from None
    with unix_socket() as probe:
        found = connect(probe, UnixPath(path))
    if found == errno.EACCES:
        raise ListenError(f"cannot listen on {path}: a socket is there and may not be tried (EACCES); remove it")
    if found not in (errno.ECONNREFUSED, errno.ENOENT):
        raise ListenError(
            f"cannot listen on {path}: somebody already listens there; stop that first, or choose another path"
        )


def _set_owner_and_mode(file: str, endpoint: UnixPath, like: Endpoint | None) -> str | None:
    """Give a new socket file its owner, group and mode. Returns a warning, where one is due.

    What was told must succeed. What is only copied may fail for want of privilege; then the file is opened to
    no group that the upstream is not open to. Raises `ListenError`, OSError.
    """
    model = _stat_socket(like)
    uid = _lookup("owner", endpoint.owner) if endpoint.owner is not None else -1
    gid = _lookup("group", endpoint.group) if endpoint.group is not None else -1
    if uid != -1 or gid != -1:
        os.chown(file, uid, gid)
    note = None
    mode = endpoint.mode
    if model is not None:
        made = os.stat(file)
        copied_mode = stat.S_IMODE(model.st_mode)
        if gid == -1 and made.st_gid != model.st_gid and not _chown(file, -1, model.st_gid):
            copied_mode &= ~0o070 | (copied_mode & 0o007) << 3
            note = f"{endpoint.path}: the upstream's group {_group_name(model.st_gid)} cannot be copied (not root)"
        if uid == -1 and made.st_uid != model.st_uid and not _chown(file, model.st_uid, -1):
            note = f"{endpoint.path}: the upstream's owner {_user_name(model.st_uid)} cannot be copied (not root)"
        mode = copied_mode if mode is None else mode
    os.chmod(file, 0o600 if mode is None else mode)
    if (
        endpoint.mode is None
        and isinstance(like, UnixPath)
        and model is not None
        and not _copy_acl(like.path, file)
    ):
        # With an ACL the group's bits of the mode are the ACL's mask: alone they would open it to the group.
        os.chmod(file, (mode or 0) & ~0o070)
        note = f"{endpoint.path}: the upstream's ACL cannot be copied; the group was left out"
    return note


def _copy_acl(source: str, file: str) -> bool:
    """Copy the access ACL (acl(5)) where there is one; False: there is, and it cannot be."""
    try:
        acl = os.getxattr(source, _ACL)
    except OSError:
        return True
    try:
        os.setxattr(file, _ACL, acl)
    except OSError:
        return False
    return True


def _chown(file: str, uid: int, gid: int) -> bool:
    try:
        os.chown(file, uid, gid)
    except PermissionError:
        return False
    return True


def _stat_socket(endpoint: Endpoint | None) -> os.stat_result | None:
    if isinstance(endpoint, UnixPath):
        with contextlib.suppress(OSError):
            found = os.stat(endpoint.path)
            return found if stat.S_ISSOCK(found.st_mode) else None
    return None


def _lookup(kind: Literal["owner", "group"], name: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ListenError(f"{kind} {name!r}: no such {'user' if kind == 'owner' else 'group'} here") from None


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


_ADVICE = {
    errno.EACCES: "run as a user who may write there, or choose another path",
    errno.EADDRINUSE: "somebody listens there; stop that, or choose another",
    errno.ENOENT: "make the directory first",
    errno.EPERM: "giving files away takes root; leave owner and group out",
    errno.EROFS: "choose a path on a file system that can be written",
}


def _reason(error: OSError) -> str:
    number = error.errno or 0
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}; check the host's name"
    advice = _ADVICE.get(number)
    return f"{errno_message(number)} ({errno_name(number)})" + (f"; {advice}" if advice else "")
