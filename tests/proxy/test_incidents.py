"""When an incident begins and ends: signs at given times, no sockets and no clock."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.events import Incident
from udsproxy.inspection.workers import Counted, Sample, WorkerState
from udsproxy.proxy.incidents import PHASES, QUIET_NS, Incidents, Phase, Sign

MS = 1_000_000
LIMIT = 100 * MS
BACKLOG = 2
START = 10_000 * MS


class Watcher:
    """Does with `Incidents` what the watch does: looks now and then, and keeps what is told."""

    def __init__(self) -> None:
        self.told: list[Incident] = []
        self.incidents = Incidents("p", LIMIT, str)
        self.incidents.answered(0, Sample(number=1, refused=Counted()))

    def look(self, now: int, since: int | None = None) -> None:
        incidents = self.incidents
        incidents.waited(since, now)
        if incidents.is_ending(now):
            self.told.append(incidents.ended(now, 0))
        elif incidents.step(now):
            self.told.append(incidents.begun(now, 0))

    def refused(self, count: int, first: int, last: int, now: int) -> None:
        self.incidents.answered(now, Sample(number=1, refused=Counted(count, first, last)))

    def burst(self, at: int) -> None:
        """One that fills the queue: full after 1 ms, seven are refused within the second, empty after 80."""
        for ms, queue in ((0, 1), (1, 3), (40, 2), (79, 1), (80, 0)):
            self.incidents.level(at + ms * MS, queue, BACKLOG)
            self.look(at + ms * MS, at if queue else None)
            if ms == 40:
                self.refused(7, at + MS, at + 2 * MS, at + ms * MS)

    def quiet(self, since: int) -> None:
        for ms in range(50, 1300, 50):
            self.look(since + ms * MS)


def test_every_phase_knows_every_sign() -> None:
    """The table has no gap; and only quiet ends an incident."""
    assert set(PHASES) == {(phase, sign) for phase in Phase for sign in Sign}
    assert [key for key, to in PHASES.items() if key[0] is Phase.OPEN and to is not Phase.OPEN] == [
        (Phase.OPEN, Sign.OVER)
    ]


def test_a_burst() -> None:
    """It begins when the first client waits, is as long as clients waited, and knows the longest queue and the
    refusals of its first milliseconds."""
    watcher = Watcher()
    watcher.burst(START)
    watcher.quiet(START + 80 * MS)
    begun, ended = watcher.told
    assert (begun.phase, ended.phase) == ("open", "close")
    assert begun.since == ended.since == str(START)
    assert ended.total_s == 0.080
    assert (begun.queue, ended.queue, ended.refused) == (3, 3, 7)
    assert ended.what.startswith("it lasted 80 ms; the queue grew to 3 of 3 (7 connect() got EAGAIN)")
    assert watcher.incidents.is_quiet


def test_no_incident_ends_untold() -> None:
    """Where the quiet time is over only between a look's beginning and its end, the next look tells the end."""
    watcher = Watcher()
    watcher.burst(START)
    assert not watcher.incidents.step(START + 80 * MS + QUIET_NS + 1)
    assert watcher.incidents.is_open
    watcher.look(START + 80 * MS + QUIET_NS + 2)
    assert [event.phase for event in watcher.told] == ["open", "close"]


def test_bursts_that_are_near_are_one_incident() -> None:
    """Three bursts half a second apart are one incident, three that are further apart than the quiet time three."""
    for apart, count in ((500, 1), (1500, 3)):
        watcher = Watcher()
        for number in range(3):
            watcher.burst(START + number * apart * MS)
            for ms in range(100, apart, 50):
                watcher.look(START + (number * apart + ms) * MS)
        watcher.quiet(START + (2 * apart + 80) * MS)
        over = [event for event in watcher.told if event.phase == "close"]
        assert len(watcher.told) == 2 * len(over) == 2 * count
        assert sum(event.refused or 0 for event in over) == 21
        assert [event.queue for event in over] == [3] * count


def test_a_short_wait_is_none() -> None:
    """Who waits for less than the limit, in a queue that is not full, makes no incident, however often; and what an
    incident begins with is not one of these."""
    watcher = Watcher()
    for number in range(20):
        at = START + number * 60 * MS
        watcher.incidents.level(at, 2, BACKLOG)
        watcher.look(at + MS, at)
        watcher.incidents.level(at + 50 * MS, 0, BACKLOG)
        if number % 2:
            watcher.look(at + 51 * MS)
    assert watcher.told == []
    at = START + 2000 * MS
    watcher.incidents.level(at, 3, BACKLOG)
    watcher.look(at)
    assert watcher.told[0].since == str(at)


def test_a_long_wait_is_one() -> None:
    """Who waits for the limit makes one, which began when they came."""
    watcher = Watcher()
    watcher.look(START + 99 * MS, START)
    assert watcher.told == []
    watcher.look(START + 101 * MS, START)
    watcher.quiet(START + 101 * MS)
    begun, ended = watcher.told
    assert (begun.since, ended.total_s) == (str(START), 0.101)


def test_short_waits_do_not_make_it_longer() -> None:
    """Once the queue was empty, clients who wait for a moment, as they do on a busy day, do not keep it open."""
    watcher = Watcher()
    watcher.burst(START)
    for number in range(1, 20):
        at = START + number * 90 * MS
        watcher.incidents.level(at, 1, BACKLOG)
        watcher.look(at + MS, at)
        watcher.incidents.level(at + 2 * MS, 0, BACKLOG)
        watcher.look(at + 3 * MS)
    assert [event.phase for event in watcher.told] == ["open", "close"]
    assert watcher.told[1].total_s == 0.080


