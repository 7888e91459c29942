"""Trains on MNIST with DistributedDataParallel, or alone on a GPU, until the test images are known well enough.

Whole tensors are indexed, with neither DataLoader nor its workers: the fastest way to feed DDP from memory.
"""

from __future__ import annotations

from typing import Any

from benchmarks.children.mnist import load
from benchmarks.children.protocol import report_result, settings
from benchmarks.workloads import workload

wanted = settings()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

from benchmarks.children.torch_parts import (  # noqa: E402
    RANK,
    SIZE,
    finish,
    network,
    optimizer_of,
    own_part,
    start,
    train_step,
)

DEVICE = torch.device("cpu" if wanted.get("device", "cpu") == "cpu" else "cuda")


def tensors(x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of floats between 0 and 1, and labels, all of them on the device."""
    rows = torch.tensor(x.reshape(len(x), -1)).to(DEVICE).to(torch.float32).div_(255)
    return rows, torch.from_numpy(y).to(DEVICE)


@torch.no_grad()
def accuracy(model: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """The part that is right of all examples; each process looks at its own."""
    right = (model(own_part(x)).argmax(1) == own_part(y)).sum()
    if SIZE > 1:
        dist.all_reduce(right)
    return float(right) / len(y)


def main() -> None:
    start(threads=1)
    work = workload(wanted["workload"])
    data = load(wanted["folder"])
    x, y = tensors(data["x_train"], data["y_train"])
    x_test, y_test = tensors(data["x_test"], data["y_test"])
    torch.manual_seed(wanted["seed"])
    model = network(work).to(DEVICE)
    optimizer = optimizer_of(work, model)
    for epoch in range(1, wanted["epochs"] + 1):
        for minibatch in torch.randperm(len(x), device=DEVICE).split(work.batch):
            train_step(model, optimizer, x, y, minibatch)
        reported = {"epochs": epoch, "accuracy": accuracy(getattr(model, "module", model), x_test, y_test)}
        if reported["accuracy"] >= wanted["target"]:
            break
    if RANK == 0:
        report_result(reported)
    finish()


main()
