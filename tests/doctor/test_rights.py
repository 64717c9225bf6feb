"""Who may connect: judged as the kernel does."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import rights
from udsproxy.doctor.facts import Acl, Entry, User

WWW = User("www-data", 33, (33, 100), "--client")


def entry(owner: int, group: int, mode: int, acl: Acl = ()) -> Entry:
    return Entry("/x", owner, group, mode, acl)


@pytest.mark.parametrize(
    ("socket", "may"),
    [
        (entry(33, 0, 0o600), True),
        (entry(33, 0, 0o077), False),  # the owner's bits count, even where others have more
        (entry(0, 33, 0o660), True),
        (entry(0, 100, 0o660), True),
        (entry(0, 33, 0o606), False),
        (entry(0, 0, 0o660), False),
        (entry(0, 0, 0o666), True),
        (entry(0, 0, 0o664), False),
    ],
)
def test_write_permission_on_the_socket(socket: Entry, may: bool) -> None:
    """connect() wants write permission, of the first class that the user is in."""
    assert (rights.obstacle((entry(0, 0, 0o755), socket), WWW) is None) == may


def test_every_directory_must_be_passed() -> None:
    """The first that cannot be is told; reading it is not needed."""
    closed = entry(0, 0, 0o750)
    assert rights.obstacle((entry(0, 0, 0o711), closed, entry(33, 33, 0o660)), WWW) is closed
    assert rights.obstacle((entry(0, 0, 0o711), entry(33, 33, 0o660)), WWW) is None


@given(st.lists(st.integers(0, 0o7777), min_size=1))
def test_root_passes(modes: list[int]) -> None:
    """Whatever the modes are."""
    root = User("root", 0, (0,), "--client")
    assert rights.obstacle(tuple(entry(1, 1, mode) for mode in modes), root) is None


@pytest.mark.parametrize(
    ("acl", "mode", "bits"),
    [
        ([(1, 6, -1), (2, 6, 33), (4, 0, -1), (0x10, 6, -1), (0x20, 0, -1)], 0o660, 6),
        ([(1, 6, -1), (2, 6, 33), (4, 0, -1), (0x10, 4, -1), (0x20, 0, -1)], 0o640, 4),  # the mask
        ([(1, 6, -1), (4, 0, -1), (8, 6, 100), (0x10, 6, -1), (0x20, 0, -1)], 0o660, 6),
        ([(1, 6, -1), (2, 6, 34), (4, 0, -1), (0x10, 6, -1), (0x20, 0, -1)], 0o660, 0),
        # The group's bits of the mode are the mask, and say nothing of the group.
        ([(1, 6, -1), (4, 0, -1), (0x10, 6, -1), (0x20, 0, -1)], 0o660, 0),
    ],
)
def test_an_acl_is_what_counts(acl: list[tuple[int, int, int]], mode: int, bits: int) -> None:
    """As setfacl writes them: named users and groups, and the mask over both."""
    data = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, perm, who & 0xFFFFFFFF) for tag, perm, who in acl
    )
    assert rights.allowed(entry(0, 33, mode, rights.parse_acl(data)), WWW) == bits


def test_the_mask_is_the_cause() -> None:
    """Where the ACL has the right and its mask takes it away, that is said, and of nobody else."""
    acl = ((1, 6, 0), (2, 6, 33), (4, 0, 0), (8, 6, 100), (0x10, 4, 0), (0x20, 0, 0))
    masked = entry(0, 0, 0o640, acl)
    assert rights.is_masked(masked, WWW, rights.WRITE)
    assert rights.why_not(masked, WWW) == "its ACL gives www-data rw-, of which its mask leaves r--"
    group = User("deploy", 1000, (1000, 100), "--client")
    assert rights.is_masked(masked, group, rights.WRITE)
    for other in (User("other", 5, (5,), "--client"), User("root", 0, (0,), "--client")):
        assert not rights.is_masked(masked, other, rights.WRITE)
    assert not rights.is_masked(entry(0, 0, 0o660, (*acl[:4], (0x10, 6, 0), acl[5])), WWW, rights.WRITE)
    assert not rights.is_masked(entry(0, 0, 0o640), WWW, rights.WRITE)


@given(st.binary())
def test_a_malformed_acl_is_none(data: bytes) -> None:
    """It never raises."""
    rights.parse_acl(data)
    rights.parse_acl(b"\x02\0\0\0" + data)
