"""For tests, distsgd's and yours: is a gradient the derivative of its loss?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite, sqrt

import numpy as np

from distsgd.core import random
from distsgd.core.components import is_own
from distsgd.core.device import CPU, Array, Shape, to_host
from distsgd.core.device_options import FULL
from distsgd.core.layout import Layout, Views
from distsgd.nn.batch import Batch
from distsgd.nn.layers.base import Layer, StatefulLayer
from distsgd.nn.losses.base import Loss

__all__ = ["GradientCheck", "LossFunction", "check_gradient", "check_layer_gradient", "check_loss_gradient"]

LossFunction = Callable[[Views, Views, Batch], tuple[float, int]]


@dataclass(frozen=True)
class GradientCheck:
    """What check_gradient found.

    Parameters
    ----------
    max_relative_error : float
        The largest relative error of a derivative.
    worst : str
        The array, and the element, that has it.
    numeric, analytic : float
        That derivative by differences, and by the gradient.
    checked : int
        How many derivatives were compared.
    tolerance : float
        The largest relative error that is right.
    """

    max_relative_error: float
    worst: str
    numeric: float
    analytic: float
    checked: int
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether every error is within the tolerance."""
        return bool(self.max_relative_error <= self.tolerance)

    def __str__(self) -> str:
        return (
            f"gradient {'right' if self.ok else 'WRONG'}: largest relative error {self.max_relative_error:.2g} of "
            f"{self.checked} derivatives (tolerance {self.tolerance:.2g}), at {self.worst}: {self.analytic:.9g} where "
            f"differences give {self.numeric:.9g}"
        )

    def raise_if_wrong(self) -> None:
        """Ends a test where the gradient is wrong.

        Raises
        ------
        AssertionError
            With the finding.
        """
        if not self.ok:
            raise AssertionError(str(self))


def check_gradient(
    function: LossFunction,
    params: Mapping[str, Array],
    batch: Batch,
    *,
    directions: int = 10,
    per_parameter: bool = False,
    epsilon: float = 1e-5,
    seed: int = 0,
    tolerance: float | None = None,
    start: float = 0.0,
) -> GradientCheck:
    """Compare the gradient of `function(params, grads, batch) -> (loss_sum, count)` with differences of loss_sum.

    In float64 (floating arrays of params and batch are converted), along random unit directions d in each parameter
    array, or along every single element: grads·d against (f(p + h d) - f(p - h d)) / 2h, with h := epsilon · max(1, m)
    and m the largest magnitude in the array. The error is relative to the larger of the two, but for derivatives so
    small that rounding of f hides them. `params` isn't changed; nothing is raised for a wrong gradient.

    Where `batch.device` is a GPU, the gradient is computed there, in the dtype of `params`. The differences are all the
    same those of the CPU in float64, at the same point, so that a kernel of the GPU that is wrong, but consistent with
    itself, is found; `function` has to take arrays of both. Rounded terms may cancel, so errors are then relative to no
    less than the root mean square of the array's gradient, and than the largest element of all times the square root
    of the unit of rounding. Products are those of float32, whatever the device's precision is: rounding moves values
    across the kinks of ReLU, which changes a gradient as much as a mistake does.

    Functions with kinks, such as ReLU, have no derivative there: a step across one shows as a single error that goes
    away with another seed or a smaller epsilon.

    Parameters
    ----------
    function : function
        A `LossAndGrad`.
    params : mapping of str to array
        The point at which the gradient is checked, by name.
    batch : Batch
        The examples, with arrays of its `device`.
    directions : int, default 10
        The number of random directions in each array.
    per_parameter : bool, default False
        Whether single elements are checked in place of directions.
    epsilon : float, default 1e-05
        The relative length of a difference.
    seed : int, default 0
        The seed of the directions.
    tolerance : float, optional
        The largest relative error that is right. Default: 1e-6; of a GPU's gradient in float32 about 1e-3, four times
        the square root of the unit of rounding, so that half of the digits are right.
    start : float, default 0.0
        The gradients before each call: zero, as in training; with NaN an element that the function doesn't write, or
        adds to, is found.

    Returns
    -------
    GradientCheck
        The largest error, and where it is.

    Examples
    --------
    >>> def line(params, grads, batch):
    ...     error = params["w"] @ batch.x - batch.y[0]
    ...     grads["w"] += batch.x @ error
    ...     return 0.5 * float(error @ error), len(batch)
    >>> batch = Batch(x=np.eye(2), y=np.ones((1, 2)), indices=np.arange(2))
    >>> check_gradient(line, {"w": np.zeros(2)}, batch).ok
    True
    """
    layout = Layout.of({name: np.shape(array) for name, array in params.items()})
    views, grads, scratch = (layout.views(np.full(layout.size, start)) for _ in range(3))
    read_only = views.read_only()
    for name, array in params.items():
        views[name][...] = array
    given, batch = batch, _on_cpu(batch)
    loss = function(read_only, grads, batch)[0]
    unit, scales = _computed_there(function, params, grads, given, start)
    tolerance = max(1e-6, 4 * sqrt(unit)) if tolerance is None else tolerance

    def loss_at(view: Array, values: Array) -> float:
        view[...] = values
        scratch.flat[...] = start
        return function(read_only, scratch, batch)[0]

    worst = GradientCheck(0.0, "nothing", 0.0, 0.0, 0, tolerance)
    checked = 0
    for name, view in views.items():
        original = view.copy()
        step = epsilon * max(1.0, float(np.abs(original).max()))
        noise = 8 * np.finfo(np.float64).eps * max(1.0, abs(loss)) / step
        for label, d in _directions(name, original.shape, None if per_parameter else directions, seed):
            numeric = (loss_at(view, original + step * d) - loss_at(view, original - step * d)) / (2 * step)
            view[...] = original
            inside = d != 0  # 0 · NaN would let one hole spoil every element's check
            analytic = float(np.sum(grads[name][inside] * d[inside]))
            error = abs(numeric - analytic) / max(abs(numeric), abs(analytic), noise / tolerance, scales[name])
            error = error if isfinite(error) else float("inf")
            checked += 1
            if error > worst.max_relative_error or checked == 1:
                worst = GradientCheck(error, label, numeric, analytic, 0, tolerance)
    return replace(worst, checked=checked)


