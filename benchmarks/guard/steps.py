"""Times steps of `distsgd.fit` beside a fixed loop of NumPy, in turns of some milliseconds inside one process.

What slows the machine down for a while slows both down, so that the ratio of the two stays. The time is that of this
process on a core: other processes take none of it, but waiting isn't seen either; one rank with
one thread waits for no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.children.protocol import report_result, settings
from benchmarks.guard import adapter
from benchmarks.workloads import Workload, synthetic, workload

wanted = settings()
adapter.prepare()  # as every command does, before NumPy loads

import numpy as np  # noqa: E402

import distsgd  # noqa: E402

MICROBATCHES = 4
EXAMPLES = 12_800
TURN = 0.02
"""Seconds that steps, and then the loop, take before the other one has its turn."""
WARM_UP = 0.5
"""Seconds of steps before the first turn."""

Product = tuple[int, int, int]
CONV: tuple[Product, ...] = (
    (20, 25, 24 * 24 * 16), (20, 24 * 24 * 16, 25),
    (40, 500, 8 * 8 * 16), (40, 8 * 8 * 16, 500), (500, 40, 8 * 8 * 16),
    (100, 640, 16), (100, 16, 640), (640, 100, 16),
    (10, 100, 16), (10, 16, 100), (100, 10, 16),
)  # fmt: skip
"""(m, k, n) of products like those of a microbatch of 16 images in the workload `conv`."""
CONV_PARAMETERS = 85_670


def reference(work: Workload) -> Callable[[], None]:
    """One turn of the loop: for each microbatch rows are copied and multiplied, then all parameters change.

    It belongs to the recordings: a change of it needs new recordings.
    """
    rng = np.random.default_rng(0)
    n = work.batch // MICROBATCHES
    products = CONV if work.image else tuple((m, k, n) for _, m, k, n in work.gemms(n))
    size = CONV_PARAMETERS if work.image else work.parameters
    operands = [
        (rng.random((m, k), np.float32), rng.random((k, n), np.float32), np.empty((m, n), np.float32))
        for m, k, n in products
    ]
    examples = rng.random((EXAMPLES, work.sizes[0]), np.float32)
    rows = rng.integers(0, EXAMPLES, (MICROBATCHES, n))
    gathered = np.empty((n, work.sizes[0]), np.float32)
    w, v, g, scratch = (rng.random(size, np.float32) for _ in range(4))

    def once() -> None:
        for indices in rows:
            np.take(examples, indices, axis=0, out=gathered)
            for a, b, out in operands:
                np.matmul(a, b, out=out)
                np.maximum(out, 0.0, out=out)
        np.multiply(v, 0.5, out=v)
        np.add(v, g, out=v)
        np.multiply(v, 1e-6, out=scratch)
        np.subtract(w, scratch, out=w)

    return once


class Turns(distsgd.Callback):
    """Lets the loop run after every few steps; `pairs` are seconds of a step and of the loop's turns beside it."""

    def __init__(self, once: Callable[[], None], seconds: float) -> None:
        self.once, self.seconds = once, seconds
        self.pairs: list[tuple[float, float]] = []
        self.steps = self.count = 0
        self.per_turn = self.loops = 0
        self.beside = 0.0

    def on_start(self, run: Any) -> None:
        self.run = run
        self.first = self.began = time.process_time()

    def on_step(self, step: int, loss: float, examples: int) -> None:
        now = time.process_time()
        self.count += 1
        if not self.per_turn:
            if now - self.first >= WARM_UP:
                self._choose_turns((now - self.first) / self.count)
                self._start()
        elif self.count == self.per_turn:
            before, self.beside = self.beside, self._loop()
            self.pairs.append(((now - self.began) / self.count, (before + self.beside) / 2))
            self._start()
        if now - self.first > self.seconds:
            self.run.stop()

    def _choose_turns(self, step: float) -> None:
        self.per_turn = max(1, round(TURN / step))
        self.loops = 3
        self._loop()
        self.loops = max(1, round(TURN / self._loop()))
        self.beside = self._loop()

    def _start(self) -> None:
        self.count, self.began = 0, time.process_time()

    def _loop(self) -> float:
        """Seconds of one turn of the loop, of several."""
        began = time.process_time()
        for _ in range(self.loops):
            self.once()
        return (time.process_time() - began) / self.loops


def main() -> None:
    work = workload(wanted["workload"], EXAMPLES)
    turns = Turns(reference(work), wanted["seconds"])
    options = {**work.fit_options(), "device": "cpu", "microbatches": MICROBATCHES, "threads": 1, "check_replicas": 0}
    options |= {"validation_fraction": 0.0, "epochs": 1_000_000}
    distsgd.fit(work.model, synthetic(work), **adapter.options(options), callbacks=[turns])
    report_result({
        "ratio": median(step / loop for step, loop in turns.pairs),
        "step_microseconds": median(step for step, _ in turns.pairs) * 1e6,
        "pairs": len(turns.pairs),
    })  # fmt: skip


main()
