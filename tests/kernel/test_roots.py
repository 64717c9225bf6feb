"""Files as another process finds them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from udsproxy.kernel.procfs import read_parent
from udsproxy.kernel.roots import Root


@pytest.fixture
def chrooted(tmp_path: Path) -> Iterator[Root]:
    """The root of a process that has made ``tmp_path``/root its own."""
    if os.geteuid() != 0:
        pytest.skip("chroot(2) takes root")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    ready, go = os.pipe(), os.pipe()

    pid = os.fork()
    if not pid:
        os.chroot(root)
        os.write(ready[1], b".")
        os.close(go[1])
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    found = Root(pid)
    yield found
    found.close()
    for end in (*go, *ready):
        os.close(end)
    os.waitpid(pid, 0)


def read(root: Root, path: str) -> bytes:
    with open(root.open(path), "rb") as file:
        return file.read()


def test_paths_stay_below_the_root(chrooted: Root, tmp_path: Path) -> None:
    """A path, an absolute link and a link upwards mean what the process finds there, and no file of ours."""
    (tmp_path / "secret").write_text("ours")
    etc = tmp_path / "root" / "etc"
    (etc / "conf").write_text("theirs")
    (etc / "absolute").symlink_to("/etc/conf")
    (etc / "up").symlink_to("../../../../etc/conf")
    (etc / "out").symlink_to(tmp_path / "secret")
    (etc / "gone").symlink_to("/nowhere")
    assert not chrooted.is_ours
    for name in ("conf", "absolute", "up"):
        assert read(chrooted, f"/etc/{name}") == b"theirs"
    for name in ("out", "gone", "none"):
        with pytest.raises(FileNotFoundError):
            chrooted.open(f"/etc/{name}")
    assert sorted(chrooted.names("/etc")) == ["absolute", "conf", "gone", "out", "up"]
    assert [chrooted.exists(f"/etc/{name}") for name in ("conf", "gone", "none")] == [True, True, False]
    assert chrooted.link("/etc/gone") == "/nowhere"
    assert chrooted.link("/etc/conf") is None
    assert chrooted.stat("/etc/up").st_ino == (etc / "conf").stat().st_ino


def test_ours(tmp_path: Path) -> None:
    """A process with our root and our mounts has our files; so has one that is not there."""
    (tmp_path / "x").write_text("ours")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        for root in (Root(), Root(process.pid), Root(2**22 + 1)):
            assert root.is_ours
            assert read(root, str(tmp_path / "x")) == b"ours"
            root.close()


def test_what_is_no_file(tmp_path: Path) -> None:
    """Neither a FIFO nor a device nor a file of /proc is opened to be read, nor what we have open ourselves."""
    with pytest.raises(OSError, match="cross-device"):
        Root().open("/dev/stderr")
    os.mkfifo(tmp_path / "fifo")
    for path in (
        str(tmp_path / "fifo"),
        str(tmp_path),
        "/dev/zero",
        "/proc/self/status",
        "/sys/kernel/uevent_seqnum",
    ):
        with pytest.raises(OSError, match=r"file|directory"):
            Root().open(path)
    with pytest.raises(ValueError, match="null"):
        Root().open("\0")


def test_a_container_that_may_not_be_seen() -> None:
    """Where we may not see the root of a process in a pid namespace of its own, nothing of ours is taken for its
    files."""
    if os.geteuid() != 0:
        pytest.skip("another user's process takes root")
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "echo $$; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        (inner,) = [
            pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if read_parent(pid) == process.pid
        ]
        seen = os.fork()
        if not seen:
            os.setgid(65534)
            os.setuid(65534)
            root = Root(inner)
            try:
                root.stat("/")
            except PermissionError:
                os._exit(0 if root.is_hidden and not root.is_ours and Root(1).is_ours else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(seen, 0)[1]) == 0
        process.kill()
