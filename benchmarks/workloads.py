"""The networks that are timed, and the examples they are fed with; shared by all peers, so that they do equal work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

EXAMPLES = 60_000
"""As many as MNIST has: 188 MB in float32, more than caches hold."""


@dataclass(frozen=True)
class Workload:
    """A classifier (softmax cross-entropy) and how it is trained, in float32; `precision` is that of products on a GPU.

    It is fully connected with these `sizes`, or for images of shape `image` the network that `model` names or lists,
    with numbers of an image and classes as its sizes.
    """

    name: str
    sizes: tuple[int, ...]
    activation: str
    batch: int
    optimizer: str
    learning_rate: float
    examples: int = EXAMPLES
    model: str = "mlp"
    image: tuple[int, ...] = ()
    precision: str = "float32"

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        self._must_be_fully_connected()
        return sum(a * b + b for a, b in zip(self.sizes, self.sizes[1:], strict=False))

    def fit_options(self) -> dict[str, Any]:
        """How this network is trained, as options of `distsgd.fit(self.model, …)`."""
        of_mlp = {} if self.image else {"hidden": self.sizes[1:-1], "activation": self.activation}
        precision = {} if self.precision == "float32" else {"precision": self.precision}
        return {
            **of_mlp,
            **precision,
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch,
        }

    def gemms(self, batch: int) -> list[tuple[str, int, int, int]]:
        """(name, m, k, n) of each matrix product of a step on `batch` examples: 2mkn floating-point operations."""
        self._must_be_fully_connected()
        found = []
        for index, (fan_in, fan_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            layer = f"{fan_in}→{fan_out}"
            found.append((f"{layer} forward", fan_out, fan_in, batch))
            found.append((f"{layer} dW", fan_out, batch, fan_in))
            if index:
                found.append((f"{layer} dx", fan_in, fan_out, batch))
        return found

    def flop(self, batch: int) -> int:
        """Floating-point operations of the matrix products of a step."""
        return sum(2 * m * k * n for _, m, k, n in self.gemms(batch))

    def _must_be_fully_connected(self) -> None:
        if self.image:
            raise SystemExit(f"{self.name}: this benchmark is for fully connected networks")


CONV = "conv 20 5x5, pool 2, relu, conv 40 5x5, pool 2, relu, dense 100, relu, dense 10"
_MNIST: dict[str, Any] = {"model": CONV, "image": (1, 28, 28)}

_ALL = (
    Workload("mlp512", (784, 512, 512, 10), "relu", 256, "momentum", 0.01),
    Workload("mlp512-adam", (784, 512, 512, 10), "relu", 256, "adam", 1e-3),
    Workload("two-layer", (784, 50, 10), "sigmoid", 100, "momentum", 0.01),
    Workload("wide-adam", (784, 2048, 2048, 10), "relu", 256, "adam", 1e-3),
    Workload("conv", (784, 10), "relu", 64, "momentum", 0.01, **_MNIST),
    Workload("conv10", (784, 10), "relu", 10, "momentum", 0.01, **_MNIST),
    Workload("resnet20", (3072, 10), "relu", 128, "momentum", 0.01, 10_000, "resnet20", (3, 32, 32)),
)
WORKLOADS = {workload.name: workload for workload in _ALL}
_LARGE = Workload("mlp8192", (784, 8192, 8192, 10), "relu", 4096, "momentum", 0.01, precision="tf32")
GPU_WORKLOADS = {
    **{name: replace(WORKLOADS[name], batch=batch)
       for name, batch in (("two-layer", 100), ("mlp512", 256), ("conv", 256), ("resnet20", 512))},
    _LARGE.name: _LARGE,
}  # fmt: skip
"""What is timed on a GPU, with minibatches that one GPU likes."""


def workload(name: str, examples: int = EXAMPLES, batch: int | None = None) -> Workload:
    """The workload of this name, with as many examples as make whole minibatches, so that no step is a short one."""
    found = WORKLOADS[name]
    batch = found.batch if batch is None else batch
    return replace(found, batch=batch, examples=max(1, min(examples, found.examples) // batch) * batch)


def gpu_workload(name: str, examples: int = EXAMPLES, quick: bool = False, device: str = "gpu") -> Workload:
    """The workload that a GPU is timed with; for a smoke run one that a CPU ends at once. The CPU has float32 alone."""
    found = GPU_WORKLOADS[name]
    if quick:
        sizes = (
            found.sizes
            if found.image
            else tuple(min(size, 784 if at == 0 else 32) for at, size in enumerate(found.sizes))
        )
        found = replace(found, sizes=sizes, batch=8 if found.image else 32)
    if device == "cpu":
        found = replace(found, precision="float32")
    return replace(found, examples=max(1, min(examples, found.examples) // found.batch) * found.batch)


def describe(workload: Workload) -> str:
    """The workload in one line."""
    network = f"{'-'.join(map(str, workload.sizes))}, {workload.activation}"
    if workload.image:
        network = f"{workload.model} on {'x'.join(map(str, workload.image))}"
    return f"{workload.name}: {network}, batch {workload.batch}, {workload.optimizer}, {workload.precision}"


def synthetic(workload: Workload) -> tuple[Any, Any]:
    """x (n, features) or (n, *image) float32 from -0.5 to 0.5, and labels (n,) int64; the same in every process."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.random((workload.examples, workload.sizes[0]), np.float32)
    x -= np.float32(0.5)
    x = x.reshape(workload.examples, *workload.image) if workload.image else x
    return x, rng.integers(0, workload.sizes[-1], workload.examples)
