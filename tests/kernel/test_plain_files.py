"""Files that others have named: only plain ones are read, and nothing waits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from udsproxy.kernel.plain_files import is_plain


def told_of(path: str) -> bool:
    """Of a path, which is opened so that this has no effect."""
    fd = os.open(path, os.O_PATH)
    try:
        return is_plain(fd)
    finally:
        os.close(fd)


def test_a_file(tmp_path: Path) -> None:
    """A file on a disk, also through a symbolic link."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    assert told_of(str(tmp_path / "file"))
    assert told_of(str(tmp_path / "link"))


@pytest.mark.parametrize("path", ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled", "/dev/zero"])
def test_what_is_not_plain(path: str) -> None:
    """What the kernel makes up, and devices."""
    assert not told_of(path)


def test_what_would_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that nobody writes, a socket, a directory."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        monkeypatch.chdir(tmp_path)
        sock.bind("socket")
        for name in ("fifo", "socket", "."):
            assert not told_of(name)
