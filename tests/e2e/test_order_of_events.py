"""The events of one connection stand in the order in which things happened to it."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.e2e.proxy import StartProxy
from tests.e2e.tools import UDSPROXY, udsproxy
from tests.stage import Stage


@pytest.mark.parametrize("options", [(), ("-v",)], ids=["exchanges", "messages"])
def test_open_accepted_answer_request_close(
    stage: Stage, start_proxy: StartProxy, options: tuple[str, ...]
) -> None:
    """`open` comes first and `close` last; `accepted`, once at most, is before the answer's messages and before
    `request`. Eight clients ask two workers, so that many wait and are told to have been accepted."""
    upstream = stage.path("up.sock")
    serve = [*UDSPROXY, "serve", upstream, "--workers", "2", "--backlog", "50", "--delay", "2ms"]
    stage.spawn("udsproxy serve", serve, stage.path("serve.out"))
    stage.await_socket(upstream)
    proxy = start_proxy(stage.path("p.sock"), upstream, *options)
    done = udsproxy("request", proxy.socket, "-n", "120", "-c", "8")
    assert done.returncode == 0, done.stderr
    assert proxy.stop() == 0
    told: dict[int, list[str]] = defaultdict(list)
    for event in proxy.events():
        if "conn" in event:
            what = event["event"]
            told[event["conn"]].append(f"{what} {event['direction']}" if what == "message" else what)
    assert any("accepted" in events for events in told.values())
    for events in told.values():
        assert events[0] == "open"
        assert events[-1] == "close"
        assert [events.count(name) for name in ("open", "close")] == [1, 1]
        if "accepted" in events:
            assert events.count("accepted") == 1
            before = events[: events.index("accepted")]
            assert set(before) <= {"open", "message c2s"}
