"""Opening logs and files of settings where others have a hand in the directory: real files, links, FIFOs, devices.

As root the other user is nobody; who is not root has root for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from udsproxy.kernel import files

ROOT = os.geteuid() == 0
NOBODY = 65534


def give_away(path: Path) -> None:
    """To nobody; a link itself, not what it leads to."""
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


@contextlib.contextmanager
def log_at(path: Path | str) -> Iterator[int]:
    fd = files.open_log(str(path))
    try:
        yield fd
    finally:
        os.close(fd)


def why_not(path: Path | str) -> str:
    with pytest.raises(OSError) as refused:  # noqa: PT011 - what it says is what is looked at
        files.open_log(str(path))
    assert refused.value.filename == str(path)
    assert refused.value.strerror is not None
    return refused.value.strerror


def test_a_log_that_is_made(tmp_path: Path) -> None:
    """It is made for us alone, whatever the umask, and appended to; nothing of ours inherits it."""
    before = os.umask(0)
    try:
        with log_at(tmp_path / "log") as fd:
            os.write(fd, b"one\n")
            assert not os.get_inheritable(fd)
            assert os.get_blocking(fd)
        with log_at(tmp_path / "log") as fd:
            os.write(fd, b"two\n")
    finally:
        os.umask(before)
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_our_own_links_are_followed(tmp_path: Path) -> None:
    """Links of ours lead on, relative ones from where they stand, also to a file that is not there yet."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "one").symlink_to("sub/two")
    (tmp_path / "sub" / "two").symlink_to("log")
    with log_at(tmp_path / "one") as fd:
        os.write(fd, b"here")
    assert (tmp_path / "sub" / "log").read_bytes() == b"here"
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert why_not(tmp_path / "a") == os.strerror(errno.ELOOP)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/{}", "/proc/self/fd/{}"])
def test_descriptors_by_their_names(tmp_path: Path, name: str) -> None:
    """What is open already may be named as that, whoever owns the file: a pipe as well."""
    with open(tmp_path / "log", "wb") as file:
        if ROOT:
            give_away(tmp_path / "log")
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            with log_at(name.format(file.fileno())) as fd:
                os.write(fd, b"here")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    assert (tmp_path / "log").read_bytes() == b"here"
    read, write = os.pipe()
    with open(read, "rb") as reader, open(write, "wb"):
        with log_at(f"/dev/fd/{write}") as fd:
            os.write(fd, b"there")
        assert os.read(reader.fileno(), 100) == b"there"


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_devices(device: str) -> None:
    """Character devices are written to."""
    with log_at(device) as fd:
        assert stat.S_ISCHR(os.fstat(fd).st_mode)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A directory, a socket, a FIFO that nobody reads: each is refused at once, in words."""
    assert why_not(tmp_path) == "Is a directory"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        assert why_not(tmp_path / "s") == "No such device or address"
    os.mkfifo(tmp_path / "fifo")
    assert why_not(tmp_path / "fifo") == "nobody reads from this FIFO; start its reader first"
    reader = threading.Thread(target=(tmp_path / "fifo").read_bytes)
    reader.start()
    while True:
        with contextlib.suppress(OSError), log_at(tmp_path / "fifo") as fd:
            assert os.get_blocking(fd)
            break
    reader.join()


def test_a_file_with_another_name(tmp_path: Path) -> None:
    """A hard link may be to any file on the file system: it is refused, and nothing is written."""
    (tmp_path / "secret").write_bytes(b"secret")
    os.link(tmp_path / "secret", tmp_path / "log")
    assert why_not(tmp_path / "log") == "it has another name (a hard link); choose a file that has one"
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_links_and_files_of_others(tmp_path: Path) -> None:
    """Another user's link leads nowhere, and his file is not written; nothing is made where the link leads to."""
    if ROOT:
        (tmp_path / "target").write_bytes(b"")
        (tmp_path / "link").symlink_to("target")
        (tmp_path / "dangling").symlink_to("made")
        (tmp_path / "file").write_bytes(b"")
        for each in ("link", "dangling", "file"):
            give_away(tmp_path / each)
        assert why_not(tmp_path / "link") == "it is a symbolic link of nobody's"
        assert why_not(tmp_path / "dangling") == "it is a symbolic link of nobody's"
        assert why_not(tmp_path / "file") == "it belongs to nobody; choose a file that is not there"
        assert not (tmp_path / "made").exists()
    else:
        assert why_not("/etc/passwd") == "Permission denied"


def test_who_may_replace_a_file(tmp_path: Path) -> None:
    """The first directory from the root that others can change is told; a sticky one of root's is none."""
    assert files.who_may_replace("/tmp/log") is None
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    assert files.who_may_replace(str(home / "sub" / "log")) is None
    (home / "sub").chmod(0o777)
    assert files.who_may_replace(str(home / "sub" / "log")) == f"{home / 'sub'} may be changed by everybody"
    if ROOT:
        (home / "sub").chmod(0o775)
        os.chown(home / "sub", 0, 12345)
        assert files.who_may_replace(str(home / "sub" / "log")) == f"{home / 'sub'} may be changed by group 12345"
        give_away(home)
        assert files.who_may_replace(str(home / "sub" / "log")) == f"{home} may be changed by nobody"


def test_settings(tmp_path: Path) -> None:
    """A file is read whole, by a link too; what is none, or too long, is refused at once."""
    conf = tmp_path / "conf"
    conf.write_bytes(b"x" * files.MAX_CONFIG)
    (tmp_path / "link").symlink_to("conf")
    assert files.read_config(str(tmp_path / "link")) == conf.read_bytes()
    os.mkfifo(tmp_path / "fifo")
    with open(conf, "ab") as file:
        file.write(b"x")
    for path, why in (
        (tmp_path / "fifo", "it is not a file (SIGHUP reads it again)"),
        (Path("/dev/zero"), "it is not a file (SIGHUP reads it again)"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
        (conf, "it is longer than 1024 KiB"),
    ):
        with pytest.raises(OSError, match=re.escape(why)) as refused:
            files.read_config(str(path))
        assert (refused.value.strerror, refused.value.filename) == (why, str(path))


@pytest.mark.parametrize(
    ("owner", "mode", "why"),
    [
        ((0, 0), 0o600, None),
        ((0, 0), 0o664, None),
        ((0, 12345), 0o644, None),
        ((0, 0), 0o666, "it may be written by everybody, and root would do what it says"),
        ((0, 12345), 0o664, "it may be written by group 12345, and root would do what it says"),
        ((NOBODY, 0), 0o600, "it belongs to nobody, and root would do what it says"),
    ],
)
def test_settings_that_others_may_write(tmp_path: Path, owner: tuple[int, int], mode: int, why: str | None) -> None:
    """Root does not do what others may write; who is not root reads what he may."""
    conf = tmp_path / "conf"
    conf.write_bytes(b"text")
    if ROOT:
        os.chown(conf, *owner)
    conf.chmod(mode)
    if ROOT and why is not None:
        with pytest.raises(PermissionError) as refused:
            files.read_config(str(conf))
        assert str(refused.value.strerror).startswith(why)
    else:
        assert files.read_config(str(conf)) == b"text"
