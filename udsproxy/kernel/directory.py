"""A directory that is held open, and what is done with the names in it.

A directory may belong to somebody else, who can rename it, put a symbolic link in its place and exchange what is in
it, between any two of our system calls.

Rules:

* The path of a directory is followed once, when it is opened (O_PATH). From then on the descriptor says which
  directory is meant, whatever its path leads to.
* A file is known by device and inode, and by nothing else.
* A file is removed where nobody else can put another in its place: it is moved into a private directory (mode 700),
  looked at there, and goes back if it is not the one that was meant.
* Only the standard library is imported: the guardian needs this, and is to start quickly.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import grp
import os
import pwd
import re
import socket
import stat
import time
from collections.abc import Container, Iterator
from typing import NamedTuple

Identity = tuple[int, int]
"""Device and inode of a file."""

_EXCHANGE, _NOREPLACE = 2, 1
_MAX_LINKS = 40
"""Symbolic links that are followed, as by the kernel (MAXSYMLINKS)."""
_LOCK_RETRY_S = 0.002
_TAKEN = "removed"
"""The name of a file in a private directory."""
_PRIVATE = re.compile(r"\.udsproxy-(\d+)(?:-[0-9a-f]+)?\.d")
"""A private directory: whose (pid), and a random number, so that nobody can have one of that name ready."""
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_HOLD_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Other(NamedTuple):
    """Somebody else who may change a directory: a user, or a group, or (both None) everybody."""

    path: str
    uid: int | None
    gid: int | None

    def __str__(self) -> str:
        who = "everybody"
        with contextlib.suppress(KeyError):
            if self.uid is not None:
                who = f"user {self.uid}"
                who = pwd.getpwuid(self.uid).pw_name
            elif self.gid is not None:
                who = f"group {self.gid}"
                who = f"group {grp.getgrgid(self.gid).gr_name}"
        return f"{self.path} may be changed by {who}"


def identity_of(fd: int) -> Identity:
    """Return device and inode of an open file."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


