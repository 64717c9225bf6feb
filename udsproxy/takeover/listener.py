"""A listening socket that stands where another's stood, until it is closed.

Rules:

* The guardian knows a file of ours before it stands at the path.
* When the upstream is gone, so are we: what it left stands at the path again, and nobody answers there. When
  somebody listens at the path again, that is taken over in its turn.
* Who changes our file's owner or mode means the server's: it is done there too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from functools import partial

from udsproxy.endpoints import Listener, ListenError, Pinned, UnixPath
from udsproxy.endpoints.ownership import copy_owner_and_mode
from udsproxy.events import errno_message, errno_name
from udsproxy.kernel.credentials import Actor, Credentials
from udsproxy.kernel.diag_codec import DiagError, UnixSocket
from udsproxy.kernel.inotify import DirectoryWatch
from udsproxy.kernel.procfs import holders_of, listener_of, read_ids
from udsproxy.kernel.server_diag import NotShown, ServerDiag
from udsproxy.kernel.sock_diag import Unsure
from udsproxy.takeover.guardian import (
    Guardian,
    GuardianError,
    Identity,
    answers,
    aside_of,
    exchange,
    identity,
    put_back,
)

_ADVICE = {
    errno.ENOENT: "; start the server first, or check the path (ss -xl lists all)",
    errno.EACCES: "; run as root, or as the user whose directory it is",
    errno.EPERM: "; run as root, or as the user whose directory it is",
    errno.EROFS: "; its file system cannot be written",
    errno.EINVAL: "; its file system cannot exchange two files (renameat2): use udsproxy run",
    errno.ENOSYS: "; this kernel cannot exchange two files (renameat2): use udsproxy run",
}


class Place:
    """A path to take over. `upstream` leads to the real socket there, also when that has another name."""

    def __init__(self, path: str) -> None:
        """Raises OSError."""
        self.path = os.path.realpath(path)
        self.slot = os.open("/", os.O_PATH | os.O_CLOEXEC)
        """Stands for the real socket's file, once there is one."""
        self.upstream = Pinned(f"/proc/self/fd/{self.slot}", shown=self.path)

    def require_socket(self) -> None:
        """Raises `ListenError`: there is no socket."""
        try:
            mode = os.stat(self.path).st_mode
        except OSError as error:
            raise ListenError(self.why_not(error)) from None
        if not stat.S_ISSOCK(mode):
            raise ListenError(f"cannot tap {self.path}: it is no socket")

    def why_not(self, error: OSError) -> str:
        number = error.errno or 0
        return f"cannot tap {self.path}: {errno_message(number)} ({errno_name(number)}){_ADVICE.get(number, '')}"


