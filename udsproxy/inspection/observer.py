"""The observer: a process of its own that looks at this machine for a proxy, so that traffic waits for no look.

It is asked on standard input and answers on standard output, a line each (`udsproxy.inspection.workers`), and ends
when standard input does: with the proxy, however that ends.

Rules: it is less urgent than everything else (nice). It looks at all processes no more often than costs a twentieth
of the time; at the workers that it knows each time. Counting ends when nobody asks any more, also where who asked
stands still.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from time import monotonic

import msgspec

from udsproxy.inspection.doing import Doer
from udsproxy.inspection.machine import Machine
from udsproxy.inspection.refused import Refusers
from udsproxy.inspection.workers import Ask, Sample, take_sample
from udsproxy.kernel import namespaces, own_processes, procfs

_NICE = 5
_SHARE = 20
"""The time between two looks at all processes, in times of what the last one took."""
_MOST_LISTENERS = 1000
_AGAIN_S = 0.5
"""But no less."""
_ASKED_S = 10.0
"""So long it counts without being asked."""
_ROUND_S = 0.001
"""Between two looks at who was refused."""
_STDIN, _STDOUT = 0, 1
_READ = 64 * 1024


class Looker:
    """Answers."""

    def __init__(self, refusers: Refusers | None = None) -> None:
        self._doer = Doer()
        self._holders: dict[int, list[tuple[int, int]]] = {}
        self._spaces = namespaces.Namespaces(())
        self._whole_at = -1e9
        self._took = 0.0
        self.refusers = refusers or Refusers()
        self._workers: dict[int, set[int]] = {}
        """Of each listener that was asked for."""

    def answer(self, ask: Ask, now: float) -> Sample:
        with contextlib.ExitStack() as stack:
            made: list[Machine] = []

            def machine() -> Machine:
                """Of this moment; made when it is first needed."""
                if not made:
                    made.append(Machine(spaces=self._spaces))
                    stack.callback(made[0].close)
                return made[0]

            # First: a caller's memory still has the address that it called.
            refused = self.refusers.told(ask, machine)
            sample = Sample(number=ask.number)
            if ask.listener:
                holders = self._look(ask.listener, now)
                machine().holders = holders
                sample = take_sample(ask, machine(), self._doer, now)
                if len(self._workers) > _MOST_LISTENERS:
                    self._workers.clear()
                self._workers[ask.listener] = {worker.pid for worker in sample.workers}
                self._doer.forget(set[int]().union(*self._workers.values()))
        return msgspec.structs.replace(sample, refused=refused, why_not=self.refusers.why_not)

    def _look(self, listener: int, now: float) -> dict[int, list[tuple[int, int]]]:
        if now - self._whole_at > max(_AGAIN_S, _SHARE * self._took):
            self._holders, _ = procfs.holders()
            self._spaces = namespaces.look()
            self._whole_at, self._took = now, monotonic() - now
            return self._holders
        known = {pid for pid, _ in self._holders.get(listener, ())}
        fresh, _ = procfs.holders(sorted(known))
        others = {
            inode: kept
            for inode, held in self._holders.items()
            if (kept := [(pid, number) for pid, number in held if pid not in known])
        }
        for inode, held in fresh.items():
            others[inode] = others.get(inode, []) + held
        self._holders = others
        return others


def main() -> None:
    """Answer until there is nobody to ask. Arguments: since when our parent has counted refusals (ns), and the
    descriptors that it counts with; or none."""
    # Who runs us has the signals of a terminal, and ends us by closing our standard input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    own_processes.end_first()
    own_processes.forbid_dumps()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    since, *inherited = (int(each) for each in sys.argv[1:] or ("0",))
    looker = Looker(Refusers(inherited, since))
    try:
        for line in _lines(looker):
            answer = msgspec.json.encode(looker.answer(msgspec.json.decode(line, type=Ask), monotonic())) + b"\n"
            while answer:
                answer = answer[os.write(_STDOUT, answer) :]
    except BrokenPipeError:
        pass
    finally:
        looker.refusers.close()


def _lines(looker: Looker) -> Iterator[bytes]:
    """What comes on standard input, to its end. Meanwhile refusals are read as they come, in rounds; where nobody
    asks for long they are counted no longer."""
    rest, refusers, asked_at = b"", looker.refusers, monotonic()
    while True:
        # (Not a short timeout where nothing is counted: an idle observer sleeps.)
        readable = select.select([_STDIN, *refusers.descriptors], [], [], _ASKED_S)[0]
        if _STDIN not in readable:
            if monotonic() - asked_at > _ASKED_S:
                refusers.rest()
            elif readable:
                refusers.read()
                # Who is refused again and again has to pay for one wake-up a round, not for each.
                select.select([_STDIN], [], [], _ROUND_S)
            continue
        data = os.read(_STDIN, _READ)
        if not data:
            return
        asked_at = monotonic()
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


if __name__ == "__main__":
    main()
