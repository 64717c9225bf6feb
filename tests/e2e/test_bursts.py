"""Bursts of some ten milliseconds, through nginx and php-fpm: what is told of them is what nginx says.

Rules: how many are refused depends on moments, so that it is compared with nginx's own log of the same requests;
that the queue was full does not.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.e2e.proxy import Running, StartProxy
from tests.e2e.site import Front, start_nginx, start_php_fpm
from tests.e2e.tap import StartTap
from tests.e2e.tools import read, receive_all, until
from tests.stage import Stage

ROUNDS = int(os.environ.get("UDSPROXY_BURSTS", "2"))
WORKERS = BACKLOG = 2
BURSTS, REQUESTS, APART_S = 3, 10, 0.5


def burst(front: Front) -> None:
    """So many requests at once, each answered, if only by nginx."""
    for sock in [front.begin("/burst.php", close=True) for _ in range(REQUESTS)]:
        with sock:
            receive_all(sock)


def logged(front: Front) -> int:
    """How many connect() calls nginx says were refused."""
    return read(front.error_log).count("failed (11: ")


def three_bursts(front: Front, proxy: Running) -> None:
    """One round of `test_three_bursts`."""
    before, seen = logged(front), len(proxy.events("incident"))
    for number in range(BURSTS):
        if number:
            time.sleep(APART_S)  # the bursts are the experiment
        burst(front)
    refused = logged(front) - before

    def told() -> bool:
        incidents = proxy.events("incident")[seen:]
        count = sum(each.get("nginx", {}).get("11", 0) for each in incidents if each["phase"] == "close")
        return len(incidents) > 0 and len(incidents) % 2 == 0 and count >= refused

    until(told, f"{refused} refusals in incidents")
    incidents = proxy.events("incident")[seen:]
    assert [each["phase"] for each in incidents] == ["open", "close"] * (len(incidents) // 2)
    assert len(incidents) // 2 <= BURSTS
    over = incidents[1::2]
    assert sum(each["nginx"]["11"] for each in over) == refused > 0
    if os.geteuid() == 0:
        assert sum(each["refused"] for each in over) == refused
    for each in incidents:
        assert (each["queue"], each["backlog"], each["workers"]) == (BACKLOG + 1, BACKLOG, WORKERS)
        assert "the queue grew to 3 of 3" in each["what"]
        assert sum(waits["workers"] for waits in each.get("waiting_on", [])) <= each["busy"] <= WORKERS
        assert "0 ms" not in each["what"].split(";")[0]
    for each in over:
        assert each["total_s"] >= 0.04
        assert each["slowest"]["script"] in [load["script"] for load in each["in_flight"]]


@pytest.mark.parametrize("how", ["run", "tap"])
def test_three_bursts(stage: Stage, start_proxy: StartProxy, start_tap: StartTap, how: str) -> None:
    """Three bursts of ten requests of 40 ms for two workers and a backlog of 2: one incident for all or for each,
    whose queue has grown to 3 of 3, with as many refusals as nginx has logged, counted by us and by nginx's log."""
    upstream = stage.path("php.sock")
    start_php_fpm(stage, upstream, f"listen.backlog = {BACKLOG}", workers=WORKERS)
    asked = upstream if how == "tap" else stage.path("p.sock")
    front = start_nginx(stage, {"proxied": asked})["proxied"]
    stage.write("<?php usleep(40000);", "www", "burst.php")
    options = ("--nginx-log", front.error_log)
    proxy: Running = start_tap(asked, *options) if how == "tap" else start_proxy(asked, upstream, *options)
    for _ in range(ROUNDS):
        three_bursts(front, proxy)
    for full in [event for event in proxy.events("queue") if event["queue"] > event["backlog"]]:
        assert full["queue"] == BACKLOG + 1
        assert full["active"] <= WORKERS
