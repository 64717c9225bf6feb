"""How people write durations and sizes; what a proxy's settings refuse."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udsproxy.config import ProxyConfig
from udsproxy.endpoints import UnixPath
from udsproxy.units import ConfigError, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("5", 5.0),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("1 s", 1),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is a number with a unit; without one it is seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("4096", 4096), ("64KiB", 65536), ("64kib", 65536), ("1MB", 10**6), ("1.5KiB", 1536), ("2g", 2 * 10**9)],
)
def test_sizes(text: str, nbytes: int) -> None:
    """A size is a number with a decimal or binary unit; without one it is bytes."""
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "ms", "-1s", "1.s", "5 parsecs", "1e3", "٣s٣"])
def test_what_is_no_duration_or_size(text: str) -> None:
    """Anything else is an error of one line that shows how to write it."""
    for parse in (parse_duration, parse_size):
        with pytest.raises(ConfigError, match="write") as error:
            parse(text)
        assert "\n" not in str(error.value)


@given(st.text())
def test_parsing_never_fails_otherwise(text: str) -> None:
    """Whatever the text, the answer is a number or a ConfigError."""
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ConfigError):
            assert parse(text) >= 0


def test_settings_that_cannot_be_meant() -> None:
    """A backlog below 0 or past an int, and a timeout of nothing, are refused."""
    here, there = UnixPath("/run/a.sock"), UnixPath("/run/b.sock")
    for backlog in (-1, 2**31):
        with pytest.raises(ConfigError, match="backlog"):
            ProxyConfig(listen=here, upstream=there, name="a", backlog=backlog)
    with pytest.raises(ConfigError, match="timeout"):
        ProxyConfig(listen=here, upstream=there, name="a", connect_timeout_s=0)
    with pytest.raises(ConfigError, match="itself"):
        ProxyConfig(listen=here, upstream=UnixPath("/run/../run/./a.sock", 0o600), name="a")
