"""Where a process that runs is controlled: PID.control in ``$UDSPROXY_RUNTIME_DIR``; where that is not set, in
``$XDG_RUNTIME_DIR/udsproxy`` or ``/run/udsproxy``.

Rules: a place is one where only we, or root, can put something: no symbolic link, not writable by others, and
neither is what is above it. Whoever answers there is believed to be a proxy if it is our process, or root's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path
from time import monotonic, sleep

from udsproxy import endpoints
from udsproxy.control.peers import is_trusted, uid_of
from udsproxy.endpoints import UnixPath
from udsproxy.endpoints.ownership import user_name
from udsproxy.kernel.files import who_may_replace

MAX_QUEUE = 64
"""Connections that may wait to be accepted: a flood of them is not to be before those who come after it."""
_PATIENCE_S = 5.0
_AGAIN_S = 0.02
_SYSTEM = Path("/run/udsproxy")


def _directories() -> list[Path]:
    """Where such sockets may be; the first is where ours will be."""
    if only := os.environ.get("UDSPROXY_RUNTIME_DIR"):
        return [Path(only)]
    of_user = Path(f"/run/user/{os.geteuid()}")
    found = []
    if named := os.environ.get("XDG_RUNTIME_DIR"):
        with contextlib.suppress(OSError):
            if _why_not(Path(named)) is None:  # (sudo -E gives root the directory of somebody else)
                found.append(Path(named))
    if of_user.is_dir() and of_user not in found:
        found.append(of_user)
    return [*(directory / "udsproxy" for directory in found), _SYSTEM]


def default_endpoint() -> UnixPath:
    """Where this process shall be controlled; what is left there of processes that were killed is removed. Raises
    OSError where there is no such place for this user."""
    directory = _directories()[0]
    directory.mkdir(mode=0o700, exist_ok=True)
    if (why := _why_not(directory)) is not None:
        raise PermissionError(errno.EPERM, why)
    for path in directory.glob("*.control"):
        if _answer(path)[0] == errno.ECONNREFUSED:
            with contextlib.suppress(OSError):
                path.unlink()
    return UnixPath(str(directory / f"{os.getpid()}.control"), mode=0o600)


def running() -> tuple[list[UnixPath], list[str]]:
    """The sockets where a process of ours, or of root's, answers, in all of the places: one that was overlooked
    could be the one meant. And those where somebody else does, for people."""
    found, others = list[UnixPath](), list[str]()
    for directory in _directories():
        with contextlib.suppress(OSError):
            for path in sorted(directory.glob("*.control")):
                failed, uid = _answer(path)
                if not failed and is_trusted(uid):
                    found.append(UnixPath(str(path)))
                elif not failed:
                    others.append(f"{path} ({'?' if uid is None else user_name(uid)})")
    return found, others


def looked_in() -> str:
    """The places where `running` looks, for people."""
    return " or ".join(map(str, _directories()))


def connect(sock: socket.socket, path: UnixPath) -> int:
    """connect(), again while the queue is full, but not for long. Returns 0, or the errno."""
    until = monotonic() + _PATIENCE_S
    while (failed := endpoints.connect(sock, path)) == errno.EAGAIN and monotonic() < until:
        sleep(_AGAIN_S)
    return failed


def _why_not(directory: Path) -> str | None:
    """Why this is no place for a socket of ours; None: it is one. Raises OSError."""
    about = directory.lstat()
    if not stat.S_ISDIR(about.st_mode):
        return f"{directory} is not a directory"
    if about.st_uid not in (0, os.geteuid()):
        return f"{directory} belongs to {user_name(about.st_uid)}"
    return who_may_replace(str(directory / "any"))


def _answer(path: Path) -> tuple[int, int | None]:
    """What connect() says: 0, or the errno; ENOTSOCK for what is no socket. And who listens."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return errno.ENOTSOCK, None
        with endpoints.unix_socket() as sock:
            failed = connect(sock, UnixPath(str(path)))
            return failed, None if failed else uid_of(sock)
    except OSError as error:
        return error.errno or errno.EIO, None
