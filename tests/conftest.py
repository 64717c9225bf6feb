"""What holds for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

# Whoever runs the tests in the background of a shell without job control, or by nohup, has them ignore these, and
# every process that they start too.
for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, action)


@pytest.fixture(autouse=True)
def no_signal_stays_blocked() -> Iterator[None]:
    """A test that leaves signals blocked would have every process that later tests start live for ever."""
    yield
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
