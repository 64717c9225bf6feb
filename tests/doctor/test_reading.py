"""Reading files that others have named."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import reading
from udsproxy.doctor.reading import Reader


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A FIFO is not waited for, a device and what is in /proc not read; each is noted."""
    os.mkfifo(tmp_path / "fifo")
    reader = Reader()
    for path in (str(tmp_path / "fifo"), "/dev/zero", "/proc/self/environ", "\0"):
        assert reader.read(path) is None
        assert reader.missing(path) is None
    assert len(reader.notes) == 4


def test_what_is_missing(tmp_path: Path) -> None:
    """No file, a directory, a link that leads nowhere: why it cannot be read is told, and is no note."""
    (tmp_path / "link").symlink_to("/nonexistent")
    (tmp_path / "round").symlink_to("round")
    reader = Reader()
    told = {"none": "no such file", "": "a directory", "link": "a link to /nonexistent, which is not there",
            "round": "a link to round, which is not there"}  # fmt: skip
    for name, why in told.items():
        assert reader.read(str(tmp_path / name)) is None
        assert reader.missing(str(tmp_path / name)) == why
    assert not reader.notes


def test_large_and_binary_files(tmp_path: Path) -> None:
    """The first MiB is read, whatever it is."""
    (tmp_path / "large").write_bytes(b"\xff\0" * (2 << 20))
    reader = Reader()
    text = reader.read(str(tmp_path / "large"))
    assert text is not None
    assert text.startswith("\udcff\0")
    assert reader.notes == [f"{tmp_path}/large: what comes after its first MiB"]


def test_many_files(tmp_path: Path) -> None:
    """No more than so many; the same one is read once."""
    (tmp_path / "x").write_text("y")
    reader = Reader()
    assert {reader.read(str(tmp_path / "x")) for _ in range(2 * reading.MAX_FILES)} == {"y"}
    for number in range(2 * reading.MAX_FILES):
        reader.read(str(tmp_path / str(number)))
    assert len(reader.notes) <= 20


def test_patterns(tmp_path: Path) -> None:
    """As glob(3): in order, without dot files, also in directories, with links that lead nowhere; a name without a
    wildcard need not be there."""
    for name in ("b.conf", "a.conf", ".c.conf", "d", "x/e.conf", "y/e.conf", "z/f.conf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x" / "l.conf").symlink_to("/nonexistent")
    reader, base = Reader(), str(tmp_path)
    assert reader.matching("*/e.conf", base) == [f"{base}/x/e.conf", f"{base}/y/e.conf"]
    assert reader.matching("x/l*", base) == reader.matching("?/l.conf", base) == [f"{base}/x/l.conf"]
    assert reader.matching("*.conf", base) == [f"{base}/a.conf", f"{base}/b.conf"]
    assert reader.matching(f"{base}/?/e*.conf", "/nowhere") == [f"{base}/x/e.conf", f"{base}/y/e.conf"]
    assert reader.matching("none", base) == [f"{base}/none"]
    assert reader.matching("none*", base) == []


def test_the_end_of_a_log(tmp_path: Path) -> None:
    """The last 4 MiB, and whether that is all; what is no file is noted."""
    (tmp_path / "short").write_bytes(b"x\n")
    (tmp_path / "long").write_bytes(b"x" * reading.MAX_TAIL + b"end\n")
    reader = Reader()
    short, long = reader.tail(str(tmp_path / "short")), reader.tail(str(tmp_path / "long"))
    assert short is not None
    assert long is not None
    assert short[:2] == (b"x\n", True)
    assert (len(long[0]), long[0][-4:], long[1]) == (reading.MAX_TAIL, b"end\n", False)
    assert abs(short[2] - (tmp_path / "short").stat().st_mtime) < 1e-6
    assert reader.tail("/dev/stderr") is reader.tail(str(tmp_path)) is None
    assert len(reader.notes) == 2


def test_a_pattern_for_everything_ends() -> None:
    """What would look at all there is is cut short, and noted."""
    reader = Reader()
    reader.matching("/*/*/*/*/*/*", "/")
    assert any("names in directories" in note for note in reader.notes)


@given(st.text(st.sampled_from("*?[]!-/.a\0\n\\")))
def test_any_pattern(pattern: str) -> None:
    """It never raises."""
    Reader().matching(pattern, "/nowhere")
