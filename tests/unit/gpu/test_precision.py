"""Products in tf32, bfloat16 and float16, on a stand-in for cuBLAS that takes what it takes and rounds as it does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsgd.core.device import Device, to_host
from distsgd.core.device_options import FULL, PRECISIONS
from distsgd.core.errors import ConfigurationError, NonFiniteError, RunFolderError
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Layout
from distsgd.gpu import cublas
from distsgd.gpu.devices import choose_device
from distsgd.nn.batch import Batch
from distsgd.nn.layers import Activation, Dense, Sequential
from distsgd.nn.losses import SoftmaxCrossEntropy
from distsgd.nn.objective import Supervised
from distsgd.run.config import TrainConfig, resolved
from distsgd.run.fit import fit
from distsgd.run.trained.trained_model import Result
from tests import cublas_stand_in, emulated_kernels
from tests.strict_device import StrictModule, strict_device

pytestmark = pytest.mark.stand_in

emulated = pytest.mark.skipif(emulated_kernels.COMPILER is None, reason=emulated_kernels.WITHOUT)
UNIT = {"float32": 2.0**-24, "tf32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Half the distance of 1 and the next number."""
LOWER = [name for name in PRECISIONS if name != FULL]


@pytest.fixture
def gpu() -> Iterator[Device]:
    with strict_device(StrictModule(), own_kernels=True):
        yield choose_device("gpu")[0]


# --- products


@pytest.mark.parametrize("bits", [7, 10])
def test_the_stand_in_rounds_to_the_nearest(bits: int) -> None:
    values = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    scale = 2.0 ** (bits - np.floor(np.log2(np.abs(values.astype(np.float64)))))
    np.testing.assert_array_equal(cublas_stand_in.rounded(values, bits), np.rint(values * scale) / scale)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], np.float32)
    np.testing.assert_array_equal(cublas_stand_in.rounded(special, bits), special)


sides = st.integers(1, 40)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(m=sides, k=sides, n=sides, turned=st.tuples(st.booleans(), st.booleans()), given_out=st.booleans())
def test_products_round_what_goes_in_and_add_in_float32(
    precision: str, m: int, k: int, n: int, turned: tuple[bool, bool], given_out: bool
) -> None:
    rng = np.random.default_rng(m + 41 * k + 1681 * n)
    a, b = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    with strict_device(StrictModule(), own_kernels=True):
        put = choose_device("gpu")[0].put
        left, right = put(a.T.copy()).T if turned[0] else put(a), put(b.T.copy()).T if turned[1] else put(b)
        memory = put(np.full(m * n + 2, np.nan, np.float32))
        out = memory[2:].reshape(m, n) if given_out else None
        result = kernels_for(left, precision).multiply(left, right, out=out)
        assert not given_out or np.isnan(to_host(memory)[:2]).all()
        found = to_host(result if out is None else out)
        assert [cublas.COMPUTE[precision]] == cublas_stand_in.COMPUTED
    error = np.abs(found - a.astype(np.float64) @ b.astype(np.float64))
    size = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    assert (error <= size * (2.1 * UNIT[precision] + k * UNIT["float32"]) + 1e-6 * (precision == "float16")).all()


@pytest.mark.parametrize("precision", LOWER)
def test_lower_precision_is_lower(gpu: Device, precision: str) -> None:
    a, b = (np.random.default_rng(seed).random((64, 64), np.float32) for seed in (1, 2))
    exact = a.astype(np.float64) @ b
    errors = {
        name: float(np.abs(to_host(kernels_for(gpu.put(a), name).multiply(gpu.put(a), gpu.put(b))) - exact).max())
        for name in (FULL, precision)
    }
    assert errors[precision] > 20 * errors[FULL]


def test_float64_has_one_precision(gpu: Device) -> None:
    a = np.random.default_rng(0).random((9, 9))
    there = gpu.put(a)
    found = to_host(kernels_for(there, "tf32").multiply(there, there.T))
    np.testing.assert_allclose(found, a @ a.T, rtol=1e-14)
    assert cublas_stand_in.COMPUTED == [cublas.COMPUTE_FLOAT64]


def test_nothing_is_added_to_nothing(gpu: Device) -> None:
    """cuBLAS refuses sides of length 0."""
    empty, out = gpu.put(np.zeros((3, 0), np.float32)), gpu.put(np.full((3, 2), np.nan, np.float32))
    kernels_for(out).multiply(empty, gpu.put(np.zeros((0, 2), np.float32)), out=out)
    np.testing.assert_array_equal(to_host(out), np.zeros((3, 2)))


