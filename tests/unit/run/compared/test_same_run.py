"""A run is continued by the same model, loss, schedule, optimizer and metrics alone, wherever their files lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distsgd import fit
from distsgd.cli.train import Signals, train
from distsgd.core.checkpoint import encode
from distsgd.core.checkpoint_folder import read_checkpoint
from distsgd.core.errors import CheckpointError, RunFolderError
from distsgd.metrics import UserMetric
from distsgd.nn import Activation, Dense, FunctionObjective, Sequential, SoftmaxCrossEntropy, Supervised
from distsgd.optim import SGD, Constant, Cosine, Schedule, Step
from distsgd.parallel.serial import SerialCommunicator
from distsgd.run.trained.trained_model import Result
from tests.threads import run_on_threads

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 4)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
BASE: dict[str, Any] = {"batch_size": 16, "validation_fraction": 0.0}
W = {"w": np.full(4, 0.1)}


def hinge(rate: float, tests: Callable[[], Any] = int) -> Callable[[Any, Any, Any], tuple[float, int]]:
    def loss(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        tests()
        t = 2.0 * batch.y - 1.0
        margin = rate - t * (params["w"] @ batch.x)
        grads["w"] = batch.x @ np.where(margin > 0, -t, 0).astype(batch.x.dtype)
        return float(np.maximum(margin, 0).sum(dtype=np.float64)), len(batch)

    return loss


def layers(kind: str = "tanh", rate: float = 0.0) -> Sequential:
    return Sequential([Dense(4, 8), Activation(kind), Dense(8, 2)])


@dataclass(frozen=True)
class Own(SGD):  # type: ignore[misc]
    """Another class than distsgd's."""

    power: float = 1.0

    def __repr__(self) -> str:
        return "Own"


class Falling(Schedule):
    def __init__(self, power: int) -> None:
        self.power, self.calls = power, 0

    def multiplier(self, step: int, steps_per_epoch: int) -> float:
        self.calls += 1
        return float((1 + step) ** -self.power)


def positive(outputs: Any, y: Any) -> Any:
    return (outputs[0] > 0).astype(float)


def negative(outputs: Any, y: Any) -> Any:
    return (outputs[0] < 0).astype(float)


def begin(out: Path, model: Any, **options: Any) -> Result:
    return fit(model, (X, Y), out=str(out), **{**BASE, "epochs": 1, **options})


