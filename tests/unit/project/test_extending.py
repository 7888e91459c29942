"""docs/extending.md is run as it stands: its blocks of code go where they say, and what they add is used."""

from __future__ import annotations
import __future__

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from distsgd import Batch, Layer, Views, fit
from distsgd.core.device import Array, Shape
from distsgd.core.random import normal
from distsgd.data.named.datasets import check_arrays, open_dataset, read_array
from distsgd.nn.initializers import parse_initializer
from distsgd.nn.layers import Activation, Dense, Sequential
from distsgd.nn.layers.base import Backward
from distsgd.optim.schedules import build_schedule
from distsgd.run.compared.identity import text_of
from distsgd.run.config import OPTIONS
from distsgd.testing import check_layer_gradient, check_loss_gradient
from tests.threads import run_on_threads

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = {found[1]: found[2] for found in re.finditer(r"```python\n# ([^\n]+)\n(.*?)```", TEXT, re.DOTALL)}
"""Each block of Python by its first line, which says where it goes."""
WITH_ANNOTATIONS = __future__.annotations.compiler_flag  # every file of distsgd imports it

X = normal((90, 6), 0, "x").astype(np.float32)
LABELS = (X[:, 0] + X[:, 1] > 0).astype(np.int64)
VALUES = np.square(X[:, :2])


