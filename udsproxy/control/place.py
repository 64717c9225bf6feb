"""Where a process that runs is controlled: PID.control in ``$UDSPROXY_RUNTIME_DIR``; where that is not set, in
``$XDG_RUNTIME_DIR/udsproxy`` or ``/run/udsproxy``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from udsproxy import endpoints
from udsproxy.endpoints import UnixPath

_SYSTEM = Path("/run/udsproxy")


def _directories() -> list[Path]:
    """Where such sockets may be; the first is where ours will be."""
    if only := os.environ.get("UDSPROXY_RUNTIME_DIR"):
        return [Path(only)]
    of_user = Path(f"/run/user/{os.getuid()}")
    found = [Path(os.environ[name]) for name in ("XDG_RUNTIME_DIR",) if os.environ.get(name)]
    if of_user.is_dir() and of_user not in found:
        found.append(of_user)
    return [*(directory / "udsproxy" for directory in found), _SYSTEM]


def default_endpoint() -> UnixPath:
    """Where this process shall be controlled; what is left there of processes that were killed is removed. Raises
    OSError where there is no such place for this user."""
    directory = _directories()[0]
    directory.mkdir(mode=0o700, exist_ok=True)
    for path in directory.glob("*.control"):
        if _answer(path) == errno.ECONNREFUSED:
            with contextlib.suppress(OSError):
                path.unlink()
    return UnixPath(str(directory / f"{os.getpid()}.control"), mode=0o600)


def running() -> list[UnixPath]:
    """The sockets where somebody answers, in all of the places: one that was overlooked could be the one meant."""
    found: list[Path] = []
    for directory in _directories():
        with contextlib.suppress(OSError):
            found += [path for path in sorted(directory.glob("*.control")) if _answer(path) == 0]
    return [UnixPath(str(path)) for path in found]


def looked_in() -> str:
    """The places where `running` looks, for people."""
    return " or ".join(map(str, _directories()))


def _answer(path: Path) -> int:
    """What connect() says: 0, or the errno; ENOTSOCK for what is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return errno.ENOTSOCK
        with endpoints.unix_socket() as sock:
            return endpoints.connect(sock, UnixPath(str(path)))
    except OSError as error:
        return error.errno or errno.EIO
