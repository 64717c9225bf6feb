"""A directory that belongs to somebody else, who exchanges it, or what is in it, between any two of our calls.

Python's audit hooks (PEP 578) are the steps: before each call that opens, makes, renames, removes or changes a
file, alice may act. What she does is played at every step, and given back at another.

Rule: after each round nothing outside her directory has changed, in it no file that is not ours has gone or got
other rights, and where she has put everything back, all is as it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from udsproxy.endpoints import Listener, ListenError, UnixPath
from udsproxy.kernel.directory import Directory
from udsproxy.takeover.guardian import Guardian
from udsproxy.takeover.listener import TakenOver
from udsproxy.takeover.names import SUFFIX, Known, Names, put_back
from udsproxy.takeover.place import Place
from udsproxy.takeover.restore import restore

ROUNDS = int(os.environ.get("UDSPROXY_SWAPS", "12"))
"""How many rounds of each kind with swaps at random steps; a directory becomes a link at every step besides."""
_STEPS = {
    "ctypes.dlsym",  # renameat2()
    "open",
    "os.chmod",
    "os.chown",
    "os.getxattr",
    "os.link",
    "os.listdir",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "socket.bind",
    "socket.connect",
}
_ELSEWHERE = ("/proc/1", "/proc/2", "/proc/3", "/proc/4", "/proc/5", "/proc/6", "/proc/7", "/proc/8", "/proc/9",
              "/proc/sys/", "/proc/thread-self/", "/proc'", sys.prefix, sys.base_prefix)  # fmt: skip
"""Where she has no hand."""


class _Steps:
    """Counts steps, and acts before some of them."""

    def __init__(self) -> None:
        # A step may be made in a thread that has another root; what alice does is not.
        self._alice = ThreadPoolExecutor(1)
        self._alice.submit(int).result()
        self.count = 0
        self._acts: dict[int, Callable[[], None]] = {}
        self._counting = False

    @contextlib.contextmanager
    def counted(self, acts: dict[int, Callable[[], None]]) -> Iterator[None]:
        self.count, self._acts, self._counting = 0, acts, True
        try:
            yield
        finally:
            self._counting = False

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._counting and event in _STEPS and not str(arguments[0]).startswith(_ELSEWHERE):
            self._counting = False  # what alice does is no step
            try:
                if (act := self._acts.get(self.count)) is not None:
                    self._alice.submit(act).result()
            finally:
                self.count += 1
                self._counting = True


STEPS = _Steps()
sys.addaudithook(STEPS)  # (there is no way to take a hook out again: it does nothing but while steps are counted)


class File(NamedTuple):
    inode: int
    mode: int
    uid: int
    gid: int


def files(directory: Path) -> dict[str, File]:
    found = {}
    for path in directory.iterdir():
        seen = path.lstat()
        found[path.name] = File(seen.st_ino, seen.st_mode, seen.st_uid, seen.st_gid)
    return found


class Stage:
    """Alice's directory, with a server's socket, and root's, with a socket of the same name."""

    def __init__(self, base: Path) -> None:
        self.alices, self.roots, self.away = base / "alices", base / "roots", base / "away"
        self.servers = []
        for directory, mode in ((self.alices, 0o666), (self.roots, 0o600)):
            directory.mkdir()
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(directory / "s.sock"))
            server.listen()
            (directory / "s.sock").chmod(mode)
            self.servers.append(server)
        self.before, self.roots_before = files(self.alices), files(self.roots)
        self.path = str(self.alices / "s.sock")

    @property
    def held(self) -> Path:
        """Alice's directory, whatever it is called now."""
        return self.away if self.away.exists() else self.alices

    def close(self) -> None:
        for server in self.servers:
            server.close()

    # --- what alice does ---

    def swap(self) -> None:
        """Her directory goes; its name leads to root's."""
        if not self.away.exists():
            self.alices.rename(self.away)
            self.alices.symlink_to(self.roots)

    def swap_back(self) -> None:
        if self.away.exists():
            self.alices.unlink()
            self.away.rename(self.alices)

    def replace(self, name: str) -> None:
        """A link to root's socket in the place of a file."""
        path, kept = self.alices / name, self.alices / f"{name}.kept"
        if os.path.lexists(path):
            path.rename(kept)
        path.symlink_to(self.roots / "s.sock")

    def put_file(self, name: str) -> None:
        """A file of hers in the place of another."""
        path, kept = self.alices / name, self.alices / f"{name}.kept"
        if os.path.lexists(path):
            path.rename(kept)
        path.write_text("alice's")

    def take_away(self, name: str) -> None:
        path = self.alices / name
        if os.path.lexists(path):
            path.rename(self.alices / f"{name}.kept")

    # --- what must hold ---

    def check_outside(self) -> None:
        assert files(self.roots) == self.roots_before

    def check_all_as_it_was(self) -> None:
        self.check_outside()
        assert files(self.alices) == self.before
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path)

    def check_strangers(self) -> None:
        """What is not ours is still there, under whatever name, with its rights."""
        self.check_outside()
        left = files(self.alices).values()
        assert self.before["s.sock"] in left
        links = [path for path in self.alices.iterdir() if path.is_symlink()]
        texts = [path for path in self.alices.iterdir() if path.is_file() and not path.is_symlink()]
        assert len(links) + len(texts) == self.put
        assert all(path.read_text() == "alice's" for path in texts)

    put = 0
    """How many files of hers there are."""


