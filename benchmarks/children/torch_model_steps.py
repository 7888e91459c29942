"""Times steps of a PyTorch module inside an ordinary distsgd.fit, by a callback that watches the clock."""

from __future__ import annotations

import time

from benchmarks.children.protocol import LEAST, WARM_UP, Memory, report_result, settings
from benchmarks.workloads import synthetic, workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()  # as every command does, before NumPy loads

import torch  # noqa: E402

import distsgd  # noqa: E402
from benchmarks.children.torch_parts import network  # noqa: E402
from distsgd.integrations.torch import TorchModel  # noqa: E402
from distsgd.training.callbacks import RunView  # noqa: E402


class Clock(distsgd.Callback):
    """Starts after the warm-up, and asks for the end when its time is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.warm_steps = self.steps = self.examples = 0
        self.result: dict[str, float] = {}

    def on_start(self, run: RunView) -> None:
        self.run = run
        self.began = time.perf_counter()

    def on_step(self, step: int, loss: float, examples: int) -> None:
        now = time.perf_counter()
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


def main() -> None:
    work = workload(wanted["workload"], wanted["examples"])
    clock = Clock(wanted["seconds"])
    x, y = synthetic(work)
    memory = Memory()
    torch.manual_seed(0)
    model = TorchModel(network(work, wanted.get("channels_last", False)), torch.nn.functional.cross_entropy)
    distsgd.fit(
        model,
        (x, y),
        optimizer=work.optimizer,
        learning_rate=work.learning_rate,
        batch_size=work.batch,
        microbatches=wanted["microbatches"],
        validation_fraction=0.0,
        epochs=1_000_000,
        callbacks=[clock],
    )
    if clock.result:  # rank 0
        report_result({**clock.result, **memory.grown(), "metadata": {"torch": torch.__version__}})


main()
