"""Several nginx on one machine: what is told of those that have nothing to do with the socket."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from udsproxy.doctor.configured_nginx import Looked, look
from udsproxy.doctor.known import KnownSocket
from udsproxy.inspection.machine import Machine


@contextmanager
def running(conf: Path) -> Iterator[int]:
    """A process with the title of an nginx."""
    title = f"nginx: master process nginx -c {conf}"
    pipe = subprocess.PIPE
    with subprocess.Popen([title], executable="/bin/cat", stdin=pipe, stdout=pipe, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"!")
        assert process.stdout.read(1) == b"!"  # (Just after exec() it has no title yet.)
        yield process.pid


def looked(path: Path) -> Looked:
    machine = Machine()
    try:
        return look(KnownSocket(str(path)), machine, None)
    finally:
        machine.close()


def test_what_cannot_be_read_of_others(tmp_path: Path) -> None:
    """Where an nginx is known to connect to the socket, no other is told of. Where none is, one whose configuration
    is gone, or would be refused, may be the one that does."""
    path, mine, gone, broken = (tmp_path / name for name in ("x.sock", "mine.conf", "gone.conf", "broken.conf"))
    links = {name: tmp_path / name / "link" for name in ("sites", "other-sites")}
    for link in links.values():
        link.parent.mkdir()
        link.symlink_to(tmp_path / "nothing")
    passes = f"server {{ location / {{ fastcgi_pass unix:{path}; }} }}"
    mine.write_text(f"http {{ {passes} include sites/*; }}")
    broken.write_text("http { include other-sites/*; }")
    with socket.socket(socket.AF_UNIX) as sock, running(gone), running(broken):
        sock.bind(str(path))
        sock.listen()
        without = looked(path)
        with running(mine) as pid:
            found = looked(path)
    assert f"{gone}: no such file" in without.unseen
    assert str(links["other-sites"]) in [each.path for each in without.refused]
    assert [each.pid for each in found.found] == [pid]
    assert found.unseen == (f"the error log of nginx (pid {pid}): it goes to stderr",)
    assert [each.path for each in found.refused] == [str(links["sites"])]
