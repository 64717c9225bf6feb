"""A listening socket and, where it has one, its file.

Rules:

* A socket file never exists, not for a moment, with more permissions than it shall have.
* Only a socket that nobody listens on is ever replaced; only a file that we made is ever removed.
* A listener can be withdrawn, so that connect() fails with the kernel's own errno, and restored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from udsproxy.endpoints.connecting import AF_UNIX, STREAM, Socket, connect, tcp_socket, unix_socket
from udsproxy.endpoints.naming import bound_as
from udsproxy.endpoints.ownership import group_name, set_owner_and_mode, user_name
from udsproxy.endpoints.spelling import MAX_PATH, Endpoint, ListenError, Tcp, UnixAbstract, UnixPath
from udsproxy.events import errno_message, errno_name
from udsproxy.kernel.credentials import Actor, Credentials


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
        self.note: str | None = None
        """A warning for people, where owner or group could not be made the same as the upstream's."""
        self.mode: str | None = None
        """The file's, as chmod writes it; None where there is no file."""
        self.owner: str | None = None
        """The file's, as ``owner:group``."""
        self._like = like
        self._plug: socket.socket | None = None
        self.plugged = False
        self._pinned: int | None = None
        """Keeps the file's inode, and so its number, while no socket does."""
        self._file: tuple[int, int] | None = None
        self.withdrawn = False
        """There is no socket now."""
        self.sock = self._open()

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
        plug = unix_socket(self.kind)
        self._listen(self.sock, 0)
        self.plugged = True
        if connect(plug, self.endpoint):
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
        if not isinstance(self.endpoint, UnixPath):
            self.sock.close()
            return
        if number == errno.ENOENT:
            self.remove_file()
            self.sock.close()
            return
        if not self._is_ours():
            self.sock.close()
            self.sock = self._open(listening=False)
        self._pin(self.endpoint.path)
        self.sock.close()
        mode = 0 if number == errno.EACCES or self.mode is None else int(self.mode, 8)
        os.chmod(self.endpoint.path, mode)

    def step_aside(self, number: int) -> None:
        """`withdraw`, because the upstream is gone."""
        self.withdraw(number)

    def restore(self) -> None:
        """Listen again. Raises `ListenError`: something else is there now, or it cannot be made again."""
        self.sock = self._open()
        self.withdrawn = False
        self._pin(None)

    def copy_again(self) -> None:
        """The upstream's file may have another owner or mode: so has ours, then. Raises `ListenError`, OSError."""
        if self.withdrawn or not (isinstance(self.endpoint, UnixPath) and isinstance(self._like, UnixPath)):
            return
        with contextlib.ExitStack() as stack:
            ours, theirs = (
                stack.enter_context(_pinned(path, flags))
                for path, flags in ((self.endpoint.path, os.O_NOFOLLOW), (self._like.path, 0))
            )
            made, model = os.stat(ours), os.stat(theirs)
            if (made.st_dev, made.st_ino) != self._file or not stat.S_ISSOCK(model.st_mode):
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
        if self._is_ours() and isinstance(self.endpoint, UnixPath):
            with contextlib.suppress(OSError):
                os.unlink(self.endpoint.path)
        self._file = None

    def close(self) -> None:
        """Remove the file and close the socket. Who is still in the queue gets ECONNRESET."""
        self.remove_file()
        self.sock.close()
        self._pin(None)
        if self._plug is not None:
            self._plug.close()
            self._plug = None

    def _pin(self, path: str | None) -> None:
        if self._pinned is not None:
            os.close(self._pinned)
        self._pinned = None if path is None else os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _is_ours(self) -> bool:
        if self._file is None or not isinstance(self.endpoint, UnixPath):
            return False
        try:
            found = os.stat(self.endpoint.path, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    # --- opening ---

    def _open(self, *, listening: bool = True) -> socket.socket:
        endpoint = self.endpoint
        try:
            if isinstance(endpoint, UnixPath):
                return self._open_path(endpoint, listening)
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

    def _open_path(self, endpoint: UnixPath, listening: bool) -> socket.socket:
        """Bind beside the path, set owner and mode, listen, and only then rename over the path.

        Raises `ListenError`, OSError.
        """
        path = endpoint.path
        directory = os.path.dirname(path)
        if not self._is_ours():
            self._require_free(path)
        at = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        beside = self._beside(path)
        try:
            # The name shows in `ss -xl` and in getpeername() for as long as the socket lives.
            sock = bound_as(self._name_at(path), self.kind, at, os.path.basename(beside))
            if sock is None:
                sock = self._bind_beside(beside, at)
        finally:
            os.close(at)
        try:
            # By descriptor, not by name: nobody can put another file in between.
            pinned = os.open(beside, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self.note = set_owner_and_mode(f"/proc/self/fd/{pinned}", endpoint, self._like)
                made = os.fstat(pinned)
            finally:
                os.close(pinned)
            if listening:
                self._listen(sock, self.backlog)
            self._put_in_place(beside, path)
        except BaseException:
            sock.close()
            os.unlink(beside)
            raise
        self._file = made.st_dev, made.st_ino
        self._describe(made)
        return sock

    def _bind_beside(self, beside: str, at: int) -> socket.socket:
        """A socket that is bound under the name of its file, closed to everybody. ``at``: the directory, open."""
        sock = unix_socket(self.kind)
        try:
            # bind() makes the file with the mode of the socket's inode, less the umask: closed until we are done.
            os.fchmod(sock.fileno(), 0)
            if len(os.fsencode(beside)) <= MAX_PATH:
                sock.bind(beside)
            else:
                bound = f"/proc/self/fd/{at}/.udsproxy-{os.getpid()}"
                sock.bind(bound)
                try:
                    os.rename(bound, beside)
                except BaseException:
                    os.unlink(bound)
                    raise
        except BaseException:
            sock.close()
            raise
        return sock

    def _name_at(self, path: str) -> str:
        """The name that clients of a socket at this path are to see."""
        return os.path.abspath(path) if not path.startswith("/") else path

    def _require_free(self, path: str) -> None:
        """Raises `ListenError`: something is there that may not be replaced."""
        _require_replaceable(path)

    def _beside(self, path: str) -> str:
        """A name for a new file until it stands at the path; nothing is there."""
        directory, name = os.path.split(path)
        long = len(os.fsencode(name)) > 200
        beside = os.path.join(directory, f"{'' if long else name}.udsproxy-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)  # of a process that had our number and was killed while it opened its socket
        return beside

    def _put_in_place(self, beside: str, path: str) -> None:
        """Put a new file to the path, in one step. Raises OSError; nothing is changed then."""
        os.rename(beside, path)

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


@contextlib.contextmanager
def _pinned(path: str, flags: int) -> Iterator[str]:
    """A name for what is there now, whatever becomes of that one. Raises OSError."""
    pinned = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
    try:
        yield f"/proc/self/fd/{pinned}"
    finally:
        os.close(pinned)


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
