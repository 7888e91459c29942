"""What fit returns and distsgd.load reads: one trained model, from each kind of model, and several as an ensemble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd import nn
from distsgd.core.errors import CheckpointError, ConfigurationError, DataError, RunFolderError
from distsgd.core.random import normal
from tests.threads import run_on_threads

X = normal((90, 4), 1, "x").astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int64)
VALUES = (X @ np.array([[1.0], [0.5], [-1.0], [0.0]], np.float32)).astype(np.float32)
WEIGHTS = np.linspace(0.5, 1.5, 90).astype(np.float32)
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 30}
NAMES = ("no", "yes")


def line(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
    weights = np.ones(len(batch), np.float32) if batch.weights is None else batch.weights
    error = params["w"] @ batch.x - batch.y
    grads["w"] = (weights * error) @ batch.x.T
    return 0.5 * float(np.sum(weights * error * error, dtype=np.float64)), len(batch)


def outputs(params: Any, batch: Any) -> Any:
    return params["w"] @ batch.x


def low(found: Any, targets: Any) -> Any:
    return (np.asarray(found)[0] < 0) * 1.0


LAYER = nn.Sequential([nn.Dense(4, 3), nn.Activation("tanh"), nn.Dense(3, 1)])
START = {"w": np.zeros((1, 4), np.float32)}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "name": ("mlp", {"hidden": (3,)}),
    "layer": (LAYER, {}),
    "FunctionObjective": (distsgd.FunctionObjective(line, START, outputs), {}),
    "function": (line, {"params": START, "outputs": outputs}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_takes_weights_metrics_and_predict(kind: str) -> None:
    model, more = KINDS[kind]
    given: dict[str, Any] = {"validation": (X, VALUES), **QUICK, **more}
    plain = distsgd.fit(model, X, VALUES, metrics=["mean_absolute_error", low], **given)
    predicted = plain.predict(X)
    assert predicted.shape == (90, 1)
    assert plain.summary["validation_low"] == np.mean(predicted < 0)
    assert plain.summary["validation_mean_absolute_error"] == pytest.approx(np.mean(abs(predicted - VALUES)), rel=1e-5)
    halves = np.where(np.arange(90) < 45, 1.0, 0.0)
    weighted = distsgd.fit(model, X, VALUES, weights=halves, **given)
    other = np.where(np.arange(90)[:, None] < 45, VALUES, 7.0)  # of examples that don't count
    again = distsgd.fit(model, X, other, weights=halves, **given)
    assert weighted.summary["parameters_sha256"] == again.summary["parameters_sha256"]
    assert weighted.summary["parameters_sha256"] != plain.summary["parameters_sha256"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_loaded_with_the_same_predictions(kind: str, tmp_path: Path) -> None:
    model, more = KINDS[kind]
    given: dict[str, Any] = {"validation": (X[:30], VALUES[:30]), **QUICK, **more}
    result = distsgd.fit(model, X, VALUES, out=str(tmp_path / "run"), **given)
    needed: dict[str, Any] = {} if kind == "name" else {"model": model}
    needed |= {"outputs": outputs} if kind == "function" else {}
    if needed:
        with pytest.raises(ConfigurationError, match=r"with a model of your own; give model=: .*(\(1, 4\)|\(3,\))"):
            distsgd.load(tmp_path / "run")
    else:
        with pytest.raises(ConfigurationError, match="was trained with mlp; leave model= and outputs= out"):
            distsgd.load(tmp_path / "run", model=LAYER)
    result.save(tmp_path / "saved")
    for folder in (tmp_path / "run", tmp_path / "saved", tmp_path / "run" / "checkpoints" / "best.safetensors"):
        loaded = distsgd.load(folder, **needed)
        assert loaded.predict(X).tobytes() == result.predict(X).tobytes()
        assert loaded.evaluate(X, VALUES) == result.evaluate(X, VALUES)
        if folder.is_dir():
            assert (loaded.config, loaded.summary) == (result.config, json.loads(json.dumps(result.summary)))
            assert loaded.history == result.history


def test_scores_are_those_of_the_summary(tmp_path: Path) -> None:
    result = distsgd.fit("mlp", X, LABELS, test=(X[:40], LABELS[:40]), **QUICK)
    scores = result.evaluate(X[:40], LABELS[:40])
    assert scores["loss"] == result.summary["test_loss"]
    assert scores["accuracy"] == result.summary["test_accuracy"] == np.mean(result.labels(X[:40]) == LABELS[:40])
    assert scores["confusion_matrix"] == result.summary["confusion_matrix"]["test"]
    twice = result.evaluate(X[:40], LABELS[:40], 2 * np.ones(40))
    assert twice["loss"] == pytest.approx(2 * scores["loss"], rel=1e-12)
    values = distsgd.fit("mlp", X, VALUES, **QUICK)
    assert values.evaluate(X, VALUES, metrics=[low])["low"] == np.mean(values.predict(X) < 0)
    for y, words in (
        (LABELS.astype(float), "the targets are floats"),
        (LABELS + 1, "has 2"),
        (LABELS[:3], "90 entries"),
    ):
        with pytest.raises(DataError, match=words):
            result.evaluate(X, y)
    with pytest.raises(ConfigurationError, match="metric: expected one of"):
        result.evaluate(X, LABELS, metrics=["beauty"])


def test_labels_and_probabilities() -> None:
    two = distsgd.fit("mlp", X, LABELS, classes=NAMES, **QUICK)
    assert two.predict_proba(X).tobytes() == two.predict(X).tobytes()
    assert (two.labels(X) == np.where(two.predict(X)[:, 1] > 0.5, "yes", "no")).all()
    one = distsgd.fit("mlp", X, LABELS.astype(np.float32), loss="binary-cross-entropy", **QUICK)
    np.testing.assert_array_equal(one.predict_proba(X), np.concatenate([1 - one.predict(X), one.predict(X)], axis=1))
    assert (one.labels(X) == (one.predict(X)[:, 0] > 0.5)).all()
    values = distsgd.fit("mlp", X, VALUES, **QUICK)
    scores = distsgd.fit(
        line, X, LABELS, params={"w": np.ones((1, 4))}, outputs=outputs, loss="binary-cross-entropy", **QUICK
    )
    for model, words in ((values, "predicts values"), (scores, "scores and no probabilities")):
        with pytest.raises(ConfigurationError, match=words):
            model.predict_proba(X)
    with pytest.raises(ConfigurationError, match="predicts values"):
        values.labels(X)


def test_a_repr_of_five_lines() -> None:
    result = distsgd.fit("mlp", X, LABELS, classes=NAMES, validation=(X, LABELS), **QUICK)
    lines = repr(result).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("Result: mlp, ")
    for text in ("no, yes", "completed: 2 epochs, 6 steps", "validation loss", result.summary["parameters_sha256"]):
        assert text in repr(result)


def test_history_is_of_all_attempts_on_all_ranks(tmp_path: Path) -> None:
    def run(communicator: Any) -> distsgd.Result:
        return distsgd.fit("softmax", X, LABELS, out=str(tmp_path / "run"), communicator=communicator, **options)

    for epochs in (1, 3):
        options = {"epochs": epochs, "batch_size": 30}
        results = run_on_threads(2, run)
    assert [[record["epoch"] for record in result.history] for result in results] == [[1, 2, 3]] * 2
    assert distsgd.load(tmp_path / "run").history == results[0].history


def test_a_saved_model_is_not_written_over(tmp_path: Path) -> None:
    result = distsgd.fit("softmax", X, LABELS, **QUICK)
    result.save(tmp_path / "saved")
    kept = (tmp_path / "saved" / "checkpoints" / "best.safetensors").read_bytes()
    with pytest.raises(RunFolderError, match="name a folder that is not there yet"):
        result.save(tmp_path / "saved")
    with pytest.raises(RunFolderError, match="holds a saved model and no run to continue"):
        distsgd.fit("softmax", X, LABELS, out=str(tmp_path / "saved"), **QUICK)
    assert (tmp_path / "saved" / "checkpoints" / "best.safetensors").read_bytes() == kept
    begun = distsgd.fit("softmax", X, LABELS, init_from=str(tmp_path / "saved"), epochs=0)
    assert begun.predict(X).tobytes() == result.predict(X).tobytes()


class Twice(distsgd.SquaredError):
    """A loss of the user's own."""


