"""Times steps of JAX on one core of each process: as a JaxModel in distsgd, alone, or with one Allreduce a step.

distsgd    distsgd.fit of a JaxModel, with the clock of a callback
jit        one jitted step with donated buffers, no other process
allreduce  a jitted gradient raveled into one array, mpi4py's Allreduce of it, and a jitted update
"""

from __future__ import annotations

import os
import time
from itertools import pairwise
from typing import Any

from benchmarks.children.protocol import LEAST, WARM_UP, report_result, settings, timed_steps
from benchmarks.workloads import synthetic, workload

wanted = settings()
os.environ["NPROC"] = "1"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

WORK = workload(wanted["workload"], wanted["examples"])


def initial_values() -> list[Any]:
    rng, sizes = np.random.default_rng(1), WORK.sizes
    return [
        {"w": (rng.standard_normal((a, b)) * np.sqrt(2 / a)).astype(np.float32), "b": np.zeros(b, np.float32)}
        for a, b in pairwise(sizes)
    ]


def apply(params: Any, x: Any) -> Any:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def mean_loss(params: Any, x: Any, y: Any) -> Any:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(apply(params, x)), y[:, None], axis=1))


def updated(params: Any, velocity: Any, grads: Any) -> tuple[Any, Any]:
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
    return jax.tree.map(lambda w, v: w - WORK.learning_rate * v, params, velocity), velocity


class Steps:
    """Steps of JAX alone, the minibatch gathered by NumPy as distsgd gathers it; on several ranks each takes a part."""

    def __init__(self, ranks: int, rank: int, reduce: Any) -> None:
        self.x, self.y = synthetic(WORK)
        self.params = jax.tree.map(jnp.asarray, initial_values())
        self.velocity = jax.tree.map(jnp.zeros_like, self.params)
        self.ranks, self.rank, self.reduce = ranks, rank, reduce
        self.rng, self.position = np.random.default_rng(0), len(self.x)
        _, unravel = ravel_pytree(self.params)
        self.whole = jax.jit(lambda p, v, x, y: updated(p, v, jax.grad(mean_loss)(p, x, y)), donate_argnums=(0, 1))
        self.gradient = jax.jit(lambda p, x, y: ravel_pytree(jax.grad(mean_loss)(p, x, y))[0])
        self.update = jax.jit(lambda p, v, flat: updated(p, v, unravel(flat / self.ranks)), donate_argnums=(0, 1))

    def __call__(self) -> int:
        if self.position + WORK.batch > len(self.x):
            self.order, self.position = self.rng.permutation(len(self.x)), 0
        rows = self.order[self.position : self.position + WORK.batch]
        self.position += WORK.batch
        mine = rows[len(rows) * self.rank // self.ranks : len(rows) * (self.rank + 1) // self.ranks]
        x, y = self.x.take(mine, axis=0), self.y[mine].astype(np.int32)
        if self.reduce is None:
            self.params, self.velocity = self.whole(self.params, self.velocity, x, y)
        else:
            total = self.reduce(np.asarray(self.gradient(self.params, x, y)))
            self.params, self.velocity = self.update(self.params, self.velocity, total)
        return WORK.batch

    def wait(self) -> None:
        jax.block_until_ready(self.params)


def with_mpi() -> tuple[Steps, bool]:
    from mpi4py import MPI

    world = MPI.COMM_WORLD

    def reduce(mine: Any) -> Any:
        total = np.empty_like(mine)
        world.Allreduce(mine, total)
        return total

    return Steps(world.size, world.rank, reduce), world.rank == 0


def timed_together(steps: Steps, seconds: float) -> dict[str, Any]:
    """As timed_steps, with as many steps on each rank: rank 0's clock ends the measurement for all."""
    from mpi4py import MPI

    began, done = time.perf_counter(), 0
    while not MPI.COMM_WORLD.bcast(done >= LEAST and time.perf_counter() - began >= seconds * WARM_UP):
        for _ in range(LEAST):
            steps()
        done += LEAST
    began, examples, done = time.perf_counter(), 0, 0
    while not MPI.COMM_WORLD.bcast(done >= LEAST and time.perf_counter() - began >= seconds):
        for _ in range(LEAST):
            examples += steps()
        done += LEAST
    steps.wait()
    took = time.perf_counter() - began
    return {"examples_per_second": examples / took, "steps": done, "seconds": took}


def fit() -> dict[str, Any]:
    import distsgd
    from distsgd.integrations.jax import JaxModel

    class Clock(distsgd.Callback):
        """Starts after the warm-up, and asks for the end when its time is over."""

        warm = steps = examples = 0
        result: dict[str, Any] = {}  # noqa: RUF012

        def on_start(self, run: Any) -> None:
            self.run, self.began = run, time.perf_counter()

        def on_step(self, step: int, loss: float, examples: int) -> None:
            now = time.perf_counter()
            if self.result:
                return
            if self.warm < LEAST or (self.steps == 0 and now - self.began < wanted["seconds"] * WARM_UP):
                self.warm, self.clock = self.warm + 1, now
                return
            self.steps, self.examples = self.steps + 1, self.examples + examples
            if self.steps >= LEAST and now - self.clock >= wanted["seconds"]:
                took = now - self.clock
                self.result = {"examples_per_second": self.examples / took, "steps": self.steps, "seconds": took}
                self.run.stop()

    clock = Clock()
    x, y = synthetic(WORK)
    # Whole minibatches alone: others compile once more.
    rows = len(x) // WORK.batch * WORK.batch
    distsgd.fit(
        JaxModel(apply, initial_values(), "softmax-cross-entropy"), (x[:rows], y[:rows]), epochs=1_000_000,
        microbatches=wanted["microbatches"], validation_fraction=0.0, batch_size=WORK.batch, optimizer="momentum",
        learning_rate=WORK.learning_rate, callbacks=[clock],
    )  # fmt: skip
    return clock.result


def main() -> None:
    metadata = {"jax": jax.__version__}
    if wanted["how"] == "distsgd":
        found = fit()
        if found:
            report_result({**found, "metadata": metadata})
    elif wanted["how"] == "jit":
        steps = Steps(1, 0, None)
        report_result({**timed_steps(steps, wanted["seconds"], finish=steps.wait), "metadata": metadata})
    else:
        steps, is_root = with_mpi()
        found = timed_together(steps, wanted["seconds"])
        if is_root:
            report_result({**found, "metadata": metadata})


main()