class Directory:
    """A directory held open. ``path`` is what it was called when it was opened, for people."""

    def __init__(self, path: str, at: int | None = None) -> None:
        """Open ``path``, symbolic links included; a relative one starts in the open directory ``at``.

        Raises OSError.
        """
        self.fd = os.open(path or ".", _HOLD_DIRECTORY, dir_fd=at)
        self._parent = -1
        try:
            try:
                self.path = os.readlink(f"/proc/self/fd/{self.fd}")
            except OSError:  # no /proc
                self.path = os.path.realpath(path)
            with contextlib.suppress(OSError):  # (it may not be entered)
                self._parent = os.open("..", _HOLD_DIRECTORY, dir_fd=self.fd)
        except BaseException:
            self.close()
            raise

    @classmethod
    def inherited(cls, fd: int, path: str) -> Directory:
        """Return the directory of a descriptor that another process has opened. It cannot be `reopen`ed."""
        held = cls.__new__(cls)
        held.fd, held.path, held._parent = fd, path, -1
        return held

    def close(self) -> None:
        """Close the descriptors; further calls do nothing."""
        for fd in (self.fd, self._parent):
            if fd >= 0:
                os.close(fd)
        self.fd = self._parent = -1

    def path_of(self, name: str) -> str:
        """Return the path that a name in it has for people."""
        return os.path.join(self.path, name)

    def reopen(self) -> bool:
        """Hold the directory that has its name now, where this one was removed (a server's RuntimeDirectory=, say).

        A symbolic link is not followed, and the owner must be the same. Returns whether there is a directory.
        """
        found = os.fstat(self.fd)
        if found.st_nlink:
            return True
        if self._parent < 0:
            return False
        try:
            fd = os.open(os.path.basename(self.path), _HOLD_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._parent)
        except OSError:
            return False
        try:
            if os.fstat(fd).st_uid != found.st_uid:
                return False
            os.dup2(fd, self.fd, inheritable=False)
            return True
        finally:
            os.close(fd)

    # --- looking ---

    def identity(self, name: str) -> Identity | None:
        """Return which file has this name; None: none has. A symbolic link is a file of its own. Raises OSError."""
        found = self.stat(name)
        return None if found is None else (found.st_dev, found.st_ino)

    def stat(self, name: str) -> os.stat_result | None:
        """Return what stat(2) tells of a name, symbolic links not followed; None: there is none. Raises OSError."""
        try:
            return os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_socket(self, name: str) -> bool:
        """Return whether the file of this name is a socket. Raises OSError."""
        found = self.stat(name)
        return found is not None and stat.S_ISSOCK(found.st_mode)

    def pin(self, name: str) -> int:
        """Open a file with O_PATH, symbolic links not followed: a descriptor that stands for this file, and keeps
        its inode number from being given to another. Raises OSError."""
        return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)

    def answers(self, name: str) -> bool:
        """Return whether somebody listens on, or receives from, the socket of this name, by connecting to it.

        Raises OSError.
        """
        try:
            pinned = self.pin(name)
        except FileNotFoundError:
            return False
        try:
            return answers(pinned)
        finally:
            os.close(pinned)

    # --- changing ---

    def exchange(self, one: str, other: str) -> None:
        """Swap two names in one step. Raises OSError; EINVAL: this file system cannot (renameat2(2))."""
        rename(self.fd, one, self.fd, other, exchange=True)

    def move(self, old: str, new: str) -> None:
        """Rename a file to a name that nothing has. Raises OSError; FileExistsError: something has it."""
        rename(self.fd, old, self.fd, new)

    def remove(self, name: str, known: Container[Identity | None]) -> bool:
        """Remove the file of this name if it is a known one. Returns False where it is not, or there is none.

        Raises OSError.
        """
        there = self.identity(name)
        if there is None or there not in known:
            return False
        with contextlib.ExitStack() as stack:
            try:
                private = stack.enter_context(self.private())
            except OSError:
                if not self.is_ours_alone:
                    raise
                os.unlink(name, dir_fd=self.fd)
                return True
            taken = self._take(name, known, private)
            if taken:
                os.unlink(_TAKEN, dir_fd=private)
            return taken

    def move_known(self, old: str, new: str, known: Container[Identity | None]) -> bool:
        """Rename a file to a name that nothing has, if it is a known one. Returns False where it is not, or is not
        there. Raises OSError; FileExistsError: something has the new name, and the file keeps the old one."""
        there = self.identity(old)
        if there is None or there not in known:
            return False
        if self.is_ours_alone:
            self.move(old, new)
            return True
        with self.private() as private:
            taken = self._take(old, known, private)
            if taken:
                try:
                    rename(private, _TAKEN, self.fd, new)
                except OSError:
                    self._give_back(old, private)
                    raise
            return taken

    def _take(self, name: str, known: Container[Identity | None], private: int) -> bool:
        """Move a file into a private directory, and look at it there. Returns whether it is a known one; else it is
        back, or there was none. Raises OSError."""
        try:
            rename(self.fd, name, private, _TAKEN)
        except FileNotFoundError:
            return False
        moved = os.stat(_TAKEN, dir_fd=private, follow_symlinks=False)
        if (moved.st_dev, moved.st_ino) in known:
            return True
        self._give_back(name, private)  # somebody has put another there in that very moment
        return False

    def _give_back(self, name: str, private: int) -> None:
        """(Where the name is taken again: beside it.)"""
        for back in (name, f"{name}.udsproxy-{os.urandom(4).hex()}"):
            with contextlib.suppress(FileExistsError):
                rename(private, _TAKEN, self.fd, back)
                break

    @contextlib.contextmanager
    def private(self) -> Iterator[int]:
        """Make a directory in this one that only we may enter, and yield a descriptor of it; it is removed at the
        end. What a killed process has left of that kind is removed first. Raises OSError."""
        self.remove_left()
        name = f".udsproxy-{os.getpid()}-{os.urandom(4).hex()}.d"
        os.mkdir(name, 0o700, dir_fd=self.fd)
        try:
            with _opened(self.fd, name) as room:
                if os.listdir(room):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
                try:
                    yield room
                finally:
                    _empty(room)
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=self.fd)

    def remove_left(self, ended: int = 0) -> None:
        """Remove the private directories of processes that have ended; ``ended`` is one, whatever /proc says."""
        with contextlib.suppress(OSError):
            here = os.open(".", _OPEN_DIRECTORY, dir_fd=self.fd)
            try:
                names = os.listdir(here)
            finally:
                os.close(here)
            for name in names:
                found = _PRIVATE.fullmatch(name)
                if found and (int(found[1]) == ended or not os.path.exists(f"/proc/{found[1]}")):
                    with contextlib.suppress(OSError):
                        with _opened(self.fd, name) as room:
                            _empty(room)
                        os.rmdir(name, dir_fd=self.fd)

    @contextlib.contextmanager
    def locked(self, wait_s: float) -> Iterator[bool]:
        """Keep other processes of this program out (flock(2) of the directory), and yield whether that worked.

        Whoever may read the directory can hold the lock for ever: it keeps friends from stumbling over each other,
        and stops no enemy.
        """
        try:
            fd = os.open(".", _OPEN_DIRECTORY, dir_fd=self.fd)
        except OSError:  # it may not be read: nobody can lock it
            yield True
            return
        try:
            until = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = True
                except BlockingIOError:
                    held = False
                except OSError:  # this file system has no locks
                    held = True
                if held or time.monotonic() >= until:
                    break
                time.sleep(_LOCK_RETRY_S)
            yield held
        finally:
            os.close(fd)

    # --- who else may change it ---

    @property
    def is_ours_alone(self) -> bool:
        """Whether nobody but root and ourselves may rename or remove what is in it. Raises OSError."""
        return not _others(self.path, os.fstat(self.fd))

    def changeable_by(self) -> list[Other]:
        """Return who else may rename or remove what is in this directory, or in one above it; the directory itself
        comes first. What cannot be seen is left out."""
        found: list[Other] = []
        path, fd = self.path, os.dup(self.fd)
        try:
            while True:
                found += _others(path, os.fstat(fd))
                if path == "/":
                    break
                above = os.open("..", _HOLD_DIRECTORY, dir_fd=fd)
                os.close(fd)
                path, fd = os.path.dirname(path), above
        except OSError:
            pass  # a directory that may not be entered
        finally:
            os.close(fd)
        return found


