"""The convolutional networks in PyTorch: lists of layers in distsgd's words, and the residual network."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.workloads import Workload


class Block(nn.Module):
    """A residual block without parameters in its shortcut; one with more filters than channels halves the image."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.stride, self.extra = 1 if channels == filters else 2, filters - channels
        self.first = nn.Conv2d(channels, filters, 3, self.stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(filters)
        self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(filters)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu_(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        if self.stride > 1:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return torch.relu_(y.add_(x))


def network_of_images(work: Workload) -> nn.Module:
    """The network that the workload names, with PyTorch's initial values."""
    model = residual_network(work.image[0], work.sizes[-1]) if work.model == "resnet20" else listed(work)
    with torch.no_grad():
        model(torch.zeros(2, *work.image))  # settles the shapes
    return model


def residual_network(channels: int, classes: int) -> nn.Module:
    """He's network of 20 layers for small images."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    before = 16
    for filters in (16, 32, 64):
        for _ in range(3):
            layers.append(Block(before, filters))
            before = filters
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def listed(work: Workload) -> nn.Module:
    """A list of conv, pool, relu and dense layers."""
    layers: list[nn.Module] = []
    for part in work.model.split(","):
        match part.split():
            case ["conv", filters, size]:
                layers.append(nn.LazyConv2d(int(filters), int(size.partition("x")[0])))
            case ["pool", size]:
                layers.append(nn.MaxPool2d(int(size)))
            case ["relu"]:
                layers.append(nn.ReLU(inplace=True))
            case ["dense", units]:
                layers += [nn.Flatten(), nn.LazyLinear(int(units))]
            case words:
                raise SystemExit(f"no layer of PyTorch for {' '.join(words)}")
    return nn.Sequential(*layers)