REFUSED: dict[str, tuple[Any, dict[str, Any], Any, dict[str, Any], str]] = {
    "source": (hinge(1.0), {"params": W}, lambda p, g, b: hinge(1.0)(p, g, b), {"params": W}, "with other source"),
    "what a function closes over": (hinge(1.0), {"params": W}, hinge(2.0), {"params": W}, r"\(variable rate\)"),
    "initial values": (hinge(1.0), {"params": W}, hinge(1.0), {"params": {"w": W["w"] * 2}}, "other initial values"),
    "structure": (layers(), {}, layers("relu"), {}, r"another structure \(\.layers\[1\]"),
    "loss": (
        Supervised(layers(), SoftmaxCrossEntropy(), (4,)), {},
        Supervised(layers(), SoftmaxCrossEntropy(label_smoothing=0.1), (4,)), {}, "another loss",
    ),
    "schedule": (layers(), {"schedule": Step(0.5, 1.0)}, layers(), {"schedule": Step(0.4, 1.0)}, "another schedule"),
    "horizon": ("mlp", {"schedule": Cosine(3.0)}, "mlp", {"schedule": Cosine(4.0)}, r"another schedule \(\.epochs"),
    "schedule left out": ("mlp", {"schedule": Step(0.5, 1.0)}, "mlp", {}, "another schedule"),
    "own schedule": ("mlp", {"schedule": Falling(1)}, "mlp", {"schedule": Falling(2)}, r"schedule \(\.power\)"),
    "own optimizer": ("mlp", {"optimizer": Own(power=1.0)}, "mlp", {"optimizer": Own(power=2.0)}, "another optimizer"),
    "metric": (
        "mlp", {"metrics": [UserMetric("own", positive)], "validation_fraction": 0.1},
        "mlp", {"metrics": [UserMetric("own", negative)], "validation_fraction": 0.1}, "other metrics",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_another_one_is_refused_and_the_same_continues(tmp_path: Path, what: str) -> None:
    first, more, second, others, words = REFUSED[what]
    begin(tmp_path, first, **more)
    with pytest.raises(RunFolderError, match=f"this folder began with .*{words}.*--out.*--resume never.*--init-from"):
        begin(tmp_path, second, **others, epochs=2)
    assert begin(tmp_path, first, **more, epochs=2).summary["steps"] == 10


def test_the_same_made_anew_continues_on_any_number_of_ranks(tmp_path: Path) -> None:
    def attempt(ranks: int, epochs: int) -> Result:
        def one(communicator: Any) -> Result:
            options = {**BASE, "params": {"w": np.full(4, 0.1)}, "schedule": Falling(1), "epochs": epochs}
            return fit(hinge(1.0), (X, Y), out=str(tmp_path), communicator=communicator, **options)

        return run_on_threads(ranks, one)[0]

    for ranks, epochs in ((1, 1), (3, 2), (2, 3)):
        assert attempt(ranks, epochs).summary["steps"] == 5 * epochs


def test_a_function_that_counts_its_calls_continues_in_the_same_process(tmp_path: Path) -> None:
    """As in a notebook, where the same objects are used twice."""
    calls: list[int] = []
    seen: dict[str, int] = {}

    def count() -> None:
        calls.append(1)
        seen["calls"] = seen.get("calls", 0) + 1

    schedule = Falling(1)
    for epochs in (1, 2, 3):
        found = begin(tmp_path, hinge(1.0, count), params=W, schedule=schedule, epochs=epochs)
        assert found.summary["steps"] == 5 * epochs
    assert calls


WHEN_TO_STOP: dict[str, tuple[Any, Any]] = {
    "epochs": (1, 3), "max_steps": (3, 9), "max_time": ("never", "1h"), "target": (None, "validation_loss=0"),
    "patience": (1, 4), "min_delta": (0.0, 0.1), "early_stopping": ("epochs", "patience"),
    "patience_increase": (2.0, 3.0), "improvement_threshold": (0.995, 0.9),
}  # fmt: skip
OF_NO_EFFECT: dict[str, tuple[Any, Any]] = {
    "checkpoint_every": ("1epoch", "2"), "keep": (3, 1), "on_non_finite": ("stop", "skip"), "log_every": (None, 2),
    "threads": (1, 2), "communication": ("auto", "mpi"), "check_replicas": (1000, 1), "stall_timeout": ("120s", "60s"),
    "validation_on": ("all", "rank0"), "test_at_best": (True, False), "quiet": (True, False),
    "cuda_graphs": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("option", [*WHEN_TO_STOP, *OF_NO_EFFECT])
def test_an_option_that_may_change_on_resume(tmp_path: Path, option: str) -> None:
    before, after = (WHEN_TO_STOP | OF_NO_EFFECT)[option]
    options: dict[str, Any] = {"validation_fraction": 0.2, "epochs": 4, "max_steps": 3}
    if option in ("patience_increase", "improvement_threshold"):
        options |= {"early_stopping": "patience", "patience": 100}
    begin(tmp_path, layers(), **{**options, option: before})
    options["max_steps"] = 9
    assert begin(tmp_path, layers(), **{**options, option: after}).summary["steps"] == 9


def test_more_patience_continues_a_run_that_was_stopped_early(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "run"
    asked = ["--dataset", str(data), "--out", str(out), "--quiet", "--epochs", "12", "--learning-rate", "0"]

    def steps(patience: int) -> int:
        assert train(SerialCommunicator(), [*asked, "--batch-size", "18", "--patience", str(patience)], Signals()) == 0
        return int(json.loads((out / "summary.json").read_text())["steps"])

    assert [steps(patience) for patience in (2, 2, 4, 1, 0)] == [12, 12, 20, 20, 48]


def test_an_older_checkpoint_says_less_and_continues(tmp_path: Path) -> None:
    begin(tmp_path, layers())
    for path in (tmp_path / "checkpoints").glob("*.safetensors"):
        found = read_checkpoint(path)
        found.document.pop("identity", None)
        path.write_bytes(encode(found))
    assert begin(tmp_path, layers("relu"), epochs=2).summary["steps"] == 10
    with pytest.raises(RunFolderError, match="another structure"):  # from now on it is known
        begin(tmp_path, layers("tanh"), epochs=3)


@pytest.mark.parametrize(
    "identity",
    [
        {"source": {"itself": 1}}, {"source": []}, {"source": {"itself": "x" * 300}},
        {str(number): {} for number in range(20)}, {"source": {str(number): "" for number in range(5000)}},
    ],
)  # fmt: skip
def test_a_checkpoint_with_an_identity_of_another_kind_is_refused(tmp_path: Path, identity: Any) -> None:
    begin(tmp_path, layers())
    (path,) = (tmp_path / "checkpoints").glob("step-*.safetensors")
    found = read_checkpoint(path)
    path.write_bytes(encode(replace(found, document=found.document | {"identity": identity})))
    (tmp_path / "checkpoints" / "last.safetensors").unlink()
    with pytest.raises(CheckpointError, match="identity is"):
        begin(tmp_path, layers(), epochs=2)


MODEL = '''"""A model in a file."""

from distsgd.nn import Activation, Dense, Sequential

SIZES = {"units": 8, "unused": 1}


def build(shape, outputs):
    """Builds it."""
    return Sequential([Dense(shape[0], SIZES["units"]), Activation("tanh"), Dense(8, outputs)])


def report(outputs, y):
    return outputs[0] * 0 + 1.0
'''


def started(data: Path, model: Path, out: Path, *more: str) -> int:
    asked = ["--dataset", data, "--model", f"{model}:build", "--metric", f"{model}:report", "--out", out, "--quiet"]
    return train(SerialCommunicator(), [*map(str, asked), "--batch-size", "16", *more], Signals())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    return tmp_path / "data.npz"


def written(path: Path, text: str = MODEL) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_that_is_moved_and_formatted_anew_continues(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "run"
    assert started(data, written(tmp_path / "a" / "net.py"), out, "--epochs", "1") == 0
    text = MODEL.replace('"""Builds it."""', "# as it was\n").replace('"unused": 1', '"unused": 2')
    moved = written(tmp_path / "b" / "other.py", "\n\n" + text.replace("[Dense(shape", "[\n        Dense(shape"))
    assert started(data, moved, out, "--epochs", "2") == 0
    for old, new, words in (("tanh", "relu", r"structure \(.*Activation|structure"), ("0 + 1.0", "0 + 2.0", "metrics")):
        edited = written(tmp_path / words[:4] / "net.py", MODEL.replace(old, new))
        with pytest.raises(RunFolderError, match=f"began with .*{words}"):
            started(data, edited, out, "--epochs", "3")
    source = written(tmp_path / "c" / "net.py", MODEL.replace('"units": 8', '"units": 4 + 4'))
    assert started(data, source, out, "--epochs", "3") == 0  # another text, the same value
    source = written(tmp_path / "d" / "net.py", MODEL.replace("Dense(8, outputs)", "Dense(4 + 4, outputs)"))
    with pytest.raises(RunFolderError, match="began with a model with other source"):
        started(data, source, out, "--epochs", "4")


def test_a_file_that_a_function_imports_counts(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = MODEL.replace("    return outputs", "    from imported_later import FACTOR\n    return FACTOR * outputs")
    model, other = written(tmp_path / "a" / "net.py", text), tmp_path / "imported_later.py"
    written(other, "FACTOR = 1.0\nUNUSED = 1\n")
    assert started(data, model, tmp_path / "run", "--epochs", "1") == 0
    written(other, "UNUSED = 2\n# a comment\nFACTOR = 1.0\n")
    assert started(data, model, tmp_path / "run", "--epochs", "2") == 0
    written(other, "FACTOR = 2.0\n")
    with pytest.raises(RunFolderError, match=r"other metrics.*import imported_later.FACTOR"):
        started(data, model, tmp_path / "run", "--epochs", "3")


def test_init_from_is_compared_by_what_it_holds(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        begin(tmp_path / name, layers(), seed=seed)
    out, options = tmp_path / "run", {"epochs": 2}
    begin(out, layers(), init_from=str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "moved")
    begin(out, layers(), init_from=str(tmp_path / "a"), **options)  # named as it was, it isn't read again
    begin(out, layers(), init_from=str(tmp_path / "moved"), epochs=3)
    with pytest.raises(RunFolderError, match="other initial values"):
        begin(out, layers(), init_from=str(tmp_path / "b"), epochs=4)
    with pytest.raises(RunFolderError, match="init_from"):
        begin(out, layers(), epochs=4)


def test_an_objective_with_parameters_of_other_values_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, FunctionObjective(hinge(1.0), W))
    with pytest.raises(RunFolderError, match="other initial values"):
        begin(tmp_path, FunctionObjective(hinge(1.0), {"w": W["w"] + 1}), epochs=2)


def test_a_constant_schedule_is_what_no_schedule_is(tmp_path: Path) -> None:
    begin(tmp_path, "mlp", schedule="constant")
    begin(tmp_path, "mlp", epochs=2)
    with pytest.raises(RunFolderError, match="another schedule"):
        begin(tmp_path, "mlp", schedule=Constant(), epochs=3)
