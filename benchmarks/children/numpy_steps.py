"""Times steps of a fully connected network that is written out in NumPy, for one microbatch on one core.

It is the least that NumPy can do without a framework: each array is allocated once, and nothing is asked or checked.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from benchmarks.children.protocol import report_result, settings, timed_steps
from benchmarks.workloads import Workload, synthetic, workload
from distsgd.core import runtime

wanted = settings()
runtime.prepare_alone()  # the same kernels and as many threads of BLAS

import numpy as np  # noqa: E402


def relu(x: Any, out: Any) -> None:
    np.maximum(x, np.float32(0), out=out)


def relu_backward(y: Any, dy: Any, out: Any) -> None:
    np.multiply(dy, y > 0, out=out)


def sigmoid(x: Any, out: Any) -> None:
    np.multiply(x, np.float32(0.5), out=out)
    np.tanh(out, out=out)
    np.add(out, np.float32(1), out=out)
    np.multiply(out, np.float32(0.5), out=out)


def sigmoid_backward(y: Any, dy: Any, out: Any) -> None:
    np.multiply(dy, y, out=out)
    np.multiply(out, np.float32(1) - y, out=out)


ACTIVATIONS = {"relu": (relu, relu_backward), "sigmoid": (sigmoid, sigmoid_backward)}


class Steps:
    """Whole training steps with momentum, one a call."""

    def __init__(self, work: Workload) -> None:
        assert work.optimizer == "momentum", "the one that is written here"
        self.work, self.rng = work, np.random.default_rng(0)
        self.x, self.y = synthetic(work)
        self.position = len(self.x)
        shapes = [(fan_out, fan_in) for fan_in, fan_out in pairwise(work.sizes)]
        self.flat, self.grads, self.velocity = (
            np.zeros(sum(m * k + m for m, k in shapes), np.float32) for _ in range(3)
        )
        self.layers: list[tuple[Any, Any, Any]] = []
        start = 0
        for m, k in shapes:
            ends = start + m * k, start + m * k + m
            of_buffers: list[Any] = [
                (flat[start : ends[0]].reshape(m, k), flat[ends[0] : ends[1]]) for flat in (self.flat, self.grads)
            ]
            of_buffers[0][0][...] = self.rng.standard_normal((m, k), np.float32) * np.sqrt(np.float32(2 / k))
            self.layers.append((*of_buffers, np.empty((m, work.batch), np.float32)))
            start = ends[1]
        self.rows = np.empty((work.batch, work.sizes[0]), np.float32)
        self.columns = np.arange(work.batch)

    def __call__(self) -> int:
        batch = self.work.batch
        if self.position == len(self.x):
            self.order, self.position = self.rng.permutation(len(self.x)), 0
        indices = self.order[self.position : self.position + batch]
        self.position += batch
        self.gradients(np.take(self.x, indices, axis=0, out=self.rows, mode="clip").T, self.y[indices])
        np.multiply(self.velocity, np.float32(0.9), out=self.velocity)
        np.add(self.velocity, self.grads, out=self.velocity)
        np.multiply(self.velocity, np.float32(self.work.learning_rate), out=self.grads)
        np.subtract(self.flat, self.grads, out=self.flat)
        return batch

    def gradients(self, x: Any, labels: Any) -> None:
        """Those of the mean loss, of examples that are columns."""
        forward, backward = ACTIVATIONS[self.work.activation]
        inputs = []
        for (weight, bias), _, out in self.layers:
            inputs.append(x)
            np.matmul(weight, x, out=out)
            np.add(out, bias[:, None], out=out)
            if len(inputs) < len(self.layers):
                forward(out, out)
            x = out
        np.exp(x - x.max(axis=0), out=x)
        np.divide(x, x.sum(axis=0), out=x)
        x[labels, self.columns] -= 1
        np.multiply(x, np.float32(1 / self.work.batch), out=x)
        for ((weight, _), (of_weight, of_bias), _), own in zip(reversed(self.layers), reversed(inputs), strict=True):
            np.matmul(x, own.T, out=of_weight)
            np.sum(x, axis=1, out=of_bias)
            if own is not inputs[0]:
                dx = weight.T @ x
                backward(own, dx, dx)
                x = dx


def main() -> None:
    result = timed_steps(Steps(workload(wanted["workload"], wanted["examples"])), wanted["seconds"])
    report_result({**result, "metadata": {"numpy": np.__version__}})


main()