def test_views_with_gaps_are_copied(gpu: Device) -> None:
    a, b = (np.random.default_rng(seed).random((6, 8), np.float32) for seed in (1, 2))
    found = kernels_for(gpu.put(a)).multiply(gpu.put(a)[:, ::2], gpu.put(b)[:, 1:5].T)
    np.testing.assert_allclose(to_host(found), a[:, ::2] @ b[:, 1:5].T, rtol=1e-6)


MISTAKES = {
    "NumPy's": (lambda put: (put(np.ones((2, 2), np.float32)), np.ones((2, 2), np.float32), None), "numpy's float32"),
    "dtypes": (lambda put: (put(np.ones((2, 2), np.float32)), put(np.ones((2, 2))), None), "StrictArray|float64"),
    "integers": (lambda put: (put(np.ones((2, 2), np.int64)),) * 2 + (None,), "int64"),
    "shapes": (lambda put: (put(np.ones((2, 3))), put(np.ones((2, 3))), None), r"\(2, 3\) and \(2, 3\)"),
    "memory": (lambda put: (put(np.ones((2, 2))),) * 2 + (put(np.ones((2, 4)))[:, ::2],), "contiguous memory"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_mistakes(gpu: Device, name: str) -> None:
    arguments, printed = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=printed):
        cublas.multiply(*arguments(gpu.put))


def test_what_cublas_says_is_reported(gpu: Device) -> None:
    a = gpu.put(np.ones((2, 2), np.float32))
    cublas.multiply(a, a)
    handle = cublas_stand_in.HANDLES[-1]
    cublas_stand_in.STREAMS[handle] = (0, None)
    with pytest.raises(RuntimeError, match=re.escape("a product of 2x2 and 2x2 failed: AssertionError: a handle with")):
        cublas.multiply(a, a)


# --- the loss scale


def gradients(loss_scale: int, gpu: Device | None = None, precision: str = FULL, weight: float = 1.0) -> np.ndarray:
    """Of a small network, without the scale."""
    model = Sequential([Dense(6, 8), Activation("tanh"), Dense(8, 3)])
    objective = Supervised(model, SoftmaxCrossEntropy(), (6,)).scaled(loss_scale)
    layout = Layout.of(objective.parameter_shapes())
    flats = [np.zeros(layout.size, np.float32), np.full(layout.size, np.nan, np.float32)]
    objective.initialize(layout.views(flats[0]), layout.views(flats[0]), 1)
    x = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    y, weights = np.arange(20) % 3, np.full(20, weight, np.float32)
    if gpu is None:
        params, grads = map(layout.views, flats)
        objective.loss_and_grad(params, grads, Batch(x=x, y=y, indices=y, weights=weights))
        return grads.flat / np.float32(loss_scale)
    params, grads = (layout.views(gpu.put(flat)) for flat in flats)
    device = gpu.multiplying_in(precision)
    batch = Batch(x=gpu.put(x), y=gpu.put(y), indices=y, weights=gpu.put(weights), device=device)
    objective.loss_and_grad(params, grads, batch)
    return to_host(grads.flat) / np.float32(loss_scale)


@pytest.mark.parametrize("scale", [2, 1024, 1 << 24])
def test_a_power_of_two_divides_out_exactly(scale: int) -> None:
    assert gradients(scale).tobytes() == gradients(1).tobytes()


@emulated
def test_small_gradients_need_it_in_float16(gpu: Device) -> None:
    wanted = gradients(1, weight=1e-7)
    weights = np.abs(wanted) > 1e-8
    lost = gradients(1, gpu, "float16", weight=1e-7)
    kept = gradients(1024, gpu, "float16", weight=1e-7)
    np.testing.assert_allclose(kept[weights], wanted[weights], rtol=0.02)
    assert np.median(np.abs(lost[weights] / wanted[weights] - 1)) > 0.1


# --- trainings

DIGITS = np.load(Path(__file__).parents[3] / "distsgd" / "data" / "named" / "digits.npz")
X = np.random.default_rng(3).standard_normal((80, 12)).astype(np.float32)
IMAGES = np.random.default_rng(4).integers(0, 256, (80, 2, 8, 8)).astype(np.uint8)
LABELS = np.argmax(X[:, :4], axis=1)


def train(precision: str = FULL, train: Any = (X, LABELS), model: Any = "mlp", **options: Any) -> Result:
    options = {"epochs": 2, "batch_size": 40, "microbatches": 2, "precision": precision, "device": "gpu", **options}
    return fit(model, train, **options)


NETS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (16, 12)},
    "conv": {
        "train": (IMAGES, LABELS),
        "model": "conv 4 3x3 same, relu, pool 2, conv 6 3x3, relu, dense 8, relu, dense",
    },
}


