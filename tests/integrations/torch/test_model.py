"""TorchModel beside a plain loop of PyTorch's, what it leaves in the caller's process, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make test-integrations installs it")

import distsgd  # noqa: E402
from distsgd.integrations.torch import TorchModel  # noqa: E402
from distsgd.nn import Batch, Layout  # noqa: E402
from distsgd.testing import check_gradient  # noqa: E402
from tests.integrations.torch.models import MODELS, build  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
X = np.random.default_rng(0).random((64, 5), np.float32)
Y = (X[:, 0] * 3).astype(np.int64)
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 16, "microbatches": 2, "lr": 0.1, "validation_fraction": 0.0}


def mlp(*more: Any) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), *more, nn.Linear(8, 3))


def whole_batch(model: TorchModel, x: Any, y: Any, training: bool = True) -> tuple[dict[str, Any], Batch]:
    """Float64 parameters and a batch of everything, for the helper that checks gradients."""
    packed = x
    if isinstance(x, dict):
        packed = np.zeros(len(y), [(key, one.dtype, one.shape[1:]) for key, one in x.items()])
        for key, one in x.items():
            packed[key] = one
    shapes, states = Layout.of(model.parameter_shapes()), Layout.of(model.state_shapes())
    dtype = next(model.module.parameters()).detach().numpy().dtype
    params, state = (one.views(np.zeros(one.size, dtype)) for one in (shapes, states))
    model.initialize(params, state, 0)
    batch = Batch(x=np.moveaxis(packed, 0, -1), y=np.moveaxis(y, 0, -1), indices=np.arange(len(y)), state=state,
                  training=training)  # fmt: skip
    return dict(params), batch


def test_as_a_plain_loop_of_pytorch() -> None:
    """One microbatch a step, in order: the loop of the tutorials, but for the order of additions."""
    model = TorchModel(mlp(), nn.CrossEntropyLoss())
    distsgd.fit(model, (X, Y), optimizer="momentum", **{**OPTIONS, "microbatches": 1, "shuffle": False})
    plain = mlp()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for start in range(0, 64, 16):
            optimizer.zero_grad()
            x, y = torch.from_numpy(X[start : start + 16]), torch.from_numpy(Y[start : start + 16])
            functional.cross_entropy(plain(x), y).backward()
            optimizer.step()
    for ours, theirs in zip(model.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str) -> None:
    model, x, y = build(name)
    part = slice(0, 6)
    x = {key: one[part] for key, one in x.items()} if isinstance(x, dict) else x[part]
    params, batch = whole_batch(model, x, y[part], training="norm" not in name)
    if "convolution" in name or "norm" in name:  # kinks of relu
        check_gradient(model.loss_and_grad, params, batch, directions=2, tolerance=1e-3).raise_if_wrong()
    else:
        check_gradient(model.loss_and_grad, params, batch, directions=3).raise_if_wrong()


def test_predictions_are_the_modules_own() -> None:
    model = TorchModel(mlp(nn.BatchNorm1d(8), nn.Dropout(0.5)), nn.CrossEntropyLoss())
    result = distsgd.fit(model, (X, Y), validation=(X, Y), **{**OPTIONS, "validation_fraction": 0})
    model.module.eval()
    expected = torch.softmax(model.module(torch.from_numpy(X)), 1).detach().numpy()
    np.testing.assert_array_equal(result.predict(X), expected)
    right = np.mean(expected.argmax(1) == Y)
    assert result.summary["validation_accuracy"] == pytest.approx(right)
    other = mlp(nn.BatchNorm1d(8), nn.Dropout(0.5))
    other.load_state_dict(model.state_dict(result.params, result.state))
    np.testing.assert_array_equal(torch.softmax(other.eval()(torch.from_numpy(X)), 1).detach().numpy(), expected)


def test_running_statistics_are_the_mean_over_microbatches() -> None:
    model = TorchModel(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), nn.CrossEntropyLoss())
    distsgd.fit(model, (X, Y), **{**OPTIONS, "epochs": 1, "batch_size": 64, "shuffle": False})
    norm = model.module[0]
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * X.mean(0), rtol=1e-5)
    inside = np.mean([X[:32].var(0, ddof=1), X[32:].var(0, ddof=1)], 0)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * inside, rtol=1e-5)
    assert int(norm.num_batches_tracked) == 1


def test_the_callers_process_is_as_it_was() -> None:
    model = TorchModel(mlp(nn.Dropout(0.5)), nn.CrossEntropyLoss())
    model.module[2].eval()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = distsgd.fit(model, (X, Y), **OPTIONS)
        result.predict(X)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(3), expected)
    assert model.module.training
    assert not model.module[2].training
    weight = model.module[0].weight
    np.testing.assert_array_equal(weight.detach().numpy(), result.params["0.weight"])
    weight.data.zero_()
    assert result.params["0.weight"].any()


def test_frozen_and_tied_parameters_and_strides() -> None:
    model, x, y = build("tied weights")
    result = distsgd.fit(model, (x, y), **OPTIONS)
    assert "out.weight" not in result.params
    assert model.module.out.weight is model.module.embedding.weight
    assert torch.equal(model.module.scale, torch.full((8,), 0.5))
    assert set(result.state) == {"scale"}
    model, x, y = build("batch norm, dropout, channels last")
    strides = model.module[0].weight.stride()
    result = distsgd.fit(model, (x, y), **OPTIONS)
    assert model.module[0].weight.stride() == strides
    np.testing.assert_array_equal(model.module[0].weight.detach().numpy(), result.params["0.weight"])


def test_sequences_have_predictions_of_their_own_shape() -> None:
    model, x, y = build("tied weights")
    result = distsgd.fit(model, (x, y), **OPTIONS)
    assert result.predict(x[:4]).shape == (4, 20, 6)


def test_weights_are_factors_of_the_losses() -> None:
    """Examples of weight 0 change nothing but the number that the sum is divided by."""
    weights = np.tile(np.array([0, 2], np.float32), 32)
    found = []
    for x, y, more in ((X, Y, (weights,)), (X[1::2], Y[1::2], ())):
        model = TorchModel(mlp(), nn.CrossEntropyLoss())
        options = {**OPTIONS, "epochs": 1, "batch_size": len(x), "microbatches": 1}
        found.append(distsgd.fit(model, (x, y, *more), **options).params)
    for name, array in found[0].items():
        np.testing.assert_allclose(array, found[1][name], rtol=1e-4, atol=1e-6)


def test_dropout_is_a_function_of_seed_and_step() -> None:
    hashes = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(hashes))  # the caller's numbers don't matter
        module = mlp(nn.Dropout(0.5))
        found = distsgd.fit(TorchModel(module, nn.CrossEntropyLoss()), (X, Y), seed=seed, shuffle=False, **OPTIONS)
        hashes.append(found.summary["parameters_sha256"])
    assert hashes[0] == hashes[1] != hashes[2]


class Moody(nn.Module):
    """Computes something else in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.calls = mlp(), 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.inside(x) * (1 + self.calls / 100)


