"""Times steps of JAX: one jitted function, donated buffers, the minibatch gathered inside it from arrays in memory."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

from benchmarks.children.protocol import report_result, settings, timed_steps
from benchmarks.workloads import Workload, synthetic, workload

wanted = settings()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


def initial_values(work: Workload) -> list[tuple[Any, Any]]:
    """(weight, bias) of each layer."""
    rng = np.random.default_rng(1)
    found = []
    for fan_in, fan_out in pairwise(work.sizes):
        weight = rng.standard_normal((fan_in, fan_out), np.float32) * np.sqrt(np.float32(2 / fan_in))
        found.append((jnp.asarray(weight), jnp.zeros(fan_out, jnp.float32)))
    return found


def mean_loss(params: Any, x: Any, y: Any, activation: Any) -> Any:
    for weight, bias in params[:-1]:
        x = activation(x @ weight + bias)
    weight, bias = params[-1]
    logits = jax.nn.log_softmax(x @ weight + bias)
    return -jnp.mean(jnp.take_along_axis(logits, y[:, None], axis=1))


def momentum(params: Any, grads: Any, state: Any, rate: float) -> tuple[Any, Any]:
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, state[0], grads)
    return jax.tree.map(lambda w, v: w - rate * v, params, velocity), (velocity, *state[1:])


def adam(params: Any, grads: Any, state: Any, rate: float) -> tuple[Any, Any]:
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], grads)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], grads)
    count = state[2] + 1
    scale, root = rate / (1 - 0.9**count), jnp.sqrt(1 - 0.999**count)
    params = jax.tree.map(lambda w, m, v: w - scale * m / (jnp.sqrt(v) / root + 1e-8), params, first, second)
    return params, (first, second, count)


@partial(jax.jit, static_argnames=("activation", "update", "rate"), donate_argnums=(0, 1))
def train_step(params: Any, state: Any, x: Any, y: Any, indices: Any, activation: Any, update: Any, rate: float) -> Any:
    batch, labels = (array.at[indices].get(mode="promise_in_bounds") for array in (x, y))
    grads = jax.grad(mean_loss)(params, batch, labels, activation)
    return update(params, grads, state, rate)


class Steps:
    """Whole training steps, one a call."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        x, y = synthetic(work)
        self.x, self.y = jnp.asarray(x), jnp.asarray(y.astype(np.int32))
        self.params = initial_values(work)
        first, second = (jax.tree.map(jnp.zeros_like, self.params) for _ in range(2))
        self.state = (first, second, jnp.float32(0)) if work.optimizer == "adam" else (first,)
        self.update = adam if work.optimizer == "adam" else momentum
        self.rng = np.random.default_rng(0)
        self.position = len(x)

    def __call__(self) -> int:
        work = self.work
        if self.position == len(self.x):
            self.order, self.position = self.rng.permutation(len(self.x)).astype(np.int32), 0
        indices = self.order[self.position : self.position + work.batch]
        self.position += work.batch
        self.params, self.state = train_step(
            self.params,
            self.state,
            self.x,
            self.y,
            indices,
            activation=ACTIVATIONS[work.activation],
            update=self.update,
            rate=work.learning_rate,
        )
        return work.batch

    def wait(self) -> None:
        """Until the parameters are there: JAX runs ahead."""
        jax.block_until_ready(self.params)


def main() -> None:
    steps = Steps(workload(wanted["workload"], wanted["examples"]))
    result = timed_steps(steps, wanted["seconds"], finish=steps.wait)
    report_result({**result, "metadata": {"jax": jax.__version__, "device": jax.devices()[0].platform}})


main()
