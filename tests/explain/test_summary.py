"""What the lines of logs say together."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from udsproxy.explain import report
from udsproxy.explain.doubles import Doubles
from udsproxy.explain.summary import MAX_KINDS, MAX_RUNS, MAX_SCRIPTS, Reader, Summary, merged, top

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
    for at, found in Doubles().without(merged([Reader(TODAY).read(log) for log in logs])):
        summary.add(found, at)
    return summary


def test_each_error_with_its_times_and_scripts() -> None:
    """Count, first, last, the busiest minute, the scripts without what is behind the question mark."""
    summary = summary_of([nginx(0), nginx(61), nginx(62, "/b.php"), nginx(200), "noise"])
    [tally] = summary.tallies()
    assert tally.count == 4
    assert (tally.first, tally.last) == (START.astimezone(), (START + timedelta(seconds=200)).astimezone())
    assert (tally.busiest, tally.busiest_count) == ((START + timedelta(minutes=1)).astimezone(), 2)
    assert top(tally.scripts, 9) == [("/a.php", 3), ("/b.php", 1)]
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


def test_what_is_one_event() -> None:
    """Lines that are minutes apart are two, and each has the times and the scripts that are its own."""
    summary = summary_of(
        [nginx(0, "/s3.php")] * 6 + [nginx(1, "/s3.php"), nginx(119, "/r.php"), nginx(120, "/s3.php")]
    )
    assert report.in_order(summary.runs, None) == [
        "12:00:00  nginx: 7 x connect(): EAGAIN, /run/p.sock, /s3.php, the last at 12:00:01",
        "12:01:59  nginx: 2 x connect(): EAGAIN, /run/p.sock, /r.php (1), /s3.php (1), the last at 12:02:00",
    ]


def test_the_programs_are_kept_apart() -> None:
    """A line of one program is not counted as another's."""
    go = f'{{"ts": {START.timestamp()}, "msg": "dial unix /run/p.sock: connect: resource temporarily unavailable"}}'
    summary = summary_of([nginx(0)], [go])
    assert [(run.example.program, run.count) for run in summary.runs] == [("nginx", 1), ("", 1)]


NGINX_STDERR = (
    '2026/11/29 {} [error] 1#1: *2 FastCGI sent in stderr: "PHP message: PHP Fatal error:  Uncaught E: '
    "out of luck in /srv/fatal.php:2\nStack trace:\n#0 {{main}}\n  thrown in /srv/fatal.php on line 2"
    '" while reading response header from upstream, client: 127.0.0.1, server: , request: "GET /fatal.php?a"'
    ', upstream: "fastcgi://unix:/run/p.sock:", host: "a"'
)
PHP_FPM_STDERR = "\n".join(
    f'[29-Nov-2026 {{0}}] WARNING: [pool www] child {{1}} said into stderr: "{line}"'
    for line in (
        "NOTICE: PHP message: PHP Fatal error:  Uncaught E: out of luck in /srv/fatal.php:2",
        "Stack trace:",
        "#0 {{main}}",
        "  thrown in /srv/fatal.php on line 2",
    )
)
TEXT = '"PHP Fatal error: Uncaught E: out of luck in /srv/fatal.php:2"'


def test_an_error_of_a_script() -> None:
    """It is counted once, whatever number of lines it has in however many logs, with its request and its text."""
    of_nginx = (NGINX_STDERR.format("12:00:01") + "\n" + NGINX_STDERR.format("12:00:02")).split("\n")
    of_php_fpm = (PHP_FPM_STDERR.format("12:00:01", 7) + "\n" + PHP_FPM_STDERR.format("12:00:02", 8)).split("\n")
    for logs in ([of_nginx], [of_nginx, of_php_fpm], [of_php_fpm, of_nginx]):
        summary = summary_of(*logs)
        assert report.table(summary.tallies(), None)[1:] == [
            "    2  12:00:01  12:00:02  FastCGI sent in stderr, /run/p.sock",
            "       /fatal.php (2)",
            f"       {TEXT} (2)",
        ]
        assert report.in_order(summary.runs, None) == [
            f"12:00:01  nginx: 2 x FastCGI sent in stderr, /run/p.sock, /fatal.php, {TEXT}, the last at 12:00:02"
        ]


def test_an_error_of_a_script_that_only_php_fpm_has() -> None:
    """(nginx did not write it at that time, or has no log at hand.)"""
    other = NGINX_STDERR.format("11:00:01").split("\n")
    summary = summary_of(other, PHP_FPM_STDERR.format("12:00:01", 7).split("\n"))
    assert [(each.example.program, each.count) for each in summary.tallies()] == [("php-fpm", 1), ("nginx", 1)]


def test_a_repetition_that_comes_first() -> None:
    """While logs are followed, php-fpm's line waits for nginx's; where none comes, it is shown."""
    doubles = Doubles()
    of_php_fpm = [*Reader(TODAY).read(PHP_FPM_STDERR.format("12:00:01", 7).split("\n"))]
    of_nginx = [*Reader(TODAY).read(NGINX_STDERR.format("12:00:01").split("\n"))]
    assert doubles.without(of_php_fpm, last=False) == []
    assert doubles.without(of_nginx, last=False) == of_nginx
    assert doubles.without(of_php_fpm, last=False) == []
    assert doubles.without([], last=False) == of_php_fpm
    assert doubles.without(of_php_fpm, last=True) == of_php_fpm


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


def test_a_time_that_no_zone_has() -> None:
    """Of the first year, or the last, there is no local time: the line counts without one."""
    for year in ("0001-01-01", "9999-12-31"):
        [run] = summary_of([f"{year} 00:00:00 connect() failed (111: Connection refused)"]).runs
        assert run.example.errno == "ECONNREFUSED"


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
