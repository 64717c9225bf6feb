"""Who listens at a path, and by whose start errors at it are dated."""

from __future__ import annotations

import pytest

from udsproxy.doctor.facts import Process
from udsproxy.doctor.gathering import listeners
from udsproxy.inspection.forwarding import Hop, Route
from udsproxy.inspection.taps import Holder

PATH = "/run/x.sock"
SERVERS = (Process(10, "php-fpm8.2", master=True), Process(11, "php-fpm8.2"))
TAP = Hop(kind="tap", path=PATH, to=f"{PATH}.udsproxy", process=Holder(3, "udsproxy"))
RUN = Hop(kind="run", path=PATH, to="/run/b.sock", process=Holder(4, "udsproxy"))
BEHIND = Hop(kind="run", path="/run/b.sock", to="/run/c.sock", process=Holder(5, "udsproxy"))
HIDDEN = Hop(kind="run", path=PATH, to="/run/b.sock")


@pytest.mark.parametrize(
    ("hops", "pids"),
    [((), [10, 11]), ((TAP,), [10, 11]), ((RUN,), [4]), ((TAP, RUN), [4]), ((RUN, BEHIND), [4]), ((HIDDEN,), [])],
)
def test_who_listens_at_the_path(hops: tuple[Hop, ...], pids: list[int]) -> None:
    """A ``run`` there, and not the server behind it; of a tap's path, whom it stands in front of. A process that
    may not be seen is none: the server's start is not that of a ``run``."""
    assert listeners(Route(address=PATH, hops=hops), SERVERS) == pids
