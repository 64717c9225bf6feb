"""Owner, group, mode and ACL of a socket's file: as told, else as the upstream's.

Rule: what is only copied may fail for want of privilege; then the file is never open to more than it shall be.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from typing import Literal

from udsproxy.endpoints.spelling import Endpoint, ListenError, UnixPath

_ACL = "system.posix_acl_access"
_LABEL = "security.selinux"


def set_owner_and_mode(file: str, endpoint: UnixPath, like: Endpoint | None) -> str | None:
    """Give a new socket file its owner, group and mode. Returns a warning, where one is due.

    What was told must succeed. What is only copied may fail for want of privilege; then the file is opened to
    no group that the upstream is not open to. Raises `ListenError`, OSError.
    """
    uid = _lookup("owner", endpoint.owner) if endpoint.owner is not None else -1
    gid = _lookup("group", endpoint.group) if endpoint.group is not None else -1
    if uid != -1 or gid != -1:
        os.chown(file, uid, gid)
    with pinned(like) as model_file:
        model = None if model_file is None else os.stat(model_file)
        if model_file is None or model is None or not stat.S_ISSOCK(model.st_mode):
            os.chmod(file, 0o600 if endpoint.mode is None else endpoint.mode)
            return None
        note = None
        made, copied_mode = os.stat(file), stat.S_IMODE(model.st_mode)
        if gid == -1 and made.st_gid != model.st_gid and not _chown(file, -1, model.st_gid):
            copied_mode &= ~0o070 | (copied_mode & 0o007) << 3
            note = f"{endpoint.path}: the upstream's group {group_name(model.st_gid)} cannot be copied ({_why()})"
        if uid == -1 and made.st_uid != model.st_uid and not _chown(file, model.st_uid, -1):
            note = f"{endpoint.path}: the upstream's owner {user_name(model.st_uid)} cannot be copied ({_why()})"
        mode = copied_mode if endpoint.mode is None else endpoint.mode
        os.chmod(file, mode)
        if endpoint.mode is None and not _copy_acl(model_file, file):
            # With an ACL the group's bits of the mode are the ACL's mask: alone they would open it to the group.
            os.chmod(file, mode & ~0o070)
            note = f"{endpoint.path}: the upstream's ACL cannot be copied; the group was left out"
        return note


def copy_owner_and_mode(source: str, file: str) -> None:
    """Make ``file`` as ``source`` is, as far as we may."""
    model = os.stat(source)
    _chown(file, -1, model.st_gid)
    _chown(file, model.st_uid, -1)
    with contextlib.suppress(OSError):
        os.chmod(file, stat.S_IMODE(model.st_mode))
    _copy_acl(source, file)


def _copy_acl(source: str, file: str) -> bool:
    """Copy the security label, and the access ACL (acl(5)). False: there is one, and it cannot be copied."""
    with contextlib.suppress(OSError):  # without SELinux there is none
        os.setxattr(file, _LABEL, os.getxattr(source, _LABEL))
    try:
        acl = os.getxattr(source, _ACL)
    except OSError:
        return True
    try:
        os.setxattr(file, _ACL, acl)
    except OSError:
        return False
    return True


def _chown(file: str, uid: int, gid: int) -> bool:
    try:
        os.chown(file, uid, gid)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL):
            raise
        return False  # EINVAL: our user namespace has no number for it
    return True


def _why() -> str:
    return "not root" if os.geteuid() else "root of a user namespace that has none"


@contextlib.contextmanager
def pinned(endpoint: Endpoint | None) -> Iterator[str | None]:
    """A path that leads to an endpoint's file for as long as this lasts, whatever happens to its name; None: it has
    none."""
    if not isinstance(endpoint, UnixPath):
        yield None
        return
    try:
        fd = os.open(endpoint.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _lookup(kind: Literal["owner", "group"], name: str) -> int:
    if name.isascii() and name.isdigit():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ListenError(f"{kind} {name!r}: no such {'user' if kind == 'owner' else 'group'} here") from None


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
