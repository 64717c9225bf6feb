"""What bind() returns on a Unix socket."""

from __future__ import annotations

from udsproxy.explain.errors.model import Cause, Meaning

BIND: tuple[Meaning, ...] = (
    Meaning(
        "bind",
        "EADDRINUSE",
        "There is something at this path already, of whatever kind. SO_REUSEADDR changes nothing here. With an "
        "abstract name: another socket has it.",
        (
            Cause(
                "The file of an earlier run is left over: a socket's file stays until somebody removes it.",
                "`udsproxy state PATH` says that nobody listens (in the containers that share the directory "
                "neither), and clients get ECONNREFUSED.",
                "With the server stopped, put it out of the way, and start again: `mv PATH PATH.old`. The "
                "program should do so itself, after a connect() that was refused.",
                only="path",
            ),
            Cause(
                "The server runs already, or two pools have the same path.",
                "`udsproxy state PATH` names the process; `grep -rn 'listen =' /etc/php`.",
                "Stop one, or give it another path.",
            ),
            Cause(
                "A tap or another tool stands at this path while the server starts.",
                "`ls -l PATH PATH.udsproxy`",
                "End the tool first; `udsproxy tap --restore PATH` where it was killed.",
            ),
            Cause(
                "It is a symbolic link, even one that leads nowhere; bind() does not follow it.",
                "`ls -l PATH`",
                "Bind where it leads, or choose another path.",
                only="path",
            ),
        ),
    ),
    Meaning(
        "bind",
        "ENOENT",
        "The directory does not exist.",
        (
            Cause(
                "/run is empty after a restart of the machine, and nobody made the directory.",
                "`ls -ld $(dirname PATH)`",
                "RuntimeDirectory= of the unit, or a line in /etc/tmpfiles.d.",
            ),
            Cause(
                "The path is relative, or ends with a /.",
                "`strace -f -e trace=bind` shows it as the kernel gets it.",
                "Give the whole path of the socket.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EACCES",
        "This user may not make files in that directory, or not enter one before it.",
        (
            Cause(
                "The server starts as a user who may not write there (/run belongs to root).",
                "`namei -l PATH`; `ps -o user,cmd -p PID`, or User= of the unit.",
                "A directory of its own: RuntimeDirectory= of the unit.",
            ),
            Cause(
                "SELinux, AppArmor or Landlock forbids it, though the permissions are right.",
                "`journalctl -k | grep -i denied`; `ausearch -m avc -ts recent`.",
                "Change the policy.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EINVAL",
        "The path is too long, or this socket has a name already.",
        (
            Cause(
                "The path has more than 108 bytes (107 with its ending zero).",
                "`printf %s PATH | wc -c`",
                "Use a shorter one; below /run there is room.",
            ),
            Cause(
                "bind() is called a second time on the same socket.",
                "`strace -f -e trace=bind` shows both.",
                "Make another socket.",
            ),
            Cause(
                "The address is of another family.",
                "`strace -f -e trace=bind` shows it.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EPERM",
        "The filesystem cannot hold a socket, or the directory must not change.",
        (
            Cause(
                "The filesystem has no sockets: vfat, some network and shared folders (of virtual machines, "
                "say), /sys.",
                "`df -T $(dirname PATH)`",
                "Put it below /run.",
            ),
            Cause(
                "The directory is immutable.",
                "`lsattr -d $(dirname PATH)` shows i.",
                "`chattr -i` it.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EROFS",
        "The filesystem is read-only.",
        (
            Cause(
                "A container or a unit with ProtectSystem= has this directory read-only.",
                "`findmnt -T PATH`; `systemctl show UNIT -p ProtectSystem -p ReadOnlyPaths`.",
                "RuntimeDirectory= or ReadWritePaths= of the unit; a volume of the container.",
            ),
            Cause(
                "The kernel made it read-only after an error of the disk.",
                "`journalctl -k | grep -i 'remounting filesystem read-only'`",
                "Mend the disk.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "ENOSPC",
        "No space, or no inode, is left for the socket's file. An empty address: every automatic name is taken.",
        (
            Cause(
                "The filesystem is full, of bytes or of files.",
                "`df -h $(dirname PATH)`, `df -i $(dirname PATH)`",
                "Make room, or put it below /run.",
            ),
        ),
    ),
    Meaning(
        "bind",
        "EDQUOT",
        "This user has as many files as the quota allows.",
        (
            Cause(
                "The quota is used up.",
                "`quota -s`",
                "Make room, or put it below /run.",
            ),
        ),
        unprovoked="it needs a filesystem with quotas",
    ),
)
