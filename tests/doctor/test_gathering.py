"""When the process that listens at a path was started."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import msgspec

from udsproxy.doctor.facts import Process
from udsproxy.doctor.gathering import began
from udsproxy.inspection.forwarding import Hop, Route
from udsproxy.inspection.taps import Holder
from udsproxy.kernel import procfs

PATH = "/run/x.sock"


def test_the_start_of_who_listens_at_the_path() -> None:
    """A ``run`` in front of the server has its own start. A tap has none that counts: the server was at the path
    before it."""
    server = Process(os.getpid(), "server")
    while (procfs.read_age(os.getpid()) or 0.0) < 0.1:
        time.sleep(0.01)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        later = Holder(child.pid, "udsproxy")
        run = Hop(kind="run", path=PATH, to="/run/b.sock", process=later)
        tap = Hop(kind="tap", path=PATH, to=f"{PATH}.udsproxy", process=Holder(os.getpid(), "udsproxy"))
        of_server = began(Route(address=PATH), (server,))
        of_run = began(Route(address="/run/b.sock", hops=(tap, run)), (server,))
        of_tap = began(Route(address=PATH, hops=(msgspec.structs.replace(tap, process=later),)), (server,))
    assert of_server is not None
    assert of_run is not None
    assert of_tap is not None
    assert of_server + 0.05 < of_run
    assert abs(of_server - of_tap) < 0.05


def test_who_listens_may_not_be_seen() -> None:
    """Then nothing is told: the server's start is not that of a ``run``."""
    server = Process(os.getpid(), "server")
    unseen = Hop(kind="run", path=PATH, to="/run/b.sock")
    assert began(Route(address="/run/b.sock", hops=(unseen,)), (server,)) is None
    assert began(Route(address=None), ()) is None
