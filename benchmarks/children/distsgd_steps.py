"""Times steps of distsgd inside an ordinary distsgd.fit, by a callback that watches the clock."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from benchmarks.children.protocol import LEAST, WARM_UP, Memory, keep_trainers, report_result, settings
from benchmarks.workloads import synthetic, workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()  # as every command does, before NumPy loads

import distsgd  # noqa: E402
from distsgd.training.callbacks import RunView  # noqa: E402
from distsgd.training.trainer import Trainer  # noqa: E402

WINDOW = 0.5
"""Seconds after a checkpoint's beginning in which its writing is over."""


class Clock(distsgd.Callback):
    """Starts after the warm-up, and asks for the end when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.warm_steps = self.steps = self.examples = 0
        self.result: dict[str, float] = {}
        self.stops: list[float] = []
        self.begun: list[float] = []
        self.heartbeat: list[float] = []

    def on_start(self, run: RunView) -> None:
        self.run = run
        self.began = time.perf_counter()

    def watch_checkpoints(self) -> None:
        """From now on a trainer notes how long it stops for each checkpoint."""
        checkpoint = Trainer.checkpoint

        def timed(trainer: Trainer, final: bool = False) -> bool:
            began = time.perf_counter()
            saved = checkpoint(trainer, final)
            if not (final or self.result):
                self.stops.append(time.perf_counter() - began)
                self.begun.append(began)
            return saved

        Trainer.checkpoint = timed  # type: ignore[method-assign]

    def on_step(self, step: int, loss: float, examples: int) -> None:
        now = time.perf_counter()
        self.heartbeat.append(now)
        if self.result:
            return  # the step in which all ranks hear of the end
        if self.warm_steps < LEAST or (self.steps == 0 and now - self.began < self.seconds * WARM_UP):
            self.warm_steps += 1
            self.clock = now
            return
        self.steps += 1
        self.examples += examples
        took = now - self.clock
        if self.steps >= LEAST and took >= self.seconds:
            self.result = {"examples_per_second": self.examples / took, "steps": self.steps, "seconds": took}
            self.run.stop()

    def lost(self) -> list[float]:
        """Seconds that each checkpoint took from training: fewer steps in the window after it than in that before."""
        steps = median(after - before for before, after in zip(self.heartbeat, self.heartbeat[1:], strict=False))

        def count(start: float) -> int:
            return sum(start < stamp <= start + WINDOW for stamp in self.heartbeat)

        whole = [at for at in self.begun if at - WINDOW > self.heartbeat[0] and at + WINDOW < self.heartbeat[-1]]
        return [(count(at - WINDOW) - count(at)) * steps for at in whole]


def saving() -> dict[str, Any]:
    """Options of a run that leaves checkpoints, where such a run is wanted."""
    if "out" not in wanted:
        return {}
    return {
        "out": wanted["out"],
        "checkpoint_every": wanted.get("checkpoint_every", "1000000000"),
        "keep": 2,
        "on_non_finite": wanted.get("on_non_finite", "stop"),
    }


def main() -> None:
    work = workload(wanted["workload"], wanted["examples"], wanted.get("batch"))
    clock, trainers = Clock(wanted["seconds"]), keep_trainers()
    clock.watch_checkpoints()
    examples = synthetic(work)
    memory = Memory()
    distsgd.fit(
        work.model,
        examples,
        **work.fit_options(),
        device="cpu",
        microbatches=wanted["microbatches"],
        threads=wanted.get("threads"),
        communication=wanted.get("communication", "auto"),
        wire=wanted.get("wire", "float32"),
        validation_fraction=0.0,
        epochs=1_000_000,
        callbacks=[clock],
        **saving(),
    )
    if clock.result:  # rank 0
        step = trainers[0].step
        metadata = {
            "blas": runtime.blas_description(),
            "threads": step.workers.count,
            "reduction": type(step.reduction).__name__,
            "state_bytes": step.reduction.params.nbytes * (1 + len(step.optimizer.slots)),
            "checkpoints": len(clock.stops),
            "stopped_seconds": clock.stops,
            "lost_seconds": clock.lost(),
        }
        report_result({**clock.result, **memory.grown(), "metadata": metadata})


main()
