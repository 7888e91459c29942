"""Times steps of distsgd.fit on ranks that have a core each, of which one may use it for half of the time."""

from __future__ import annotations

import os
import re
import time
from contextlib import nullcontext

from benchmarks.children.protocol import keep_trainers, report_result, settings
from benchmarks.half_speed import half_speed
from benchmarks.workloads import synthetic, workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import distsgd  # noqa: E402
from distsgd.training.callbacks import RunView  # noqa: E402


class Clock(distsgd.Callback):
    """Counts examples from `warm_up` seconds after the start on, and asks for the end after `seconds` more."""

    def __init__(self, warm_up: float, seconds: float) -> None:
        self.warm_up, self.seconds = warm_up, seconds
        self.began: float | None = None
        self.examples, self.result = 0, dict[str, float]()
        self.slower: float | None = None

    def on_start(self, run: RunView) -> None:
        self.run, self.started = run, time.perf_counter()

    def on_note(self, text: str) -> bool:
        """Of the first change of shares: how much longer the last rank took than the first for as many microbatches."""
        found = re.search(r"took ([\d.e+]+)(?:, .*)?, ([\d.e+]+) ms", text)
        if found is not None and self.slower is None:
            self.slower = float(found[2]) / float(found[1])
        return False

    def on_step(self, step: int, loss: float, examples: int) -> None:
        now = time.perf_counter()
        if self.began is None:
            self.began = now if now - self.started >= self.warm_up else None
        elif not self.result:
            self.examples += examples
            if now - self.began >= self.seconds:
                self.result = {"examples_per_second": self.examples / (now - self.began)}
                self.run.stop()


def main() -> None:
    work = workload(wanted["workload"], wanted["examples"], wanted.get("batch"))
    clock, trainers = Clock(wanted["warm_up"], wanted["seconds"]), keep_trainers()
    rank, cores = distsgd.rank(), sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    with half_speed() if rank == wanted["slow"] else nullcontext():
        distsgd.fit(
            work.model,
            synthetic(work),
            **work.fit_options(),
            device="cpu",
            microbatches=wanted["microbatches"],
            threads=1,
            shares=wanted["shares"],
            validation_fraction=0.0,
            epochs=1_000_000,
            callbacks=[clock],
        )
    if clock.result:
        partition = trainers[0].step.reduction.partition
        first, last = partition.microbatches_of(partition.ranks - 1)
        metadata = {"reduction": type(trainers[0].step.reduction).__name__}
        ended = {"microbatches_of_last_rank": last - first, "last_rank_slower": clock.slower or 1.0}
        report_result({**clock.result, **ended, "metadata": metadata})


main()