@pytest.fixture
def stages(tmp_path: Path) -> Iterator[Callable[[], Stage]]:
    made: list[Stage] = []

    def make() -> Stage:
        base = tmp_path / str(len(made))
        base.mkdir()
        made.append(Stage(base))
        return made[-1]

    yield make
    for stage in made:
        stage.close()


def take_and_give_back(stage: Stage, acts: dict[int, Callable[[], None]]) -> int:
    """A tap from its first look to its end. Returns how many steps it has."""
    place = Place(stage.path)
    guardian = Guardian(place.names, log=None, file=None, proxy="s.sock")
    try:
        with STEPS.counted(acts), contextlib.suppress(ListenError):
            place.require_socket()
            listener = TakenOver(place, guardian, backlog=None)
            stage.check_outside()
            try:
                with contextlib.suppress(OSError):
                    listener.take_again()
                    listener.look()
                os.chmod(f"/proc/self/fd/{listener.sock.fileno()}", 0o777)  # (a step while it stands there)
            finally:
                listener.close()

    finally:
        guardian.dismiss()
        place.close()
    return STEPS.count


def put_back_after_death(stage: Stage, acts: dict[int, Callable[[], None]]) -> int:
    """What the guardian does when the proxy has died. Returns how many steps that has."""
    directory = Directory(str(stage.alices))
    names = Names(directory, "s.sock")
    os.rename(stage.path, stage.path + SUFFIX)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stage.path)
    known = Known({directory.identity(names.name)}, {directory.identity(names.aside)})
    pinned = [directory.pin(name) for name in (names.name, names.aside)]
    try:
        with STEPS.counted(acts), contextlib.suppress(OSError):
            put_back(names, known)
        count = STEPS.count
        stage.swap_back()
        put_back(names, known)  # where she has come in between: once more, as tap --restore
    finally:
        for fd in pinned:
            os.close(fd)
        directory.close()
    return count


def restore_by_hand(stage: Stage, acts: dict[int, Callable[[], None]]) -> int:
    """``tap --restore``. Returns how many steps that has."""
    os.rename(stage.path, stage.path + SUFFIX)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stage.path)
    with STEPS.counted(acts), contextlib.suppress(ListenError):
        restore(stage.path)
    count = STEPS.count
    stage.swap_back()
    restore(stage.path)
    return count


def listen_for_a_while(stage: Stage, acts: dict[int, Callable[[], None]]) -> int:
    """A socket of ours, as ``run`` makes it: in the place of one that is dead, withdrawn and restored, and its end.
    Returns how many steps that has, from the moment on that the directory is known."""
    path = stage.alices / "ours.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    class Late(Listener):
        """Alice begins when the directory is open: before that its path leads wherever she likes."""

        def _find(self, endpoint: UnixPath) -> tuple[Directory, str]:
            found = super()._find(endpoint)
            stack.enter_context(STEPS.counted(acts))
            return found

    with contextlib.ExitStack() as stack, contextlib.suppress(ListenError):
        listener = Late(UnixPath(str(path)))
        try:
            stage.check_outside()
            for number in (errno.ECONNREFUSED, errno.EACCES, errno.ENOENT):
                listener.withdraw(number)
                listener.restore()
        finally:
            listener.close()
    stage.swap_back()
    path.unlink(missing_ok=True)  # (where it could not replace it)
    return STEPS.count


Play = Callable[[Stage, dict[int, Callable[[], None]]], int]
PLAYS = [take_and_give_back, put_back_after_death, restore_by_hand, listen_for_a_while]


@pytest.mark.parametrize("play", PLAYS)
def test_a_directory_that_becomes_a_link(stages: Callable[[], Stage], play: Play) -> None:
    """Alice's directory becomes a link to root's, at every step, and stays so until the end."""
    steps = play(stages(), {})
    assert steps > 5
    for step in range(steps):
        stage = stages()
        play(stage, {step: stage.swap})
        stage.swap_back()
        stage.check_all_as_it_was()


@pytest.mark.parametrize("play", PLAYS)
def test_a_directory_that_becomes_a_link_for_a_while(stages: Callable[[], Stage], play: Play) -> None:
    """It becomes a link at any step, and is back at any later one."""
    steps = play(stages(), {})
    chance = random.Random(5)
    for _ in range(ROUNDS):
        stage = stages()
        first, second = sorted(chance.sample(range(steps), 2))
        play(stage, {first: stage.swap, second: stage.swap_back})
        stage.swap_back()
        stage.check_all_as_it_was()


@pytest.mark.parametrize("name", ["s.sock", "s.sock.udsproxy"])
@pytest.mark.parametrize("how", ["replace", "put_file"])
@pytest.mark.parametrize("play", [take_and_give_back, put_back_after_death])
def test_files_that_are_exchanged(stages: Callable[[], Stage], play: Play, how: str, name: str) -> None:
    """A file is exchanged for a link to root's socket, or for another file, at any step: it is not followed, not
    removed and not changed, and the server's socket is still there."""
    steps = range(play(stages(), {}))
    for step in steps if len(steps) <= ROUNDS else sorted(random.Random(7).sample(steps, ROUNDS)):
        stage = stages()
        stage.put = 1
        done: list[int] = []

        def act(stage: Stage = stage, done: list[int] = done) -> None:
            done.append(1)
            getattr(stage, how)(name)

        play(stage, {step: act})
        stage.put = len(done)
        stage.check_strangers()
