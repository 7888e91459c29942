"""What is trained: a table of configurations, each a name and options of `distsgd.fit`, and their small data sets.

`data`, `validation`, `test` and `model` may name arrays and models that this file makes; `microbatches` is 4 where
nothing else is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from benchmarks.guard import own

EXAMPLES, FEATURES, CLASSES = 203, 24, 5

DEFAULTS: dict[str, Any] = {
    "data": "labels",
    "model": "mlp",
    "epochs": 2,
    "batch_size": 50,
    "microbatches": 4,
    "validation_fraction": 0.0,
    "device": "cpu",
}
HIDDEN = (300, 70)
"""29,000 parameters: more than one block of what ranks own, so that two ranks own something and others nothing."""
LISTED = (
    "conv 6 3x3, pool 2, relu, batch-norm, channel-dropout 0.2, conv 8 3x2 same stride 2, batch-norm, tanh, "
    "average-pool 2 stride 1, dropout 0.3, dense"
)
_VALIDATED = {"validation_fraction": 0.3}
_IMAGES = {"data": "images"}
_SMALL = {"hidden": (6,), "epochs": 1, "data": "13 examples"}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # optimizers
    "optimizer sgd": {"optimizer": "sgd", "weight_decay": 0.01},
    "optimizer momentum": {"optimizer": "momentum", "weight_decay": 0.01, "dampening": 0.5},
    "optimizer nesterov": {"optimizer": "nesterov", "weight_decay": 0.01, "momentum": 0.8},
    "optimizer adagrad": {"optimizer": "adagrad", "weight_decay": 0.01, "epsilon": 1e-8},
    "optimizer rmsprop": {"optimizer": "rmsprop", "weight_decay": 0.01, "alpha": 0.9},
    "optimizer adam": {"optimizer": "adam", "weight_decay": 0.01, "beta1": 0.8},
    "optimizer adamw": {"optimizer": "adamw", "beta2": 0.99},
    "optimizer lars, many blocks": {"optimizer": "lars", "weight_decay": 0.01, "hidden": (700, 150), "max_steps": 4},
    "optimizer lamb, clipped": {"optimizer": "lamb", "weight_decay": 0.01, "clip_norm": 0.1},
    "optimizer object": {"optimizer": "own: Adam"},
    "optimizer adam, many blocks": {"optimizer": "adam", "hidden": (700, 150), "clip_norm": 0.1, "max_steps": 4},
    # schedules
    "schedule inverse-time": {"schedule": "inverse-time", "decay_rate": 0.5, "decay_epochs": 0.5},
    "schedule inverse-sqrt": {"schedule": "inverse-sqrt", "decay_rate": 0.3},
    "schedule step": {"schedule": "step", "decay_factor": 0.5, "decay_epochs": 1},
    "schedule exponential": {"schedule": "exponential", "decay_factor": 0.9, "decay_epochs": 1, "staircase": True},
    "schedule cosine, warm-up": {"schedule": "cosine", "warmup_steps": 3, "schedule_epochs": 3.0},
    "schedule constant, warm-up": {"warmup_steps": 4, "optimizer": "adam"},
    # sampling and sizes of minibatches
    "sampling replacement": {"sampling": "replacement", "batch_size": 37},
    "sampling without shuffling": {"shuffle": False, "batch_size": 64},
    "sampling, last minibatch dropped": {"drop_last": True, "batch_size": 64},
    "sampling, another seed": {"seed": 12345},
    "batch size full": {"batch_size": "full", "epochs": 4},
    "batch size above the examples": {"batch_size": 1000, "epochs": 3},
    "batch size 1": {"batch_size": 1, "max_steps": 12},
    "batch size 3": {"batch_size": 3, "max_steps": 12},
    "batch size 7, batch norm": {"batch_size": 7, "max_steps": 12, "batch_norm": True},
    "batch size 101, last one example": {"batch_size": 101, "batch_norm": True, "dropout": 0.2},
    "13 examples, minibatches of 2": {**_SMALL, "batch_size": 2},
    "13 examples, minibatches of 5, 7 microbatches": {**_SMALL, "batch_size": 5, "microbatches": 7},
    "13 examples, minibatches of 9, 11 microbatches": {**_SMALL, "batch_size": 9, "microbatches": 11},
    "2 examples": {"data": "2 examples", "hidden": (6,), "epochs": 3},
    "1 microbatch": {"microbatches": 1},
    "3 microbatches": {"microbatches": 3, "optimizer": "adam"},
    "8 microbatches": {"microbatches": 8, "clip_norm": 0.5, "batch_norm": True},
    # types, activations, initial values
    "float64": {"dtype": "float64"},
    "float64, batch norm, adam": {"dtype": "float64", "batch_norm": True, "activation": "tanh", "optimizer": "adam"},
    "activation leaky-relu": {"activation": "leaky-relu"},
    "activation gelu": {"activation": "gelu", "weight_initializer": "lecun"},
    "activation sigmoid": {"activation": "sigmoid", "weight_initializer": "glorot(4)", "bias": False},
    "activation tanh": {"activation": "tanh", "weight_initializer": "normal(0.05)"},
    "activation softplus": {"activation": "softplus", "weight_initializer": "uniform(-0.1, 0.1)"},
    "activation linear": {"activation": "linear", "bias_initializer": "normal(0.01)"},
    # rounded sums and parameters: with a group a microbatch, so that any rank has whole groups
    "wire bfloat16": {"wire": "bfloat16", "wire_groups": 4, **_VALIDATED},
    "wire bfloat16, adam, many blocks": {
        "wire": "bfloat16", "wire_groups": 4, "optimizer": "adam", "hidden": (700, 150), "clip_norm": 0.1,
        "max_steps": 4,
    },
    # regularization
    "batch norm": {"batch_norm": True, "activation": "gelu", **_VALIDATED},
    "dropout": {"dropout": 0.4, "activation": "softplus"},
    "penalties": {"l1": 1e-4, "l2": 1e-3, "weight_decay": 0.01, "penalize": ("*",)},
    "penalties of weights": {"l1": 1e-4, "l2": 1e-3, **_VALIDATED},
    "clipping": {"clip_norm": 0.05, "l2": 1e-3, "log_every": 1},
    "frozen": {"freeze": ("dense1.*",), "clip_norm": 0.1},
    "everything": {
        "batch_norm": True, "dropout": 0.2, "l1": 1e-4, "l2": 1e-4, "clip_norm": 0.5, "optimizer": "adamw",
        "schedule": "cosine", "warmup_steps": 3, "validation_fraction": 0.2, "label_smoothing": 0.1,
    },
    # losses
    "label smoothing": {"label_smoothing": 0.1, **_VALIDATED},
    "class weights": {"class_weights": (1.0, 2.0, 0.5, 1.0, 0.0), **_VALIDATED},
    "sample weights": {"data": "weighted", **_VALIDATED},
    "binary cross-entropy": {"data": "yes or no", "loss": "binary-cross-entropy", **_VALIDATED},
    "regression": {"data": "values", "learning_rate": 0.001, **_VALIDATED},
    "l1": {"data": "values", "loss": "l1", "learning_rate": 0.001, **_VALIDATED},
    "huber": {"data": "values", "loss": "huber", "huber_delta": 0.5, "learning_rate": 0.001, **_VALIDATED},
    "poisson": {"data": "yes or no", "loss": "poisson", "learning_rate": 0.001, **_VALIDATED},
    "gaussian": {"data": "values", "loss": "gaussian", "learning_rate": 0.001, **_VALIDATED},
    "quantile": {"data": "values", "loss": "quantile", "quantiles": (0.1, 0.5, 0.9), "learning_rate": 0.001},
    "focal": {"loss": "focal", "focal_gamma": 1.5, **_VALIDATED},
    "binary focal": {"data": "yes or no", "loss": "binary-focal", "focal_alpha": 0.25, **_VALIDATED},
    "binary cross-entropy, weighted": {
        "data": "yes or no", "loss": "binary-cross-entropy", "pos_weight": (3.0,), "label_smoothing": 0.1,
    },
    "regression, sigmoid": {"data": "yes or no", "loss": "squared-error", "output_activation": "sigmoid"},
    "own function": {"data": "two classes", "model": "own: hinge", "optimizer": "sgd"},
    "own function with outputs": {"data": "values", "model": "own: linear", "learning_rate": 0.01, **_VALIDATED},
    "own layers": {"model": "own: layers", **_VALIDATED},
    # validation and stopping
    "validation": {**_VALIDATED, "train_metrics": "full", "top_k": 2},
    "validation and test sets": {"validation": "labels", "test": "labels", "train_metrics": "full"},
    "validation in mid-epoch": {**_VALIDATED, "validate_every": "2", "log_every": 1},
    "validation on rank 0": {**_VALIDATED, "validation_on": "rank0"},
    "validation on the last examples": {"validation_last": 31, "test": "labels", "test_at_best": False},
    "early stopping by epochs": {**_VALIDATED, "epochs": 8, "patience": 1, "min_delta": 0.5, "test": "labels"},
    "early stopping by iterations": {
        **_VALIDATED, "early_stopping": "patience", "patience": 6, "monitor": "validation_error", "epochs": 20,
    },
    "stop at a target": {**_VALIDATED, "target": "validation_accuracy=0.3", "epochs": 10},
    "stop after steps": {"max_steps": 7, "log_every": 2},
    # images
    "softmax": {"model": "softmax", "learning_rate": 0.5, **_VALIDATED},
    "images, every layer": {**_IMAGES, "model": LISTED, "l2": 1e-4, "clip_norm": 0.5},
    "images, every layer, 8 microbatches": {**_IMAGES, "model": LISTED, "microbatches": 8, **_VALIDATED},
    "images, every layer, minibatches of 5": {**_IMAGES, "model": LISTED, "batch_size": 5, "max_steps": 6},
    "images, global pool": {**_IMAGES, "model": "conv 4 3x3 stride 2, relu, global-pool, dense"},
    "images, padding": {**_IMAGES, "model": "conv 4 3x3 padding 2, gelu, pool 3 stride 2, flatten, dense 9, dense"},
    "images, float64": {**_IMAGES, "model": LISTED, "dtype": "float64", "optimizer": "nesterov"},
    "images, resnet20": {**_IMAGES, "model": "resnet20", "max_steps": 2, "batch_size": 20, "validation_fraction": 0.1},
    "images, lenet": {"data": "digits", "model": "lenet", "max_steps": 2, "batch_size": 20},
    "images, network3": {"data": "digits", "model": "network3", "max_steps": 2, "batch_size": 10},
    "images, lasagne-cnn": {"data": "digits", "model": "lasagne-cnn", "max_steps": 2, "batch_size": 10},
    "images of bytes": {"data": "bytes", **_VALIDATED},
    "images, shifted and flipped": {"data": "bytes", "augment": ("shift 1", "flip"), **_VALIDATED},
    "images, shifted, floats": {**_IMAGES, "augment": ("shift 1",), "model": "conv 4 3x3, relu, dense"},
    "images, cropped and expanded": {"data": "bytes", "augment": ("crop 2",), "expand": "shifts", "batch_size": 200},
    "images, expanded": {"data": "bytes", "expand": "shifts", "batch_size": 200, **_VALIDATED, "train_metrics": "full"},
    "images, expanded, replacement": {
        **_IMAGES, "expand": "shifts", "sampling": "replacement", "batch_size": 90, "model": "softmax",
    },
}  # fmt: skip
RESUMED: dict[str, dict[str, Any]] = {
    "resumed": {"optimizer": "adam", "batch_norm": True, "dropout": 0.1, **_VALIDATED},
    "resumed, expanded images": {"data": "bytes", "expand": "shifts", "batch_size": 200, "augment": ("flip",)},
    "resumed, early stopping": {**_VALIDATED, "epochs": 8, "patience": 1, "min_delta": 0.5},
}
"""Trained into a folder in two parts: to step 3, and on to the end."""
STOPPED_AT = 3
CONFIGURATIONS |= RESUMED
WITHOUT_OUTPUTS = ("own function",)
"""Nothing can be predicted."""


# --- on the stand-ins for GPUs

STAND_IN_DEFAULTS: dict[str, Any] = {
    "model": "mlp",
    "epochs": 2,
    "batch_size": 29,
    "microbatches": 2,
    "threads": 1,
    "device": "gpu",
    "data": "labels",
}

STAND_INS: dict[str, dict[str, Any]] = {
    "gpu momentum": {"hidden": (30, 20)},
    "gpu adam, clipped": {"optimizer": "adam", "clip_norm": 0.5},
    "gpu adamw, batch norm, dropout": {"optimizer": "adamw", "batch_norm": True, "dropout": 0.3, "activation": "gelu"},
    "gpu nesterov, penalties, frozen": {"optimizer": "nesterov", "l1": 1e-3, "l2": 1e-3, "freeze": ("dense2.*",)},
    "gpu rmsprop, float64": {"optimizer": "rmsprop", "dtype": "float64", "activation": "leaky-relu"},
    "gpu adagrad, sample weights": {"optimizer": "adagrad", "data": "weighted", "activation": "sigmoid"},
    "gpu lars": {"optimizer": "lars", "weight_decay": 0.01},
    "gpu lamb, 2 ranks": {"optimizer": "lamb", "weight_decay": 0.01, "clip_norm": 0.5, "ranks": 2, "microbatches": 4},
    "gpu smoothing, class weights": {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 0.5, 1.0, 0.0)},
    "gpu binary cross-entropy": {"data": "yes or no", "loss": "binary-cross-entropy"},
    "gpu regression": {"data": "values", "learning_rate": 0.001, "activation": "tanh"},
    "gpu images": {"data": "images", "model": LISTED},
    "gpu images, flipped": {"data": "bytes", "model": "conv 4 3x3, relu, global-pool, dense", "augment": ("flip",)},
    "gpu without graphs": {"cuda_graphs": False},
    "gpu tf32": {"precision": "tf32"},
    "gpu 2 ranks": {"ranks": 2, "microbatches": 4},
    "gpu 3 ranks, batch norm": {"ranks": 3, "microbatches": 3, "batch_norm": True, "hidden": (30, 20)},
}
WITHOUT_GRAPHS = ("gpu adam, clipped", "gpu lars", "gpu lamb, 2 ranks", "gpu without graphs")
"""No step of these is recorded: norms have to be known on the host."""


def whole(name: str) -> dict[str, Any]:
    """All options of a configuration."""
    own = CONFIGURATIONS[name]
    hidden = {"hidden": HIDDEN} if own.get("model", "mlp") == "mlp" else {}
    return {**DEFAULTS, **hidden, **own}


@cache
def data(name: str) -> tuple[np.ndarray, ...]:
    """(x, y) or (x, y, weights); the same in every process."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((EXAMPLES, FEATURES)).astype(np.float32)
    labels = np.argmax(x[:, :CLASSES], axis=1).astype(np.int64)
    values = (x[:, :3] * 0.5 + x[:, 3:6] * x[:, 3:6]).astype(np.float32)
    weights = rng.random(EXAMPLES, np.float32)
    images = rng.random((EXAMPLES, 2, 9, 8), np.float32)
    sets: dict[str, tuple[np.ndarray, ...]] = {
        "labels": (x, labels),
        "13 examples": (x[:13], labels[:13]),
        "2 examples": (x[:2], labels[:2]),
        "weighted": (x, labels, weights),
        "values": (x, values),
        "yes or no": (x, (values > 0).astype(np.float32)),
        "two classes": (x, (labels > 1).astype(np.int64)),
        "images": (images, labels),
        "bytes": ((images * 256).astype(np.uint8), labels),
        "digits": (rng.random((60, 1, 28, 28), np.float32), labels[:60]),
    }
    return sets[name]


def own_objects(wanted: dict[str, Any]) -> dict[str, Any]:
    """The options with what `own: …` names in its place."""
    import distsgd

    made: dict[str, Callable[[], Any]] = {
        "own: Adam": lambda: distsgd.Adam(1e-3, beta1=0.85, weight_decay=0.01),
        "own: hinge": lambda: own.machine((FEATURES,)),
        "own: linear": lambda: own.linear(FEATURES, 3),
        "own: layers": lambda: own.layers(FEATURES, CLASSES),
    }
    return {key: made[v]() if isinstance(v, str) and v in made else v for key, v in wanted.items()}
