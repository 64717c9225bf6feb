"""Configurations as they are found in the field, each a file of ``configurations``: what is read of them, and what
follows.

Rule: a tree is read as one below a root directory, as a container's would be; its absolute paths and links are its
own.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from udsproxy.doctor import configured_php_fpm, nginx, nginx_start
from udsproxy.doctor.about_load import Load
from udsproxy.doctor.facts import Entry, Facts, Nginx, Pool, Refused
from udsproxy.doctor.findings import examine
from udsproxy.doctor.known import KnownSocket
from udsproxy.doctor.reading import Reader
from udsproxy.kernel.roots import Root

DIRECTORY = Path(__file__).with_name("configurations")


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tree, what runs with it, and what is to be said."""

    about: str
    socket: str
    php_fpm: str
    """The file that the master's title names."""
    program: str
    nginx: str | None = None
    """The master's title."""
    build: str = ""
    """Of ``nginx -V``."""
    directory: str = "/"
    """In which nginx was started."""
    backlog: int = 4096
    files: dict[str, str]
    links: dict[str, str] = {}

    pool: str
    settings: dict[str, str] = {}
    places: dict[str, str] = {}
    unknown: list[str] = []
    passes: list[str] = []
    logs: list[str] = []
    findings: list[str] = []
    """``level: how the title begins``."""
    advice: list[str] = []
    """What is to be done, somewhere in it."""
    never: list[str] = []
    """In no title."""


def layouts() -> Iterator[Layout]:
    for file in sorted(DIRECTORY.glob("*.toml")):
        yield msgspec.convert(tomllib.loads(file.read_text()), Layout)


def grow(tree: Path, layout: Layout) -> Path:
    """Returns where the socket's file is, seen from outside."""
    for path, text in layout.files.items():
        file = tree / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for path, target in layout.links.items():
        (tree / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tree / path.lstrip("/")).symlink_to(target)
    socket = tree / layout.socket.replace("/var/run/", "/run/").lstrip("/")
    socket.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(socket, stat.S_IFSOCK | 0o660)
    return socket


def read_nginx(layout: Layout, known: KnownSocket, root: Root) -> tuple[Nginx | None, list[Refused]]:
    if layout.nginx is None:
        return None, []
    build = nginx_start.build_of(layout.build.encode())
    start = nginx_start.start_of(nginx_start.options_of(layout.nginx), build, layout.directory, root)
    assert start is not None
    reader = Reader(root)
    found = nginx.look(reader, start, 7, known.seen_from(root))
    assert not [line for line in reader.notes if "the error log of nginx" not in line]
    return found


def facts_of(layout: Layout, socket: Path, root: Root) -> Facts:
    known = KnownSocket(str(socket), layout.socket)
    php_fpm = configured_php_fpm.look_at(known, layout.php_fpm, layout.program, root, holds=True)
    assert len(php_fpm.unseen) == len(layout.unknown), php_fpm.unseen
    found, refused = read_nginx(layout, known, root)
    return Facts(
        path=layout.socket,
        type="stream",
        state="listening",
        queue=0,
        backlog=layout.backlog,
        somaxconn=4096,
        entries=(Entry("/run", 0, 0, 0o755), Entry(layout.socket, 0, 0, 0o660)),
        pool=php_fpm.pool,
        php_fpm=6,
        nginx=() if found is None else (found,),
        refused=(*php_fpm.refused, *refused),
    )


@pytest.mark.parametrize("layout", list(layouts()), ids=lambda layout: layout.about.partition(":")[0])
def test_layout(tmp_path: Path, layout: Layout) -> None:
    """The pool and its settings, each with the place that counts; where nginx passes requests on and logs;
    and the findings."""
    socket = grow(tmp_path, layout)
    with closing(Root.at(str(tmp_path))) as root:
        facts = facts_of(layout, socket, root)
    pool = facts.pool
    assert pool is not None
    assert pool.name == layout.pool
    assert {key: pool.settings.get(key) for key in layout.settings} == layout.settings
    assert {key: pool.places.get(key) for key in layout.places} == layout.places
    assert sorted(pool.unknown) == sorted(layout.unknown)
    assert [each.at for nginx in facts.nginx for each in nginx.passes] == layout.passes
    assert [each.path for nginx in facts.nginx for each in nginx.logs] == layout.logs
    check_findings(layout, facts)
    check_places(layout, pool)


def check_findings(layout: Layout, facts: Facts) -> None:
    found = examine(facts, Load())
    told = [f"{each.level}: {each.title}" for each in found]
    for wanted in layout.findings:
        assert any(each.startswith(wanted) for each in told), (wanted, told)
    for wanted in layout.advice:
        assert any(wanted in each.do for each in found), (wanted, [each.do for each in found])
    for unwanted in layout.never:
        assert not [each for each in told if unwanted in each]
    if not any(each.startswith("problem") for each in layout.findings):
        assert not [each for each in told if each.startswith("problem")]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A path is bytes: one that is no UTF-8, or has control characters, is found, and told without them."""
    socket = tmp_path / os.fsdecode(b"\xff\x1b.sock")
    os.mknod(socket, stat.S_IFSOCK | 0o660)
    conf = f"[a\x1b]\nlisten = {socket}\nlisten[\x1b\udcff] = b\nlisten.acl_users = \x1b\udcff\n"
    (tmp_path / "fpm.conf").write_bytes(os.fsencode(conf))
    (tmp_path / "nginx.conf").write_bytes(os.fsencode(f'error_log "\x1b"; fastcgi_pass "unix:{socket}";'))
    known = KnownSocket(str(socket), str(socket))
    found = configured_php_fpm.look_at(known, str(tmp_path / "fpm.conf"), None, Root(), holds=True)
    options = nginx_start.Options(str(tmp_path / "nginx.conf"))
    start = nginx_start.start_of(options, nginx_start.Build(), "/", Root())
    assert start is not None
    nginx_found, _ = nginx.look(Reader(), start, 7, known.seen_from(Root()))
    assert found.pool is not None
    assert nginx_found is not None
    facts = Facts(path="x", pool=found.pool, nginx=(msgspec.structs.replace(nginx_found, logs=()),))
    told = msgspec.json.encode([facts, examine(facts, Load())])
    assert "\x1b" not in str(msgspec.json.decode(told))


def check_places(layout: Layout, pool: Pool) -> None:
    """Each place is a line that has the setting."""
    for key, at in pool.places.items():
        path, _, number = at.rpartition(":")
        assert key in layout.files[path].split("\n")[int(number) - 1].lower()
