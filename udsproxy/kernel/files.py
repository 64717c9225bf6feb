"""Opening files that somebody named, where that somebody may be root and the directory another user's.

Rules:

* What is checked is what was opened: a name is looked up once, and the descriptor decides.
* A symbolic link at the end of a log's path is followed where root or we have made it: nobody else's link sends our
  output to a file that he may not touch himself.
* Nothing here waits: a FIFO without a reader is refused, a device is opened without.
* Only the standard library is imported, so that the smallest of our processes can use it.

What is refused is an OSError: ``strerror`` says why, and what to do, in words; ``filename`` is what was asked for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import stat

from udsproxy.kernel.directory import Directory

MAX_CONFIG = 1024 * 1024
_MAX_LINKS = 40
"""As the kernel has it (path_resolution(7))."""
_PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
_ROOT = 0


def open_log(path: str, *, by_name: bool = False) -> int:
    """A descriptor to append to, made with mode 600 where there is no such file. ``by_name``: its name must lead to
    it, and not /proc. Raises OSError: it cannot be opened, or is a file that others have a hand in."""
    try:
        fd, given = _open_last(path)
        try:
            if given and by_name:
                raise OSError(errno.EINVAL, "it is what a descriptor leads to, so its size cannot be bounded")
            _require_log(fd, given=given)
            os.set_blocking(fd, True)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise OSError(error.errno, _said(error, path), path) from None
    return fd


def reopen_log(fd: int, path: str) -> int | None:
    """`open_log` anew, where the file that is open there has been moved away or removed; None: it is where it was,
    or is none that could be. Raises OSError."""
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        return None
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(about, os.stat(path)):
            return None
    return open_log(path)


def open_to_follow(path: str) -> int:
    """A descriptor to read a file that others write. Raises OSError: it cannot be read, or is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a file")
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EINVAL
        raise OSError(number, getattr(error, "strerror", None) or "it is not a path", path) from None


def read_config(path: str) -> bytes:
    """A file of settings, whole. Raises OSError: it cannot be read, is no file, is too long; or we are root, and
    another user may write it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            _require_config(os.fstat(fd))
            data = file.read(MAX_CONFIG + 1)
        if len(data) > MAX_CONFIG:
            raise OSError(errno.EFBIG, f"it is longer than {MAX_CONFIG // 1024} KiB")
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    return data


def who_may_replace(path: str) -> str | None:
    """The highest directory above ``path`` in which somebody besides root and us may rename what is there, as in
    ``/home/alice may be changed by alice``; None: there is no such one, or it may not be seen."""
    try:
        directory = Directory(os.path.dirname(path))
    except OSError:
        return None
    try:
        others = directory.changeable_by()
    finally:
        directory.close()
    return str(others[-1]) if others else None


def _open_last(path: str) -> tuple[int, bool]:
    """Open to append, links at the end followed as the module says. Returns whether /proc led to it: then it is
    what a descriptor of ours, or of root's, is already. Raises OSError."""
    at = path
    for _ in range(_MAX_LINKS):
        try:
            return os.open(at, _WRITE | os.O_NOFOLLOW, 0o600), False
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        link = os.open(at, _PIN)
        try:
            about = os.fstat(link)
            if not stat.S_ISLNK(about.st_mode):
                continue  # it has been replaced just now
            if about.st_uid not in _trusted():
                raise PermissionError(errno.ELOOP, f"it is a symbolic link of {_user(about.st_uid)}'s")
            if _is_of_proc(about):
                return os.open(at, _WRITE & ~os.O_CREAT), True
            at = os.path.join(os.path.dirname(at), os.readlink("", dir_fd=link))
        finally:
            os.close(link)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_of_proc(about: os.stat_result) -> bool:
    """Such a link leads to what a descriptor is, and not by the name that can be read in it."""
    with contextlib.suppress(OSError):
        return about.st_dev == os.stat("/proc/self/", follow_symlinks=False).st_dev
    return False


def _require_log(fd: int, *, given: bool) -> None:
    about = os.fstat(fd)
    if stat.S_ISREG(about.st_mode):
        if not given and (why := foreign_log(about)) is not None:
            raise PermissionError(errno.EPERM, why)
    elif not (stat.S_ISCHR(about.st_mode) or stat.S_ISFIFO(about.st_mode)):
        raise OSError(errno.EINVAL, "it is not a file, terminal, pipe or character device")


def foreign_log(about: os.stat_result) -> str | None:
    """Why this file is not one of ours to write to; None: it is."""
    if about.st_uid not in _trusted():
        return f"it belongs to {_user(about.st_uid)}; choose a file that is not there"
    if about.st_nlink > 1:
        return "it has another name (a hard link); choose a file that has one"
    return None


def _require_config(about: os.stat_result) -> None:
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is not a file (SIGHUP reads it again)")
    if os.geteuid() != _ROOT:
        return
    if about.st_uid not in _trusted():
        raise PermissionError(
            errno.EPERM, f"it belongs to {_user(about.st_uid)}, and root would do what it says; chown it to root"
        )
    if (who := _writer(about)) is not None:
        raise PermissionError(
            errno.EPERM, f"it may be written by {who}, and root would do what it says; chmod go-w makes it root's"
        )


def _trusted() -> tuple[int, int]:
    return _ROOT, os.geteuid()


def _writer(about: os.stat_result) -> str | None:
    """Who else has permission to write that; None: nobody."""
    if about.st_mode & stat.S_IWOTH:
        return "everybody"
    if about.st_mode & stat.S_IWGRP and about.st_gid not in (_ROOT, os.getegid()):
        return f"group {about.st_gid}"
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _said(error: OSError, path: str) -> str:
    if error.errno == errno.ENXIO:
        with contextlib.suppress(OSError):
            if stat.S_ISFIFO(os.stat(path).st_mode):
                return "nobody reads from this FIFO; start its reader first"
    return error.strerror or "it cannot be opened"
