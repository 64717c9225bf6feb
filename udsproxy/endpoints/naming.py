"""A socket that is bound under another name than its file is made with.

The kernel keeps the name that bind() was given, whatever becomes of the file: clients see it in getpeername(), and
people in ``ss -xl``. So that a socket has the name of the path that it is going to stand at, it is bound under that
name *inside a directory of its own*, and its file is moved out then.

Rules:

* The directory is in that of the path (a file can be moved within a file system only), is ours alone, and is gone
  afterwards, whatever happens. What a process that was killed has left is removed by the next.
* Only a thread of its own is ever inside: the current directory and the root are a thread's (unshare(2), CLONE_FS).
* All is done by descriptors: who may write the directory around cannot lead us elsewhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import stat
from collections.abc import Iterator
from threading import Thread

from udsproxy.endpoints.connecting import unix_socket
from udsproxy.endpoints.spelling import MAX_PATH
from udsproxy.kernel.procfs import read_capabilities

_CAP_SYS_CHROOT = 18
_CLONE_FS = 0x200
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROOM = re.compile(r"\.udsproxy-(\d+)\.d")


def bound_as(name: str, kind: int, at: int, file: str) -> socket.socket | None:
    """A new socket that is bound as ``name``; its file, with mode 000, is called ``file`` in the open directory
    ``at``. None: that cannot be had (a long name; no CAP_SYS_CHROOT; somebody has that file). Raises OSError: there
    is no socket to be had.
    """
    rooted = name.startswith("/") or ".." in name.split("/")
    if len(os.fsencode(name)) > MAX_PATH or (rooted and not read_capabilities() >> _CAP_SYS_CHROOT & 1):
        return None
    directory, base = os.path.split(name)
    walked = _walk(directory)
    sock = unix_socket(kind)
    try:
        with _room(at) as room:
            for each in dict.fromkeys(walked):
                if each != ".":
                    os.mkdir(each, 0o700, dir_fd=room)
            os.fchmod(sock.fileno(), 0)
            _bind_inside(room, sock, name, rooted=rooted)
            # (rename() would replace what somebody has put there meanwhile.)
            os.link(f"{walked[-1]}/{base}", file, src_dir_fd=room, dst_dir_fd=at, follow_symlinks=False)
    except (OSError, RuntimeError):  # RuntimeError: there is no thread to be had
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _walk(directory: str) -> list[str]:
    """Where the steps to a directory lead, from a root (".") in which nothing is a link."""
    here, walked = ["."], ["."]
    for step in directory.split("/"):
        if step == "..":
            here = here[:-1] or ["."]
        elif step not in ("", "."):
            here.append(step)
        walked.append("/".join(here))
    return walked


def _bind_inside(room: int, sock: socket.socket, name: str, *, rooted: bool) -> None:
    """bind() in a thread whose current directory, and where ``rooted`` whose root, this is. Raises OSError."""
    failed: list[OSError] = []

    def bind() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_FS):
                raise OSError(ctypes.get_errno(), "unshare")
            os.fchdir(room)
            if rooted:
                os.chroot(".")
            sock.bind(name)
        except OSError as error:
            failed.append(error)

    thread = Thread(target=bind)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _room(at: int) -> Iterator[int]:
    """A new directory in ``at``, open, and ours alone. Raises OSError."""
    _remove_left(at)
    name = f".udsproxy-{os.getpid()}.d"
    os.mkdir(name, 0o700, dir_fd=at)
    try:
        with _opened(at, name) as room:
            if os.listdir(room):
                raise FileExistsError  # somebody has put another there
            try:
                yield room
            finally:
                _empty(room)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=at)


def _remove_left(at: int) -> None:
    """Remove what was left by a process that was killed. (What has our own number is of one that had it before.)"""
    with contextlib.suppress(OSError):
        here = os.open(".", _DIRECTORY, dir_fd=at)
        try:
            names = os.listdir(here)
        finally:
            os.close(here)
        for name in names:
            found = _ROOM.fullmatch(name)
            if found and (int(found[1]) == os.getpid() or not os.path.exists(f"/proc/{found[1]}")):
                with contextlib.suppress(OSError):
                    with _opened(at, name) as room:
                        _empty(room)
                    os.rmdir(name, dir_fd=at)


@contextlib.contextmanager
def _opened(at: int, name: str) -> Iterator[int]:
    """A directory that is ours alone. Raises OSError: it is not."""
    room = os.open(name, _DIRECTORY, dir_fd=at)
    try:
        found = os.fstat(room)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise NotADirectoryError
        yield room
    finally:
        os.close(room)


def _empty(room: int) -> None:
    """Remove directories, and sockets as `bound_as` makes them: nothing else is ours."""
    with contextlib.suppress(OSError):
        for _, directories, files, inside in os.fwalk(".", topdown=False, dir_fd=room):
            for each in files:
                if os.stat(each, dir_fd=inside, follow_symlinks=False).st_mode == stat.S_IFSOCK:
                    os.unlink(each, dir_fd=inside)
            for each in directories:
                os.rmdir(each, dir_fd=inside)
