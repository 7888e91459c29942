"""evaluate, predict and trained models on a stand-in for a GPU: where arrays lie, the results, and what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distsgd
from distsgd.cli.evaluate import evaluate
from distsgd.cli.predict import predict
from distsgd.core.errors import ConfigurationError, OutOfMemoryError
from distsgd.core.layout import Views
from distsgd.gpu import cublas
from distsgd.nn.batch import Batch
from distsgd.parallel.serial import SerialCommunicator
from tests import cublas_stand_in, emulated_kernels
from tests.strict_arrays import POOL, TO_DEVICE, StrictArray
from tests.strict_device import StrictModule, strict_device
from tests.threads import run_on_threads
from tests.unit.gpu.test_training import IMAGES, LABELS, NET, VALUES, X, train

pytestmark = pytest.mark.stand_in

SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": {"batch_norm": True, "dropout": 0.2, "top_k": 2},
    "float64": {"dtype": "float64"},
    "images": {"train": (IMAGES, LABELS), "model": NET},
    "standardized": {"train": (X + 5, 9 * VALUES), "standardize": True, "standardize_targets": True},
    "yes or no": {"train": (X, (VALUES > 0).astype(np.float32)), "loss": "binary-cross-entropy"},
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_the_bits_of_the_cpu_with_its_kernels(name: str) -> None:
    model = train("cpu", **SETTINGS[name])
    x, y = SETTINGS[name].get("train", (X, LABELS))
    predicted, scores = model.predict(x), model.evaluate(x, y)
    with strict_device(StrictModule()) as recorder:
        there = model.on("gpu")
        found = there.predict(x)
        sent = [event.what for event in recorder.events if event.kind == TO_DEVICE]
        assert there.evaluate(x, y) == scores
    assert type(found) is np.ndarray
    assert found.tobytes() == predicted.tobytes()
    assert sum(array.nbytes for array in model.params.values()) in sent
    assert all(type(array) is np.ndarray for array in there.params.values())
    assert model.on("cpu").predict(x).tobytes() == predicted.tobytes()


def test_a_function_gets_arrays_of_the_gpu() -> None:
    kinds = set()

    def function(params: Views, grads: Views, batch: Batch) -> tuple[Any, int]:
        error = params["w"] @ batch.x - batch.y
        grads["w"][...] = error @ batch.x.T
        kinds.update(map(type, (params["w"], grads["w"], batch.x, batch.y)))
        return 0.5 * np.add.reduce(np.square(error).ravel()), len(batch)

    def outputs(params: Views, batch: Batch) -> Any:
        kinds.update(map(type, (params["w"], batch.x)))
        return params["w"] @ batch.x

    model = distsgd.FunctionObjective(function, {"w": np.zeros((3, 12), np.float32)}, outputs)
    trained = train("cpu", train=(X, VALUES), model=model, learning_rate=0.001)
    predicted, scores = trained.predict(X), trained.evaluate(X, VALUES)
    kinds.clear()
    with strict_device(StrictModule()):
        assert trained.on("gpu").predict(X).tobytes() == predicted.tobytes()
        assert kinds == {StrictArray}
        assert trained.on("gpu").evaluate(X, VALUES) == scores
    assert kinds == {StrictArray}


@pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)
def test_products_have_the_precision_that_is_asked_for() -> None:
    model = train("cpu")
    with strict_device(StrictModule(), own_kernels=True):
        there = model.on("gpu", "tf32")
        cublas_stand_in.COMPUTED.clear()
        rounded = there.predict(X)
        assert set(cublas_stand_in.COMPUTED) == {cublas.COMPUTE["tf32"]}
    error = np.abs(rounded - model.predict(X)).max()
    assert 1e-7 < error < 1e-2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, and data of several chunks."""
    folder = tmp_path_factory.mktemp("runs")
    many = np.tile(X, (20, 1))
    np.savez(folder / "data.npz", x=many, y=np.tile(LABELS, 20))
    for seed in (1, 2):
        train("cpu", seed=seed, out=str(folder / f"run{seed}"))
    train("cpu", dtype="float64", out=str(folder / "wide"))
    return folder


@pytest.fixture
def _there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


@pytest.fixture
def _without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in ("core.device", "gpu.devices"):
        monkeypatch.setattr(f"distsgd.{owner}.has_cupy", lambda: False)


