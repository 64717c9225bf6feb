"""How long requests took, script by script, for the summary at the end of a run.

Rules:

* Memory is bounded, whatever names clients ask for: `MAX_SCRIPTS` are counted for themselves. When there are more,
  the half of them that took the least time in all joins the others, so that what matters stays. A script that
  begins afterwards may have been among the others before: its `partial` says so.
* To count a request costs less than a microsecond.
"""

from __future__ import annotations

from udsproxy.events import Request, ScriptTimes
from udsproxy.protocols.quantiles import Quantiles

MAX_SCRIPTS = 256
SHOWN = 10
"""Scripts of the summary; the others are one entry."""
_MAX_NAME = 200
_UNKNOWN = "?"

_Name = tuple[str, str]
"""Proxy and script."""


class _Times:
    """Of the requests of one script, or of the others."""

    __slots__ = ("errors", "partial", "queue", "sum_s", "total")

    def __init__(self, *, partial: bool) -> None:
        self.sum_s = 0.0
        self.total = Quantiles()
        self.queue = Quantiles()
        self.errors = 0
        self.partial = partial

    def merge(self, other: _Times) -> None:
        self.sum_s += other.sum_s
        self.total.merge(other.total)
        self.queue.merge(other.queue)
        self.errors += other.errors


class ByScript:
    """The scripts of all proxies of a process."""

    def __init__(self, *, several: bool) -> None:
        """``several``: there are several proxies, and each script is told with its own."""
        self._several = several
        self._scripts: dict[_Name, _Times] = {}
        self._others = _Times(partial=False)
        self._is_full = False

    def add(self, event: Request) -> None:
        """Count a request."""
        script = event.script or _UNKNOWN
        name = (event.proxy, script if len(script) <= _MAX_NAME else script[:_MAX_NAME])
        try:
            times = self._scripts[name]
        except KeyError:
            times = self._begin(name)
        total_s, wait_s, status = event.total_s, event.accept_wait_s, event.status
        times.sum_s += total_s
        times.total.add(total_s)
        if wait_s is not None:
            times.queue.add(min(wait_s, total_s))  # (it is known to within some time)
        if event.incomplete or (status and status >= 500) or event.protocol_status not in _FINE:
            times.errors += 1

    def _begin(self, name: _Name) -> _Times:
        if len(self._scripts) >= MAX_SCRIPTS:
            self._is_full = True
            for small in self._ranked()[MAX_SCRIPTS // 2 :]:
                self._others.merge(self._scripts.pop(small))
        times = self._scripts[name] = _Times(partial=self._is_full)
        return times

    def _ranked(self) -> list[_Name]:
        """Those that took most time in all come first."""
        return sorted(self._scripts, key=lambda name: self._scripts[name].sum_s, reverse=True)

    def told(self) -> tuple[tuple[ScriptTimes, ...] | None, ScriptTimes | None]:
        """The first scripts, and all others together; None: there are none."""
        ranked = self._ranked()
        others = _Times(partial=False)
        others.merge(self._others)
        for name in ranked[SHOWN:]:
            others.merge(self._scripts[name])
        first = tuple(
            _told(self._scripts[proxy, script], proxy if self._several else None, script)
            for proxy, script in ranked[:SHOWN]
        )
        return first or None, _told(others, None, None) if others.total.count else None


_FINE = (None, "REQUEST_COMPLETE")
_SHARES = (0.5, 0.95, 0.99)


def _rounded(seconds: float | None) -> float | None:
    """To microseconds."""
    return None if seconds is None else round(seconds, 6)


def _told(times: _Times, proxy: str | None, script: str | None) -> ScriptTimes:
    p50, p95, p99 = (_rounded(times.total.at(share)) or 0.0 for share in _SHARES)
    q50, q95, q99 = (_rounded(times.queue.at(share)) for share in _SHARES)
    return ScriptTimes(
        script=script,
        proxy=proxy,
        count=times.total.count,
        errors=times.errors,
        total_sum_s=times.sum_s,
        total_p50_s=p50,
        total_p95_s=p95,
        total_p99_s=p99,
        total_max_s=round(times.total.longest, 6),
        queue_p50_s=q50,
        queue_p95_s=q95,
        queue_p99_s=q99,
        partial=times.partial or None,
    )
