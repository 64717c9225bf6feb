"""What php-fpm's log repeats: a text that a script wrote stands in nginx's log, with its request, and (with
catch_workers_output) in php-fpm's.

Rules: sans I/O, and bounded. Of nginx's record and php-fpm's line of the same text and time, nginx's is kept.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from datetime import datetime, timedelta

from udsproxy.explain.lines import Found
from udsproxy.explain.summary import Stamped

MAX_KEPT = 1000
_SAME_TIME = timedelta(seconds=2)
"""Both write whole seconds, and one may be late."""


class Doubles:
    """Takes them out, of what comes batch by batch."""

    def __init__(self) -> None:
        self._texts: deque[tuple[datetime | None, str]] = deque(maxlen=MAX_KEPT)
        """Of nginx's records, those that php-fpm's log has not repeated yet."""
        self._held: list[Stamped] = []

    def without(self, stamped: Iterable[Stamped], *, last: bool = True) -> list[Stamped]:
        """All but php-fpm's repetitions. Where the batch is not the ``last`` one, a line of php-fpm waits for the
        next, as nginx's record may be late."""
        batch = list(stamped)
        times: dict[str, deque[datetime | None]] = defaultdict(deque)
        for at, text in self._texts:
            times[text].append(at)
        for at, found in batch:
            if found.program == "nginx":
                for text in found.texts:
                    times[text].append(at)
        kept, self._held = self._held, []
        kept = [each for each in kept if not _is_repeated(each, times)]
        for each in batch:
            if _is_repeated(each, times):
                continue
            if not last and _is_repetition(each[1]):
                self._held.append(each)
            else:
                kept.append(each)
        self._texts.clear()
        self._texts.extend((at, text) for text, each in times.items() for at in each)
        return kept


def _is_repetition(found: Found) -> bool:
    """Whether it could be one."""
    return found.program.startswith("php-fpm") and bool(found.texts)


def _is_repeated(stamped: Stamped, times: dict[str, deque[datetime | None]]) -> bool:
    at, found = stamped
    if not _is_repetition(found):
        return False
    of_nginx = times.get(found.texts[0], deque())
    while of_nginx:
        other = of_nginx[0]
        if at is None or other is None or abs(at - other) <= _SAME_TIME:
            of_nginx.popleft()
            return True
        if other > at:
            break
        of_nginx.popleft()
    return False
