"""Where a ``udsproxy run`` forwards to, by the words of its command line."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udsproxy.endpoints import Endpoint, Tcp, UnixAbstract, UnixPath
from udsproxy.inspection.upstreams import upstream_of
from udsproxy.kernel.diag_codec import LISTEN, UnixSocket

AT = "/nowhere/listen.sock"
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [AT, f"unix:{AT}", f"{AT},mode=660", "--config", "--config=/dev/zero", "--log", "json", "-v", "\udcff"]
    ),
)


def listening(name: str) -> UnixSocket:
    """A socket of that name."""
    return UnixSocket(inode=1, type=socket.SOCK_STREAM, state=LISTEN, name=os.fsencode(name))


@pytest.mark.parametrize(
    ("words", "upstream"),
    [
        ([AT, "/up.sock"], UnixPath("/up.sock")),
        ([f"unix:{AT},mode=660", "unix:/up.sock"], UnixPath("/up.sock")),
        (["--log", "json", AT, "/up.sock", "-v"], UnixPath("/up.sock")),
        ([AT, "--log", "json", "--slow=1s", "/up.sock"], UnixPath("/up.sock")),
        ([AT, "-vv", "@up"], UnixAbstract("up")),
        ([f"/nowhere/../nowhere/{os.path.basename(AT)}", "tcp:[::1]:9000"], Tcp("::1", 9000)),
        (["/other.sock", "/up.sock"], None),
        ([AT], None),
        (["--config", "/nonexistent"], None),
        (["--config"], None),
        (["--config=/proc/self/status"], None),
        ([], None),
    ],
)
def test_command_lines(words: list[str], upstream: Endpoint | None) -> None:
    """Options may stand before, between and behind; what is no command line of ours says nothing."""
    assert upstream_of(os.getpid(), listening(AT), words) == upstream


def test_an_abstract_name() -> None:
    """It is known by its name alone."""
    assert upstream_of(os.getpid(), listening("\0a b"), ["@a b", "/up.sock"]) == UnixPath("/up.sock")


@settings(deadline=None)
@given(st.lists(WORDS, max_size=6))
def test_any_words(words: list[str]) -> None:
    """Whatever another process writes there, nothing is raised."""
    upstream_of(os.getpid(), listening(AT), words)
