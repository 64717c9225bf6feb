"""What the lines of logs say together."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.explain import report
from udsproxy.explain.summary import MAX_KINDS, MAX_RUNS, MAX_SCRIPTS, Reader, Summary, merged

TODAY = date(2026, 11, 29)
START = datetime(2026, 11, 29, 12, 0)  # noqa: DTZ001 - the logs name no zone
NGINX = (
    "{} [error] 1#1: *1 connect() to unix:{} failed (11: Resource temporarily unavailable) while connecting to "
    'upstream, client: 203.0.113.7, server: _, request: "GET {} HTTP/1.1", upstream: "fastcgi://unix:{}:"'
)


def nginx(after_s: float, script: str = "/a.php?x=1", path: str = "/run/p.sock") -> str:
    at = START + timedelta(seconds=after_s)
    return NGINX.format(at.strftime("%Y/%m/%d %H:%M:%S"), path, script, path)


def php_fpm(after_s: float) -> str:
    at = START + timedelta(seconds=after_s)
    return at.strftime("[%d-%b-%Y %H:%M:%S] WARNING: [pool www] server reached pm.max_children setting (5)")


def summary_of(*logs: list[str]) -> Summary:
    summary = Summary()
    for at, found in merged([Reader(TODAY).read(log) for log in logs]):
        summary.add(found, at)
    return summary


def test_each_error_with_its_times_and_scripts() -> None:
    """Count, first, last, the busiest minute, the scripts without what is behind the question mark."""
    summary = summary_of([nginx(0), nginx(61), nginx(62, "/b.php"), nginx(200), "noise"])
    [tally] = summary.tallies()
    assert tally.count == 4
    assert (tally.first, tally.last) == (START.astimezone(), (START + timedelta(seconds=200)).astimezone())
    assert (tally.busiest, tally.busiest_count) == ((START + timedelta(minutes=1)).astimezone(), 2)
    assert tally.top_scripts(9) == [("/a.php", 3), ("/b.php", 1)]
    assert report.table([tally], 100) == [
        "COUNT  FIRST     LAST      ERROR",
        "    4  12:00:00  12:03:20  connect(): EAGAIN, /run/p.sock",
        "       2 of them in the minute of 12:01, /a.php (3), /b.php (1)",
    ]


def test_two_logs_in_order_of_time() -> None:
    """php-fpm's and nginx's lines stand as they happened, though their times are written otherwise."""
    summary = summary_of([nginx(1), nginx(3), nginx(4)], [php_fpm(0), php_fpm(2), php_fpm(5)])
    said = [line.partition(", ")[0] for line in report.in_order(summary.runs, 100)]
    assert said == [
        "12:00:00  php-fpm: server reached pm.max_children setting",
        "12:00:01  nginx: connect(): EAGAIN",
        "12:00:02  php-fpm: server reached pm.max_children setting",
        "12:00:03  nginx: 2 x connect(): EAGAIN",
        "12:00:05  php-fpm: server reached pm.max_children setting",
    ]


def test_two_logs_in_one_stream() -> None:
    """Nor does it matter that they come one behind the other (``cat``)."""
    separate = summary_of([nginx(1), nginx(3)], [php_fpm(0), php_fpm(2)])
    together = summary_of([nginx(1), nginx(3), php_fpm(0), php_fpm(2)])
    assert report.table(together.tallies(), 100) == report.table(separate.tallies(), 100)
    assert report.in_order(together.runs, 100) == report.in_order(separate.runs, 100)


def test_a_line_without_a_time_has_that_of_the_line_before() -> None:
    """A traceback belongs to the line that began it, whatever that line says."""
    log = [
        "[2026-11-29 12:00:07] [9] [ERROR] Exception in worker process",
        "Traceback (most recent call last):",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
    ]
    [tally] = summary_of(log).tallies()
    assert tally.first == (START + timedelta(seconds=7)).astimezone()


def test_zones() -> None:
    """A time with a zone, and local times, are put in one order."""
    local = START.astimezone()
    other = (local + timedelta(seconds=1)).astimezone(tz=None).isoformat(timespec="seconds")
    go = f'{{"ts": "{other}", "level": "error", "msg": "dial unix /run/p.sock: connect: permission denied"}}'
    summary = summary_of([nginx(0), nginx(2)], [go])
    assert [run.example.errno for run in summary.runs] == ["EAGAIN", "EACCES", "EAGAIN"]


def test_dates_are_shown_where_there_are_several() -> None:
    """A log of two days needs them."""
    [tally] = summary_of([nginx(0), nginx(86400)]).tallies()
    assert "2026-11-29 12:00:00  2026-11-30 12:00:00  connect()" in report.table([tally], 100)[1]


def test_memory_is_bounded() -> None:
    """Beyond so many kinds, scripts and runs, lines are counted and not kept."""
    lines = [nginx(0, f"/{number}.php") for number in range(MAX_SCRIPTS + 50)]
    lines += [nginx(0, path=f"/run/{number}.sock") for number in range(MAX_KINDS + 50)]
    summary = summary_of(lines)
    tallies = summary.tallies()
    assert len(tallies) == MAX_KINDS
    assert len(tallies[0].scripts) == MAX_SCRIPTS
    assert len(summary.runs) == MAX_RUNS
    assert sum(each.count for each in tallies) + summary.others == len(lines)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 500)), max_size=40), st.integers(40, 120))
def test_nothing_is_lost(events: list[tuple[bool, int]], width: int) -> None:
    """Every line of every log is counted once; runs are in order of time; the text keeps to its width."""
    events.sort(key=lambda each: each[1])
    first = [nginx(at) for is_nginx, at in events if is_nginx]
    second = [php_fpm(at) for is_nginx, at in events if not is_nginx]
    summary = summary_of(first, second)
    assert sum(each.count for each in summary.tallies()) == len(events)
    times = [run.first for run in summary.runs if run.first is not None]
    assert times == sorted(times)
    lines = report.table(summary.tallies(), width) + report.in_order(summary.runs, width)
    assert all(len(line) <= width for line in "\n".join(lines).split("\n"))
