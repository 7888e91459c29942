"""The network, its optimizer and the process group in PyTorch, as fast as its documentation makes them."""

from __future__ import annotations

import os
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.children.torch_images import network_of_images
from benchmarks.workloads import Workload

RANK, SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
"""As torchrun says."""
_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def start(threads: int) -> None:
    """Threads of each process, and gloo where there are several."""
    torch.set_num_threads(threads)
    if SIZE > 1:
        dist.init_process_group("gloo")


def finish() -> None:
    """Leaves the group."""
    if SIZE > 1:
        dist.destroy_process_group()


def network(work: Workload, channels_last: bool = False) -> nn.Module:
    """The network, in DDP's wrapping where there are several processes; gradients are views of its buckets."""
    model = network_of_images(work) if work.image else fully_connected(work)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True) if SIZE > 1 else model


def fully_connected(work: Workload) -> nn.Module:
    """Dense layers with the initial values that distsgd gives them by default (He's)."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(work.sizes):
        dense = nn.Linear(fan_in, fan_out)
        nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
        nn.init.zeros_(dense.bias)
        layers += [dense, _ACTIVATIONS[work.activation]()]
    return nn.Sequential(*layers[:-1])


def optimizer_of(work: Workload, model: nn.Module) -> torch.optim.Optimizer:
    """The workload's optimizer, fused."""
    if work.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=work.learning_rate, fused=True)
    return torch.optim.SGD(model.parameters(), lr=work.learning_rate, momentum=0.9, fused=True)


def own_part(minibatch: torch.Tensor) -> torch.Tensor:
    """What this process computes of a global minibatch."""
    return minibatch[len(minibatch) * RANK // SIZE : len(minibatch) * (RANK + 1) // SIZE]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, minibatch: torch.Tensor
) -> None:
    """One step on the examples with these indices."""
    indices = own_part(minibatch)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x.index_select(0, indices)), y.index_select(0, indices)).backward()
    optimizer.step()
