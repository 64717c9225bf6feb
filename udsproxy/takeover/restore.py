"""``tap --restore``: putting back what a tap left that was killed, with its guardian."""

from __future__ import annotations

from udsproxy.endpoints import ListenError
from udsproxy.takeover.names import LOCK_S, Known, Names, put_back_locked
from udsproxy.takeover.place import Place, reason


def restore(path: str) -> str:
    """Put back what a tap left that was killed, with its guardian. Returns what was done, for people.

    Raises `ListenError`.
    """
    place = Place(path)
    try:
        with place.names.directory.locked(LOCK_S) as held:
            if not held:
                raise ListenError(f"cannot restore {place.path}: another process has locked its directory (flock)")
            return _restore(place.names)
    except OSError as error:
        raise ListenError(f"cannot restore {place.path}: {reason(error)}") from None
    finally:
        place.close()


def _restore(names: Names) -> str:
    """Decide which file is ours. Raises `ListenError`, OSError."""
    directory, path = names.directory, names.path
    directory.remove_left()
    here, aside = directory.identity(names.name), directory.identity(names.aside)
    if aside is None:
        return f"{path}: nothing to restore: there is no {names.aside_path}"
    for name, found in ((names.name, here), (names.aside, aside)):
        if found is not None and not directory.is_socket(name):
            raise ListenError(f"cannot restore {path}: {directory.path_of(name)} is not a socket")
    if here is not None and directory.answers(names.name):
        if directory.answers(names.aside):
            raise ListenError(
                f"cannot restore {path}: somebody listens there, and at {names.aside_path}; "
                "stop the running tap first"
            )
        known = Known(set(), {aside})
    else:
        known = Known(set() if here is None else {here}, {aside})
    return put_back_locked(names, known) or f"{path}: nothing to restore"