@emulated
@pytest.mark.parametrize("precision", LOWER)
@pytest.mark.parametrize("name", list(NETS))
def test_every_product_of_a_training_has_the_precision(gpu: Device, name: str, precision: str) -> None:
    low = train(precision, **NETS[name])
    assert set(cublas_stand_in.COMPUTED) == {cublas.COMPUTE[precision]}
    cublas_stand_in.COMPUTED.clear()
    full = train(**NETS[name])
    assert set(cublas_stand_in.COMPUTED) == {cublas.COMPUTE[FULL]}
    assert low.summary["parameters_sha256"] != full.summary["parameters_sha256"]
    for key, array in full.params.items():
        assert low.params[key].dtype == np.float32
        np.testing.assert_allclose(low.params[key], array, atol=0.02, err_msg=key)


CONV = "conv 6 3x3, relu, pool 2, conv 12 2x2, relu, dense"


def accuracy(precision: str, seed: int, model: str) -> float:
    x, y = DIGITS["x"][:, None].astype(np.float32) / 16, DIGITS["y"].astype(np.int64)
    options: dict[str, Any] = {"validation_fraction": 0.3, "epochs": 5, "batch_size": 64, "patience": 0}
    result = train(precision, (x, y), model, seed=seed, **options)
    return float(result.history[-1]["validation_accuracy"])


@pytest.mark.long
@emulated
@pytest.mark.parametrize("model", ["mlp", CONV])
def test_accuracy_is_within_the_spread_of_seeds(gpu: Device, model: str) -> None:
    full = [accuracy(FULL, seed, model) for seed in range(2)]
    spread = max(full) - min(full)
    for precision in LOWER:
        assert abs(accuracy(precision, 1, model) - full[1]) <= max(spread, 0.01), precision
    assert min(full) > 0.8


@emulated
def test_a_run_keeps_its_precision(gpu: Device, tmp_path: Path) -> None:
    whole = train("bfloat16", epochs=4)
    train("bfloat16", epochs=2, out=str(tmp_path))
    with pytest.raises(RunFolderError, match="precision is 'bfloat16' there, 'tf32' here"):
        train("tf32", epochs=4, out=str(tmp_path))
    resumed = train("bfloat16", epochs=4, out=str(tmp_path))
    assert resumed.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert 'precision = "bfloat16"' in (tmp_path / "config.toml").read_text()


@emulated
def test_what_overflows_in_float16_is_reported(gpu: Device) -> None:
    with pytest.raises(NonFiniteError):
        train("float16", (X * 1e6, LABELS))


# --- options


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_cpu_has_one_precision(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distsgd.gpu.devices.has_cupy", lambda: False)
    printed = "precision tf32: the CPU multiplies in float32 alone; leave --precision out, or .* --device gpu"
    with pytest.raises(ConfigurationError, match=printed):
        train("tf32", device=device)


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({"precision": "fp16"}, "precision: expected one of float32, tf32, bfloat16, float16, got 'fp16'"),
        ({"precision": "tf32", "dtype": "float64"}, "precision tf32: goes with --dtype float32 alone, got float64"),
        ({"precision": "float16", "loss_scale": 1000}, r"loss_scale: expected a power of two, got 1000"),
        ({"precision": "float16", "loss_scale": 0}, "loss_scale: expected a whole number, at least 1"),
        ({"loss_scale": 1024}, "loss_scale: goes with --precision float16 alone, got float32"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], printed: str) -> None:
    with pytest.raises(ConfigurationError, match=printed):
        TrainConfig(**options)


def test_the_loss_scale_is_written_out_where_there_is_one() -> None:
    assert resolved(TrainConfig(precision="float16")).loss_scale == 1024
    assert resolved(TrainConfig(precision="float16", loss_scale=8)).loss_scale == 8
    assert resolved(TrainConfig(precision="bfloat16")).loss_scale is None


def test_a_name_says_the_precision() -> None:
    names = {resolved(TrainConfig(precision=precision)).name() for precision in PRECISIONS}
    assert len(names) == len(PRECISIONS)
    assert resolved(TrainConfig()).name() == "digits-mlp-c7be9778"  # as in README
