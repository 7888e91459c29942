"""Times the four parts of a step inside ordinary distsgd.fit runs, several runs one after the other in one job.

All ranks note when they enter and leave the reduction's two halves; a part lasts from the last rank's end of the part
before to its own last rank's end, so that the parts add up to the step and contain the wait for the slowest rank.
Messages don't travel while ranks compute here: then there would be no parts.
"""

from __future__ import annotations

import gc
import time
from typing import Any

from benchmarks.children.protocol import LEAST, WARM_UP, report_result, settings
from benchmarks.workloads import synthetic, workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import numpy as np  # noqa: E402

import distsgd  # noqa: E402
from distsgd.parallel import Communicator, sections, start  # noqa: E402
from distsgd.parallel.message_reduction import MessageReduction  # noqa: E402
from distsgd.parallel.reduction import LocalReduction  # noqa: E402
from distsgd.parallel.shared_reduction import SharedReduction  # noqa: E402
from distsgd.training.callbacks import RunView  # noqa: E402

PARTS = ("compute", "gather", "update", "all_gather")
sections.LEAST = 1 << 62
noted: list[float] = []
"""The ends of this rank's parts, in turn."""


def watch(kind: type) -> None:
    """From now on this kind of reduction notes the time around its two halves."""
    gather, all_gather = kind.reduce_scatter, kind.all_gather  # type: ignore[attr-defined]

    def noting_gather(self: Any, bounds: tuple[int, ...]) -> Any:
        noted.append(time.perf_counter())
        result = gather(self, bounds)
        noted.append(time.perf_counter())
        return result

    def noting_all_gather(self: Any) -> None:
        noted.append(time.perf_counter())
        all_gather(self)
        noted.append(time.perf_counter())

    kind.reduce_scatter, kind.all_gather = noting_gather, noting_all_gather  # type: ignore[attr-defined]


class Clock(distsgd.Callback):
    """Asks for the end when there are enough steps."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps = seconds, 0

    def on_start(self, run: RunView) -> None:
        self.run, self.began = run, time.perf_counter()

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self.steps += 1
        if self.steps >= 2 * LEAST and time.perf_counter() - self.began >= self.seconds:
            self.run.stop()


def parts(communicator: Communicator) -> dict[str, float] | None:
    """Median seconds of each part, and of the step, over the steps after the warm-up; on rank 0."""
    everybody = communicator.gather_object(np.array(noted).reshape(-1, len(PARTS)))
    if everybody is None:
        return None
    ends = np.max(everybody, axis=0)
    dropped = max(LEAST, int(WARM_UP * len(ends)))
    lengths = np.diff(ends.ravel()[len(PARTS) * dropped - 1 :]).reshape(-1, len(PARTS))
    result = {part: float(np.median(column)) for part, column in zip(PARTS, lengths.T, strict=True)}
    return {**result, "step": float(np.median(lengths.sum(axis=1)))}


def main() -> None:
    communicator = start()
    for kind in (LocalReduction, MessageReduction, SharedReduction):
        watch(kind)
    x, y = synthetic(workload(wanted["runs"][0]["workload"], wanted["examples"]))
    found = {}
    for run in wanted["runs"]:
        work = workload(run["workload"], len(x), run["batch"])
        noted.clear()
        distsgd.fit(
            "mlp",
            (x[: work.examples], y[: work.examples]),
            **work.fit_options(),
            communicator=communicator,
            microbatches=run["microbatches"],
            threads=1,
            communication=run["communication"],
            validation_fraction=0.0,
            epochs=1_000_000,
            callbacks=[Clock(wanted["seconds"])],
        )
        result = parts(communicator)
        if result is not None:
            found.update({f"{run['name']}: {part}": seconds for part, seconds in result.items()})
        gc.collect()  # before the next run takes as much
    if found:
        report_result(found)


main()
