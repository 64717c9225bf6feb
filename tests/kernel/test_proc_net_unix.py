"""/proc/net/unix: the same as sock_diag says of sockets of this test, and hostile lines."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.kernel import proc_net_unix
from udsproxy.kernel.diag_codec import LISTEN, UnixSocket
from udsproxy.kernel.sock_diag import SockDiag

HEAD = b"Num       RefCount Protocol Flags    Type St Inode Path\n"
LINE = b"0000000000000000: 00000002 00000000 00010000 0001 01 12345 "


def comparable(found: UnixSocket) -> tuple[object, ...]:
    """What both know. (NULs are @ in the file: an abstract name and a path that begins with @ look the same.)"""
    name = found.name
    if name is not None:
        name = name.replace(b"\0", b"@") if name[:1] == b"\0" else name.partition(b"\0")[0]
    return found.inode, found.type, found.state, name, found.queue if found.state == LISTEN else 0


def test_the_same_as_sock_diag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inode, type, state, name and queue, of sockets of each type and state, of names with anything in them."""
    monkeypatch.chdir(tmp_path)
    names = [b"plain", b" a space ", b"\xff\xfe", b"new\nline\n", b"@at", b"x" * 107, b"tab\tname"]
    names += [b"\0udsproxy-%d-%s" % (os.getpid(), name[:80]) for name in (*names, b"nul\0nul\0")]
    ours: dict[int, int] = {}
    with contextlib.ExitStack() as stack, SockDiag() as diag:

        def keep(sock: socket.socket) -> socket.socket:
            ours[os.fstat(sock.fileno()).st_ino] = 1
            return stack.enter_context(sock)

        for number, name in enumerate(names):
            for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
                sock = keep(socket.socket(socket.AF_UNIX, kind))
                if name[:1] != b"\0":
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name)
                sock.bind(name)
                if kind == socket.SOCK_DGRAM:
                    continue
                sock.listen(5)
                for _ in range(number % 4):
                    keep(socket.socket(socket.AF_UNIX, kind)).connect(name)
                if number % 4 > 1:
                    keep(sock.accept()[0])
        keep(socket.socket(socket.AF_UNIX))
        for one in socket.socketpair():
            keep(one)
        by_diag = {each.inode: comparable(each) for each in diag.unix_sockets() if each.inode in ours}
        by_file = {each.inode: comparable(each) for each in proc_net_unix.read() if each.inode in ours}
    assert by_file == by_diag
    assert by_file.keys() == ours.keys()


@given(text=st.binary(max_size=400), lines=st.lists(st.binary(max_size=40), max_size=4))
def test_hostile_lines(text: bytes, lines: list[bytes]) -> None:
    """Whatever stands there, nothing is raised; and a line that is one is read, whatever comes behind it."""
    proc_net_unix.parse(text)
    proc_net_unix.parse(HEAD + b"\n".join(LINE + line for line in lines))
    found = proc_net_unix.parse(HEAD + LINE + b"/x\n" + b"\n".join(lines) + b"\n")
    assert (found[0].inode, found[0].type, found[0].state) == (12345, socket.SOCK_STREAM, LISTEN)
    assert found[0].name is not None
    assert found[0].name.startswith(b"/x")


@pytest.mark.parametrize("line", [b"", b"x", b"1: 2 3 4 5 6 7 8", LINE[:-7] + b"99999999999999999999999 /x"])
def test_lines_that_are_none(line: bytes) -> None:
    """They are left out."""
    assert proc_net_unix.parse(HEAD + line + b"\n") == []


def test_no_file() -> None:
    """Without one there are no sockets."""
    assert proc_net_unix.parse(b"") == []