def test_a_loss_of_ones_own_is_given_again(tmp_path: Path) -> None:
    result = distsgd.fit("mlp", X, VALUES, loss=Twice(), out=str(tmp_path / "own"), **QUICK)
    with pytest.raises(ConfigurationError, match="trained with a loss of your own; give loss="):
        distsgd.load(tmp_path / "own")
    assert distsgd.load(tmp_path / "own", loss=Twice()).predict(X).tobytes() == result.predict(X).tobytes()
    smooth = distsgd.SoftmaxCrossEntropy(label_smoothing=0.1)
    named = distsgd.fit("mlp", X, LABELS, loss=smooth, out=str(tmp_path / "named"), **QUICK)
    assert distsgd.load(tmp_path / "named").predict(X).tobytes() == named.predict(X).tobytes()
    with pytest.raises(ConfigurationError, match="leave loss= out"):
        distsgd.load(tmp_path / "named", loss=smooth)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2, 3):
        distsgd.fit("mlp", X, LABELS, seed=seed, classes=NAMES, out=str(folder / str(seed)), **QUICK)
    distsgd.fit("mlp", X, LABELS, out=str(folder / "unnamed"), **QUICK)
    distsgd.fit("mlp", X, VALUES, out=str(folder / "values"), **QUICK)
    distsgd.fit("mlp", X[:, :3], LABELS, classes=NAMES, out=str(folder / "three"), **QUICK)
    return folder


