"""A listening socket and, where it has one, its file.

Rules:

* A socket file never exists, not for a moment, with more permissions than it shall have.
* Only a socket that nobody listens on is ever replaced; only a file that we made is ever removed.
* The file's directory is held open from the first look, and our file too while it stands there: what is changed is
  what these descriptors stand for, whatever their paths lead to later (`udsproxy.kernel.directory`).
* A listener can be withdrawn, so that connect() fails with the kernel's own errno, and restored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

from udsproxy.endpoints.connecting import AF_UNIX, STREAM, Socket, connect, tcp_socket, unix_socket
from udsproxy.endpoints.naming import SocketFile, new_socket
from udsproxy.endpoints.ownership import group_name, pinned, set_owner_and_mode, user_name
from udsproxy.endpoints.spelling import Endpoint, ListenError, Tcp, UnixAbstract, UnixPath
from udsproxy.events import errno_message, errno_name
from udsproxy.kernel.credentials import Actor, Credentials
from udsproxy.kernel.directory import Directory, Identity, identity_of, rename


class Listener:
    """A listening socket. Close it to remove its file."""

    listens_as: Credentials | None = None
    """As whom, where that is not ourselves."""
    _act: Callable[[Callable[[], None]], None] | None = None
    """Makes a call so."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        like: Endpoint | None = None,
        backlog: int | None = None,
        kind: int = STREAM,
    ) -> None:
        """Listen. A socket file takes owner, group and mode of ``like`` (the upstream) where ``endpoint`` does
        not say, and mode 600 where there is none to copy. ``backlog`` None: as long as the system allows.
        ``kind``: SOCK_STREAM, SOCK_SEQPACKET or SOCK_DGRAM; of Unix sockets.

        Raises `ListenError`.
        """
        self.kind = kind
        with open("/proc/sys/net/core/somaxconn", encoding="ascii") as file:
            self.most = int(file.read())
        """The longest backlog that the system allows."""
        self.endpoint = endpoint
        self.backlog = self.most if backlog is None else min(backlog, self.most)
        self.is_unix = not isinstance(endpoint, Tcp)
        self.notes: list[str] = []
        """Warnings for people: owner or group could not be made the same as the upstream's, say."""
        self.mode: str | None = None
        """The file's, as chmod writes it; None where there is no file."""
        self.owner: str | None = None
        """The file's, as ``owner:group``."""
        self._like = like
        self._plug: socket.socket | None = None
        self.plugged = False
        self._directory: Directory | None = None
        """Holds the file; None: there is none."""
        self._name = ""
        """The file's, in that directory."""
        self._pinned = -1
        """Our file, opened with O_PATH: its inode's number is given to no other while that is open."""
        self._file: Identity | None = None
        """Our file, which need not be at its place any more."""
        self.withdrawn = False
        """There is no socket now."""
        try:
            if isinstance(endpoint, UnixPath):
                self._directory, self._name = self._find(endpoint)
                self.notes += _warnings(self._directory)
            self.sock = self._open()
        except OSError as error:
            self._release()
            raise self._cannot(error) from None
        except BaseException:
            self._release()
            raise

    def _find(self, endpoint: UnixPath) -> tuple[Directory, str]:
        """The directory of the file, and its name there. Raises OSError."""
        return Directory(os.path.dirname(endpoint.path)), os.path.basename(endpoint.path)

    def accept(self) -> Socket:
        """accept(), non-blocking. Raises OSError (EAGAIN: nobody waits; EMFILE, ENFILE, ENOMEM).

        A Unix socket that it returns is to be used with MSG_DONTWAIT: it has not been made non-blocking.
        """
        if self.is_unix:
            return Socket(AF_UNIX, self.kind, 0, self.sock._accept()[0])  # type: ignore[attr-defined]
        accepted, _ = self.sock.accept()
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return accepted

    def limit(self, backlog: int) -> None:
        """Change the backlog. What is queued stays (net/unix/af_unix.c, unix_listen)."""
        backlog = min(backlog, self.most)
        if backlog != self.backlog:
            self.backlog = backlog
            if not self.plugged:
                self._listen(self.sock, backlog)

    def plug(self) -> None:
        """Fill the queue with a connection of our own: every client gets EAGAIN. To be called with the queue empty;
        somebody who has come in the meantime fills it just as well. Nobody is to be accepted until `unplug`.

        Only for Unix sockets. Raises OSError.
        """
        assert isinstance(self.endpoint, UnixPath | UnixAbstract)
        ourselves = UnixPath(f"/proc/self/fd/{self._pinned}") if self._pinned >= 0 else self.endpoint
        plug = unix_socket(self.kind)
        self._listen(self.sock, 0)
        self.plugged = True
        if connect(plug, ourselves):
            plug.close()
        else:
            self._plug = plug

    def unplug(self) -> None:
        """Take the plug out, which is the first in the queue; the limit is what it was, or was set to since."""
        self.plugged = False
        if self._plug is not None:
            with contextlib.suppress(OSError):
                self.sock.accept()[0].close()
            self._plug.close()
            self._plug = None
        self._listen(self.sock, self.backlog)

    def withdraw(self, number: int) -> None:
        """From now on connect() fails with this errno: ENOENT and EACCES where the endpoint is a path, else
        ECONNREFUSED. Who is in the queue gets ECONNRESET, as from a server that ended.

        Raises `ListenError`, where it had no file and cannot have one.
        """
        self.withdrawn = True
        if self._directory is None:
            self.sock.close()
            return
        if number == errno.ENOENT:
            self._unlink()
            self.sock.close()
            return
        if not self._is_ours():
            self.sock.close()
            self.sock = self._open(listening=False)
        self.sock.close()
        mode = 0 if number == errno.EACCES or self.mode is None else int(self.mode, 8)
        os.chmod(f"/proc/self/fd/{self._pinned}", mode)

    def step_aside(self, number: int) -> None:
        """`withdraw`, because the upstream is gone."""
        self.withdraw(number)

    def restore(self) -> None:
        """Listen again. Raises `ListenError`: something else is there now, or it cannot be made again."""
        self.sock = self._open()
        self.withdrawn = False

    def copy_again(self) -> None:
        """The upstream's file may have another owner or mode: so has ours, then. Raises `ListenError`, OSError."""
        if self.withdrawn or self._pinned < 0 or not isinstance(self.endpoint, UnixPath):
            return
        ours = f"/proc/self/fd/{self._pinned}"
        with pinned(self._like) as theirs:
            if theirs is None:
                return
            made, model = os.stat(ours), os.stat(theirs)
            if not stat.S_ISSOCK(model.st_mode):
                return
            if (made.st_uid, made.st_gid) != (model.st_uid, model.st_gid):
                # Nobody is to have what was another's, not for a moment.
                os.chmod(ours, stat.S_IMODE(made.st_mode & model.st_mode))
            set_owner_and_mode(ours, self.endpoint, UnixPath(theirs))
            self._describe(os.stat(ours))

    def _describe(self, made: os.stat_result) -> None:
        self.mode = f"{stat.S_IMODE(made.st_mode):o}"
        self.owner = f"{user_name(made.st_uid)}:{group_name(made.st_gid)}"

    def remove_file(self) -> None:
        """Remove the socket's file if it is still ours: nobody new can connect, who is in the queue stays."""
        self._unlink()

    def _unlink(self) -> None:
        if self._directory is not None and self._file is not None:
            with contextlib.suppress(OSError):
                self._directory.remove(self._name, {self._file})
        self._forget_file()

    def close(self) -> None:
        """Remove the file and close the socket. Who is still in the queue gets ECONNRESET."""
        self.remove_file()
        self.sock.close()
        self._release()
        if self._plug is not None:
            self._plug.close()
            self._plug = None

    def _release(self) -> None:
        """Let go of the directory."""
        self._forget_file()
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _keep_file(self, pinned: int) -> None:
        """This file is ours."""
        self._forget_file()
        self._pinned = os.dup(pinned)
        self._file = identity_of(pinned)

    def _forget_file(self) -> None:
        self._file = None
        if self._pinned >= 0:
            os.close(self._pinned)
            self._pinned = -1

    def _is_ours(self) -> bool:
        """Is the file at our place ours? (What cannot be seen is not.)"""
        if self._directory is None or self._file is None:
            return False
        with contextlib.suppress(OSError):
            return self._directory.identity(self._name) == self._file
        return False

    # --- opening ---

    def _open(self, *, listening: bool = True) -> socket.socket:
        endpoint = self.endpoint
        try:
            if isinstance(endpoint, UnixPath):
                assert self._directory is not None
                return self._open_path(endpoint, self._directory, listening)
            if isinstance(endpoint, UnixAbstract):
                return self._listening(unix_socket(self.kind), b"\0" + os.fsencode(endpoint.name))
            family, _, _, _, address = socket.getaddrinfo(
                endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            sock = self._listening(tcp_socket(family), address)
            self.endpoint = Tcp(endpoint.host, sock.getsockname()[1])
            return sock
        except OSError as error:
            raise self._cannot(error) from None

    def _cannot(self, error: OSError) -> ListenError:
        return ListenError(f"cannot listen on {self.endpoint}: {_reason(error)}")

    def _listening(self, sock: socket.socket, address: bytes | tuple[Any, ...]) -> socket.socket:
        """``sock``, bound and listening; closed where that fails. Raises OSError."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # on AF_UNIX it means nothing
            sock.bind(address)
            self._listen(sock, self.backlog)
        except OSError:
            sock.close()
            raise
        return sock

    def _open_path(self, endpoint: UnixPath, directory: Directory, listening: bool) -> socket.socket:
        """Bind beside the path, set owner and mode, listen, and only then put the file to the path.

        Raises `ListenError`, OSError.
        """
        directory.reopen()  # (where it was removed since)
        replaceable = self._require_replaceable(endpoint, directory)
        # The name shows in `ss -xl` and in getpeername() for as long as the socket lives.
        with new_socket(self._shown_name(), self.kind, directory, self._beside()) as made:
            note = set_owner_and_mode(f"/proc/self/fd/{made.pinned}", endpoint, self._like)
            if note is not None and note not in self.notes:
                self.notes.append(note)
            found = os.fstat(made.pinned)
            if listening:
                self._listen(made.sock, self.backlog)
            self._put_in_place(made, directory, replaceable)
            self._keep_file(made.pinned)
        self._describe(found)
        return made.sock

    def _shown_name(self) -> str:
        """The name that clients are to see."""
        assert isinstance(self.endpoint, UnixPath)
        return os.path.abspath(self.endpoint.path)

    def _beside(self) -> str:
        """A name in the directory that nothing has."""
        long = len(os.fsencode(self._name)) > 200
        return f"{'' if long else self._name}.udsproxy-{os.getpid()}-{os.urandom(4).hex()}"

    def _require_replaceable(self, endpoint: UnixPath, directory: Directory) -> Identity | None:
        """Our own file, or a socket that nobody listens on (ECONNREFUSED): which it is; None: nothing is there.

        Raises `ListenError`: something else is there; OSError.
        """
        try:
            pinned = directory.pin(self._name)
        except FileNotFoundError:
            return None
        try:
            there = identity_of(pinned)
            if there != self._file:
                _require_dead_socket(pinned, endpoint.path)
            return there
        finally:
            os.close(pinned)

    def _put_in_place(self, made: SocketFile, directory: Directory, replaceable: Identity | None) -> None:
        """Put a new file to the path, in one step. Raises `ListenError`, OSError; nothing is changed then."""
        if replaceable is None:
            rename(made.at, made.name, directory.fd, self._name)
            return
        try:
            rename(made.at, made.name, directory.fd, self._name, exchange=True)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            os.rename(made.name, self._name, src_dir_fd=made.at, dst_dir_fd=directory.fd)  # it cannot exchange
            return
        # Whoever may write the directory may have put another there since that was looked at.
        replaced = os.stat(made.name, dir_fd=made.at, follow_symlinks=False)
        if (replaced.st_dev, replaced.st_ino) != replaceable:
            rename(made.at, made.name, directory.fd, self._name, exchange=True)
            raise ListenError(f"cannot listen on {self.endpoint}: somebody else is putting a socket there")
        os.unlink(made.name, dir_fd=made.at)

    def listen_as(self, actor: Actor, credentials: Credentials) -> None:
        """Clients see in SO_PEERCRED who called listen(): have it called as that user."""
        self.listens_as = credentials
        self._act = partial(actor.act, credentials)
        if not self.withdrawn:
            self._listen(self.sock, 0 if self.plugged else self.backlog)

    def _listen(self, sock: socket.socket, backlog: int) -> None:
        # Each call says anew who called it (net/unix/af_unix.c, update_peercred).
        if self.kind == socket.SOCK_DGRAM:
            # Before anybody can send: who sends what is said of datagrams that come from then on.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            return
        if self._act is not None:
            self._act(partial(sock.listen, backlog))
        else:
            sock.listen(backlog)


def _require_dead_socket(pinned: int, path: str) -> None:
    """A socket that nobody listens on (ECONNREFUSED). Raises `ListenError`."""
    if not stat.S_ISSOCK(os.fstat(pinned).st_mode):
        raise ListenError(f"cannot listen on {path}: a file that is not a socket is there; choose another path")
    with unix_socket() as probe:
        found = connect(probe, UnixPath(f"/proc/self/fd/{pinned}"))
    if found == errno.EACCES:
        raise ListenError(
            f"cannot listen on {path}: a socket is there that this user may not connect to (EACCES); remove it"
        )
    if found != errno.ECONNREFUSED:
        raise ListenError(
            f"cannot listen on {path}: somebody already listens there; stop that first, or choose another path"
        )


def _warnings(directory: Directory) -> list[str]:
    """A line where others may exchange the socket's file, or the way to it."""
    others = directory.changeable_by()
    if not others:
        return []
    more = f" (and {len(others) - 1} of the directories above it by others)" if len(others) > 1 else ""
    return [f"{others[0]}{more}: they can put another socket in the place of this one"]


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