def test_a_queue_that_others_fill() -> None:
    """A full queue that none of our clients waits in is an incident for as long as it is full."""
    watcher = Watcher()
    watcher.incidents.level(START, 3, BACKLOG)
    for ms in range(1, 5000, 50):
        watcher.look(START + ms * MS)
    assert [event.phase for event in watcher.told] == ["open"]
    watcher.incidents.level(START + 5000 * MS, 2, BACKLOG)
    watcher.quiet(START + 5000 * MS)
    assert [event.phase for event in watcher.told] == ["open", "close"]
    assert watcher.told[1].total_s == 5


def test_what_nginx_logs_makes_nothing_longer() -> None:
    """nginx's lines have whole seconds: where the queue is known, the incident is as long as that says."""
    watcher = Watcher()
    watcher.burst(START)
    watcher.incidents.logged(11, 7, START + 300 * MS)
    watcher.quiet(START + 80 * MS)
    assert [(event.total_s, event.nginx) for event in watcher.told[1:]] == [(0.080, {"11": 7})]


def test_refusals_alone() -> None:
    """Refusals that were told of late begin an incident when they were, and nginx's lines count with it."""
    watcher = Watcher()
    watcher.refused(2, START, START + MS, START + 400 * MS)
    watcher.look(START + 400 * MS)
    watcher.incidents.logged(11, 2, START + 500 * MS)
    watcher.quiet(START + 500 * MS)
    begun, ended = watcher.told
    assert begun.what.startswith("clients were refused (2 connect() got EAGAIN)")
    assert (ended.since, ended.refused, ended.nginx) == (str(START), 2, {"11": 2})


def test_what_is_not_counted_is_said() -> None:
    """Refusals that nobody counts are not told as none; and where counting began late, or stopped early, that is
    said."""
    watcher = Watcher()
    watcher.incidents.answered(1, Sample(number=1, why_not="that takes root"))
    watcher.burst(START)
    watcher.incidents.answered(START + 90 * MS, Sample(number=1, why_not="that takes root"))
    event = watcher.incidents.ended(START + 90 * MS, 0)
    assert event.unseen is not None
    assert "EAGAINs are not all counted: that takes root" in event.unseen
    late = Watcher()
    late.incidents.answered(1, None)
    late.incidents.error("reset without an answer", START)
    late.look(START)
    late.refused(0, 0, 0, START + MS)
    assert "EAGAINs are not all counted: counting began later" in (
        late.incidents.ended(START + 2 * MS, 0).unseen or ""
    )
    early = Watcher()
    early.incidents.level(START, 3, BACKLOG)
    assert "before the last were told" in (early.incidents.ended(START, 0).unseen or "")
    counted = Watcher()
    counted.burst(START)
    counted.quiet(START + 80 * MS)


def test_workers_that_run_for_nobody() -> None:
    """A worker that holds the connection of a client that has left counts where that client's request was not
    answered: no more of them than such requests, and none more than workers are busy."""
    sample = Sample(number=1, backlog=2, workers=(WorkerState(pid=1, comm="php"),), gone_running=1)
    for left, told in ((0, None), (1, 1), (13, 1)):
        watcher = Watcher()
        watcher.incidents.error("x", START)
        for _ in range(left):
            watcher.incidents.left()
        watcher.incidents.sample(START, sample, [])
        assert watcher.incidents.ended(START, 0).gone_running == told


SIGNS = st.lists(
    st.tuples(st.integers(0, 700), st.sampled_from("lrenwg"), st.integers(0, 3), st.booleans()), max_size=40
)


@given(SIGNS)
def test_the_laws(signs: list[tuple[int, str, int, bool]]) -> None:
    """Whatever happens: incidents are told in pairs and do not overlap; each begins before it ends, and has a
    reason; refusals and what nginx logged are all told, each once."""
    watcher, now = Watcher(), START
    incidents = watcher.incidents
    refused = logged = 0

    def does(kind: str, number: int) -> Callable[[], object]:
        return {
            "l": lambda: incidents.level(now, number, BACKLOG),
            "r": lambda: watcher.refused(number, now - number * MS, now, now),
            "e": lambda: incidents.error("x", now),
            "n": lambda: incidents.logged(11, number, now),
            "w": lambda: incidents.waited(now - number * 50 * MS, now),
            "g": lambda: incidents.goes_on(now),
        }[kind]

    for pause_ms, kind, number, looks in signs:
        now += pause_ms * MS
        if looks:
            watcher.look(now)
        does(kind, number)()
        refused += number if kind == "r" else 0
        logged += number if kind == "n" else 0
        watcher.look(now)
    incidents.level(now, 0, BACKLOG)
    watcher.quiet(now)
    watcher.quiet(now + 2000 * MS)
    assert [event.phase for event in watcher.told] == ["open", "close"] * (len(watcher.told) // 2)
    over = [event for event in watcher.told if event.phase == "close"]
    for event in over:
        assert event.total_s is not None
        assert event.total_s >= 0
        assert int(event.since) + event.total_s * 1e9 <= event.at
        assert event.queue is not None
        is_full = event.queue > BACKLOG
        assert is_full or event.refused or event.nginx or event.errors or event.total_s >= LIMIT / 1e9
    assert sum(event.refused or 0 for event in over) == refused
    assert sum((event.nginx or {}).get("11", 0) for event in over) == logged
    began = [int(event.since) for event in over]
    ended = [int(event.since) + round((event.total_s or 0) * 1e9) for event in over]
    assert all(end <= begin for end, begin in zip(ended, began[1:], strict=False))
    assert incidents.phase is Phase.QUIET
    assert QUIET_NS == 1000 * MS
