"""nginx's error log, followed: real files, and lines as nginx writes them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import trio

from tests.proxy.site import Site, running
from udsproxy.endpoints import UnixAbstract, UnixPath
from udsproxy.proxy.nginx_log import LogReader, NginxLog, failure_of

LINE = (
    "{at} [error] 812#812: *7 connect() to unix:{path} failed ({number}: {words}) while connecting to upstream, "
    'client: 127.0.0.1, server: , request: "GET /s.php HTTP/1.1", upstream: "fastcgi://unix:{path}:", host: "x"\n'
)


def line(
    path: str, number: int = 11, at: float | None = None, words: str = "Resource temporarily unavailable"
) -> str:
    when = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(at))
    return LINE.format(at=when, path=path, number=number, words=words)


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


async def counts(log: NginxLog) -> dict[int, int]:
    found: dict[int, int] = {}
    async for number, count, at in log.read():
        assert time.monotonic_ns() - 3e9 < at <= time.monotonic_ns()
        found[number] = found.get(number, 0) + count
    return found


async def test_what_is_added_counts(tmp_path: Path) -> None:
    """Lines that are added from now on count, by error number, where they are about our socket; a line that is not
    whole counts when it is; and each counts once."""
    file, ours = tmp_path / "log", str(tmp_path / "php.sock")
    add(file, line(ours))
    log = NginxLog(str(file), UnixPath(ours))
    assert await counts(log) == {}
    add(file, line(ours) * 3 + line(ours, 111, words="Connection refused") + line("/run/other.sock"))
    whole = line(ours)
    add(file, whole[:50])
    assert await counts(log) == {11: 3, 111: 1}
    assert await counts(log) == {}
    add(file, whole[50:])
    assert await counts(log) == {11: 1}
    log.close()
    assert await counts(log) == {}


async def test_who_reads_is_cancelled(tmp_path: Path) -> None:
    """What was read and not given out by then comes with the next reading: each line counts once."""
    file, ours = tmp_path / "log", str(tmp_path / "php.sock")
    file.touch()
    log = NginxLog(str(file), UnixPath(ours))
    add(file, line(ours) * 100)
    found = 0
    with trio.CancelScope() as scope:
        async for _, count, _ in log.read():
            found += count
            scope.cancel()
    assert 0 < found < 100
    assert await counts(log) == {11: 100 - found}
    log.close()


async def test_the_last_lines(tmp_path: Path) -> None:
    """An incident that ends with us counts what nginx had logged by then, however much that is."""
    site, file = Site(tmp_path), tmp_path / "nginx.log"
    file.touch()
    with site.serve():
        async with running(site.server(nginx_log=str(file))):
            with site.connect():
                await trio.lowlevel.checkpoint()
            add(file, line(site.listen.path) * 1000)
    opened, closed = site.events("incident")
    assert (opened["phase"], closed["phase"], closed["nginx"]) == ("open", "close", {"11": 1000})
    assert "nginx" not in closed.get("unseen", "")


async def test_a_log_that_cannot_be_read_to_its_end(tmp_path: Path) -> None:
    """Where lines were left out, the incident says so."""
    site, file = Site(tmp_path), tmp_path / "nginx.log"
    file.touch()
    with site.serve():
        async with running(site.server(nginx_log=str(file))):
            with file.open("r+b") as log:
                log.truncate(1 << 30)
            add(file, "\n" + line(site.listen.path))
    closed = site.events("incident")[-1]
    assert closed["nginx"] == {"11": 1}
    assert "nginx's lines are not all counted" in closed["unseen"]


async def test_a_log_that_is_rotated(tmp_path: Path) -> None:
    """Moved away and made anew, it is followed on: what was added to the old one before, and to the new one. Cut,
    it starts over; removed, it has nothing to say until it is there again."""
    file, ours = tmp_path / "log", str(tmp_path / "php.sock")
    file.touch()
    log = NginxLog(str(file), UnixPath(ours))
    add(file, line(ours))
    file.rename(tmp_path / "log.1")
    add(tmp_path / "log.1", line(ours))
    assert await counts(log) == {11: 2}
    add(file, line(ours))
    assert await counts(log) == {11: 1}
    os.truncate(file, 0)
    assert await counts(log) == {}
    add(file, line(ours))
    assert await counts(log) == {11: 1}
    file.unlink()
    assert await counts(log) == {}
    add(file, line(ours) * 2)
    assert await counts(log) == {11: 2}
    log.close()


def test_what_is_no_log(tmp_path: Path) -> None:
    """What is no file, or not there, is refused; nobody waits for a FIFO's writer."""
    os.mkfifo(tmp_path / "fifo")
    for name, why in (
        ("fifo", "it is not a file"),
        ("", "it is not a file"),
        ("absent", "No such file or directory"),
    ):
        with pytest.raises(OSError, match=why):
            LogReader(str(tmp_path / name))
    with pytest.raises(OSError, match="it is not a path"):
        LogReader("a\0b")


def test_a_log_that_grows_without_bound(tmp_path: Path) -> None:
    """Of a line without an end little is kept; and where there is more than can be read, the newest is."""
    file = tmp_path / "log"
    file.touch()
    reader = LogReader(str(file))
    add(file, "x" * 1_000_000)
    for _ in range(10):
        assert reader.read() == []
    add(file, "\n")
    [cut] = reader.read()
    assert len(cut) < 10_000
    with file.open("r+b") as log:
        log.truncate(1 << 30)
        log.seek(0, os.SEEK_END)
        log.write(b"\nlast\n")
    lines = [each for _ in range(10) for each in reader.read()]
    assert lines[-1] == b"last"
    assert len(lines) < 10
    reader.close()


def test_whose_line_it_is(tmp_path: Path) -> None:
    """The path is ours by any name of its directory; other sockets, other calls and other programs' lines are not;
    and neither is what a script or a visitor has written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to(tmp_path / "run")
    ours = str(tmp_path / "run" / "php.sock")
    listen = UnixPath(ours)
    now = time.time()

    def number(text: str) -> int | None:
        found = failure_of(text.encode(), listen)
        assert found is None or abs(found[1] - now) < 5
        return None if found is None else found[0]

    assert number(line(ours)) == 11
    assert number(line(str(tmp_path / "var" / "php.sock"))) == 11
    assert number(line(ours, 13, words="Permission denied")) == 13
    assert number(line(ours + "2")) is None
    assert number(line(ours).replace("connect()", "recv()")) is None
    assert number("connect() to unix:{ours} failed (11: x)\n") is None
    said = f"connect() to unix:{ours} failed (11: Resource temporarily unavailable)"
    stderr = f'2026/11/29 12:00:00 [error] 1#1: *1 FastCGI sent in stderr: "{said}" while reading, client: 1.2.3.4'
    assert number(stderr) is None
    abstract = failure_of(line("@php").encode(), UnixAbstract("php"))
    assert abstract is not None
    assert abstract[0] == 11
    assert failure_of(line(ours).encode(), UnixAbstract("php")) is None


async def test_what_was_written_long_ago(tmp_path: Path) -> None:
    """A line of an hour ago (somebody copied a log) is nothing of now."""
    file, ours = tmp_path / "log", str(tmp_path / "php.sock")
    file.touch()
    log = NginxLog(str(file), UnixPath(ours))
    add(file, line(ours, at=time.time() - 3600) + line(ours))
    assert await counts(log) == {11: 1}
    log.close()
