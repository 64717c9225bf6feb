"""Reading files that others have named."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor import reading
from udsproxy.doctor.reading import Reader


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A FIFO is not waited for, a device not read, a directory no file; each is noted."""
    os.mkfifo(tmp_path / "fifo")
    reader = Reader()
    for path in (
        str(tmp_path / "fifo"),
        str(tmp_path),
        "/dev/zero",
        "/proc/self/environ",
        str(tmp_path / "none"),
        "\0",
    ):
        assert reader.read(path) is None
    assert len(reader.notes) == 6


def test_large_and_binary_files(tmp_path: Path) -> None:
    """The first MiB is read, whatever it is."""
    (tmp_path / "large").write_bytes(b"\xff\0" * (2 << 20))
    reader = Reader()
    text = reader.read(str(tmp_path / "large"))
    assert text is not None
    assert text.startswith("\\xff\0")
    assert reader.notes == [f"{tmp_path}/large: what comes after its first MiB"]


def test_many_files(tmp_path: Path) -> None:
    """No more than so many; the same one is read once."""
    (tmp_path / "x").write_text("y")
    reader = Reader()
    assert {reader.read(str(tmp_path / "x")) for _ in range(2 * reading.MOST_FILES)} == {"y"}
    for number in range(2 * reading.MOST_FILES):
        reader.read(str(tmp_path / str(number)))
    assert len(reader.notes) <= 20


def test_patterns(tmp_path: Path) -> None:
    """As a shell: in order, without dot files, also in directories; a name without a wildcard need not be there."""
    for name in ("b.conf", "a.conf", ".c.conf", "d", "x/e.conf", "y/e.conf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    reader, base = Reader(), str(tmp_path)
    assert reader.matching("*.conf", base) == [f"{base}/a.conf", f"{base}/b.conf"]
    assert reader.matching(f"{base}/?/*.conf", "/nowhere") == [f"{base}/x/e.conf", f"{base}/y/e.conf"]
    assert reader.matching("none", base) == [f"{base}/none"]
    assert reader.matching("none*", base) == []


def test_a_pattern_for_everything_ends() -> None:
    """What would look at all there is is cut short, and noted."""
    reader = Reader()
    reader.matching("/*/*/*/*/*/*", "/")
    assert any("names in directories" in note for note in reader.notes)


@given(st.text(st.sampled_from("*?[]!-/.a\0\n\\")))
def test_any_pattern(pattern: str) -> None:
    """It never raises."""
    Reader().matching(pattern, "/nowhere")
