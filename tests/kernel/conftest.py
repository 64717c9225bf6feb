"""Questions to the kernel, as the tests of this room ask them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from udsproxy.kernel.sock_diag import SockDiag


@pytest.fixture
def diag() -> Iterator[SockDiag]:
    with SockDiag() as made:
        yield made
