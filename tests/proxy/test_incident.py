"""What is told of an incident: from samples and errors at given times, no sockets and no clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.events import Doing, InFlight
from udsproxy.inspection.workers import Sample, WorkerState
from udsproxy.proxy.incident import MOST_LEVELS, Gathered

SECOND = 1_000_000_000
SINCE = "2026-11-24T14:02:11.250000Z"
DATABASE = Doing(what="socket", call="poll", on="tcp 10.0.0.5:3306", who="mysqld, pid 9")
IDLE = Doing(what="accept", call="accept4", on="unix /run/p.sock")


def workers(*does: Doing) -> tuple[WorkerState, ...]:
    return tuple(WorkerState(pid=number, comm="php", doing=doing) for number, doing in enumerate(does, 1))


def in_flight(*ages_s: float) -> list[InFlight]:
    return [
        InFlight(conn=number, request=1, method="GET", script="/report.php", age_s=age_s)
        for number, age_s in enumerate(ages_s, 1)
    ]


def test_the_sentence() -> None:
    """It says when, how full, who was refused, how many workers are busy with what, and which is the oldest."""
    made = Gathered(10 * SECOND, SINCE)
    made.refusals(3, None, 10 * SECOND)
    sample = Sample(number=1, queue=9, backlog=8, gone_waiting=2, workers=workers(DATABASE, DATABASE, IDLE))
    made.sample(11 * SECOND, sample, in_flight(31.4, 2.0))
    event = made.event(11 * SECOND, "p", 12, is_over=False)
    assert event.what == (
        "from 14:02:11.250 UTC the queue grew to 9 of 9 (3 connect() got EAGAIN); 2 of 3 workers busy, all in "
        "poll() on tcp 10.0.0.5:3306 (mysqld); the oldest is GET /report.php, 31.4 s; 2 in the queue have "
        "left"
    )
    assert (event.phase, event.total_s, event.levels) == ("open", None, None)
    assert (event.queue, event.backlog, event.busy, event.workers, event.refused) == (9, 8, 2, 3, 3)
    assert event.in_flight is not None
    assert [(load.script, load.count, load.oldest_s) for load in event.in_flight] == [("/report.php", 2, 31.4)]
    over = made.event(14 * SECOND, "p", 0, is_over=True)
    assert over.what.startswith("from 14:02:11.250 UTC for 1.0 s the queue grew to 9 of 9")
    assert over.what.endswith("it began with GET /report.php; 2 in the queue have left")
    assert (over.phase, over.total_s) == ("close", 1.0)
    assert over.levels is not None
    assert [(level.at_s, level.queue, level.limit) for level in over.levels] == [(1.0, 9, 9)]


def test_most_first() -> None:
    """What workers wait on is told as the average of all looks, and the most stands first."""
    made = Gathered(0, SINCE)
    for number in range(4):
        sleep = Doing(what="sleep", call="clock_nanosleep")
        sample = Sample(number=number, queue=1, backlog=5, workers=workers(DATABASE, DATABASE, sleep, IDLE))
        made.sample(number * SECOND, sample, [])
    event = made.event(4 * SECOND, "p", 3, is_over=True)
    assert event.waiting_on is not None
    assert [(each.doing, each.workers) for each in event.waiting_on] == [
        ("poll() on tcp 10.0.0.5:3306 (mysqld)", 2),
        ("clock_nanosleep()", 1),
    ]
    assert "3 of 4 workers busy, 2 of them in poll() on tcp 10.0.0.5:3306" in event.what


def test_errors_alone() -> None:
    """Without a queue it is the errors that are told; what cannot be seen is said."""
    made = Gathered(0, SINCE, hidden=True)
    made.error("closed without an answer", SECOND)
    made.error("closed without an answer", 2 * SECOND)
    made.refusals(None, "that takes root", SECOND)
    event = made.event(3 * SECOND, "p", 0, is_over=True)
    assert event.what == "from 14:02:11.250 UTC for 2.0 s clients met errors (2 × closed without an answer)"
    assert event.errors == {"closed without an answer": 2}
    assert event.refused is None
    assert event.unseen == "EAGAINs are not counted (that takes root); the workers cannot be seen (run as root)"


@given(st.integers(1, 1000))
def test_levels_are_bounded(count: int) -> None:
    """However long it lasts, the queue over time has its beginning and no more points than fit."""
    made = Gathered(0, SINCE)
    for number in range(count):
        made.sample(number * SECOND, Sample(number=number, queue=number, backlog=5), [])
    levels = made.event(count * SECOND, "p", 0, is_over=True).levels
    assert levels is not None
    assert len(levels) <= MOST_LEVELS
    assert levels[0].at_s == 0
    assert [level.at_s for level in levels] == sorted(level.at_s for level in levels)
    assert levels[-1].at_s >= count / 2 - 1


@given(st.lists(st.text(max_size=20), max_size=100))
def test_errors_are_bounded(errors: list[str]) -> None:
    """Whatever is said of errors, few kinds are kept."""
    made = Gathered(0, SINCE)
    for each in errors:
        made.error(each, 0)
    found = made.event(1, "p", 0, is_over=True).errors or {}
    assert len(found) <= 20
    assert sum(found.values()) <= len(errors)


def test_a_socket_that_systemd_holds_alone() -> None:
    """No worker is busy, and none is hidden: the service has not been started yet."""
    made = Gathered(10 * SECOND, SINCE)
    made.sample(11 * SECOND, Sample(number=1, queue=1, backlog=8, activator="systemd, pid 1"), [])
    event = made.event(11 * SECOND, "p", 0, is_over=False)
    assert event.unseen == "no worker runs yet: systemd, pid 1, is to start the service"
    assert "busy" not in event.what
