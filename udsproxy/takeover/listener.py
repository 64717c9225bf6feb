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
from collections.abc import Iterator
from functools import partial

from udsproxy.endpoints import Listener, ListenError, UnixPath
from udsproxy.endpoints.naming import SocketFile
from udsproxy.endpoints.ownership import copy_owner_and_mode
from udsproxy.kernel.credentials import Actor, Credentials
from udsproxy.kernel.diag_codec import UnixSocket
from udsproxy.kernel.directory import Directory, Identity, identity_of, rename
from udsproxy.kernel.inotify import DirectoryWatch
from udsproxy.kernel.procfs import listener_of, read_ids
from udsproxy.takeover.guardian import Guardian, GuardianError
from udsproxy.takeover.names import (
    LOCK_S,
    Known,
    is_stood_down,
    put_back,
    stand_down,
    stand_up,
)
from udsproxy.takeover.place import Place


class TakenOver(Listener):
    """See the module."""

    def __init__(self, place: Place, guardian: Guardian, *, backlog: int | None) -> None:
        """Take it over. Raises `ListenError`."""
        self._place = place
        self._names = names = place.names
        self._guardian = guardian
        self._actor = Actor()
        self._mine: set[Identity | None] = set()
        """The files that we made and that may have a name."""
        self._standing = False
        """We have taken the path over, and have not given it back."""
        self._resting = False
        """The path is the server's for a while, because we are about to be stopped."""
        self._nameless: Identity | None = None
        """The real socket's file, where the server has removed its path and has not ended."""
        self._attributes: tuple[int, int, int] | None = None
        try:
            self.watch = DirectoryWatch(f"/proc/self/fd/{names.directory.fd}", names.name)
        except OSError as error:
            raise ListenError(place.why_not(error)) from None
        try:
            found = self._look_at(names.name)
        except OSError as error:
            self.watch.close()
            raise ListenError(place.why_not(error)) from None
        except BaseException:
            self.watch.close()
            raise
        kind = socket.SOCK_STREAM if found is None else found.type
        super().__init__(UnixPath(place.path), like=place.upstream, backlog=backlog, kind=kind)

    def _find(self, _: UnixPath) -> tuple[Directory, str]:
        return self._names.directory, self._names.name

    def _release(self) -> None:
        self._forget_file()  # (the directory is the place's)
        self.watch.close()

    # --- what is at the path ---

    def _look_at(self, name: str) -> UnixSocket | None:
        """`Place.look_at`; who serves there is as whom we listen."""
        found = self._place.look_at(name)
        if found is not None and self._actor.able and not self._standing:
            self._listen_as_holder_of(found.inode)
        return found

    @property
    def _known(self) -> Known:
        real: set[Identity | None] = {self._place.real}
        return Known(self._mine, real)

    def _listen_as_holder_of(self, inode: int) -> None:
        """(Only a connection would tell for sure, and a server may not like one that says nothing.)"""
        pid = listener_of(inode)
        ids = None if pid is None else read_ids(pid)
        if ids is not None and (credentials := Credentials(*ids)) != self._actor.own:
            self.listens_as = credentials
            self._act = partial(self._actor.act, credentials)

    def serves(self) -> bool:
        """Does somebody still listen on the real socket?"""
        return self._place.serves()

    def look(self) -> int | None:
        """What clients would meet at the path if we were not there: None: the server; else an errno. To be called
        every 10 ms, also when nothing is to be seen: the guardian is shown that we run.

        Raises `GuardianError`, OSError.
        """
        if not self._standing:
            return None
        self._guardian.look(self._pinned, self._place.slot)
        if not self.serves():
            return errno.ECONNREFUSED
        if self.withdrawn:
            return None  # a fault's doing: what is at the path is as it shall be
        here = self._identity()
        if here == self._file:
            self._pass_attributes_on()
        elif not is_stood_down(self._names, self._known):
            return errno.ENOENT if here is None else errno.ECONNREFUSED
        return None

    def _identity(self) -> Identity | None:
        return self._names.directory.identity(self._names.name)

    @property
    def has_lost_path(self) -> bool:
        """What is at the path is not ours any more."""
        return self._standing and self._identity() != self._file

    def there(self) -> int:
        """0: a server listens, and `restore` may be tried; else what clients meet (errno)."""
        if self._standing:
            return 0 if self.serves() else errno.ECONNREFUSED
        try:
            if self._nameless is not None:
                self._drop_nameless()
        except OSError as error:
            return error.errno or errno.ENOENT
        return self._place.errno_there()

    def _pass_attributes_on(self) -> None:
        """A server may change owner and mode of its file after it listens: of ours, then. Raises OSError."""
        found = os.fstat(self._pinned)
        attributes = found.st_mode, found.st_uid, found.st_gid
        if self._attributes not in (None, attributes):
            copy_owner_and_mode(f"/proc/self/fd/{self._pinned}", self._place.upstream.path)
        self._attributes = attributes

    # --- taking over and giving back ---

    def _open_path(self, endpoint: UnixPath, directory: Directory, listening: bool) -> socket.socket:
        with self._alone():
            if not self._standing:
                directory.reopen()
                found = self._look_at(self._names.name)
                if found is not None:
                    self.kind = found.type
                self._clear_aside()
            self._attributes = None
            return super()._open_path(endpoint, directory, listening)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other udsproxy changes the path meanwhile. Raises `ListenError`: one does."""
        with self._names.directory.locked(LOCK_S) as held:
            if not held:
                raise ListenError(
                    f"cannot tap {self._place.path}: another process has locked its directory (flock)"
                )
            yield

    def _clear_aside(self) -> None:
        """The name beside the path is to be free. Raises `ListenError`, OSError."""
        directory, aside = self._names.directory, self._names.aside
        there = directory.identity(aside)
        if there is None or (there in self._mine and directory.remove(aside, self._mine)):
            return
        if directory.answers(aside):
            who = self._place.holder()
            raise ListenError(f"cannot tap {self._place.path}: it is tapped already{who}; stop that first")
        raise self._place.left_over()

    def _require_replaceable(self, endpoint: UnixPath, directory: Directory) -> Identity | None:
        if self._standing:
            return super()._require_replaceable(endpoint, directory)
        return None  # it is not, and shall not be

    def _shown_name(self) -> str:
        return self._place.bound_name or super()._shown_name()

    def _cannot(self, error: OSError) -> ListenError:
        return ListenError(self._place.why_not(error))

    def _beside(self) -> str:
        return super()._beside() if self._standing else self._names.aside

    def _put_in_place(self, made: SocketFile, directory: Directory, replaceable: Identity | None) -> None:
        ours = identity_of(made.pinned)
        try:
            self._guardian.arm(made.pinned, self._place.slot)
        except GuardianError as error:
            raise ListenError(f"cannot tap {self._place.path}: {error}") from None
        self._mine = {ours, self._file}
        if self._standing:
            super()._put_in_place(made, directory, replaceable)
        else:
            self._exchange(made, ours)
        # (The old one is gone, and its inode's number may be given to a file of the server's.)
        self._mine = {ours}

    def _exchange(self, made: SocketFile, ours: Identity) -> None:
        """Put ours beside the path, and swap both. Raises `ListenError`, OSError; nothing is changed then."""
        directory, name, aside = self._names.directory, self._names.name, self._names.aside
        if (made.at, made.name) != (directory.fd, aside):
            rename(made.at, made.name, directory.fd, aside)
        try:
            directory.exchange(aside, name)
            if directory.identity(name) == ours:
                # Whatever stood there in that moment is the real one, if somebody listens on it.
                if directory.identity(aside) != self._place.real:
                    self._look_at(aside)
                    self._guardian.arm(made.pinned, self._place.slot)
                self._standing = True
                return
            raise ListenError(f"cannot tap {self._place.path}: somebody else is changing what is there")
        except (ListenError, GuardianError, OSError) as error:
            if directory.identity(name) == ours:
                directory.exchange(aside, name)
            directory.remove(aside, {ours})
            if isinstance(error, GuardianError):
                raise ListenError(f"cannot tap {self._place.path}: {error}") from None
            raise

    def step_aside(self, number: int) -> None:
        self.sock.close()
        self.withdrawn = True
        if self.has_lost_path and self.serves() and not is_stood_down(self._names, self._known):
            # Whoever removed the server's file has removed ours; it has none until it ends, or binds another.
            self._standing = False
            self._nameless = self._names.directory.identity(self._names.aside)
            # Nothing of ours is left; the next file may have the inode number of one that was.
            self._forget_file()
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
                if self._standing and self._pinned >= 0 and self._identity() == self._file:
                    with contextlib.suppress(OSError):
                        self._pass_attributes_on()
                self._standing = False
                put_back(self._names, self._known, self._alive)
            self._mine = set()
        self._forget_file()
        self._nameless = None

    def _drop_nameless(self) -> None:
        """The old server's socket goes where it has ended, or another has the path. Raises OSError."""
        directory, aside = self._names.directory, self._names.aside
        if directory.identity(aside) != self._nameless:
            self._nameless = None
        elif self._identity() is not None or not self.serves():
            directory.remove(aside, {self._nameless})
            self._nameless = None

    def _alive(self, _: str) -> bool:
        return self.serves()

    # --- while we stand still ---

    def rest(self) -> None:
        """Give the path back for a while, because we are about to be stopped; `resume` ends that.

        Raises OSError.
        """
        self._resting = True
        if self._standing:
            stand_down(self._names, self._known)

    def resume(self) -> None:
        """We run again: `take_again` may."""
        self._resting = False

    def take_again(self) -> bool:
        """Take the path again that was given back while we stood still, by the guardian or by `rest`. Returns
        whether that was done. Raises OSError."""
        if not self._standing or self._resting or self._file is None or self._identity() == self._file:
            return False
        if not stand_up(self._names, self._known):
            return False
        if not self.withdrawn:
            # Meanwhile the server may have changed owner or mode.
            copy_owner_and_mode(self._place.upstream.path, f"/proc/self/fd/{self._pinned}")
        self._attributes = None
        return True
