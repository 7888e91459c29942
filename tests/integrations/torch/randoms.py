"""Trains a module that draws from NumPy's and Python's generators, and has an attribute that no two ranks share."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

import distsgd
from distsgd.integrations.torch import TorchModel
from tests.integrations.torch.test_model import OPTIONS, X, Y, mlp


class Noisy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = mlp()
        self.settings_hash = distsgd.rank() + 1
        self._started = distsgd.rank()

    def forward(self, x: Any) -> Any:
        if not self.training:
            return self.inside(x)
        kept = torch.from_numpy(np.random.rand(*x.shape).astype(np.float32)) > 0.2
        return self.inside(x * kept) * (1 + random.random())


result = distsgd.fit(TorchModel(Noisy(), torch.nn.CrossEntropyLoss()), (X, Y), **OPTIONS)
if distsgd.is_root():
    print(result.summary["same_bits"], result.summary["parameters_sha256"])