def test_an_ensemble_is_the_mean_of_its_members(runs: Path) -> None:
    paths = [runs / str(seed) for seed in (1, 2, 3)]
    ensemble, members = distsgd.load(paths), [distsgd.load(path) for path in paths]
    each = np.stack([one.predict(X) for one in members]).astype(np.float64)
    np.testing.assert_allclose(ensemble.predict(X), each.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(ensemble.spread(X), each.std(axis=0), rtol=1e-12, atol=1e-16)
    np.testing.assert_array_equal(ensemble.predict_proba(X), ensemble.predict(X))
    assert (ensemble.labels(X) == np.array(NAMES)[each.mean(axis=0).argmax(axis=1)]).all()
    assert len(ensemble) == 3
    assert not distsgd.load([paths[0]]).spread(X).any()


@pytest.mark.parametrize(
    ("other", "words"), [("unnamed", "classes no, yes"), ("values", "a task"), ("three", r"\(3,\)")]
)
def test_members_that_do_not_fit_each_other_are_refused(runs: Path, other: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        distsgd.load([runs / "1", runs / other])


@pytest.mark.parametrize("given", [[], 3, [3]])
def test_what_is_no_path_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected the path of a run, or a list of paths"):
        distsgd.load(given)


def test_a_model_of_other_names_or_shapes_is_refused(tmp_path: Path) -> None:
    distsgd.fit(LAYER, X, VALUES, out=str(tmp_path / "run"), **QUICK)
    for model in (nn.Dense(4, 1), nn.Sequential([nn.Dense(4, 5), nn.Activation("tanh"), nn.Dense(5, 1)])):
        with pytest.raises(CheckpointError, match="it was written for another model"):
            distsgd.load(tmp_path / "run", model=model)


def test_initial_values_of_every_model(tmp_path: Path) -> None:
    for kind, (model, more) in KINDS.items():
        trained = distsgd.fit(model, X, VALUES, **QUICK, **more)
        begun = distsgd.fit(model, X, VALUES, epochs=0, **more | {"params": trained.params})
        assert begun.summary["parameters_sha256"] == trained.summary["parameters_sha256"], kind
    right = distsgd.fit("softmax", X, LABELS, **QUICK).params
    for wrong, words in (
        ({}, "dense1.bias is missing"),
        (right | {"more": 1}, "the model has no more"),
        (right | {"dense1.bias": np.zeros(3)}, r"shape \(2,\)"),
        (right | {"dense1.bias": np.full(2, np.nan)}, "not finite"),
    ):
        with pytest.raises(ConfigurationError, match=f"params: .*{words}"):
            distsgd.fit("softmax", X, LABELS, params=wrong, epochs=0)
    given: dict[str, Any] = {"params": right, "out": str(tmp_path / "run"), "batch_size": 30}
    distsgd.fit("softmax", X, LABELS, epochs=1, **given)
    assert distsgd.fit("softmax", X, LABELS, epochs=2, **given).summary["epochs"] == 2
    with pytest.raises(RunFolderError, match="began with other initial values"):
        distsgd.fit(
            "softmax", X, LABELS, epochs=3, **given | {"params": {name: 2 * one for name, one in right.items()}}
        )


class Own(distsgd.SGD):
    """An optimizer of the user's own."""


def test_an_optimizer_is_a_name_a_class_or_an_object() -> None:
    def sha(**options: Any) -> str:
        return str(distsgd.fit("softmax", X, LABELS, **QUICK, **options).summary["parameters_sha256"])

    by_name = sha(optimizer="adam", lr=0.01, beta1=0.8)
    assert by_name == sha(optimizer=distsgd.Adam, lr=0.01, beta1=0.8) == sha(optimizer=distsgd.Adam(0.01, beta1=0.8))
    assert by_name != sha(optimizer=distsgd.Adam)
    assert sha(optimizer=Own, lr=0.3, weight_decay=0.1) == sha(optimizer=distsgd.SGD(0.3, weight_decay=0.1))
    for options, words in (
        ({"optimizer": distsgd.Adam, "momentum": 0.9}, "momentum"),
        ({"optimizer": Own, "beta1": 0.9}, "option of Own: expected one of learning_rate, weight_decay, got 'beta1'"),
        ({"optimizer": distsgd.Adam(0.1), "lr": 0.1}, "learning_rate is the optimizer's"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            sha(**options)


class Foreign:
    """An array of another library's."""

    def __init__(self, array: Any) -> None:
        self.array, self.asked = array, 0

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        self.asked += 1
        return np.asarray(self.array, dtype)


class Graph(Foreign):
    """A tensor that won't become an array, as torch's with gradients."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def test_x_and_y_in_other_forms() -> None:
    result = distsgd.fit("softmax", X, LABELS, **QUICK)
    for x, y in (
        (X.tolist(), LABELS.tolist()),
        (Foreign(X), Foreign(LABELS)),
        ((X, LABELS), None),
        ([X, LABELS], None),
    ):
        again = distsgd.fit("softmax", x, y, dtype="float32", **QUICK)
        assert again.summary["parameters_sha256"] == result.summary["parameters_sha256"]
    assert result.predict(Foreign(X)).tobytes() == result.predict(X).tobytes()
    weighted = distsgd.fit("softmax", (X, LABELS, WEIGHTS), **QUICK).summary["parameters_sha256"]
    assert distsgd.fit("softmax", (X, LABELS), weights=WEIGHTS, **QUICK).summary["parameters_sha256"] == weighted
    for given, words in (
        ({"x": X}, "give x and y"),
        ({"x": X, "weights": WEIGHTS}, "weights go with x and y"),
        ({"x": (X, LABELS), "y": (X, LABELS)}, "given as validation="),
        ({"x": Graph(X), "y": LABELS}, "requires grad.*give an array of numbers"),
    ):
        with pytest.raises((ConfigurationError, DataError), match=words):
            distsgd.fit("softmax", **given, **QUICK)  # type: ignore[arg-type]


def test_a_frame_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    frame, labels = pandas.DataFrame(X, columns=list("abcd")), pandas.Series(LABELS)
    result = distsgd.fit("softmax", frame, labels, **QUICK)
    same = distsgd.fit("softmax", X, LABELS, **QUICK)
    assert result.summary["parameters_sha256"] == same.summary["parameters_sha256"]
    assert result.predict(frame).tobytes() == same.predict(X).tobytes()


@pytest.mark.parametrize("size", [1, 2])
def test_a_data_source_is_taken_with_its_splits(size: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=X[:60], y_train=LABELS[:60], x_validation=X[60:], y_validation=LABELS[60:])
    source = distsgd.open_dataset(str(tmp_path / "a.npz"))
    same = distsgd.fit("softmax", X[:60], LABELS[:60], validation=(X[60:], LABELS[60:]), **QUICK)
    for result in run_on_threads(size, lambda c: distsgd.fit("softmax", source, communicator=c, **QUICK)):
        assert result.summary["parameters_sha256"] == same.summary["parameters_sha256"]
        assert result.summary["validation_loss"] == same.summary["validation_loss"]
    other = distsgd.fit("softmax", source, validation=(X[:10], LABELS[:10]), **QUICK)
    assert other.evaluate(X[:10], LABELS[:10])["loss"] == other.summary["validation_loss"]


def test_nothing_is_split_off_and_nothing_stops_early_unless_asked() -> None:
    still: dict[str, Any] = {"lr": 0.0, "epochs": 30, "batch_size": 90}
    plain = distsgd.fit("softmax", X, LABELS, **still)
    assert (plain.validation_rows, plain.summary["epochs"], plain.config["early_stopping"]) == (None, 30, "none")
    validated = distsgd.fit("softmax", X, LABELS, validation=(X, LABELS), **still)
    assert validated.summary["epochs"] == 30
    for asked in ({"patience": 3}, {"early_stopping": "epochs"}):
        assert distsgd.fit("softmax", X, LABELS, validation=(X, LABELS), **still, **asked).summary["epochs"] < 30  # type: ignore[arg-type]
    split = distsgd.fit("softmax", X, LABELS, validation_fraction=0.1, **still)
    assert split.validation_rows is not None
    assert len(split.validation_rows) == 9


def test_loading_starts_no_mpi_and_runs_no_code(tmp_path: Path) -> None:
    distsgd.fit("softmax", X, LABELS, out=str(tmp_path / "run"), **QUICK)
    np.save(tmp_path / "x.npy", X)
    program = (
        "import sys, numpy as np, distsgd; model = distsgd.load('run'); print(model.predict(np.load('x.npy')).shape);"
        "print([name for name in ('mpi4py', 'mpi4py.MPI', 'pickle5', 'matplotlib') if name in sys.modules])"
    )
    launched = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMI_SIZE": "2", "PMI_RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4]), **launched},
    )  # fmt: skip
    assert done.stdout == "(90, 2)\n[]\n", done.stderr


def test_a_damaged_history_is_reported_and_left_out(tmp_path: Path) -> None:
    distsgd.fit("softmax", X, LABELS, out=str(tmp_path / "run"), **QUICK)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"epoch": 1', '"epoch": 7'))
    with pytest.warns(UserWarning, match="metrics.jsonl.*changed"):
        assert distsgd.load(tmp_path / "run").history == []
    (tmp_path / "run" / "config.toml").write_text("model = 3\n")
    with pytest.raises(ConfigurationError, match=r"config\.toml: model"):
        distsgd.load(tmp_path / "run")


def test_pictures_of_a_model_in_memory(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = distsgd.fit("mlp", X, LABELS, validation=(X, LABELS), **QUICK)
    assert len(result.plot().axes) >= 2
    result.plot(tmp_path / "pictures")
    assert {path.name for path in (tmp_path / "pictures").glob("*.svg")} == {"curves.svg", "confusion.svg"}
