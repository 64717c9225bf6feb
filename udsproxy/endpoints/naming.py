"""New sockets: a file with mode 000 that nobody else can exchange, under the name that clients are to see.

The kernel keeps the name that bind() was given, whatever becomes of the file: clients see it in getpeername(), and
people in ``ss -xl``. So that a socket has the name of the path that it is going to stand at, it is bound under that
name *inside a private directory*, and its file is moved out then.

Rules:

* The private directory is in that of the path: a file can be moved within a file system only.
* Only a thread of its own is ever inside: the current directory and the root are a thread's (unshare(2), CLONE_FS).
* All is done by descriptors: who may write the directory around cannot lead us elsewhere. Only a user without
  privilege, who can reach nothing that is not its own, binds by path.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import stat
from collections.abc import Iterator
from threading import Thread
from typing import NamedTuple

from udsproxy.endpoints.connecting import unix_socket
from udsproxy.endpoints.spelling import MAX_PATH
from udsproxy.kernel.directory import Directory, identity_of
from udsproxy.kernel.procfs import read_capabilities

_CAP_SYS_CHROOT = 18
_CLONE_FS = 0x200


class SocketFile(NamedTuple):
    """A bound socket, and where its file is until it is moved."""

    sock: socket.socket
    pinned: int
    """The file, opened with O_PATH."""
    at: int
    """The directory that it is in, open."""
    name: str
    """Its name there."""


@contextlib.contextmanager
def new_socket(name: str, kind: int, directory: Directory, beside: str) -> Iterator[SocketFile]:
    """Make a socket that is bound as ``name``, with its file in a private directory in ``directory``; where that
    cannot be had, it is bound by the path of a file in ``directory`` that is called ``beside``.

    At the end the file is removed if it is still there, and ``pinned`` is closed. Raises OSError.
    """
    with unix_socket(kind) as sock, contextlib.ExitStack() as stack:
        # bind() makes the file with the mode of the socket's inode, less the umask: closed until we are done.
        os.fchmod(sock.fileno(), 0)
        at, file = _bind(name, sock, directory, beside, stack)
        pinned = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        stack.callback(os.close, pinned)
        if at == directory.fd:
            stack.callback(directory.remove, file, {identity_of(pinned)})
            found = os.fstat(pinned)
            if found.st_mode != stat.S_IFSOCK or found.st_uid != os.geteuid():
                raise FileNotFoundError(errno.ENOENT, "somebody has exchanged the file", file)
        made = SocketFile(sock.dup(), pinned, at, file)
        try:
            yield made
        except BaseException:
            made.sock.close()
            raise


def _bind(
    name: str, sock: socket.socket, directory: Directory, beside: str, stack: contextlib.ExitStack
) -> tuple[int, str]:
    """Bind it; returns the open directory that its file is in, and the file's name there. Raises OSError."""
    rooted = name.startswith("/") or ".." in name.split("/")
    able = read_capabilities() >> _CAP_SYS_CHROOT & 1 or not rooted
    if able and len(os.fsencode(name)) <= MAX_PATH:
        with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no thread to be had
            room = stack.enter_context(directory.private())
            return room, _bind_inside(room, sock, name, rooted=rooted)
    path = directory.path_of(beside)
    if len(os.fsencode(path)) > MAX_PATH or (os.geteuid() == 0 and directory.changeable_by()):
        # Clients see this name, which says nothing; but it leads nowhere else.
        room = stack.enter_context(directory.private())
        sock.bind(f"/proc/self/fd/{room}/s")
        return room, "s"
    sock.bind(path)
    return directory.fd, beside


def _bind_inside(room: int, sock: socket.socket, name: str, *, rooted: bool) -> str:
    """Bind it in a thread whose current directory, and where ``rooted`` whose root, is this; the directories on the
    name's way are made there. Returns the file's name in the room. Raises OSError, RuntimeError."""
    parent, base = os.path.split(name)
    walked = _walk(parent)
    for each in dict.fromkeys(walked):
        if each != ".":
            os.mkdir(each, 0o700, dir_fd=room)
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
    return f"{walked[-1]}/{base}"


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