def test_a_module_that_does_not_repeat_itself_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    summary = distsgd.fit(TorchModel(Moody(), nn.CrossEntropyLoss()), (X, Y), **OPTIONS).summary
    assert summary["same_bits"] is False
    assert "Moody" in summary["doubt"]
    assert "Moody isn't repeatable" in capsys.readouterr().err


class Counting(nn.Module):
    """Has a buffer that forward changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = mlp()
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Any) -> Any:
        if self.training:
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return self.inside(x - self.mean)


def test_buffers_that_forward_changes_are_named() -> None:
    with pytest.raises(distsgd.ConfigurationError, match="running_buffers=\\('mean',\\)"):
        distsgd.fit(TorchModel(Counting(), nn.CrossEntropyLoss()), (X, Y), **OPTIONS)
    model = TorchModel(Counting(), nn.CrossEntropyLoss(), running_buffers=["mean"])
    distsgd.fit(model, (X, Y), **{**OPTIONS, "epochs": 1, "batch_size": 64})
    np.testing.assert_allclose(model.module.mean.numpy(), X.mean(0) / 2, rtol=1e-5)


def _half() -> Any:
    return mlp().half()


def _mixed() -> Any:
    module = mlp()
    module[0].double()
    return module


def _frozen() -> Any:
    return mlp().requires_grad_(False)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: print, "expected a torch.nn.Module, got builtin_function_or_method"),
    "lazy": (lambda: nn.LazyLinear(3), "weight has no shape yet; call the module once"),
    "half": (_half, "0.weight is float16; give parameters of float32"),
    "mixed": (_mixed, "give all parameters one dtype"),
    "complex": (lambda: nn.Linear(2, 2, dtype=torch.complex64), "weight is complex64"),
    "on another device": (lambda: nn.Linear(2, 2, device="meta"), "weight is on meta"),
    "compiled": (lambda: torch.compile(mlp()), "as it was before torch.compile"),
    "wrapped": (lambda: nn.DataParallel(mlp()), "give the module inside"),
    "synchronized": (lambda: nn.Sequential(nn.SyncBatchNorm(3)), "SyncBatchNorm sends messages to other processes"),
    "frozen": (_frozen, "there is nothing to train"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own compiler
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_modules(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(distsgd.ConfigurationError, match=message):
        TorchModel(make(), nn.CrossEntropyLoss())


def _mean(outputs: Any, y: Any) -> Any:
    return functional.cross_entropy(outputs, y)


LOSSES: dict[str, tuple[Any, str | None, str]] = {
    "undeclared": (_mean, None, 'say with reduction= whether it is their "mean" or their "sum"'),
    "wrongly declared": (_mean, "sum", 'is declared as the sum .*; give reduction="mean"'),
    "of the batch": (lambda outputs, y: outputs.var() / len(y), "mean", "return a loss for each example"),
    "of each output": (lambda outputs, y: outputs**2, None, "one loss for each example, got shape \\(8, 3\\)"),
    "each with each": (functional.mse_loss, None, "combined each with each"),
    "declared twice": (nn.CrossEntropyLoss(), "sum", "has reduction='mean', and 'sum' is declared"),
    "without a gradient": (lambda outputs, y: outputs.detach().sum(1), None, "doesn't depend on the parameters"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_refused_losses(kind: str) -> None:
    loss, reduction, message = LOSSES[kind]
    y: Any = Y.astype(np.float32) if kind == "each with each" else Y
    module = nn.Sequential(mlp(), nn.Linear(3, 1)) if kind == "each with each" else mlp()
    with pytest.raises(distsgd.ConfigurationError, match=message):
        distsgd.fit(TorchModel(module, loss, reduction), (X, y), **OPTIONS)


def test_another_dtype_than_the_runs_is_refused() -> None:
    with pytest.raises(distsgd.ConfigurationError, match='give dtype="float64"'):
        distsgd.fit(TorchModel(mlp().double(), nn.CrossEntropyLoss()), (X, Y), **OPTIONS)
    result = distsgd.fit(TorchModel(mlp().double(), nn.CrossEntropyLoss()), (X, Y), dtype="float64", **OPTIONS)
    assert result.params["0.weight"].dtype == np.float64
