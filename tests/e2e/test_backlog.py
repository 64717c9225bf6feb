"""The failure that the project is about, directly and through the proxy: a full queue, and nginx's EAGAIN.

Rules: a burst is as many requests as said, a moment apart, to an nginx with one worker. What a burst comes to is
compared with what it comes to directly, at the same time and with a php-fpm of its own, and only where five direct
runs agree among themselves.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.site import Front, start_nginx, start_php_fpm
from tests.e2e.tools import read, receive_all
from tests.stage import Stage

RUNS = 5
APART_S = 0.001
REFUSED = "failed (11: Resource temporarily unavailable)"


def burst(front: Front, count: int) -> Counter[int]:
    """So many requests for a page that takes 200 ms. Returns how many got which status."""
    socks = []
    for _ in range(count):
        socks.append(front.begin("/slow.php", close=True))
        time.sleep(APART_S)  # the arrivals are the experiment: nothing is waited for
    statuses = Counter(int(receive_all(sock).split(b" ", 2)[1]) for sock in socks)
    for sock in socks:
        sock.close()
    return statuses


def causes(front: Front) -> Counter[str]:
    """What the lines of an error log say, but for the socket's path."""
    lines = read(front.error_log).splitlines()
    return Counter(re.sub(r".*\*\d+ (\w+\(\)) to \S+ (.*) while .*", r"\1 \2", line) for line in lines)


@pytest.mark.parametrize(("workers", "backlog"), [(1, 0), (2, 2), (3, 5), (5, 1), (8, 16)])
def test_bursts(stage: Stage, start_proxy: StartProxy, workers: int, backlog: int) -> None:
    """As many requests are answered, and as many refused with EAGAIN, as without the proxy; no other error."""
    upstreams = [stage.path(name) for name in ("direct.sock", "php.sock")]
    for upstream in upstreams:
        start_php_fpm(stage, upstream, f"listen.backlog = {backlog}", workers=workers)
    proxy = start_proxy(stage.path("p.sock"), upstreams[1])
    fronts = start_nginx(stage, {"direct": upstreams[0], "proxied": proxy.socket})
    room, expected = workers + backlog, Counter[str]()

    def bursts(front: Front) -> list[Counter[int]]:
        return [burst(front, count) for _ in range(RUNS)]

    for count in sorted({1, room, room + 1, room + 2, 3 * room}):
        with ThreadPoolExecutor(len(fronts)) as pool:
            seen = dict(zip(fronts, pool.map(bursts, fronts.values()), strict=True))
        if len({statuses[200] for statuses in seen["direct"]}) == 1:
            assert seen["proxied"] == seen["direct"], f"{count} at once"
        assert all(set(statuses) <= {200, 502} for statuses in seen["proxied"])
        expected[f"connect() {REFUSED}"] += sum(statuses[502] for statuses in seen["proxied"])
    assert causes(fronts["proxied"]) == +expected


def test_full_and_no_longer_full(stage: Stage, start_proxy: StartProxy) -> None:
    """The proxy says when the queue becomes full, with its length and limit, and when it no longer is."""
    upstream = stage.path("php.sock")
    start_php_fpm(stage, upstream, "listen.backlog = 2", workers=2)
    proxy = start_proxy(stage.path("p.sock"), upstream)
    front = start_nginx(stage, {"proxied": proxy.socket})["proxied"]
    with ThreadPoolExecutor() as pool:
        answers = pool.submit(burst, front, 12)
        full, free, *_ = proxy.wait_for("queue", count=2)
        assert set(answers.result()) == {200, 502}
    assert (full["queue"], full["backlog"]) == (3, 2)
    assert free["queue"] < 3