def check_layer_gradient(
    layer: Layer,
    input_shape: Shape,
    n: int = 5,
    seed: int = 0,
    *,
    training: bool = True,
    per_parameter: bool = True,
    tolerance: float = 1e-6,
) -> GradientCheck:
    """Check a layer's gradients, of its parameters and of x, through a random linear function of its output.

    x, n examples of `input_shape`, is normal; the parameters are the layer's own initial values and a tenth of
    normal numbers, so that zeros and ones aren't special. Parameters are called `layer.name` in the finding, the input
    `x`. A layer of distsgd's has to overwrite every gradient, one of yours finds them at zero.

    Parameters
    ----------
    layer : Layer
        The layer.
    input_shape : tuple of int
        The shape of one example of the input.
    n : int, default 5
        The number of examples.
    seed : int, default 0
        The seed of input, parameters and output's factors.
    training : bool, default True
        Whether forward is that of training.
    per_parameter : bool, default True
        Whether single elements are checked in place of random directions.
    tolerance : float, default 1e-06
        The largest relative error that is right.

    Returns
    -------
    GradientCheck
        The largest error, and where it is.

    Examples
    --------
    >>> import distsgd
    >>> check_layer_gradient(distsgd.nn.Dense(3, 2), (3,)).ok
    True
    """
    layout = Layout.of(layer.parameter_shapes())
    views = layout.views(np.zeros(layout.size))
    layer.initialize(views, seed, "")
    params: dict[str, Array] = {"x": random.normal((*input_shape, n), seed, "check x")}
    for name, array in views.items():
        params[f"layer.{name}"] = array + 0.1 * random.normal(array.shape, seed, f"check {name}")
    states = Layout.of(layer.state_shapes() if isinstance(layer, StatefulLayer) else {})
    state = states.views(np.zeros(states.size))
    if isinstance(layer, StatefulLayer):
        layer.initialize_state(state)
    coefficients = random.normal((*layer.output_shape(input_shape), n), seed, "check dy")

    def function(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        y, backward = layer.forward(params.scope("layer"), params["x"], batch, "")
        grads["x"][...] = backward(coefficients, grads.scope("layer"))
        return float(np.sum(coefficients * y)), n

    nothing = np.zeros((0, n))
    batch = Batch(x=nothing, y=nothing, indices=np.arange(n), seed=seed, training=training, state=state)
    start = np.nan if is_own(layer) else 0.0
    return check_gradient(
        function, params, batch, per_parameter=per_parameter, seed=seed, tolerance=tolerance, start=start
    )


def check_loss_gradient(
    loss: Loss, targets: Array, *, outputs: Array | int, seed: int = 0, tolerance: float = 1e-6
) -> GradientCheck:
    """Check a loss's gradient with respect to each output of each example, without and with sample weights.

    Parameters
    ----------
    loss : Loss
        The loss; of a function, `distsgd.nn.loss_from(function)`.
    targets : array
        Targets as data has them: labels (n,), values (n,) or (n, …).
    outputs : array or int
        Outputs (k, n), or k, for normal numbers that are drawn.
    seed : int, default 0
        The seed of outputs and weights.
    tolerance : float, default 1e-06
        The largest relative error that is right.

    Returns
    -------
    GradientCheck
        The largest error, and where it is.

    Examples
    --------
    >>> import distsgd
    >>> check_loss_gradient(distsgd.nn.Huber(0.5), np.array([0.1, 0.2, 3.0]), outputs=1).ok
    True
    """
    n = len(targets)
    if isinstance(outputs, int):
        outputs = random.normal((outputs, n), seed, "check outputs")
    y = loss.targets(np.asarray(targets), np.dtype(np.float64))

    def function(params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        loss_sum, grad = loss.loss_and_grad(params["outputs"], batch.y, batch.weights)
        grads["outputs"][...] = grad
        return loss_sum, n

    found = []
    for weights in (None, np.square(random.normal((n,), seed, "check weights"))):
        batch = Batch(x=np.zeros((0, n)), y=y, indices=np.arange(n), seed=seed, weights=weights)
        found.append(
            check_gradient(function, {"outputs": outputs}, batch, per_parameter=True, seed=seed, tolerance=tolerance)
        )
    worst = max(found, key=lambda one: one.max_relative_error)
    return replace(worst, checked=sum(one.checked for one in found))


def _on_cpu(batch: Batch) -> Batch:
    """The same batch for the CPU, in float64."""
    x, y = (_wide(to_host(array)) for array in (batch.x, batch.y))
    weights = None if batch.weights is None else _wide(to_host(batch.weights))
    if batch.device.host_memory:
        return replace(batch, x=x, y=y, weights=weights)
    state, statistics = (
        {name: _wide(to_host(array)) for name, array in arrays.items()} for arrays in (batch.state, batch.statistics)
    )
    return replace(batch, x=x, y=y, weights=weights, state=state, statistics=statistics, device=CPU)


def _computed_there(
    function: LossFunction, params: Mapping[str, Array], grads: Views, batch: Batch, start: float
) -> tuple[float, dict[str, float]]:
    """Puts the gradient of the batch's device, where that isn't the CPU, in the place of the CPU's.

    Returns (its unit of rounding, what errors of each array are relative to at least); zeros of the CPU's own.
    """
    if batch.device.host_memory:
        return 0.0, dict.fromkeys(grads, 0.0)
    dtype, device = np.result_type(*params.values()), batch.device.multiplying_in(FULL)
    unit, largest = float(np.finfo(dtype).eps) / 2, float(np.abs(grads.flat).max())
    scales = {name: max(sqrt(np.mean(np.square(one))), sqrt(unit) * largest) for name, one in grads.items()}
    layout = Layout(tuple(params), tuple(map(np.shape, params.values())))
    there = layout.views(device.put(np.full(layout.size, start, dtype)))
    flat = np.concatenate([np.ravel(array).astype(dtype) for array in params.values()])
    function(layout.views(device.put(flat)).read_only(), there, replace(batch, device=device))
    grads.flat[...] = to_host(there.flat)
    return unit, scales


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _directions(name: str, shape: Shape, count: int | None, seed: int) -> Iterator[tuple[str, Array]]:
    """Labels and unit directions: `count` random ones, or with None one along each element."""
    if count is None:
        for index in np.ndindex(*shape):
            direction = np.zeros(shape)
            direction[index] = 1.0
            yield f"{name}[{', '.join(map(str, index))}]" if index else name, direction
        return
    for number in range(count):
        direction = random.normal(shape, seed, f"check direction {name}", number)
        yield name, direction / np.sqrt(np.sum(np.square(direction)))
