"""What observers may keep in memory, for the whole process: one budget, and a ledger of it for each connection.

Rules: who keeps something asks first, and where there is no room does without; traffic asks nobody. A ledger that
is closed has given everything back. Past half of the budget no connection gets more than `FAIR_BYTES`, so that
those who take much do not leave the others blind.
"""

from __future__ import annotations

KEPT_BYTES = 64 * 1024 * 1024
"""What all connections together may keep."""

FAIR_BYTES = 64 * 1024


class Budget:
    """So many bytes, and how many of them are taken."""

    __slots__ = ("held", "limit")

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit = limit
        self.held = 0


class Ledger:
    """What one connection has taken."""

    __slots__ = ("budget", "held")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.held = 0

    def take(self, nbytes: int) -> bool:
        """Ask for so many bytes more; False: there is no room."""
        budget = self.budget
        after = budget.held + nbytes
        if after > budget.limit or (after > budget.limit // 2 and self.held + nbytes > FAIR_BYTES):
            return False
        budget.held = after
        self.held += nbytes
        return True

    def give(self, nbytes: int) -> None:
        """Give so many back."""
        self.budget.held -= nbytes
        self.held -= nbytes

    def close(self) -> None:
        """Give everything back."""
        self.give(self.held)

    def __del__(self) -> None:
        self.close()  # of a connection whose end nobody had the time to look at
