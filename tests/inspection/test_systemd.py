"""Sockets that systemd holds: unit files under a root of the test's own, and a process that runs a program of that
name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.tools import program
from tests.sockets import inode
from udsproxy.inspection import systemd
from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.roles import count_servers
from udsproxy.inspection.sockets import SocketState, state_of
from udsproxy.inspection.systemd import SocketUnit, unit_at
from udsproxy.inspection.workers import Ask, Sample, take_sample

ETC, LIB = "etc/systemd/system", "usr/lib/systemd/system"
PATH = "/run/php/x.sock"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root directory under which units are looked for."""
    monkeypatch.setattr(systemd, "ROOT", str(tmp_path))
    return tmp_path


def write(root: Path, file: str, *lines: str) -> str:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return f"/{file}"


def test_a_unit(root: Path) -> None:
    """Its name, the service that it starts, the backlog, and where that is set."""
    file = write(
        root, f"{LIB}/php.socket", "[Unit]", "[Socket]", "# a comment", f"ListenStream = {PATH}", "Backlog=7"
    )
    expected = SocketUnit(name="php.socket", file=file, service="php.service", backlog=7, backlog_file=file)
    assert unit_at([PATH]) == expected
    assert expected.text == "php.socket, Backlog=7"
    assert unit_at(["/run/php//x.sock", "/elsewhere"]) == expected
    assert unit_at(["/run/php/y.sock"]) is None


def test_what_overrides_it(root: Path) -> None:
    """A file of that name in /etc, drop-ins by their names whatever directory they are in, an empty value."""
    write(root, f"{LIB}/php.socket", "[Socket]", "ListenStream=/old.sock", "Backlog=1", "Service=old.service")
    assert unit_at(["/old.sock"]) is not None
    file = write(
        root, f"{ETC}/php.socket", "[Socket]", "ListenStream=/old.sock", "Backlog=2", "Service=new.service"
    )
    dropin = write(root, f"{LIB}/php.socket.d/90.conf", "[Socket]", "Backlog=3")
    write(root, f"{ETC}/php.socket.d/50.conf", "[Socket]", "ListenStream=", f"ListenStream={PATH}", "Backlog=4")
    assert unit_at(["/old.sock"]) is None
    found = unit_at([PATH])
    assert found is not None
    assert (found.file, found.service, found.backlog, found.backlog_file) == (file, "new.service", 3, dropin)
    (root / ETC / "php.socket").unlink()
    (root / ETC / "php.socket").symlink_to(os.devnull)
    assert unit_at([PATH]) is None


@pytest.mark.parametrize(
    ("name", "listen", "address", "unit", "service"),
    [
        ("a.socket", "%t/php/x.sock", PATH, "a.socket", "a.service"),
        ("a.socket", "/run/php/%N.sock", "/run/php/a.sock", "a.socket", "a.service"),
        ("php@.socket", "/run/php/%i.sock", PATH, "php@x.socket", "php@x.service"),
        ("php@.socket", "/run/%i/%I.sock", "/run/x/x.sock", "php@x.socket", "php@x.service"),
        ("php@y.socket", "/run/php/%i.sock", "/run/php/y.sock", "php@y.socket", "php@y.service"),
        ("a.socket", "@abstract", "@abstract", "a.socket", "a.service"),
        ("a.socket", "/run/\\x20b", "/run/ b", "a.socket", "a.service"),
        ("a.socket", "/run/\\\n  b", "/run/ b", "a.socket", "a.service"),
    ],
)
def test_spellings(root: Path, name: str, listen: str, address: str, unit: str, service: str) -> None:
    """Specifiers, templates, abstract names and escapes are as systemd.unit(5) has them."""
    write(root, f"{ETC}/{name}", "[Socket]", f"ListenStream={listen}")
    found = unit_at([address])
    assert found is not None
    assert (found.name, found.service) == (unit, service)


def test_a_service_for_each_connection(root: Path) -> None:
    """With Accept=yes it is systemd that accepts."""
    write(root, f"{ETC}/a.socket", "[Socket]", f"ListenStream={PATH}", "Accept=yes")
    found = unit_at([PATH])
    assert found is not None
    assert (found.accept, found.service) == (True, "a@.service")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_any_file(root: Path, data: bytes) -> None:
    """Whatever is in a unit file, nothing is raised."""
    (root / ETC).mkdir(parents=True, exist_ok=True)
    (root / ETC / "a.socket").write_bytes(b"[Socket]\nListenStream=" + data)
    unit_at([PATH, "@x"])


# --- who holds it ---


@contextmanager
def held(path: str) -> Iterator[socket.socket]:
    """A socket that a process holds which runs a program called systemd; and ours, to pass on."""
    fake = os.path.join(os.path.dirname(path), "systemd")
    shutil.copy(program("sleep"), fake)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(7)
        with subprocess.Popen([fake, "1000"], pass_fds=[listener.fileno()]) as process:
            try:
                yield listener
            finally:
                process.kill()


def look(path: str) -> SocketState:
    machine = Machine()
    try:
        return state_of(machine, path, Doer())[0]
    finally:
        machine.close()


def sample(number: int) -> Sample:
    machine = Machine()
    try:
        return take_sample(Ask(number=1, listener=number), machine, Doer(), 0.0)
    finally:
        machine.close()


def test_nobody_serves_yet(root: Path, tmp_path: Path) -> None:
    """systemd alone is no worker, least of all a busy one; with the service, that is the worker."""
    path = str(tmp_path / "s")
    file = write(root, f"{ETC}/a.socket", "[Socket]", f"ListenStream={path}", "Backlog=7")
    with held(path) as listener:
        number = inode(listener)
        code = f"import socket; socket.socket(fileno={listener.fileno()}).accept()"
        service = [sys.executable, "-c", code]
        with subprocess.Popen(service, pass_fds=[listener.fileno()]) as server:
            listener.close()
            try:
                found = look(path)
                assert [each.pid for each in found.servers] == [server.pid]
                assert found.activator is not None
                assert found.activator.comm == "systemd"
                assert [each.pid for each in sample(number).workers] == [server.pid]
                assert sample(number).activator is None
                assert count_servers(number) == 1
            finally:
                server.kill()
        found = look(path)
        assert found.servers == []
        assert found.unit == SocketUnit(
            name="a.socket", file=file, service="a.service", backlog=7, backlog_file=file
        )
        alone = sample(number)
        assert (alone.workers, alone.busy) == ((), 0)
        assert alone.activator is not None
        assert alone.activator.startswith("systemd, pid ")
        assert count_servers(number) == 0