class Added:
    """Puts blocks of the page into the package for the length of one test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch

    def block(self, path: str) -> ModuleType:
        """The module that `path` names: new, or with the block after what is in it."""
        name = path.removesuffix(".py").replace("/", ".")
        module = ModuleType(name)
        if (ROOT / path).exists():
            vars(module).update(vars(import_module(name)))
        else:
            self._patch.setitem(sys.modules, name, module)
        exec(compile(BLOCKS[path], path, "exec", WITH_ANNOTATIONS), vars(module))
        return module

    def register(self, module: ModuleType, path: str, registry: str) -> None:
        """Adds the registry's line, as the page has it."""
        entries = eval("{" + BLOCKS[f"{path}, in {registry}"] + "}", vars(module))
        owner = import_module(path.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."))
        assert not entries.keys() & getattr(owner, registry).keys()
        for name, entry in entries.items():
            self._patch.setitem(getattr(owner, registry), name, entry)

    def both(self, path: str, registry: str) -> ModuleType:
        """The block and the line for one file."""
        module = self.block(path)
        self.register(module, path, registry)
        return module


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Added:
    return Added(monkeypatch)


def trained(targets: Any = LABELS, model: Any = "mlp", **options: Any) -> dict[str, Any]:
    """A short run's summary, which must be the same on one rank and on three."""
    options = {
        **({"hidden": (8,)} if model == "mlp" else {}),
        "epochs": 3,
        "batch_size": 32,
        "validation_fraction": 0.1,
        **options,
    }
    summaries = [
        run_on_threads(size, lambda communicator: fit(model, (X, targets), communicator=communicator, **options))
        for size in (1, 3)
    ]
    one, three = ([{**result.summary, "run": None} for result in results] for results in summaries)
    assert three == one * 3
    assert np.isfinite(one[0]["train_loss"])
    return one[0]


def test_every_block_is_used() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    unused = [place for place in BLOCKS if f'"{place.partition(", in ")[0]}"' not in source]
    assert len(BLOCKS) == 22
    assert not unused


def test_the_table_is_true() -> None:
    rows = re.findall(r"^\| (an? [^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 11
    for what, place, registry, tests in rows:
        written, *registered, tested = (re.findall(r"`([^`]+)`", cell) for cell in (place, registry, tests))
        where = ROOT / written[0]
        file = next((name for name in registered[0] if name.endswith(".py")), None)
        holder = where if file is None else (where if where.is_dir() else where.parent) / file
        assert where.exists(), what
        assert registered[0][0] in holder.read_text(encoding="utf-8") or registered[0][0] == "__init__.py", what
        assert (ROOT / tested[-1]).is_file(), what


def test_identity_of_an_own_object(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_objects")
    monkeypatch.setitem(sys.modules, "my_objects", module)
    exec(BLOCKS["my_objects.py"], vars(module))
    start = {"w": np.zeros(6)}
    one, other = trained(model=module.Hinge(), params=start), trained(model=module.Hinge(0.5), params=start)
    assert one["parameters_sha256"] != other["parameters_sha256"]
    used = module.Hinge()
    used.remembered["long ago"] = np.ones(2)
    assert text_of(used) == text_of(module.Hinge()) != text_of(module.Hinge(0.5))


def test_optimizer(added: Added) -> None:
    added.register(added.block("distsgd/optim/optimizers.py"), "distsgd/optim/registry.py", "OPTIMIZERS")
    losses = [trained(optimizer="signum", epochs=epochs)["train_loss"] for epochs in (1, 20)]
    assert losses[1] < losses[0]


def test_layer(added: Added) -> None:
    scale = added.block("distsgd/nn/layers/scale.py").Scale
    added.register(import_module("distsgd.nn.layers"), "distsgd/nn/layers/__init__.py", "NAMES")
    assert import_module("distsgd.nn.layers").Scale is scale
    check_layer_gradient(scale(5), (5,)).raise_if_wrong()
    trained(model=Sequential([scale(6), Dense(6, 4), Activation("tanh"), scale(4), Dense(4, 2)]))


@dataclass(frozen=True)
class Concatenated(Layer):
    """y := x above inner(x), dx := dy's upper part and what inner makes of the lower one (Huang et al., CVPR 2017)."""

    inner: Layer

    kind: ClassVar[str] = "concatenated"

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self.inner.parameter_shapes()

    def initialize(self, params: Views, seed: int, path: str) -> None:
        self.inner.initialize(params, seed, path)

    def output_shape(self, shape: Shape) -> Shape:
        return (shape[0] + self.inner.output_shape(shape)[0], *shape[1:])

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        inside, backward_inside = self.inner.forward(params, x, batch, path)

        def backward(dy: Array, grads: Views) -> Array:
            return dy[: len(x)] + backward_inside(dy[len(x) :], grads)

        return np.concatenate([x, inside]), backward


def test_layer_of_layers() -> None:
    inner = Sequential([Dense(5, 4), Activation("tanh"), Dense(4, 5)])
    check_layer_gradient(Concatenated(inner), (5,)).raise_if_wrong()
    model = Sequential([Dense(6, 5), Concatenated(inner), Dense(10, 2)])
    trained(model=model)
    norms = []
    for microbatches in (1, 2, 4):
        options = {"epochs": 1, "batch_size": 90, "validation_fraction": 0.0, "dtype": "float64"}
        result = fit(model, (X, LABELS), microbatches=microbatches, **options)
        norms.append(result.history[0]["gradient_norm"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-9)


def test_activation(added: Added) -> None:
    added.both("distsgd/nn/layers/activation.py", "ACTIVATIONS")
    check_layer_gradient(Activation("swish"), (5,)).raise_if_wrong()
    trained(activation="swish")


def test_named_model(added: Added) -> None:
    from distsgd.nn.models.describe import describe

    module = added.block("distsgd/nn/models/plain.py")
    added.register(module, "distsgd/nn/models/__init__.py", "MODELS")
    vars(module)["replace"] = replace  # the page says to import it
    layer = module.autoencoder((64,), 64, module.ModelOptions(hidden=(32, 8)))
    assert describe(layer) == "64-32-8-32-64 relu"
    trained(model="autoencoder", hidden=(4, 2))


def test_loss(added: Added, monkeypatch: pytest.MonkeyPatch) -> None:
    module = added.block("distsgd/nn/losses/log_cosh.py")
    added.register(module, "distsgd/nn/losses/__init__.py", "LOSSES")
    outputs, y = X[:, :3].T.astype(np.float64), X[:, 3:].T.astype(np.float64)
    total = module.LogCosh().loss_and_grad(outputs, y)[0]
    assert total == pytest.approx(np.log(np.cosh(outputs - y)).sum())
    check_loss_gradient(module.LogCosh(), X[:, 3:], outputs=3).raise_if_wrong()
    choices = (*OPTIONS["loss"].choices, "log-cosh")  # made of LOSSES as the package is imported
    monkeypatch.setitem(OPTIONS, "loss", replace(OPTIONS["loss"], choices=choices))
    trained(VALUES, loss="log-cosh")


def test_initializer(added: Added) -> None:
    added.both("distsgd/nn/initializers.py", "INITIALIZERS")
    np.testing.assert_array_equal(parse_initializer("identity(0.5)")((2, 3), 0, ""), [[0.5, 0, 0], [0, 0.5, 0]])
    trained(weight_initializer="identity")


def test_schedule(added: Added) -> None:
    added.both("distsgd/optim/schedules.py", "SCHEDULES")
    schedule = build_schedule("triangle", factor=0.5, decay_epochs=4)
    rates = [schedule.learning_rate(1.0, step, steps_per_epoch=1) for step in range(9)]
    assert rates == [0.5, 0.75, 1.0, 0.75, 0.5, 0.75, 1.0, 0.75, 0.5]
    trained(schedule="triangle", decay_epochs=2.0)


def test_data_set(added: Added) -> None:
    module = added.block("distsgd/data/named/spirals.py")
    added.register(module, "distsgd/data/named/datasets.py", "DATASETS")
    source = open_dataset("spirals", seed=3)
    x, y = read_array(source.arrays["x_train"]), read_array(source.arrays["y_train"])
    assert check_arrays("spirals", x, y) == 2
    assert x.shape == (600, 2)


def test_metric(added: Added) -> None:
    module = added.block("distsgd/training/metrics/regression.py")
    vars(import_module("distsgd.training.metrics.regression"))["RelativeError"] = module.RelativeError
    added.register(import_module("distsgd.training.metrics"), "distsgd/training/metrics/__init__.py", "METRICS")
    summary = trained(VALUES, metric=("relative_error",))
    assert 0 < summary["validation_relative_error"] < 2


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_own_model_metric_and_callback(tmp_path: Path) -> None:
    for name in ("my_model.py", "my_watch.py"):
        (tmp_path / name).write_text(BLOCKS[name], encoding="utf-8")
    command = re.search(r"mpirun -n 4 python (-m distsgd.train --model my_model.*?)\n```", TEXT, re.DOTALL)
    assert command
    words = command[1].replace("\\\n", " ").split()
    done = python(tmp_path, *words, "--epochs", "60", "--out", "run", "--quiet")
    assert done.returncode == 75, done.stderr  # the callback has stopped it
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "stopped"
    assert 0.1 < summary["validation_confidence"] <= 1.0


def test_own_loss(tmp_path: Path) -> None:
    (tmp_path / "my_loss.py").write_text(BLOCKS["my_loss.py"], encoding="utf-8")
    done = python(tmp_path, "my_loss.py")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 0.2
    x = normal((50, 3), 0, "x").astype(np.float32)
    np.savez(tmp_path / "my.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    command = re.search(r"`python (-m distsgd.train --dataset my.npz .*?)`", TEXT)
    assert command
    done = python(tmp_path, *command[1].split())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gradient right")
