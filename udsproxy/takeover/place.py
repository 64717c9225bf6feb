"""A path to take over, and the server's own socket there: the *real* one.

Rules:

* The directory is held open from the first look, and the real socket's file is pinned (O_PATH): whatever it is
  called later, `Place.upstream` leads to it.
* A real socket is one that somebody serves, as the kernel tells; where it does not tell, connecting does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from udsproxy.endpoints import ListenError, Pinned
from udsproxy.events import errno_message, errno_name
from udsproxy.kernel.diag_codec import DiagError, UnixSocket
from udsproxy.kernel.directory import Identity, answers, find, identity_of
from udsproxy.kernel.procfs import holders_of
from udsproxy.kernel.server_diag import NotShown, ServerDiag
from udsproxy.kernel.sock_diag import Unsure
from udsproxy.takeover.names import Names

_ADVICE = {
    errno.ENOENT: "; start the server first, or check the path (ss -xl lists all)",
    errno.EACCES: "; run as root, or as the user whose directory it is",
    errno.EPERM: "; run as root, or as the user whose directory it is",
    errno.EROFS: "; its file system cannot be written",
    errno.EINVAL: "; its file system cannot exchange two files (renameat2): use udsproxy run",
    errno.ENOSYS: "; this kernel cannot exchange two files (renameat2): use udsproxy run",
}


def reason(error: OSError) -> str:
    """Return what the errno means at a path that is to be tapped, and what to do."""
    number = error.errno or 0
    return f"{errno_message(number)} ({errno_name(number)}){_ADVICE.get(number, '')}"


class Place:
    """See the module. Close it when it is not needed any more."""

    def __init__(self, path: str) -> None:
        """Raises `ListenError`: there is no such directory."""
        try:
            directory, name = find(path)
        except OSError as error:
            raise ListenError(f"cannot tap {path}: {reason(error)}") from None
        self.names = Names(directory, name)
        self.path = self.names.path
        self.slot = os.open("/", os.O_PATH | os.O_CLOEXEC)
        """Stands for the real socket's file, once there is one."""
        self.upstream = Pinned(f"/proc/self/fd/{self.slot}", shown=self.path)
        self.bound_name: str | None = None
        """The name that the server has bound the real socket under, where that is known."""
        self._inode = 0
        """The real socket's, as sock_diag knows it; 0: that is not to be had."""
        self._diag: ServerDiag | None = None
        with contextlib.suppress(OSError):
            self._diag = ServerDiag()

    def close(self) -> None:
        self.names.directory.close()
        os.close(self.slot)
        if self._diag is not None:
            self._diag.close()

    def require_socket(self) -> None:
        """Raises `ListenError`: there is no socket."""
        try:
            found = self.names.directory.stat(self.names.name)
        except OSError as error:
            raise ListenError(self.why_not(error)) from None
        if found is None:
            raise ListenError(self.why_not(FileNotFoundError(errno.ENOENT, "")))
        if not stat.S_ISSOCK(found.st_mode):
            raise ListenError(f"cannot tap {self.path}: it is not a socket")

    def why_not(self, error: OSError) -> str:
        """Return a line for people: it cannot be tapped, and why."""
        return f"cannot tap {self.path}: {reason(error)}"

    def left_over(self) -> ListenError:
        """Return the error that a tap which was killed has left something."""
        return ListenError(
            f"cannot tap {self.path}: {self.names.aside_path} is left from a tap that was killed; "
            f"udsproxy tap --restore {self.path} puts things right"
        )

    # --- the real socket ---

    def look_at(self, name: str) -> UnixSocket | None:
        """Pin what has this name as the real socket. Returns what the kernel knows of it, where it tells that.

        Raises `ListenError`: nobody listens; OSError.
        """
        directory = self.names.directory
        pinned = directory.pin(name)
        try:
            if not stat.S_ISSOCK(os.fstat(pinned).st_mode):
                raise ListenError(f"cannot tap {self.path}: it is not a socket")
            found = None
            if self._diag is not None:
                try:
                    found = self._diag.server(f"/proc/self/fd/{pinned}")
                except (NotShown, Unsure) as error:
                    raise ListenError(f"cannot tap {self.path}: {error.strerror}") from None
                except DiagError:
                    pass
            if found is None and (self._diag is not None or not answers(pinned)):
                if name == self.names.name and directory.identity(self.names.aside) is not None:
                    raise self.left_over()
                raise ListenError(
                    f"cannot tap {self.path}: nobody listens there (ECONNREFUSED); start the server first"
                )
            os.dup2(pinned, self.slot, inheritable=False)
            self._inode = 0 if found is None else found.inode
            bound = b"" if found is None or found.name is None else found.name.partition(b"\0")[0]
            self.bound_name = os.fsdecode(bound) or None
            return found
        finally:
            os.close(pinned)

    @property
    def real(self) -> Identity:
        """The real socket's file."""
        return identity_of(self.slot)

    def serves(self) -> bool:
        """Does somebody still listen on the real socket?"""
        if self._diag is None or not self._inode:
            return True  # only connecting would tell: clients do
        try:
            return self._diag.serves(self._inode)
        except DiagError:
            return True

    def errno_there(self) -> int:
        """Return what clients meet at the path while we do not stand there: 0, or the errno."""
        try:
            self.names.directory.reopen()
            pinned = self.names.directory.pin(self.names.name)
            try:
                if not stat.S_ISSOCK(os.fstat(pinned).st_mode):
                    return errno.ECONNREFUSED
                if self._diag is not None:
                    return errno.ECONNREFUSED if self._diag.server(f"/proc/self/fd/{pinned}") is None else 0
                return 0 if answers(pinned) else errno.ECONNREFUSED
            finally:
                os.close(pinned)
        except (NotShown, Unsure):
            return 0  # somebody has it; who tries to take it is told what is missing
        except OSError as error:
            return error.errno or errno.ENOENT

    def holder(self) -> str:
        """Return who listens at the path, as `` (process 7)``; nothing where that is not known. Raises OSError."""
        found = None
        if self._diag is not None:
            pinned = self.names.directory.pin(self.names.name)
            try:
                with contextlib.suppress(DiagError):
                    found = self._diag.server(f"/proc/self/fd/{pinned}")
            finally:
                os.close(pinned)
        pids = [] if found is None else holders_of(found.inode)
        return f" (process {pids[0]})" if pids else ""
