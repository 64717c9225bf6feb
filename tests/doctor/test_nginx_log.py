"""The end of nginx's error log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.doctor.facts import ErrorLog, Logged
from udsproxy.doctor.nginx_log import summarize

LOG = ErrorLog("/var/log/nginx/error.log")
BEHIND = ' while connecting to upstream, client: 10.0.0.1, server: _, request: "GET / HTTP/1.1", upstream: "%s"'
EAGAIN = "connect() to unix:{path} failed (11: Resource temporarily unavailable)"


def line(time: str, said: str, upstream: str = "fastcgi://unix:/x.sock:", level: str = "error") -> str:
    return f"2026/11/29 {time} [{level}] 7#7: *1 {said}{BEHIND % upstream}\n"


def moment(time: str, zone_h: float = 0) -> float:
    hours, minutes, seconds = map(int, time.split(":"))
    zone = timezone(timedelta(hours=zone_h))
    return datetime(2026, 11, 29, hours, minutes, seconds, tzinfo=zone).astimezone(UTC).timestamp()


def read(text: str, written_at: float = 0.0, began_at: float | None = None, *, whole: bool = True) -> ErrorLog:
    log = LOG if whole else ErrorLog(LOG.path, is_whole=False)
    return summarize(log, text.encode(), written_at, began_at, "/x.sock".__eq__, {"php"})


def test_lines_about_the_socket() -> None:
    """They are counted by kind, each with its last time; other sockets, other lines and what a script or a visitor
    says are none."""
    full = EAGAIN.format(path="/x.sock")
    found = read(
        line("03:00:00", full)
        + line("03:00:01", EAGAIN.format(path="/y.sock"), "fastcgi://unix:/y.sock:")
        + line("03:00:02", full)
        + line("03:00:03", "no live upstreams", "fastcgi://php")
        + line("03:00:04", "no live upstreams", "fastcgi://other")
        + line("03:00:05", "upstream timed out (110: Connection timed out)")
        + line("03:00:06", "upstream prematurely closed connection")
        + line("03:00:07", f'FastCGI sent in stderr: "{full}"')
        + "2026/11/29 03:00:08 [notice] 7#7: signal process started\n"
        + f"2026/11/29 03:00:09 [info] 7#7: *1 {full} is what I ask for, client: 10.0.0.1\n"
        + "unix:/x.sock: what is no line of nginx\n"
    )
    assert found.begin == "2026-11-29 03:00:00"
    assert {each.kind: (each.count, each.last[11:]) for each in found.logged} == {
        "connect 11": (3, "03:00:09"),
        "no live upstreams": (1, "03:00:03"),
        "timed out 110": (1, "03:00:05"),
        "closed": (1, "03:00:06"),
    }
    said = {each.kind: (each.words, each.upstream) for each in found.logged}
    assert said == {
        "connect 11": (full, ""),
        "no live upstreams": ("no live upstreams", 'fastcgi://php"'),
        "timed out 110": ("upstream timed out (110: Connection timed out)", "fastcgi://unix:/x.sock:"),
        "closed": ("upstream prematurely closed", "fastcgi://unix:/x.sock:"),
    }


def test_a_socket_with_two_paths() -> None:
    """What is quoted is in every line that is counted: what comes after the path, where they have several."""
    text = line("03:00:00", EAGAIN.format(path="/x.sock"))
    text += line("03:00:01", EAGAIN.format(path="/run/x.sock"), "fastcgi://unix:/run/x.sock:")
    text += line("03:00:02", "recv() failed (104: Connection reset by peer)")
    text += line("03:00:03", "recv() failed (104: Connection reset by peer)", "fastcgi://unix:/run/x.sock:")
    both = {"/x.sock", "/run/x.sock"}
    found = summarize(LOG, text.encode(), 0.0, None, both.__contains__, set())
    assert [(each.count, each.words, each.upstream) for each in found.logged] == [
        (2, "failed (11: Resource temporarily unavailable)", ""),
        (2, "recv() failed (104: Connection reset by peer)", ""),
    ]


@pytest.mark.parametrize("zone_h", [0, 2, -5, 5.75])
def test_since_the_server_was_started(zone_h: float) -> None:
    """The zone of the log is told by the time at which it was written last."""
    full = EAGAIN.format(path="/x.sock")
    text = "".join(line(f"03:00:0{second}", full) for second in range(6))
    written_at, began_at = moment("03:00:05", zone_h) + 0.4, moment("03:00:04", zone_h) + 0.9
    assert read(text, written_at, began_at).logged == (Logged("connect 11", full, 6, "2026-11-29 03:00:05", 2),)
    assert read(text, written_at, moment("03:00:07", zone_h)).logged[0].since_start == 0
    assert read(text, written_at, None).logged[0].since_start is None
    hours, minutes = divmod(round(abs(zone_h) * 60), 60)
    assert read(text, written_at).zone == f"{'-' if zone_h < 0 else '+'}{hours:02}{minutes:02}"


def test_a_file_that_was_touched() -> None:
    """Where its time is not that of its last line, nothing says which lines came since the server was started."""
    text = line("03:00:00", EAGAIN.format(path="/x.sock"))
    found = read(text, moment("03:07:00"), moment("03:06:00"))
    assert (found.logged[0].since_start, found.zone) == (None, "")


def test_the_first_line_may_be_cut() -> None:
    """Of the end of a file, the first line is not whole."""
    text = line("03:00:00", EAGAIN.format(path="/x.sock"))
    assert read(text + text, whole=False).logged[0].count == 1


PIECES = st.sampled_from(
    [b"unix:", b"no live upstreams", b"\n", b"2026/11/29 99:00:00 [error] 1#1: ", b"\xff\0",
     b"connect() to unix:/x.sock failed (11: x)", b', upstream: "fastcgi://unix:/x.sock:"']
)  # fmt: skip
TIMES = st.floats(-1e12, 1e12)


@given(st.binary() | st.lists(PIECES).map(b"".join), TIMES, st.none() | TIMES)
def test_any_log_is_read(data: bytes, written_at: float, began_at: float | None) -> None:
    """It never raises."""
    summarize(LOG, data, written_at, began_at, "/x.sock".__eq__, {"php"})