@pytest.mark.usefixtures("_there")
@pytest.mark.parametrize("size", [1, 3])
def test_the_commands_on_ranks(size: int, capfd: pytest.CaptureFixture[str]) -> None:
    scored, predicted = ["run1", "--dataset", "data.npz", "--split", "all"], ["run1", "run2", "data.npz", "-o"]
    evaluate(SerialCommunicator(), scored)
    predict(SerialCommunicator(), [*predicted, "here"])
    wanted = capfd.readouterr().out.splitlines()[0]
    with strict_device(StrictModule(gpus=2)) as recorder:
        run_on_threads(size, lambda c: evaluate(c, [*scored, "--device", "gpu"]))
        run_on_threads(size, lambda c: predict(c, [*predicted, f"there{size}", "--device", "gpu"]))
        assert {event.gpu for event in recorder.events} == set(range(min(size, 2)))
    printed = capfd.readouterr()
    assert json.loads(printed.out.splitlines()[0]) == json.loads(wanted)
    assert printed.err.count("ranks share 2 GPU(s)") == (2 if size == 3 else 0)
    here, there = np.load("here.npz"), np.load(f"there{size}.npz")
    assert all(here[name].tobytes() == there[name].tobytes() for name in here)


REFUSED = {
    "no CuPy": (["run1", "--device", "gpu"], "device gpu: CuPy isn't installed (.*); use --device cpu to compute"),
    "a wrong name": (["run1", "--device", "cuda:0"], "expected auto, cpu, gpu or gpu:N such as gpu:1, got 'cuda:0'"),
    "a precision": (["run1", "--precision", "tf32"], "precision tf32: the CPU multiplies in float32 alone"),
    "a wrong precision": (["run1", "--precision", "bf16"], "precision: expected one of float32, tf32, bfloat16, float"),
}


@pytest.mark.usefixtures("_there", "_without_cupy")
@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_commands_refuse(name: str) -> None:
    words, printed = REFUSED[name]
    with pytest.raises(ConfigurationError, match=printed.replace("(.*)", r"\(.*\)")):
        run_on_threads(2, lambda c: evaluate(c, [*words, "--dataset", "data.npz"]))
    with pytest.raises(ConfigurationError, match=printed.replace("(.*)", r"\(.*\)")):
        predict(SerialCommunicator(), [*words, "data.npz", "-o", "no"])
    assert not Path("no.npz").exists()


@pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)
@pytest.mark.usefixtures("_there")
def test_a_precision_is_of_float32_alone() -> None:
    printed = "precision tf32: goes with float32 alone, and this model is of float64; leave --precision out"
    with strict_device(StrictModule(), own_kernels=True):
        with pytest.raises(ConfigurationError, match=printed):
            evaluate(SerialCommunicator(), ["wide", "--dataset", "data.npz", "--device", "gpu", "--precision", "tf32"])
        with pytest.raises(ConfigurationError, match=printed):
            distsgd.load("wide").on("gpu", "tf32")


def test_a_model_that_computes_on_the_cpu_alone() -> None:
    class AsStored(distsgd.FunctionObjective):
        inputs_as_stored = True

    def function(params: Any, grads: Any, batch: Any) -> tuple[float, int]:
        grads["w"][...] = 1.0
        return 1.0, len(batch)

    model = train("cpu", train=(X, VALUES), model=AsStored(function, {"w": np.zeros(3, np.float32)}), max_steps=1)
    printed = "gpu:0: this model computes on the CPU alone; give --device cpu"
    with strict_device(StrictModule()), pytest.raises(ConfigurationError, match=printed):
        model.on("gpu")


@pytest.fixture
def _full() -> Iterator[None]:
    yield
    POOL.set_limit(0)


@pytest.mark.usefixtures("_full")
def test_a_gpu_that_is_full() -> None:
    model = train("cpu", max_steps=1)
    with strict_device(StrictModule()):
        there = model.on("gpu")
        POOL.set_limit(200)
        for call in (lambda: there.predict(X), lambda: there.evaluate(X, LABELS)):
            with pytest.raises(OutOfMemoryError, match=r"a model of 254 parameters takes .*: the GPU is out of memory"):
                call()
        POOL.set_limit(254 * 4)
        with pytest.raises(OutOfMemoryError, match=r"predict on Strict \(gpu:0\): the GPU is out of memory"):
            there.predict(X)


@pytest.mark.usefixtures("_there")
def test_an_ensemble() -> None:
    ensemble = distsgd.load(["run1", "run2"])
    wanted, scores = ensemble.predict(X), ensemble.evaluate(X, LABELS)
    with strict_device(StrictModule()) as recorder:
        there = ensemble.on("gpu")
        assert there.predict(X).tobytes() == wanted.tobytes()
        assert there.evaluate(X, LABELS) == scores
        assert recorder.events


@pytest.mark.usefixtures("_without_cupy")
def test_a_model_that_was_sent_to_where_there_is_no_gpu() -> None:
    model = train("cpu", max_steps=1)
    with strict_device(StrictModule()):
        sent = pickle.dumps(model.on("gpu"))
    there = pickle.loads(sent)
    with pytest.raises(ConfigurationError, match="device gpu:0: CuPy isn't installed"):
        there.predict(X)
    assert there.on("auto").predict(X).tobytes() == model.predict(X).tobytes()
