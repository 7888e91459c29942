"""What can't have the same bits on every rank, or isn't PyTorch's way, is refused with a sentence, or reported."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make test-integrations installs it")

import distsgd  # noqa: E402
from distsgd.integrations.torch import TorchModel  # noqa: E402
from tests.integrations.torch.test_model import OPTIONS, X, Y, mlp  # noqa: E402
from tests.parallel.launch import run_command  # noqa: E402
from tests.threads import run_on_threads  # noqa: E402

nn, functional = torch.nn, torch.nn.functional
SCRIPT = Path(__file__).with_name("randoms.py")


class Own(nn.Module):
    """A module around a function (module, x), with attributes."""

    def __init__(self, function: Callable[[Any, Any], Any], **attributes: Any) -> None:
        super().__init__()
        self.inside, self.function = mlp(), function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def fit(module: Any, loss: Any = None, **more: Any) -> distsgd.Result:
    x, y = more.pop("x", X), more.pop("y", Y)
    return distsgd.fit(TorchModel(module, loss or nn.CrossEntropyLoss()), (x, y), **{**OPTIONS, **more})


def _counted(module: Any, x: Any) -> Any:
    with torch.no_grad():
        module.inside[0].weight.clamp_(-0.1, 0.1)
    return module.inside(x)


def _uncounted(module: Any, x: Any) -> Any:
    module.inside[0].weight.data.mul_(0.9)
    return module.inside(x)


def _in_evaluation(module: Any, x: Any) -> Any:
    return module.inside(x) if module.training else _counted(module, x)


@pytest.mark.parametrize("function", [_counted, _uncounted, _in_evaluation])
def test_a_forward_that_writes_to_parameters_is_refused(function: Callable[[Any, Any], Any]) -> None:
    with pytest.raises(distsgd.ConfigurationError, match="forward writes to its parameter"):
        fit(Own(function))


def _hooked() -> Any:
    module = mlp()
    module[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    return module


def _compiled_inside() -> Any:
    module = mlp()
    module[0] = torch.compile(module[0])
    return module


def _normed() -> Any:
    module = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module[0] = nn.utils.weight_norm(module[0])
    return module


def _of_inference() -> Any:
    with torch.inference_mode():
        return mlp()


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "max_norm": (lambda: nn.Embedding(5, 3, max_norm=1.0), "has max_norm, .*weight.renorm"),
    "post-accumulate hook": (_hooked, "0.weight has a hook of register_post_accumulate_grad_hook"),
    "compiled submodule": (_compiled_inside, "its part 0 is compiled"),
    "old weight_norm": (_normed, "give torch.nn.utils.parametrizations.weight_norm"),
    "made under inference_mode": (_of_inference, "made under torch.inference_mode"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own compiler
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_modules(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(distsgd.ConfigurationError, match=message):
        fit(make())


def test_a_hook_that_comes_after_the_model_is_refused() -> None:
    module = mlp()
    model = TorchModel(module, nn.CrossEntropyLoss())
    module[0].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(distsgd.ConfigurationError, match="post_accumulate"):
        distsgd.fit(model, (X, Y), **OPTIONS)


def _force(module: Any, x: Any) -> Any:
    x = x.detach().requires_grad_()
    energy = module.inside(x).sum(1)
    return module.inside(x) + torch.autograd.grad(energy.sum(), x, create_graph=True)[0].sum(1, keepdim=True)


def _force_of_its_own(module: Any, x: Any) -> Any:
    with torch.enable_grad():
        return _force(module, x)


def test_a_forward_that_takes_gradients() -> None:
    steps: list[int] = []

    class Steps(distsgd.Callback):
        def on_step(self, step: int, loss: float, examples: int) -> None:
            steps.append(step)

    with pytest.raises(distsgd.ConfigurationError, match=r"with torch.enable_grad\(\):"):
        fit(Own(_force), callbacks=[Steps()])
    assert not steps
    result = fit(Own(_force_of_its_own), validation=(X, Y))
    assert result.predict(X).shape == (64, 3)


def test_an_attribute_that_counts_forwards_is_reported() -> None:
    def count(module: Any, x: Any) -> Any:
        module.calls += 1
        return module.inside(x) * (1 + module.calls // 100)

    def cache(module: Any, x: Any) -> Any:
        module.length = x.shape[0] if module.length is None else module.length
        return module.inside(x)

    summary = fit(Own(count, calls=0)).summary
    assert summary["same_bits"] is False
    assert "attribute calls" in summary["doubt"]
    assert fit(Own(cache, length=None)).summary["same_bits"] is True


def test_the_generators_of_numpy_and_python_are_seeded(tmp_path: Path) -> None:
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    fit(mlp())
    assert (random.random(), np.random.rand()) == expected
    lines = [run_command(ranks, [sys.executable, str(SCRIPT)], tmp_path, limit=200) for ranks in (None, 2)]
    assert lines[0].status == lines[1].status == 0, lines[1].text
    assert lines[0].out == lines[1].out
    assert lines[0].out.startswith("True ")


def test_a_normalization_of_a_single_example_is_refused_before_it_trains() -> None:
    steps: list[int] = []

    class Steps(distsgd.Callback):
        def on_step(self, step: int, loss: float, examples: int) -> None:
            steps.append(step)

    with pytest.raises(distsgd.ConfigurationError, match=r"single example.*drop_last=True"):
        fit(mlp(nn.BatchNorm1d(8)), x=X[:49], y=Y[:49], callbacks=[Steps()])
    assert not steps
    assert fit(mlp(nn.BatchNorm1d(8)), x=X[:49], y=Y[:49], drop_last=True).summary["steps"] == 6


def test_modes_of_the_caller() -> None:
    module = mlp()
    with torch.inference_mode():
        assert fit(module).predict(X).shape == (64, 3)
    assert not any(one.is_inference() for one in module.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(distsgd.ConfigurationError, match="autocast"):
        fit(mlp())


LOSSES: dict[str, tuple[Any, Any, str]] = {
    "class": (nn.CrossEntropyLoss, Y, r"is the class CrossEntropyLoss; give an object, CrossEntropyLoss\(\)"),
    "labels beyond": (nn.CrossEntropyLoss(), Y + np.int64(7) * (np.arange(64) == 0), "3 outputs|PyTorch says"),
    "float targets": (nn.CrossEntropyLoss(), Y.astype(np.float32), r"float32 \(8, 3\) outputs and float32 \(8,\) targ"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_refused_losses(kind: str) -> None:
    loss, y, message = LOSSES[kind]
    with pytest.raises(distsgd.ConfigurationError, match=message):
        fit(mlp(), loss, y=y)


def test_what_is_pytorchs_and_not_distsgds() -> None:
    optimizer = torch.optim.Adam(mlp().parameters())
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    model = TorchModel(mlp(), nn.CrossEntropyLoss())
    refused: dict[str, Callable[[], Any]] = {
        r"give TorchModel\(module, loss\)": lambda: distsgd.fit(mlp(), (X, Y), loss=nn.CrossEntropyLoss(), **OPTIONS),
        "got torch.optim.Adam; give such as distsgd.Adam": lambda: fit(mlp(), optimizer=optimizer),
        "got torch.optim.SGD; give": lambda: fit(mlp(), optimizer=torch.optim.SGD),
        "got TensorDataset; give whole arrays": lambda: distsgd.fit(model, data, **OPTIONS),
        "got DataLoader; give whole arrays": lambda: distsgd.fit(model, torch.utils.data.DataLoader(data), **OPTIONS),
    }
    for message, call in refused.items():
        with pytest.raises(distsgd.ConfigurationError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_ranks_begin_with_the_same_initial_values() -> None:
    """As where each rank makes its module without torch.manual_seed."""
    modules = [mlp(), mlp()]
    with torch.no_grad():
        next(modules[1].parameters())[0, 0] += 1e-6

    def train(communicator: Any) -> str:
        model = TorchModel(modules[communicator.rank], nn.CrossEntropyLoss())
        return str(distsgd.fit(model, (X, Y), communicator=communicator, **OPTIONS).summary["parameters_sha256"])

    with pytest.raises(distsgd.ConfigurationError, match=r"model\.initial_values differs between ranks"):
        run_on_threads(2, train)
    modules[1] = mlp()
    assert len(set(run_on_threads(2, train))) == 1


def _replaced(module: Any, x: Any) -> Any:
    module.mean = module.mean * 0.9 + x.mean(0) * 0.1
    return module.inside(x - module.mean)


def _new_layer(module: Any, x: Any) -> Any:
    module.inside[0] = nn.Linear(5, 8)
    return module.inside(x)


@pytest.mark.parametrize(("function", "name"), [(_replaced, "mean"), (_new_layer, r"inside\.0\.weight")])
def test_a_forward_that_puts_another_tensor_in_place_is_refused(function: Callable[[Any, Any], Any], name: str) -> None:
    module = Own(function)
    module.register_buffer("mean", torch.zeros(5))
    with pytest.raises(distsgd.ConfigurationError, match=f"in place of its {name}, which is neither trained nor saved"):
        fit(module)


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = mlp()

    def forward(self, left: Any, right: Any) -> Any:
        return self.inside(left + right)


@pytest.mark.parametrize("x", [X, {"left": X, "other": X}])
def test_inputs_that_forward_does_not_take(x: Any) -> None:
    with pytest.raises(distsgd.ConfigurationError, match=r"forward is \(left.*, right.*\).* by the names of forward"):
        fit(Two(), x=x)
    assert fit(Two(), x={"left": X, "right": X}).summary["same_bits"] is True


def test_parts_in_another_mode_than_the_whole() -> None:
    """They have the step's mode from the first step on, in predictions too, and their own again at the end."""
    hashes = []
    for part_trains in (True, False):
        module = mlp(nn.Dropout(0.5))
        module[2].train(part_trains)
        result = fit(module)
        assert module[2].training is part_trains
        module.train(not part_trains)
        module[2].train(part_trains)
        expected = torch.softmax(module.eval()(torch.from_numpy(X)), 1).detach().numpy()
        module[2].train()
        np.testing.assert_array_equal(result.predict(X), expected)
        assert module[2].training
        hashes.append(result.summary["parameters_sha256"])
    assert hashes[0] == hashes[1]


def test_modes_come_back_after_an_error() -> None:
    def fails(module: Any, x: Any) -> Any:
        if len(x) == 3:
            raise KeyError("three")
        return module.inside(x)

    module = Own(fails)
    result = fit(module)
    assert module.training
    with pytest.raises(KeyError, match="three"):
        result.predict(X[:3])
    assert module.training
