"""Times steps of distsgd on a device inside an ordinary distsgd.fit, and waits for the device at both ends."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.children.protocol import LEAST, WARM_UP, keep_trainers, report_result, settings
from benchmarks.workloads import gpu_workload, synthetic
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()

import distsgd  # noqa: E402
from distsgd.core.device import Device  # noqa: E402
from distsgd.training.callbacks import RunView  # noqa: E402


class Clock(distsgd.Callback):
    """Starts after the warm-up, and asks for the end when its time is over.

    How a step ended may be reported later than requested; so the clock starts and stops where the device has done
    all that was asked, and counts the steps that were asked for between.
    """

    def __init__(self, seconds: float) -> None:
        self.trainers = keep_trainers()
        self.seconds, self.steps, self.first = seconds, 0, 0
        self.clock: float | None = None
        self.result: dict[str, float] = {}

    def on_start(self, run: RunView) -> None:
        self.run, self.device = run, self.trainers[-1].step.device
        self.began = time.perf_counter()

    def on_step(self, step: int, loss: float, examples: int) -> None:
        self.steps += 1
        now = time.perf_counter()
        if self.result:
            return
        if self.clock is None:
            if self.steps >= 2 * LEAST and now - self.began >= self.seconds * WARM_UP:
                self.clock, self.first = self._asked()
            return
        if now - self.clock >= self.seconds:
            end, last = self._asked()
            if last - self.first >= LEAST:
                took, steps = end - self.clock, last - self.first
                self.result = {"steps": steps, "seconds": took, "examples_per_second": steps * examples / took}
                self.run.stop()

    def _asked(self) -> tuple[float, int]:
        """(now that the device is ready, steps asked for so far)."""
        steps = self.run.steps_done
        self.device.synchronize()
        return time.perf_counter(), steps


def metadata(device: Device) -> dict[str, Any]:
    """What the result depends on, besides the machine."""
    if device.host_memory:
        return {"device": str(device)}
    pool = device.xp.get_default_memory_pool()
    reported = {"device": str(device), "cupy": device.xp.__version__, "pool_bytes": pool.total_bytes()}
    return {**reported, "cuda": device.xp.cuda.runtime.runtimeGetVersion()}


def main() -> None:
    work = gpu_workload(wanted["workload"], wanted["examples"], wanted["quick"], wanted["device"])
    clock = Clock(wanted["seconds"])
    distsgd.fit(
        work.model,
        synthetic(work),
        **work.fit_options(),
        device=wanted["device"],
        microbatches=wanted["microbatches"],
        threads=1,
        validation_fraction=0.0,
        epochs=1_000_000,
        callbacks=[clock],
    )
    report_result({**clock.result, "metadata": metadata(clock.device)})


main()
