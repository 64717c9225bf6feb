"""Files that others have named: only plain ones are read, and nothing waits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from udsproxy.kernel.plain_files import read_plain_at


def test_a_file(tmp_path: Path) -> None:
    """Its first bytes, also through a symbolic link."""
    (tmp_path / "file").write_bytes(b"hello")
    (tmp_path / "link").symlink_to("file")
    assert read_plain_at(str(tmp_path / "file"), 100) == b"hello"
    assert read_plain_at(str(tmp_path / "link"), 2) == b"he"


@pytest.mark.parametrize("path", ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled", "/dev/zero"])
def test_what_is_not_plain(path: str) -> None:
    """What the kernel makes up, and devices."""
    assert read_plain_at(path, 100) == b""


def test_what_would_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody writes, a socket, a directory, nothing at all, no name."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        monkeypatch.chdir(tmp_path)
        sock.bind("socket")
        for name in ("fifo", "socket", ".", "none", "\0"):
            assert read_plain_at(name, 100) == b""
