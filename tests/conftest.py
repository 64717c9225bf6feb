"""What holds for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

# Whoever runs the tests in the background of a shell without job control has them ignore Ctrl-C, and every process
# that they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_signal_stays_blocked() -> Iterator[None]:
    """A test that leaves signals blocked would have every process that later tests start live for ever."""
    yield
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
