"""May a user connect to a Unix socket? connect() wants write permission on the file, and search permission on every
directory above it (unix(7); fs/namei.c, acl_permission_check and posix_acl_permission).

Rule: pure. What a security module (SELinux, AppArmor) would say is not asked.
"""

from __future__ import annotations

import struct

from udsproxy.doctor.facts import Acl, Entry, User

_READ, WRITE, SEARCH = 4, 2, 1
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10
_ENTRY = struct.Struct("<HHI")
_VERSION = 2
_MAX_ENTRIES = 1024


def obstacle(entries: tuple[Entry, ...], user: User) -> Entry | None:
    """The first of them that this user cannot pass: directories, and at last the socket's file. None: they may."""
    for number, entry in enumerate(entries):
        wanted = WRITE if number == len(entries) - 1 else SEARCH
        if user.uid and not allowed(entry, user) & wanted:
            return entry
    return None


def allowed(entry: Entry, user: User) -> int:
    """The bits (read 4, write 2, search 1) that somebody who is not root has."""
    owner, group, other = entry.mode >> 6 & 7, entry.mode >> 3 & 7, entry.mode & 7
    if user.uid == entry.uid:
        return owner
    if entry.acl:
        granted, mask = _granted(entry, user)
        return other if granted is None else granted & mask
    return group if entry.gid in user.gids else other


def is_masked(entry: Entry, user: User, wanted: int) -> bool:
    """The ACL has that bit for the user, and its mask takes it away."""
    granted, mask = _granted(entry, user) if entry.acl and user.uid != entry.uid else (None, 7)
    return granted is not None and bool(granted & wanted & ~mask)


def _granted(entry: Entry, user: User) -> tuple[int | None, int]:
    """What an ACL gives to somebody who is not the owner, before its mask (None: nothing of its own), and the mask.
    (With an ACL the group's bits of the mode are the mask.)"""
    mask = next((bits for tag, bits, _ in entry.acl if tag == _MASK), 7)
    for tag, bits, number in entry.acl:
        if tag == _USER and number == user.uid:
            return bits, mask
    matching = [
        bits
        for tag, bits, number in entry.acl
        if (tag == _GROUP_OBJ and entry.gid in user.gids) or (tag == _GROUP and number in user.gids)
    ]
    if not matching:
        return None, mask
    granted = 0
    for each in matching:  # (the kernel wants one entry that has all; one bit is all that is asked here)
        granted |= each
    return granted, mask


def _letters(bits: int) -> str:
    return "".join(letter if bits & bit else "-" for letter, bit in zip("rwx", (_READ, WRITE, SEARCH), strict=True))


def why_not(entry: Entry, user: User) -> str:
    """Which class of the mode applied."""
    if user.uid == entry.uid:
        return f"{user.name} is its owner"
    if entry.acl:
        granted, mask = _granted(entry, user)
        if granted is not None and granted & ~mask:
            kept = _letters(granted & mask)
            return f"its ACL gives {user.name} {_letters(granted)}, of which its mask leaves {kept}"
        return f"{user.name} is not let by its ACL"
    if entry.gid in user.gids:
        return f"{user.name} is in its group"
    return f"{user.name} is neither its owner nor in its group"


def parse_acl(data: bytes) -> Acl:
    """The extended attribute ``system.posix_acl_access`` (linux/posix_acl_xattr.h); what is malformed is none."""
    if len(data) < 4 or int.from_bytes(data[:4], "little") != _VERSION or (len(data) - 4) % _ENTRY.size:
        return ()
    return tuple(_ENTRY.iter_unpack(data[4 : 4 + _MAX_ENTRIES * _ENTRY.size]))
