"""A log whose size is bounded: which lines are in which file, and whose files are touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udsproxy.kernel.directory import Directory, Identity
from udsproxy.kernel.files import open_log, reopen_log
from udsproxy.kernel.rotation import require_rotatable, rotate
from udsproxy.sinks.writer import Writer


def writer_to(path: Path, limit: int, keep: int) -> Writer:
    name = str(path)
    return Writer(
        open_log(name), "test", owned=True, reopen=partial(reopen_log, path=name),
        rotate=partial(rotate, path=name, keep=keep), limit=limit,
    )  # fmt: skip


def kept(path: Path) -> list[bytes]:
    """The files' contents, oldest first."""
    numbered = sorted((int(each.suffix[1:]), each) for each in path.parent.glob(f"{path.name}.*"))
    return [each.read_bytes() for _, each in reversed(numbered)] + [path.read_bytes()]


def lines_of(sizes: list[int]) -> list[bytes]:
    """Lines of these lengths, their ends included, each unlike the others where there is room for that."""
    return [str(number).encode().rjust(size, b".")[-size:-1] + b"\n" for number, size in enumerate(sizes, 1000)]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of others")

LINES = st.lists(st.integers(1, 60), max_size=40).map(lines_of)


@settings(deadline=None)
@given(st.lists(LINES, max_size=6), st.integers(30, 100), st.integers(1, 4))
def test_no_line_is_cut_and_no_file_is_larger(batches: list[list[bytes]], limit: int, keep: int) -> None:
    """Whatever the lines' lengths: each file is within the limit, there are FILE and ``keep`` more at most, and
    together they are the last of what was written, line by line; only what is longer than a file is lost."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "log")
        writer = writer_to(path, limit, keep)
        for lines in batches:
            writer._write(b"".join(lines))  # as the thread does; no need to wait for it
        assert writer.close(10)
        files = kept(path)
        possible = [line for lines in batches for line in lines if len(line) <= limit]
        assert len(files) <= keep + 1
        assert all(len(each) <= limit for each in files)
        assert all(oct(each.stat().st_mode) == "0o100600" for each in Path(directory).iterdir())
        found = b"".join(files).splitlines(keepends=True)
        assert found == possible[len(possible) - len(found) :]
        if len(files) <= keep:
            assert found == possible
        assert writer.lost_lines == sum(map(len, batches)) - len(possible)


@settings(deadline=None)
@given(
    st.lists(st.tuples(LINES, st.lists(st.one_of(st.none(), st.integers(0, 80)), max_size=3)), max_size=6),
    st.integers(60, 100),
)
def test_a_full_disk_cuts_no_line(batches: list[tuple[list[bytes], list[int | None]]], limit: int) -> None:
    """Wherever the disk is full for a moment (after so many bytes of a write), what stays are whole lines, in
    order, and those that are missing are counted."""
    with TemporaryDirectory() as directory:
        path = Path(directory, "log")
        writer = writer_to(path, limit, keep=1000)
        outcomes: list[int | None] = []
        write_some = writer._write_some

        def write_or_fail(view: memoryview) -> int:
            room = outcomes.pop(0) if outcomes else None
            if room is None or room >= len(view):
                return write_some(view)
            if not room:
                raise OSError(28, "full")
            outcomes.insert(0, 0)
            return write_some(view[:room])

        writer._write_some = write_or_fail  # type: ignore[method-assign]  # a disk that fills at the right byte
        for lines, outcomes in batches:  # noqa: B007 - the writer takes them
            writer._write(b"".join(lines))
        assert writer.close(10)
        files = kept(path)
        assert all(len(each) <= limit for each in files)
        written = [line for lines, _ in batches for line in lines]
        found = b"".join(files).splitlines(keepends=True)
        rest = iter(written)
        assert all(line in rest for line in found)
        assert len(found) + writer.lost_lines == len(written)


def test_a_rotation_that_fails_is_tried_again(tmp_path: Path) -> None:
    """Where FILE.1 is a directory lines are lost, and counted; once it has gone the log goes on, and the file that
    was full is FILE.1."""
    path = tmp_path / "log"
    writer = writer_to(path, 10, 1)
    writer._write(b"first....\n")
    (tmp_path / "log.1").mkdir()
    writer._write(b"second...\n")
    assert str(writer.error) == f"[Errno 17] log.1 is in the way: it is not a plain file: '{path}'"
    (tmp_path / "log.1").rmdir()
    writer._write(b"third....\n")
    assert writer.close(10)
    assert kept(path) == [b"first....\n", b"third....\n"]
    assert writer.lost_lines == 1


def test_a_log_that_is_moved_away_meanwhile(tmp_path: Path) -> None:
    """logrotate and the bound go together: a file that was renamed is left alone, and its name is made anew."""
    path = tmp_path / "log"
    writer = writer_to(path, 20, 2)
    writer._write(b"first\n")
    path.rename(tmp_path / "mine")
    writer._write(b"second\n")
    writer._write(b"third........\n")
    assert writer.close(10)
    assert (tmp_path / "mine").read_bytes() == b"first\n"
    assert kept(path) == [b"second\n", b"third........\n"]


def test_two_write_to_one_file(tmp_path: Path) -> None:
    """Whichever of them rotates, the other follows; no line is cut or lost."""
    path = tmp_path / "log"
    writers = [writer_to(path, 40, 100) for _ in range(2)]
    for number in range(60):
        writers[number % 3 % 2]._write(b"line %03d\n" % number)
    assert all(writer.close(10) for writer in writers)
    assert b"".join(kept(path)) == b"".join(b"line %03d\n" % number for number in range(60))
    assert all(len(each) <= 40 for each in kept(path))


def test_somebody_rotates_in_that_very_moment(tmp_path: Path) -> None:
    """What is FILE by then is written to."""
    path = tmp_path / "log"
    fd = open_log(str(path))
    path.rename(tmp_path / "mine")
    path.write_text("theirs")
    path.chmod(0o600)
    found = rotate(fd, str(path), 1)
    assert os.path.samestat(os.fstat(found), os.stat(path))
    os.close(found)
    os.close(fd)


def test_a_number_that_is_missing_is_filled(tmp_path: Path) -> None:
    """Nothing beyond a gap is moved, and files beyond the last number are left alone."""
    path = tmp_path / "log"
    for number in (1, 3, 7):
        (tmp_path / f"log.{number}").write_text(f"{number}")
        (tmp_path / f"log.{number}").chmod(0o600)
    fd = open_log(str(path))
    os.write(fd, b"now")
    os.close(rotate(fd, str(path), 3))
    os.close(fd)
    found = {each.name: each.read_text() for each in tmp_path.iterdir()}
    assert found == {"log": "", "log.1": "now", "log.2": "1", "log.3": "3", "log.7": "7"}


def a_link(path: Path) -> None:
    path.symlink_to("secret")


def another_name(path: Path) -> None:
    path.hardlink_to(path.parent / "secret")


def somebody_elses(path: Path) -> None:
    path.write_text("theirs")
    os.chown(path, 65534, 65534)


@needs_root
@pytest.mark.parametrize("make", [a_link, another_name, somebody_elses, Path.mkdir])
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_not_ours_is_not_touched(tmp_path: Path, make: Callable[[Path], None], *, shared: bool) -> None:
    """Where FILE.2 is a link, a file with a second name, somebody else's or a directory, it is refused at the start
    and in a rotation, in which nothing is renamed or removed; also where others may change the directory."""
    path = tmp_path / "log"
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "log.1").write_text("1")
    make(tmp_path / "log.2")
    if shared:
        tmp_path.chmod(0o777)
    fd = open_log(str(path))
    before = {each.name: os.lstat(each).st_ino for each in tmp_path.iterdir()}
    for refused in (require_rotatable, rotate):
        with pytest.raises(OSError, match=r"log\.2 is in the way"):
            refused(fd, str(path), 2)
    os.close(fd)
    assert {each.name: os.lstat(each).st_ino for each in tmp_path.iterdir()} == before
    assert (tmp_path / "secret").read_text() == "secret"


@needs_root
def test_what_is_exchanged_in_that_moment_goes_back(tmp_path: Path) -> None:
    """Somebody who may change the directory puts a file in the place of the log, after it was looked at and before
    it is renamed: that file has its name again, and nothing is left over."""
    tmp_path.chmod(0o777)
    (tmp_path / "log").write_text("ours")
    directory = Directory(str(tmp_path))
    known = directory.identity("log")

    def looked_at(name: str) -> Identity | None:
        (tmp_path / name).rename(tmp_path / "elsewhere")
        (tmp_path / name).write_text("theirs")
        return known

    directory.identity = looked_at  # type: ignore[method-assign]  # the moment after it
    assert not directory.move_known("log", "log.1", [known])
    directory.close()
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"log": "theirs", "elsewhere": "ours"}


@needs_root
def test_in_a_directory_of_others(tmp_path: Path) -> None:
    """Where others may change the directory the rotation is the same, and leaves nothing else behind."""
    tmp_path.chmod(0o777)
    path = tmp_path / "log"
    writer = writer_to(path, 10, 2)
    for number in range(5):
        writer._write(b"line %d...\n" % number)
    assert writer.close(10)
    assert kept(path) == [b"line %d...\n" % number for number in (2, 3, 4)]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_no_plain_file_cannot_be_bounded(tmp_path: Path) -> None:
    """A device is refused, and a file that only a descriptor leads to."""
    fd = open_log("/dev/null", by_name=True)
    with pytest.raises(OSError, match="not a plain file"):
        require_rotatable(fd, "/dev/null", 1)
    os.close(fd)
    with open(tmp_path / "log", "wb") as file, pytest.raises(OSError, match="a descriptor leads to"):
        open_log(f"/proc/self/fd/{file.fileno()}", by_name=True)
