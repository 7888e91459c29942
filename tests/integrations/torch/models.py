"""Small models of every kind that TorchModel promises the same bits for, each with its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from distsgd.integrations.torch import TorchModel

EXAMPLES, CLASSES, WORDS, LENGTH = 150, 3, 20, 7


def _images() -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    y = rng.integers(0, CLASSES, EXAMPLES)
    x = rng.random((EXAMPLES, 2, 8, 8), np.float32)
    x[np.arange(EXAMPLES), 0, y] += 1
    return x, y


def _sentences() -> tuple[Any, Any]:
    rng = np.random.default_rng(2)
    ids = rng.integers(0, WORDS, (EXAMPLES, LENGTH)).astype(np.int32)
    return ids, (ids == 1).sum(1) % CLASSES


def _masked() -> tuple[Any, Any]:
    ids, y = _sentences()
    padding = np.arange(LENGTH) >= 2 + np.arange(EXAMPLES)[:, None] % (LENGTH - 2)
    return {"ids": ids, "padding": padding}, y


class Recurrent(nn.Module):
    """The last state of a recurrent network."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.embedding, self.inside = nn.Embedding(WORDS, 8), kind(8, 12, num_layers=2, dropout=0.1, batch_first=True)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, ids: Any) -> Any:
        return self.out(self.inside(self.embedding(ids))[0][:, -1])


class Encoder(nn.Module):
    """Two layers of a transformer on tokens, of which some are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.register_buffer("positions", torch.linspace(-1, 1, LENGTH * 16).reshape(LENGTH, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, ids: Any, padding: Any) -> Any:
        return self.out(self.layers(self.embedding(ids) + self.positions, src_key_padding_mask=padding).mean(1))


class Tied(nn.Module):
    """Predicts each next token with the matrix that reads them: outputs (n, words, tokens), targets (n, tokens)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inside = nn.Embedding(WORDS, 8), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, WORDS)
        self.out.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.full((8,), 0.5), requires_grad=False)

    def forward(self, ids: Any) -> Any:
        return self.out(self.inside(self.embedding(ids))[0] * self.scale).transpose(1, 2)


def _tied() -> tuple[TorchModel, Any, Any]:
    ids = _sentences()[0]
    return TorchModel(Tied(), nn.CrossEntropyLoss(ignore_index=-1)), ids[:, :-1], np.where(ids == 3, -1, ids)[:, 1:]


def _mlp() -> tuple[TorchModel, Any, Any]:
    x, y = _images()
    module = nn.Sequential(nn.Flatten(), nn.Linear(128, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    return TorchModel(module, functional.cross_entropy), x, y


def _convolution() -> tuple[TorchModel, Any, Any]:
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, CLASSES)
    )
    return TorchModel(module, nn.CrossEntropyLoss(reduction="sum")), *_images()


def _normalized() -> tuple[TorchModel, Any, Any]:
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(288, 16),
        nn.BatchNorm1d(16, momentum=None), nn.Linear(16, CLASSES),
    )  # fmt: skip
    return TorchModel(module.to(memory_format=torch.channels_last), nn.CrossEntropyLoss()), *_images()


def _values() -> tuple[TorchModel, Any, Any]:
    x = _images()[0].reshape(EXAMPLES, -1)[:, :9].copy()
    module = nn.Sequential(nn.Linear(9, 7), nn.Softplus(), nn.Linear(7, 2))
    loss = TorchModel(module, lambda outputs, y: ((outputs - y) ** 2).mean(), reduction="mean")
    return loss, x.astype(np.float64), np.stack([x.sum(1), x[:, 0]], 1)


MODELS: Mapping[str, Callable[[], tuple[TorchModel, Any, Any]]] = {
    "mlp": _mlp,
    "convolution": _convolution,
    "batch norm, dropout, channels last": _normalized,
    "lstm": lambda: (TorchModel(Recurrent(nn.LSTM), nn.CrossEntropyLoss()), *_sentences()),
    "gru": lambda: (TorchModel(Recurrent(nn.GRU), nn.CrossEntropyLoss()), *_sentences()),
    "transformer encoder": lambda: (TorchModel(Encoder(), nn.CrossEntropyLoss()), *_masked()),
    "tied weights": _tied,
    "values": _values,
}
"""(model, x, y) by kind."""


def build(name: str) -> tuple[TorchModel, Any, Any]:
    """The same model and data in each process."""
    torch.manual_seed(3)
    return MODELS[name]()


def held(model: TorchModel) -> list[Any]:
    """All arrays that the module holds."""
    return [tensor.numpy() for tensor in model.module.state_dict().values()]
