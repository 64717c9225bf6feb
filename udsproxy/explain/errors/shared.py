"""What several calls return on a Unix socket, for the same reasons."""

from __future__ import annotations

from typing import Literal

from udsproxy.explain.errors.model import Call, Cause, Meaning


def path_errors(call: Literal["connect", "send", "bind"]) -> tuple[Meaning, ...]:
    """Of the way to the socket's file."""
    return (
        Meaning(
            call,
            "ENOTDIR",
            "Something on the way to this path is a file, not a directory.",
            (
                Cause(
                    "The path has a / too many, or a socket's path is used as if it were a directory.",
                    "`namei -l PATH` shows each part of it.",
                    "Correct the path.",
                ),
            ),
        ),
        Meaning(
            call,
            "ELOOP",
            "There are too many symbolic links on the way.",
            (
                Cause(
                    "A symbolic link leads to itself, or two to each other.",
                    "`namei -l PATH` ends with `exceeded limit of symlinks`.",
                    "Correct the link, or the path.",
                ),
            ),
        ),
        Meaning(
            call,
            "ENAMETOOLONG",
            "A symbolic link leads to a name of more than 255 bytes.",
            (
                Cause(
                    "The link is wrong; a path that is too long by itself is EINVAL.",
                    "`namei -l PATH`",
                    "Correct the link.",
                ),
            ),
        ),
    )


def read_only(call: Literal["connect", "send"]) -> Meaning:
    """The file is of a filesystem that cannot be written, and is no socket."""
    return Meaning(
        call,
        "EROFS",
        "This is a file, or a directory, of a read-only filesystem.",
        (
            Cause(
                "The path is wrong: a socket could be connected to, also on a read-only filesystem.",
                "`ls -ld PATH`: a socket's line begins with s.",
                "Correct the path.",
            ),
        ),
    )


_STARTED_BY_HAND = (
    Cause(
        "The program takes its listening socket from whoever starts it, as descriptor 0 (spawn-fcgi, inetd) or "
        "3 (systemd), and was started by hand: descriptor 0 is a terminal or /dev/null.",
        "`ls -l /proc/PID/fd/0`: it is no `socket:[...]`.",
        "Start it as intended: `spawn-fcgi -s PATH -- PROGRAM`, or a .socket unit (StandardInput=socket for "
        "descriptor 0); or give it an address of its own, where it has an option for that (php-cgi -b).",
    ),
)


def mistakes(call: Call) -> tuple[Meaning, ...]:
    """Of the program's own descriptors and pointers."""
    meanings = (
        Meaning(
            call,
            "EBADF",
            "This descriptor is not open.",
            (
                Cause(
                    "It was closed before, often by another thread, or twice; a descriptor to be passed on "
                    "(SCM_RIGHTS) counts too.",
                    "`strace -f -e trace=desc,network -p PID`: who closed this number.",
                    "Close once, and forget the number then.",
                ),
            ),
        ),
        Meaning(
            call,
            "ENOTSOCK",
            "This descriptor is no socket.",
            (
                *(_STARTED_BY_HAND if call == "accept" else ()),
                Cause(
                    "Its number was closed, and has been given to a file or a pipe since; or descriptors were "
                    "handed over in another order (LISTEN_FDS).",
                    "`ls -l /proc/PID/fd` shows what each number is.",
                    "Close once, and forget the number then.",
                ),
            ),
        ),
    )
    if call == "listen":  # it takes no pointer
        return meanings
    return (
        *meanings,
        Meaning(
            call,
            "EFAULT",
            "A pointer leads to memory that is not the program's.",
            (
                Cause(
                    "A bug in the program, or in a library of C that it calls.",
                    "`strace -f -e trace=network -p PID` shows the address.",
                    "Report it to who maintains the program.",
                ),
            ),
        ),
    )
