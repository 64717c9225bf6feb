"""What is gathered of an incident, and the sentence that tells it: signs at given times, no sockets, no clock."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from udsproxy.events import Doing, Incident, InFlight
from udsproxy.inspection.workers import Counted, Sample, WorkerState
from udsproxy.proxy.incident import MAX_LEVELS, Gathered

SECOND = 1_000_000_000
SINCE = "2026-11-24T14:02:11.250000Z"
DATABASE = Doing(what="socket", call="poll", on="tcp 10.0.0.5:3306", who="mysqld, pid 9")
DATABASE_OF_NOBODY = Doing(what="socket", call="poll", on="tcp 10.0.0.5:3306")
SLEEP = Doing(what="sleep", call="clock_nanosleep")
IDLE = Doing(what="accept", call="accept4", on="unix /run/p.sock")


def workers(*does: Doing) -> tuple[WorkerState, ...]:
    return tuple(WorkerState(pid=number, comm="php", doing=doing) for number, doing in enumerate(does, 1))


def in_flight(*ages_s: float, script: str = "/report.php") -> list[InFlight]:
    return [
        InFlight(conn=number, request=1, method="GET", script=script, age_s=age_s)
        for number, age_s in enumerate(ages_s, 1)
    ]


def over(made: Gathered, at: int = 100 * SECOND) -> Incident:
    return made.event(at, SINCE, "p", 0, is_over=True)


def test_the_sentence() -> None:
    """It says how long, how full, who was refused, how many workers are busy with what, and which is the oldest; it
    names no clock time."""
    made = Gathered(10 * SECOND)
    made.refusals(Counted(3, 10 * SECOND, 10 * SECOND))
    made.logged(11, 4, 10 * SECOND)
    made.level(11 * SECOND, 9, 8)
    sample = Sample(number=1, queue=5, backlog=8, gone_waiting=2, workers=workers(DATABASE, DATABASE, IDLE))
    made.sample(11 * SECOND, sample, in_flight(31.4, 2.0))
    event = made.event(11 * SECOND, SINCE, "p", 12, is_over=False)
    assert event.what == (
        "the queue grew to 9 of 9 (3 connect() got EAGAIN, nginx logged 4 × error 11); 2 of 3 workers busy, all in "
        "poll() on tcp 10.0.0.5:3306 (mysqld); the oldest is GET /report.php, 31.4 s; 2 in the queue have left"
    )
    assert (event.phase, event.total_s, event.levels, event.since) == ("open", None, None, SINCE)
    assert (event.queue, event.backlog, event.busy, event.workers, event.refused) == (9, 8, 2, 3, 3)
    assert event.nginx == {"11": 4}
    assert event.in_flight is not None
    assert [(load.script, load.count, load.oldest_s) for load in event.in_flight] == [("/report.php", 2, 31.4)]
    made.sign(12 * SECOND)
    event = over(made)
    assert event.what.startswith("it lasted 2.0 s; the queue grew to 9 of 9 (3 connect() got EAGAIN, nginx")
    assert "31.4 s; it began with GET /report.php; 2 in the queue have left" in event.what
    assert (event.phase, event.total_s) == ("close", 2.0)
    assert event.levels is not None
    assert [(level.at_s, level.queue, level.limit) for level in event.levels] == [(1.0, 9, 9), (1.0, 5, 9)]
    assert not re.search(r"\d\d:\d\d", event.what)


def test_what_took_no_time_has_no_length() -> None:
    """Of a single error no length is told: it is not "0 ms" long."""
    made = Gathered(SECOND)
    made.error("reset without an answer", SECOND)
    assert over(made).what == "clients met errors (1 × reset without an answer)"


def test_clients_were_refused_and_nothing_more_is_known() -> None:
    """Refusals that only nginx tells of are told as such."""
    made = Gathered(SECOND)
    made.logged(11, 2, SECOND)
    assert over(made).what == "clients were refused (nginx logged 2 × error 11)"
    made.refusals(Counted(2, SECOND, SECOND))
    assert over(made).what == "clients were refused (2 connect() got EAGAIN, nginx logged 2 × error 11)"


def test_one_target_stands_there_once() -> None:
    """A target whose process was not always seen is one target, told with that process; and the average of all
    looks is shared out so that there are as many as are busy."""
    made = Gathered(0)
    for number, does in enumerate(([DATABASE, DATABASE], [DATABASE_OF_NOBODY, SLEEP], [DATABASE, SLEEP])):
        made.sample(number, Sample(number=1, queue=1, backlog=5, workers=workers(*does)), [])
    event = over(made)
    assert event.waiting_on is not None
    assert [(each.doing, each.workers) for each in event.waiting_on] == [
        ("poll() on tcp 10.0.0.5:3306 (mysqld)", 1),
        ("clock_nanosleep()", 1),
    ]
    assert "2 of 2 workers busy, 1 of them in poll() on tcp 10.0.0.5:3306 (mysqld)" in event.what


def test_most_first() -> None:
    """What workers wait on is told as the average of all looks, and the most stands first."""
    made = Gathered(0)
    for number in range(4):
        sample = Sample(number=number, queue=1, backlog=5, workers=workers(DATABASE, DATABASE, SLEEP, IDLE))
        made.sample(number * SECOND, sample, [])
    event = over(made)
    assert event.waiting_on is not None
    assert [(each.doing, each.workers) for each in event.waiting_on] == [
        ("poll() on tcp 10.0.0.5:3306 (mysqld)", 2),
        ("clock_nanosleep()", 1),
    ]
    assert "3 of 4 workers busy, 2 of them in poll() on tcp 10.0.0.5:3306" in event.what


def test_errors_alone() -> None:
    """Without a queue it is the errors that are told; what cannot be seen is said."""
    made = Gathered(SECOND, hidden=True)
    made.error("closed without an answer", SECOND)
    made.error("closed without an answer", 3 * SECOND)
    made.uncounted("that takes root")
    event = over(made)
    assert event.what == "it lasted 2.0 s; clients met errors (2 × closed without an answer)"
    assert event.errors == {"closed without an answer": 2}
    assert event.refused is None
    assert event.unseen == ("EAGAINs are not counted: that takes root; the workers cannot be seen (run as root)")


def test_the_oldest_is_in_the_list() -> None:
    """The list by script has the oldest exchange, also where that was seen at another time, or is one of many."""
    made = Gathered(0)
    made.sample(0, Sample(number=1), in_flight(9.0, script="/lock.php"))
    crowd = [each for number in range(20) for each in in_flight(2.0, 1.0, script=f"/{number}.php")]
    made.sample(1, Sample(number=2), crowd)
    event = over(made)
    assert event.slowest is not None
    assert event.slowest.script == "/lock.php"
    assert "the oldest is GET /lock.php, 9.0 s" in event.what
    assert event.in_flight is not None
    assert ("/lock.php", 1, 9.0) in [(load.script, load.count, load.oldest_s) for load in event.in_flight]


def test_how_much_of_it_was_the_queue() -> None:
    """Of the oldest it is said how long it was in the queue, in the sentence and in the list: not where that was
    next to nothing."""
    waited = replace(in_flight(6.6)[0], accept_wait_s=3.6)
    served = replace(in_flight(6.5, script="/other.php")[0], accept_wait_s=0.006)
    made = Gathered(0)
    made.sample(0, Sample(number=1), [waited, served])
    event = over(made)
    assert "the oldest is GET /report.php, 6.6 s (3.6 s of it in the queue)" in event.what
    assert event.in_flight is not None
    assert [(load.script, load.accept_wait_s) for load in event.in_flight] == [
        ("/report.php", 3.6),
        ("/other.php", 0.006),
    ]
    made = Gathered(0)
    made.sample(0, Sample(number=1), [served])
    assert "the oldest is GET /other.php, 6.5 s;" in over(made).what


DOES = st.sampled_from([DATABASE, DATABASE_OF_NOBODY, SLEEP, IDLE, Doing(what="cpu")])
SAMPLES = st.lists(
    st.builds(
        lambda queue, does, gone: Sample(
            number=1, queue=queue, backlog=8, workers=workers(*does), gone_running=gone, gone_waiting=gone
        ),
        st.integers(0, 9),
        st.lists(DOES, max_size=6),
        st.integers(0, 6),
    ),
    max_size=20,
)


@given(
    SAMPLES,
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9)), max_size=20),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 100), st.integers(0, 100)), max_size=20),
)
def test_the_laws(
    samples: list[Sample], levels: list[tuple[int, int]], refusals: list[tuple[int, int, int]]
) -> None:
    """Whatever was seen in whatever order: it begins before it ends; no more workers do something than are busy,
    and no more are busy than there are; the longest queue is as long as each that was seen; refusals add up; and
    nothing is 0 ms long."""
    made = Gathered(50)
    for number, sample in enumerate(samples):
        made.sample(number, sample, in_flight(number))
    for at, queue in levels:
        made.level(at, queue, 8)
        made.sign(at)
    for count, one, other in refusals:
        made.refusals(Counted(count, min(one, other), max(one, other)))
    event = over(made)
    assert made.began_at <= made.seen_at
    assert event.total_s is not None
    assert event.total_s >= 0
    assert "0 ms" not in event.what.split(";")[0]
    assert event.queue == max([0, *(sample.queue for sample in samples), *(queue for _, queue in levels)])
    assert (event.refused or 0) == sum(count for count, _, _ in refusals)
    busy, of = event.busy or 0, event.workers or 0
    assert sum(each.workers for each in event.waiting_on or ()) <= busy <= of
    assert len({each.doing for each in event.waiting_on or ()}) == len(event.waiting_on or ())
    assert (event.gone_running or 0) <= busy
    if samples:
        assert event.slowest is not None
        assert event.in_flight is not None
        assert event.slowest.age_s == max(load.oldest_s for load in event.in_flight)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=1000))
def test_levels_are_bounded(queues: list[int]) -> None:
    """However long it lasts, the queue over time has no more points than fit, in their order, from about the
    beginning to about the end; and the longest queue is one of them."""
    made = Gathered(0)
    for number, queue in enumerate(queues):
        made.level(number * SECOND, queue, 50)
    levels = over(made).levels
    assert levels is not None
    assert len(levels) <= MAX_LEVELS
    assert [level.at_s for level in levels] == sorted(level.at_s for level in levels)
    assert max(level.queue for level in levels) == max(queues)
    apart = 4 * len(queues) / MAX_LEVELS
    assert levels[0].at_s <= apart
    assert levels[-1].at_s >= len(queues) - 1 - apart


@given(st.lists(st.text(max_size=20), max_size=100))
def test_errors_are_bounded(errors: list[str]) -> None:
    """Whatever is said of errors, few kinds are kept."""
    made = Gathered(0)
    for each in errors:
        made.error(each, 0)
        made.uncounted(each)
        made.logged(len(each), 1, 0)
    event = over(made)
    assert len(event.errors or {}) <= 20
    assert sum((event.errors or {}).values()) <= len(errors)
    assert len(event.nginx or {}) <= 20


def test_a_socket_that_systemd_holds_alone() -> None:
    """No worker is busy, and none is hidden: the service has not been started yet."""
    made = Gathered(10 * SECOND)
    made.sample(11 * SECOND, Sample(number=1, queue=1, backlog=8, activator="systemd, pid 1"), [])
    event = over(made)
    assert event.unseen == "no worker runs yet: systemd, pid 1, is to start the service"
    assert "busy" not in event.what
