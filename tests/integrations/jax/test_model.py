"""What JaxModel takes and refuses, its gradient, and its results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="jax is missing: make test-integrations installs it")

import distsgd  # noqa: E402
from distsgd import ConfigurationError  # noqa: E402
from distsgd.integrations.jax import JaxModel  # noqa: E402
from distsgd.nn import Batch, Layout  # noqa: E402
from distsgd.testing import check_gradient  # noqa: E402
from tests.integrations.jax.models import build  # noqa: E402
from tests.parallel.launch import ROOT  # noqa: E402

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
PARAMS = {"w": RNG.normal(size=(4, 2)).astype(np.float32), "b": np.zeros(2, np.float32)}
OPTIONS: dict[str, Any] = {"epochs": 1, "batch_size": 40, "microbatches": 2}


def linear(params: Any, x: Any) -> Any:
    return x @ params["w"] + params["b"]


def test_a_step_is_that_of_plain_jax() -> None:
    model = JaxModel(linear, PARAMS, "softmax-cross-entropy")
    result = distsgd.fit(model, X, Y, optimizer="sgd", lr=0.5, **OPTIONS)

    def loss(params: Any) -> Any:
        logs = jax.nn.log_softmax(linear(params, X))
        return -logs[np.arange(len(Y)), Y].mean()

    grads = jax.grad(loss)(PARAMS)
    for name, value in PARAMS.items():
        np.testing.assert_allclose(result.params[name], value - 0.5 * grads[name], rtol=1e-5, atol=1e-6)
        assert np.array_equal(model.params[name], result.params[name])
        assert np.array_equal(model.unflatten(result.params)[name], result.params[name])
    np.testing.assert_allclose(result.predict(X), jax.nn.softmax(linear(model.params, X)), rtol=1e-5)
    assert result.summary["same_bits"] is True


def test_weights_count() -> None:
    kept = np.arange(40) % 2
    one = distsgd.fit(JaxModel(linear, PARAMS, "softmax-cross-entropy"), X, Y, weights=kept * 2.0, **OPTIONS)
    model = JaxModel(linear, PARAMS, "softmax-cross-entropy")
    half = distsgd.fit(model, X[kept > 0], Y[kept > 0], **{**OPTIONS, "batch_size": 20})
    np.testing.assert_allclose(one.params["w"], half.params["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "batch norm", "gru"])
def test_the_gradient_is_the_derivative_of_the_loss(name: str) -> None:
    """In float64, by differences; random numbers and state are the same in each call."""
    model, x, y = build(name)
    shapes = model.parameter_shapes()
    params = {key: RNG.normal(size=shape) * 0.3 for key, shape in shapes.items()}
    layout = Layout.of(model.state_shapes())
    state = layout.views(np.zeros(layout.size, np.float32))
    model.initialize(Layout.of(shapes).views(np.zeros(sum(map(np.prod, shapes.values())), np.float32)), state, 0)
    batch = Batch(
        x=np.moveaxis(x[:12], 0, -1), y=model.targets(y[:12], np.dtype(np.float64)), indices=np.arange(12),
        training=True, state=state,
    )  # fmt: skip
    tolerance = 1e-4 if name == "batch norm" else 1e-6  # kinks of relu
    check_gradient(model.loss_and_grad, params, batch, directions=2, tolerance=tolerance).raise_if_wrong()


def test_float64() -> None:
    wide = {name: value.astype(np.float64) for name, value in PARAMS.items()}
    result = distsgd.fit(JaxModel(linear, wide, "softmax-cross-entropy"), X, Y, dtype="float64", **OPTIONS)
    assert result.params["w"].dtype == np.float64
    with pytest.raises(ConfigurationError, match='give dtype="float64"'):
        distsgd.fit(JaxModel(linear, wide, "softmax-cross-entropy"), X, Y, **OPTIONS)


def test_predictions_are_computed_in_the_parameters_width() -> None:
    widths = set()

    def apply(params: Any, x: Any) -> Any:
        widths.add(x.dtype.name)
        return linear(params, x)

    model = JaxModel(apply, PARAMS, "softmax-cross-entropy")
    result = distsgd.fit(model, X, Y, **OPTIONS)
    expected = jax.jit(lambda params, x: jax.nn.softmax(linear(params, x)))(model.params, X)
    np.testing.assert_array_equal(result.predict(X), expected)
    assert widths == {"float32"}


def test_a_function_that_is_another_one_in_each_trace_is_named() -> None:
    key = jax.random.key(0)

    def drawn(params: Any, x: Any) -> Any:
        return linear(params, x * np.random.random(4).astype(np.float32))

    def constant(params: Any, x: Any) -> Any:
        return linear(params, x * jax.random.bernoulli(key, shape=x.shape))

    drawn_summary, summary = (
        distsgd.fit(JaxModel(apply, PARAMS, "softmax-cross-entropy"), X, Y, **OPTIONS).summary
        for apply in (drawn, constant)
    )
    assert drawn_summary["same_bits"] is False
    assert "another function each time that JAX traces it" in drawn_summary["doubt"]
    assert summary["same_bits"] is True


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a form": (lambda: JaxModel(lambda params: params, PARAMS, "squared-error"), "expected apply\\(params, x\\)"),
    "no function": (lambda: JaxModel(3, PARAMS, "squared-error"), "apply must be a function"),
    "state not given": (lambda: JaxModel(lambda p, state, x: (x, state), PARAMS, "squared-error"), "with state="),
    "state not taken": (lambda: JaxModel(linear, PARAMS, "squared-error", state={"m": X}), "takes no argument state"),
    "a loss's name": (lambda: JaxModel(linear, PARAMS, "hinge"), "loss must be one of softmax-cross-entropy"),
    "a Python float": (lambda: JaxModel(linear, {**PARAMS, "scale": 0.5}, "squared-error"), "Python number 0.5"),
    "nothing to train": (lambda: JaxModel(linear, {"w": np.arange(3)}, "squared-error"), "nothing to train"),
    "halves": (lambda: JaxModel(linear, {"w": np.zeros(3, np.float16)}, "squared-error"), "float32 or float64"),
    "two dtypes": (lambda: JaxModel(linear, {"w": X, "b": np.zeros(2)}, "squared-error"), "one dtype"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_made(case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(ConfigurationError, match=words):
        make()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda outputs, y: ((outputs[:, 0] - y) ** 2).mean(), "return them without a mean"),
        (lambda outputs, y: (outputs - y[:, None]) ** 2, "add up or average over the other axes"),
        (lambda outputs, y: (outputs[:, :1] - y) ** 2, "combined each with each"),
        ("squared-error", "give both one shape"),
    ],
)
def test_losses_that_are_refused(loss: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        distsgd.fit(JaxModel(linear, PARAMS, loss), X, Y.astype(np.float32), **OPTIONS)


def test_integers_that_jax_would_cut_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="integers that 32 bits can't hold"):
        distsgd.fit(JaxModel(linear, PARAMS, "softmax-cross-entropy"), X.astype(np.int64) + 2**40, Y, **OPTIONS)


def test_jax_that_had_started_is_named() -> None:
    """With more than one core the promise is off, and the run says why."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this process has one core")
    code = (
        "import jax.numpy as jnp, numpy as np\n"
        "jnp.zeros(1)\n"
        "import distsgd\n"
        "from distsgd.integrations.jax import JaxModel\n"
        "model = JaxModel(lambda p, x: x @ p, jnp.zeros((3, 1)), 'squared-error')\n"
        "result = distsgd.fit(model, np.ones((8, 3)), np.ones((8, 1)), epochs=1, batch_size=8)\n"
        "print(result.summary['same_bits'], result.summary['run'])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NPROC"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False")
    assert "before distsgd.integrations.jax was imported" in done.stdout + done.stderr


KEPT: list[Any] = []
NOT_COMPILED: dict[str, tuple[Callable[..., Any], str]] = {
    "NumPy": (lambda params, x: np.tanh(np.asarray(linear(params, x))), "compute with jax.numpy"),
    "a branch": (lambda params, x: linear(params, x) if x.sum() > 0 else x @ params["w"], "jax.lax.cond"),
    "a trace that is kept": (
        lambda params, x: (KEPT.append(x.sum()), linear(params, x) + KEPT[0])[1],
        "from one call to",
    ),
    "a tuple": (lambda params, x: (linear(params, x), x), "apply returns a tuple; return the outputs alone"),
}


@pytest.mark.parametrize("case", NOT_COMPILED)
def test_functions_that_jax_cannot_compile(case: str) -> None:
    apply, words = NOT_COMPILED[case]
    KEPT.clear()
    with pytest.raises(ConfigurationError, match=words) as caught:
        distsgd.fit(JaxModel(apply, PARAMS, "softmax-cross-entropy"), X, Y, **OPTIONS)
    assert "\n" not in str(caught.value)


def test_keys_that_a_flax_module_misses() -> None:
    linen = pytest.importorskip("flax.linen")

    class Noisy(linen.Module):  # type: ignore[misc, name-defined]
        @linen.compact
        def __call__(self, x: Any) -> Any:
            return linen.Dense(2)(x + jax.random.normal(self.make_rng("noise"), x.shape))

    module = Noisy()
    variables = module.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, X[:1])
    with pytest.raises(ConfigurationError, match=r"asks for a random key, and has none in evaluation; give a function"):
        distsgd.fit(JaxModel(module.apply, variables, "softmax-cross-entropy"), X, Y, **OPTIONS)
    own = JaxModel(lambda p, x, key: module.apply(p, x, rngs={"noise": key}), variables, "softmax-cross-entropy")
    assert distsgd.fit(own, X, Y, **OPTIONS).summary["same_bits"] is True