def find(path: str) -> tuple[Directory, str]:
    """Return the directory that a path leads to, held open, and the name in it. A symbolic link as the path's last
    part is followed, each step from the directory that the one before led to. Raises OSError."""
    directory: Directory | None = None
    for _ in range(_MAX_LINKS):
        above, directory = directory, None
        try:
            directory = Directory(os.path.dirname(path), None if above is None else above.fd)
        finally:
            if above is not None:
                above.close()
        name = os.path.basename(path)
        try:
            path = os.readlink(name, dir_fd=directory.fd)
        except OSError:  # EINVAL: it is no link; ENOENT: nothing is there
            return directory, name
    assert directory is not None
    directory.close()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def answers(pinned: int) -> bool:
    """Return whether somebody listens on, or receives from, the socket that an O_PATH descriptor stands for."""
    if not stat.S_ISSOCK(os.fstat(pinned).st_mode):
        return False
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
            found = probe.connect_ex(f"/proc/self/fd/{pinned}")
        if found != errno.EPROTOTYPE:
            return found != errno.ECONNREFUSED
    return False


def rename(old_at: int, old: str, new_at: int, new: str, *, exchange: bool = False) -> None:
    """Rename a file from one open directory to another, or with ``exchange`` swap two; nothing is ever replaced
    (renameat2(2)).

    Raises OSError; FileExistsError: the new name is taken; EINVAL, ENOSYS: this system cannot exchange.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = errno.ENOSYS
    if hasattr(libc, "renameat2"):
        flags = _EXCHANGE if exchange else _NOREPLACE
        if not libc.renameat2(old_at, os.fsencode(old), new_at, os.fsencode(new), flags):
            return
        number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS) and not exchange:  # 9p, NFS, an old C library
        os.link(old, new, src_dir_fd=old_at, dst_dir_fd=new_at, follow_symlinks=False)
        os.unlink(old, dir_fd=old_at)
        return
    raise OSError(number, os.strerror(number), old)


def _others(path: str, directory: os.stat_result) -> list[Other]:
    """Who, besides root and ourselves, may rename or remove what is in a directory: one at most."""
    if directory.st_uid not in (0, os.geteuid()):
        return [Other(path, directory.st_uid, None)]
    if not directory.st_mode & stat.S_ISVTX:
        if directory.st_mode & 0o002:
            return [Other(path, None, None)]
        if directory.st_mode & 0o020 and directory.st_gid not in (0, os.getegid()):
            return [Other(path, None, directory.st_gid)]
    return []


@contextlib.contextmanager
def _opened(at: int, name: str) -> Iterator[int]:
    """A directory that is ours alone. Raises OSError: it is not."""
    room = os.open(name, _OPEN_DIRECTORY, dir_fd=at)
    try:
        found = os.fstat(room)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise NotADirectoryError(errno.ENOTDIR, "somebody else's directory", name)
        yield room
    finally:
        os.close(room)


def _empty(room: int) -> None:
    """Remove directories, and sockets with mode 000, as they are before they are opened to anybody: nothing else is
    ours."""
    with contextlib.suppress(OSError):
        for _, directories, files, inside in os.fwalk(".", topdown=False, dir_fd=room):
            for each in files:
                if os.stat(each, dir_fd=inside, follow_symlinks=False).st_mode == stat.S_IFSOCK:
                    os.unlink(each, dir_fd=inside)
            for each in directories:
                os.rmdir(each, dir_fd=inside)
