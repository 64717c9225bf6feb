"""The proxy's own output when it goes nowhere: readers that stall or leave, full disks. Traffic goes on."""

from __future__ import annotations

import json
import os
import resource
import select
import stat
import subprocess
from typing import Any

import pytest

from tests.e2e.proxy import Proxy, StartProxy
from tests.e2e.tools import (
    LIMIT_S,
    UDSPROXY,
    EchoServer,
    echoes,
    program,
    read,
    run,
    udsproxy,
    until,
    with_output,
)
from tests.stage import Stage

LOG_TO_STDOUT = ["--log", "json"]


@pytest.fixture
def fifo(stage: Stage) -> str:
    """A named pipe: standard output for a proxy."""
    path = stage.path("fifo")
    os.mkfifo(path)
    return path


class Reader:
    """The end of a pipe at which lines come out, for who reads them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rest = b""
        self.events: list[dict[str, Any]] = []

    def read(self) -> bool:
        """Take what is there. Was there anything?"""
        found = False
        while select.select([self._fd], [], [], 0)[0] and (data := os.read(self._fd, 1 << 20)):
            found = True
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.events += map(json.loads, lines)
        return found

    def wait_for(self, name: str) -> dict[str, Any]:
        """The first event of that name, however much comes before it."""

        def found() -> list[dict[str, Any]]:
            self.read()
            return [event for event in self.events if event["event"] == name]

        return until(found, name)[0]


@pytest.fixture
def upstream(stage: Stage) -> str:
    """The socket of `udsproxy serve`."""
    path = stage.path("up.sock")
    stage.spawn("udsproxy serve", [*UDSPROXY, "serve", path], stage.path("serve.out"))
    stage.await_socket(path)
    return path


def big_requests(proxy: Proxy, count: int) -> None:
    """So many requests with parameters of 60,000 bytes, which -v shows. Each must be answered."""
    big = [argument for name in "ABCD" for argument in ("--param", f"{name}={'x' * 15_000}")]
    done = udsproxy("request", proxy.socket, *big, "-n", str(count), "-c", "4")
    assert done.returncode == 0, done.stderr
    assert f"{count}  status 200".encode() in done.stdout


def test_a_reader_that_stalls(stage: Stage, start_proxy: StartProxy, upstream: str, fifo: str) -> None:
    """While nobody reads its standard output, traffic goes on. What could not be held is counted: as soon as
    somebody reads again a `dropped` event says how much it was, and at the end the summary does."""
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        reader = Reader(fd)
        proxy = start_proxy(
            stage.path("p.sock"), upstream, "-v", "--show-secrets", log=LOG_TO_STDOUT, wrap=with_output(fifo)
        )
        reader.wait_for("listening")
        big_requests(proxy, 150)  # 9 MB of log, of which 4 MiB are held
        assert [event["event"] for event in reader.events] == ["listening"]

        def told() -> bool:
            if not reader.read():  # else more may come out than goes in
                big_requests(proxy, 2)
            return any(event["event"] == "dropped" for event in reader.events)

        until(told, "a dropped event")
        proxy.signal()
        summary = reader.wait_for("summary")
        counts = [event["count"] for event in reader.events if event["event"] == "dropped"]
        assert min(counts) > 0
        assert sum(counts) == summary["dropped"]
        assert proxy.wait() == 0
    finally:
        os.close(fd)


def test_a_reader_that_leaves(stage: Stage, start_proxy: StartProxy, upstream: str, fifo: str) -> None:
    """When the reader of its standard output leaves (`| head -1`), traffic goes on; at the end the exit code is 1
    and one line says why."""
    head = subprocess.Popen([program("head"), "-n", "1", fifo], stdout=subprocess.PIPE)
    proxy = start_proxy(
        stage.path("p.sock"), upstream, "-v", "--show-secrets", log=LOG_TO_STDOUT, wrap=with_output(fifo)
    )
    line, _ = head.communicate(timeout=LIMIT_S)
    assert json.loads(line)["event"] == "listening"
    big_requests(proxy, 100)
    assert proxy.stop() == 1
    assert [line for line in proxy.said.splitlines() if "Broken pipe" in line] == proxy.said.splitlines()[-1:]


def test_a_full_disk(stage: Stage, start_proxy: StartProxy, upstream: str) -> None:
    """When the log cannot be written traffic goes on; at the end the exit code is 1 and one line names the failure
    and says how much is missing."""
    proxy = start_proxy(
        stage.path("p.sock"), upstream, "-v", "--show-secrets", log=["--log", "json", "--log-file", "/dev/full"]
    )
    until(lambda: os.path.exists(proxy.socket), "the proxy to listen")
    big_requests(proxy, 100)
    assert proxy.stop() == 1
    *_, summary, line = proxy.said.splitlines()
    assert summary.startswith("udsproxy: 100 requests in 100 connections")
    assert line.startswith("udsproxy: log json: No space left on device; ")
    assert "events were not written" in line


def test_a_disk_that_has_room_again(stage: Stage, start_proxy: StartProxy) -> None:
    """A log on a disk that was full for a while goes on when there is room again and says how much is missing; the
    exit code is 0."""
    with EchoServer(stage.path("up.sock")):
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))

        def told() -> bool:
            # The limit on the size of files stands for the disk: it can be set from here.
            _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (os.stat(proxy.log).st_size, hard))
            assert all(echoes(proxy.socket) for _ in range(20))
            resource.prlimit(proxy.pid, resource.RLIMIT_FSIZE, (hard, hard))
            assert echoes(proxy.socket)
            return bool(proxy.events("dropped"))

        # The writer may have been too slow to meet the limit: then once more.
        until(told, "a dropped event")
        assert proxy.events("dropped")[0]["count"] > 0
        assert proxy.stop() == 0
        assert proxy.events()[-1]["event"] == "summary"


@pytest.mark.parametrize("umask", ["077", "000"])
def test_a_log_file_is_for_its_owner_alone(stage: Stage, start_proxy: StartProxy, umask: str) -> None:
    """The log file is made with mode 600, whatever the umask is."""
    wrap = ["/bin/sh", "-c", f'umask {umask}; exec "$@"', "sh"]
    proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), wrap=wrap)
    assert stat.S_IMODE(os.stat(proxy.log).st_mode) == 0o600


def test_a_log_file_that_is_there_is_appended_to(stage: Stage, start_proxy: StartProxy) -> None:
    """A second run goes on in the file of the first."""
    log = stage.write('{"event":"earlier"}\n', "log")
    options = ["--log", "json", "--log-file", log]
    proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), log=options)
    until(lambda: "listening" in read(log), "the proxy to listen")
    assert proxy.stop() == 0
    names = [json.loads(line)["event"] for line in read(log).splitlines()]
    assert names == ["earlier", "listening", "summary"]


def test_a_log_file_that_cannot_be_made(stage: Stage) -> None:
    """Where the log file cannot be made the exit code is 1, one line names it, and no socket is left."""
    log = stage.path("log", "")
    done = udsproxy("run", stage.path("p.sock"), stage.path("up.sock"), "--log", "json", "--log-file", log)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [f"udsproxy: cannot write the log to {log}: Is a directory"]
    assert not os.path.exists(stage.path("p.sock"))


def test_a_log_file_that_is_rotated(stage: Stage, start_proxy: StartProxy) -> None:
    """After a rename, as by logrotate, it goes on in a new file; nothing is missing in both together."""
    with EchoServer(stage.path("up.sock")):
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        asked = 0
        for number in range(3):
            os.rename(proxy.log, f"{proxy.log}.{number}")

            def rotated() -> bool:
                nonlocal asked
                asked += 1
                return echoes(proxy.socket) and os.path.exists(proxy.log)

            until(rotated, "the new file")
            assert stat.S_IMODE(os.stat(proxy.log).st_mode) == 0o600
        assert proxy.stop() == 0
        names = [f"{proxy.log}.{number}" for number in range(3)] + [proxy.log]
        events = [json.loads(line) for name in names for line in read(name).splitlines()]
        assert [event["conn"] for event in events if event["event"] == "close"] == list(range(1, asked + 1))
        assert [event["event"] for event in events if "conn" not in event] == ["listening", "summary"]


def test_a_log_file_that_is_removed(stage: Stage, start_proxy: StartProxy) -> None:
    """It is made anew. While that cannot be, the directory being gone too, traffic goes on and what is lost is
    counted; as soon as it can it is told."""
    with EchoServer(stage.path("up.sock")):
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"))
        os.unlink(proxy.log)
        until(lambda: echoes(proxy.socket) and os.path.exists(proxy.log), "the new file")
        directory = os.path.dirname(proxy.log)
        os.rename(proxy.log, stage.path("gone"))
        os.unlink(stage.path("gone"))
        os.rename(directory, f"{directory}.away")
        for _ in range(20):
            assert echoes(proxy.socket)
        os.rename(f"{directory}.away", directory)
        until(lambda: echoes(proxy.socket) and proxy.events("dropped"), "what is lost to be told")
        assert proxy.stop() == 0


def test_a_log_file_that_others_have_a_hand_in(stage: Stage, start_proxy: StartProxy) -> None:
    """A hard link, and as root another user's link, is refused in one line, before there is a socket, or a path is
    taken over; a directory of others is warned of."""
    secret = stage.write("secret\n", "secret")
    os.link(secret, stage.path("log"))
    refused = {stage.path("log"): "it has another name (a hard link); choose a file that has one"}
    if os.geteuid() == 0:
        os.symlink(secret, stage.path("link"))
        os.chown(stage.path("link"), 65534, 65534, follow_symlinks=False)
        refused[stage.path("link")] = "it is a symbolic link of nobody's"
    with EchoServer(stage.path("up.sock")):
        inode = os.stat(stage.path("up.sock")).st_ino
        for log, why in refused.items():
            for command in (["run", stage.path("p.sock")], ["tap"]):
                done = udsproxy(*command, stage.path("up.sock"), "--log", "json", "--log-file", log)
                assert done.stderr.decode() == f"udsproxy: cannot write the log to {log}: {why}\n"
                assert done.returncode == 1
        assert not os.path.exists(stage.path("p.sock"))
        assert os.stat(stage.path("up.sock")).st_ino == inode
        assert read(secret) == "secret\n"
        os.chmod(stage.directory, 0o777)
        options = ["--log", "json", "--log-file", stage.path("new")]
        proxy = start_proxy(stage.path("p.sock"), stage.path("up.sock"), log=options)
        line = f"udsproxy: {stage.directory} may be changed by everybody, who can put another file in the place of"
        until(lambda: f"{line} {stage.path('new')}\n" in proxy.said, "the warning")


def test_help_into_a_pipe_that_closes() -> None:
    """`udsproxy --help | head -1` ends quietly."""
    command = '"$@" --help | head -n 1'
    done = run(["/bin/sh", "-c", command, "sh", *UDSPROXY])
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""