class TakenOver(Listener):
    """See the module."""

    def __init__(self, place: Place, guardian: Guardian, *, backlog: int | None) -> None:
        """Take it over. Raises `ListenError`."""
        self._place = place
        self._path = path = place.path
        self._aside = aside_of(path)
        self._guardian = guardian
        self._actor = Actor()
        self._mine: set[Identity] = set()
        self._real_inode = 0
        """Of the real socket itself, as sock_diag knows it; 0: that is not to be had."""
        self._real_name: str | None = None
        """That its server has bound it under, where that is known."""
        self._standing = False
        """We have taken the path over, and have not given it back."""
        self._nameless: Identity | None = None
        """The real socket's file, where the server has removed its path and has not ended."""
        self._diag: ServerDiag | None = None
        self._attributes: tuple[int, int, int] | None = None
        with contextlib.suppress(OSError):
            self._diag = ServerDiag()
        try:
            found = self._look_at(path)
            kind = socket.SOCK_STREAM if found is None else found.type
            self.watch = DirectoryWatch(os.path.dirname(path), os.path.basename(path))
            super().__init__(UnixPath(path), like=place.upstream, backlog=backlog, kind=kind)
        except OSError as error:
            raise ListenError(place.why_not(error)) from None

    # --- what is at the path ---

    def _look_at(self, path: str) -> UnixSocket | None:
        """Pin what is at the path as the real socket. Returns what the kernel knows of it, where it tells that.

        Raises `ListenError`: nobody listens; OSError.
        """
        pinned = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(pinned).st_mode):
                raise ListenError(f"cannot tap {path}: it is no socket")
            found = None
            if self._diag is not None:
                try:
                    found = self._diag.server(f"/proc/self/fd/{pinned}")
                except (NotShown, Unsure) as error:
                    raise ListenError(f"cannot tap {path}: {error.strerror}") from None
                except DiagError:
                    pass
            if found is None and (self._diag is not None or not answers(path)):
                if not self._standing and identity(self._aside) is not None:
                    raise self._left_over()
                raise ListenError(f"cannot tap {path}: nobody listens there (ECONNREFUSED); start the server first")
            if found is not None and self._actor.able and not self._standing:
                self._listen_as_holder_of(found.inode)
            os.dup2(pinned, self._place.slot, inheritable=False)
            self._real_inode = 0 if found is None else found.inode
            name = b"" if found is None or found.name is None else found.name.partition(b"\0")[0]
            self._real_name = os.fsdecode(name) or None
            return found
        finally:
            os.close(pinned)

    def _listen_as_holder_of(self, inode: int) -> None:
        """(Only a connection would tell for sure, and a server may not like one that says nothing.)"""
        pid = listener_of(inode)
        ids = None if pid is None else read_ids(pid)
        if ids is not None and (credentials := Credentials(*ids)) != self._actor.own:
            self.listens_as = credentials
            self._act = partial(self._actor.act, credentials)

    def serves(self) -> bool:
        """Does somebody still listen on the real socket?"""
        if self._diag is None or not self._real_inode:
            return True  # only connecting would tell: clients do
        try:
            return self._diag.serves(self._real_inode)
        except DiagError:
            return True

    def look(self) -> int | None:
        """What clients would meet at the path if we were not there: None: the server; else an errno. To be called
        often. Raises `GuardianError`."""
        if not self._standing:
            return None
        if not self.serves():
            return errno.ECONNREFUSED
        if self.withdrawn:
            return None  # a fault's doing: what is at the path is as it shall be
        here = identity(self._path)
        if here != self._file:
            return errno.ENOENT if here is None else errno.ECONNREFUSED
        self._guardian.revive(self._path)
        self._pass_attributes_on()
        return None

    @property
    def has_lost_path(self) -> bool:
        """What is at the path is not ours any more."""
        return self._standing and identity(self._path) != self._file

    def there(self) -> int:
        """0: a server listens, and `restore` may be tried; else what clients meet (errno)."""
        if self._standing:
            return 0 if self.serves() else errno.ECONNREFUSED
        try:
            if self._nameless is not None:
                self._drop_nameless()
            found = os.stat(self._path, follow_symlinks=False)
            if not stat.S_ISSOCK(found.st_mode):
                return errno.ECONNREFUSED
            if self._diag is not None:
                return errno.ECONNREFUSED if self._diag.server(self._path) is None else 0
            return 0 if answers(self._path) else errno.ECONNREFUSED
        except (NotShown, Unsure):
            return 0  # somebody has it; `restore` says what is missing
        except OSError as error:
            return error.errno or errno.ENOENT

    def _pass_attributes_on(self) -> None:
        """A server may change owner and mode of its file after it listens: of ours, then."""
        found = os.stat(self._path, follow_symlinks=False)
        attributes = found.st_mode, found.st_uid, found.st_gid
        if self._attributes not in (None, attributes):
            copy_owner_and_mode(self._path, self._place.upstream.path)
        self._attributes = attributes

    # --- taking over and giving back ---

    def _open_path(self, endpoint: UnixPath, listening: bool) -> socket.socket:
        if not self._standing:
            found = self._look_at(endpoint.path)
            if found is not None:
                self.kind = found.type
            self._clear_aside()
        self._attributes = None
        return super()._open_path(endpoint, listening)

    def _clear_aside(self) -> None:
        """The name beside the path is to be free. Raises `ListenError`."""
        there = identity(self._aside)
        if there is None:
            return
        if there not in self._mine:
            alive = answers(self._aside)
            who = _holders(self._path, self._diag) if alive else ""
            if alive:
                raise ListenError(f"cannot tap {self._path}: it is tapped already{who}; stop that first")
            raise self._left_over()
        os.unlink(self._aside)

    def _left_over(self) -> ListenError:
        return ListenError(
            f"cannot tap {self._path}: {self._aside} is left from a tap that was killed; "
            f"udsproxy tap --restore {self._path} puts things right"
        )

    def _require_free(self, path: str) -> None:
        """It is not, and shall not be."""

    def _name_at(self, path: str) -> str:
        return self._real_name or super()._name_at(path)

    def _cannot(self, error: OSError) -> ListenError:
        return ListenError(self._place.why_not(error))

    def _beside(self, path: str) -> str:
        return super()._beside(path) if self._standing else self._aside

    def _put_in_place(self, beside: str, path: str) -> None:
        made = identity(beside)
        assert made is not None
        try:
            self._guardian.arm(beside)
        except GuardianError as error:
            raise ListenError(f"cannot tap {path}: {error}") from None
        self._mine = {made} | ({self._file} if self._file is not None else set())
        if self._standing:
            super()._put_in_place(beside, path)
            return
        exchange(beside, path)
        self._standing = True
        # Whatever stood there in that moment is the real one. (Nothing may fail from here on: its file would be
        # taken for ours.)
        with contextlib.suppress(ListenError, OSError):
            self._look_at(self._aside)

    def step_aside(self, number: int) -> None:
        self.sock.close()
        self.withdrawn = True
        if self.has_lost_path and self.serves():
            # Whoever removed the server's file has removed ours; it has none until it ends, or binds another.
            self._standing = False
            self._nameless = identity(self._aside)
            # Nothing of ours is left; the next file may have the inode number of one that was.
            self._file = None
            self._mine = set()
        else:
            self._give_back()

    def remove_file(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):  # where it fails the guardian tries again, and says why it cannot
            if self._nameless is not None:
                self._drop_nameless()
            if self._standing or self._nameless is not None:
                self._standing = False
                with contextlib.suppress(OSError):
                    self._pass_attributes_on()
                put_back(self._path, self._mine, self._alive)
        self._file = self._nameless = None

    def _drop_nameless(self) -> None:
        """The old server's socket goes where it has ended, or another has the path."""
        if identity(self._aside) != self._nameless:
            self._nameless = None
        elif identity(self._path) is not None or not self.serves():
            os.unlink(self._aside)
            self._nameless = None

    def _alive(self, _: str) -> bool:
        return self.serves()


def _holders(path: str, diag: ServerDiag | None) -> str:
    found = None
    with contextlib.suppress(DiagError):
        found = None if diag is None else diag.server(path)
    pids = [] if found is None else holders_of(found.inode)
    return f" (process {pids[0]})" if pids else ""


def restore(path: str) -> str:
    """Put back what a tap left that was killed, with its guardian. Returns what was done. Raises `ListenError`."""
    path = os.path.realpath(path)
    aside = aside_of(path)
    try:
        here, there = identity(path), identity(aside)
        if there is None:
            return f"{path}: nothing is to be put back: there is no {aside}"
        if here is not None and answers(path):
            if answers(aside):
                raise ListenError(
                    f"cannot restore {path}: somebody listens there, and at {aside}; stop the tap that runs first"
                )
            return put_back(path, {there}) or f"{path}: {aside} is removed, nobody listened on it"
        return put_back(path, set() if here is None else {here}) or f"{path}: nothing is to be put back"
    except OSError as error:
        number = error.errno or 0
        raise ListenError(
            f"cannot restore {path}: {errno_message(number)} ({errno_name(number)}){_ADVICE.get(number, '')}"
        ) from None
