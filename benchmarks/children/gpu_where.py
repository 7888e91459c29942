"""Times the parts of a step on a device: gather, forward, backward, reduction, update.

On a GPU events on its stream are read when all steps are over, so that nothing waits between parts; a part then holds
the time in which the GPU had nothing to do as well. On the CPU the clock is read, and microbatches are computed one
after the other, as on a GPU.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from benchmarks.children.protocol import LEAST, keep_trainers, report_result, settings
from benchmarks.workloads import gpu_workload, synthetic
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import distsgd  # noqa: E402
from distsgd.core.device import Device  # noqa: E402
from distsgd.data.loader import Loader  # noqa: E402
from distsgd.nn.objective import Supervised  # noqa: E402
from distsgd.parallel.reduction import LocalReduction  # noqa: E402
from distsgd.training import gradients  # noqa: E402
from distsgd.training.callbacks import RunView  # noqa: E402
from distsgd.training.update import ShardedUpdate  # noqa: E402

PARTS = ("gather", "forward", "backward", "reduction", "update")
STEPS = 40


class Marks:
    """Moments of a device, each with the name of the part that ends there; "" begins a step."""

    def __init__(self) -> None:
        self.device: Device | None = None
        self.marks: list[tuple[str, Any]] = []

    def end(self, part: str) -> None:
        if self.device is None:
            return
        if self.device.host_memory:
            self.marks.append((part, time.perf_counter()))
            return
        event = self.device.xp.cuda.Event()
        event.record()
        self.marks.append((part, event))

    def steps(self) -> list[dict[str, float]]:
        """Seconds of each part by step; what lies between marks belongs to the part that ends."""
        assert self.device is not None
        self.device.synchronize()
        found: list[dict[str, float]] = []
        for (_, before), (part, moment) in zip(self.marks, self.marks[1:], strict=False):
            if part == "":
                continue
            if part == PARTS[0]:
                found.append(dict.fromkeys(PARTS, 0.0))
            if found:
                found[-1][part] += self._between(before, moment)
        return found

    def _between(self, before: Any, moment: Any) -> float:
        assert self.device is not None
        if self.device.host_memory:
            return float(moment - before)
        return float(self.device.xp.cuda.get_elapsed_time(before, moment)) / 1e3


def watch(marks: Marks) -> None:
    """From now on the parts of a step leave marks where they end."""

    def wrapped(owner: Any, name: str, part: str, first: bool = False) -> None:
        inside = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if first:
                marks.end("")
            result = inside(*args, **kwargs)
            marks.end(part)
            return result

        setattr(owner, name, call)

    def loss_and_grad(self: Supervised, params: Any, grads: Any, batch: Any) -> Any:
        marks.end("gather")
        outputs, backward = self.model.forward_on_data(params, batch.x, batch, "")
        loss_sum, d_outputs = self.loss.loss_and_grad(outputs, batch.y, batch.weights)
        marks.end("forward")
        backward(d_outputs, grads)
        marks.end("backward")
        return loss_sum, len(batch)

    Supervised.loss_and_grad = loss_and_grad  # type: ignore[method-assign]
    gradients.stacks_of = lambda *_: None  # a stack, which only the CPU has, calls no method of the objective
    wrapped(Loader, "gather", "gather", first=True)
    wrapped(LocalReduction, "reduce_scatter", "reduction")
    wrapped(ShardedUpdate, "run", "update")


class Count(distsgd.Callback):
    """Begins to mark after the warm-up, and ends the run."""

    def __init__(self, marks: Marks) -> None:
        self.marks, self.steps, self.trainers = marks, 0, keep_trainers()

    def on_start(self, run: RunView) -> None:
        self.run = run

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self.steps += 1
        if self.steps == 2 * LEAST:
            self.marks.device = self.trainers[-1].step.device
        if self.steps == 2 * LEAST + STEPS:
            self.run.stop()


def main() -> None:
    work = gpu_workload(wanted["workload"], wanted["examples"], wanted["quick"], wanted["device"])
    marks = Marks()
    watch(marks)
    distsgd.fit(
        work.model,
        synthetic(work),
        **work.fit_options(),
        device=wanted["device"],
        cuda_graphs=False,  # a graph has no parts to mark
        microbatches=1,
        threads=1,
        validation_fraction=0.0,
        epochs=1_000_000,
        callbacks=[Count(marks)],
    )
    assert marks.device is not None
    steps = marks.steps()[1:-1]
    result = {part: median(step[part] for step in steps) for part in PARTS}
    report_result(
        {**result, "step": median(sum(step.values()) for step in steps), "metadata": {"device": str(marks.device)}}
    )


main()
