"""``python -m tests.bench``: measure udsproxy and other proxies between client and server, in turn.

Rules: one run is N rounds; in each round every contender does every workload once, in an order shuffled anew
for each round. Between measurements, and outside their time, record files are checked and emptied. Exit
status: 0 measured (whatever the figures say), 1 failed, 2 a program is missing or an option is wrong.
"""

import argparse
import json
import os
import random
import sys
import time
from dataclasses import asdict, replace

from tests.bench import report
from tests.bench.command import main_guard
from tests.bench.contenders import CONTENDERS, Contender, record_path, start_contender
from tests.bench.layout import OTHERS, Layout, free_port, require
from tests.bench.servers import SERVER_PROGRAMS, start_servers
from tests.bench.workloads import WORKLOADS, Sample, Workload
from tests.stage import Stage, StageError

# Lets a contender end its work and write out what it holds, so that this burdens no other one's measurement.
PAUSE_SECONDS = 0.2


class Run:
    """One run: the chosen contenders and workloads, the rate last seen of each pair, and the samples."""

    def __init__(self, layout: Layout, contenders: list[Contender], workloads: list[Workload]) -> None:
        self.layout = layout
        self.contenders = contenders
        self.workloads = workloads
        self.results: report.Results = {
            workload.name: {contender.name: [] for contender in contenders} for workload in workloads
        }
        self._rates = {
            (workload.name, contender.name): workload.first_rate for workload, contender in self._pairs()
        }

    def warm_up(self) -> None:
        """Measure everything briefly, for the rates alone."""
        for workload, contender in self._pairs():
            for seconds in workload.warmup_seconds:
                self._measure(workload, contender, seconds)

    def round(self, number: int, seconds: float) -> None:
        """Measure every contender once in every workload."""
        for workload in self.workloads:
            for contender in random.Random(number).sample(self.contenders, len(self.contenders)):
                sample = self._measure(workload, contender, seconds)
                self.results[workload.name][contender.name].append(sample)

    def _pairs(self) -> list[tuple[Workload, Contender]]:
        return [(workload, contender) for workload in self.workloads for contender in self.contenders]

    def _measure(self, workload: Workload, contender: Contender, seconds: float) -> Sample:
        key = workload.name, contender.name
        sample = workload.measure(self.layout, contender.name, seconds, self._rates[key])
        self._rates[key] = sample.rate
        time.sleep(PAUSE_SECONDS)
        self.layout.stage.check_alive()
        if not contender.records:
            return sample
        record = record_path(self.layout, contender.name, workload.service)
        _await_written(record)
        unrecorded = contender.unrecorded(record)
        os.truncate(record, 0)
        return replace(sample, unrecorded=unrecorded)


def _await_written(record: str) -> None:
    """Return when the file stops growing."""
    size = -1
    while size != (size := os.path.getsize(record)):
        time.sleep(PAUSE_SECONDS)
    # A contender that was asked to write and did not would be measured at less than its work.
    if size == 0:
        raise StageError(f"nothing was written to {record}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", description="Measure udsproxy and others.")
    names = [contender.name for contender in CONTENDERS]
    workloads = [workload.name for workload in WORKLOADS]
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="default: 5")
    parser.add_argument("--seconds", type=_positive, default=2, metavar="S", help="of each, default: 2")
    _add_choice(parser, "--only", names)
    _add_choice(parser, "--workload", workloads)
    parser.add_argument("--json", metavar="FILE", help="also write the raw figures to FILE")
    return parser.parse_args()


def _add_choice(parser: argparse.ArgumentParser, option: str, names: list[str]) -> None:
    text = f"some of: {', '.join(names)}"
    parser.add_argument(option, nargs="+", choices=names, default=names, metavar="NAME", help=text)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _programs(contenders: list[Contender], workloads: list[Workload]) -> list[str]:
    """The programs needed, each once, in the order of first need."""
    needed = [program for workload in workloads for program in SERVER_PROGRAMS[workload.service]]
    needed += [program for contender in contenders for program in contender.programs]
    return list(dict.fromkeys(needed))


def main() -> None:
    """Run the benchmark and print its report."""
    options = _arguments()
    contenders = [contender for contender in CONTENDERS if contender.name in options.only]
    workloads = [workload for workload in WORKLOADS if workload.name in options.workload]
    programs = _programs(contenders, workloads)
    require(programs)
    machine = report.machine([program for program in programs if program not in OTHERS])
    print(machine, f"{options.rounds} rounds of {options.seconds} s", sep="\n", flush=True)
    with Stage() as stage:
        services = tuple(dict.fromkeys(workload.service for workload in workloads))
        run = Run(Layout(stage, services, free_port()), contenders, workloads)
        _perform(run, options.rounds, options.seconds)
    for workload in workloads:
        print(f"\n{report.table(workload, run.results[workload.name])}")
    print(f"\n{report.targets(run.results)}")
    if options.json:
        _write_json(options.json, machine, options.seconds, run.results)


def _perform(run: Run, rounds: int, seconds: int) -> None:
    start_servers(run.layout, [contender.name for contender in run.contenders])
    for contender in run.contenders:
        start_contender(run.layout, contender)
    _progress("warming up")
    run.warm_up()
    for number in range(1, rounds + 1):
        _progress(f"round {number} of {rounds}")
        run.round(number, seconds)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_json(path: str, machine: str, seconds: int, results: report.Results) -> None:
    samples = [
        {"workload": workload, "contender": contender, "round": number, **asdict(sample)}
        for workload, of in results.items()
        for contender, taken in of.items()
        for number, sample in enumerate(taken, 1)
    ]
    units = {workload.name: workload.unit for workload in WORKLOADS if workload.name in results}
    with open(path, "w", encoding="utf-8") as file:
        raw = {"machine": machine, "seconds": seconds, "units": units, "samples": samples}
        json.dump(raw, file, indent=1)


if __name__ == "__main__":
    main_guard(main)
