"""Losses of JAX models: a loss for each example, and what the outputs stand for where the loss says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distsgd import ConfigurationError, Task
from distsgd.nn import Shape


def _softmax_cross_entropy(outputs: Any, y: Any) -> Any:
    _check_axes("softmax-cross-entropy", outputs, 2)
    logs = jax.nn.log_softmax(outputs)
    if jnp.issubdtype(y.dtype, jnp.integer):
        return -jnp.take_along_axis(logs, y.reshape(-1, 1), axis=1)[:, 0]
    return -jnp.sum(_alike(outputs, y) * logs, axis=1)


def _binary_cross_entropy(outputs: Any, y: Any) -> Any:
    outputs, y = _rows(outputs), _rows(y)
    y = _alike(outputs, y).astype(outputs.dtype)
    return jnp.sum(jax.nn.softplus(outputs) - y * outputs, axis=1)


def _squared_error(outputs: Any, y: Any) -> Any:
    outputs, y = _rows(outputs), _rows(y)
    return 0.5 * jnp.sum(jnp.square(outputs - _alike(outputs, y)), axis=1)


_LOSSES: Mapping[str, Callable[[Any, Any], Any]] = {
    "softmax-cross-entropy": _softmax_cross_entropy,
    "binary-cross-entropy": _binary_cross_entropy,
    "squared-error": _squared_error,
}
_OF_OPTAX = {
    "softmax_cross_entropy_with_integer_labels": "softmax-cross-entropy",
    "softmax_cross_entropy": "softmax-cross-entropy",
}
"""Functions of optax that return a loss for each example, by what their outputs are."""
_PREDICTIONS = {"softmax-cross-entropy": jax.nn.softmax, "binary-cross-entropy": jax.nn.sigmoid}


class ExampleLosses:
    """A loss by name or as a function, checked to give one number for each example."""

    def __init__(self, loss: Any) -> None:
        if isinstance(loss, str):
            name = loss.replace("_", "-")
            if name not in _LOSSES:
                raise ConfigurationError(
                    f"JaxModel: loss must be one of {', '.join(_LOSSES)} or a function of (outputs, y), got {loss!r}"
                )
            self.kind, self.name, self._function = name, name, _LOSSES[name]
        elif callable(loss):
            self.name = str(getattr(loss, "__name__", type(loss).__name__))
            is_optax = str(getattr(loss, "__module__", "")).startswith("optax.")
            self.kind, self._function = _OF_OPTAX.get(self.name, "") if is_optax else "", loss
        else:
            raise ConfigurationError(
                f"JaxModel: loss must be a name or a function of (outputs, y), got {type(loss).__name__}"
            )

    def of_examples(self, outputs: Any, y: Any, count: int) -> Any:
        """The losses (n,). Raises ConfigurationError where the function returns anything else."""
        self._check_array(outputs)
        losses = self._function(outputs, y)
        shape = getattr(losses, "shape", None)
        if shape != (count,):
            got = type(losses).__name__ if shape is None else f"shape {shape}"
            remedy = "return them without a mean or sum" if shape == () else "add up or average over the other axes"
            if shape == (count, count):
                remedy = "outputs and targets are combined each with each, give both one shape"
            raise ConfigurationError(
                f"JaxModel: {self.name} must return a loss for each of {count} examples, ({count},), got {got}; "
                f"{remedy}"
            )
        if not jnp.issubdtype(losses.dtype, jnp.floating):
            raise ConfigurationError(f"JaxModel: {self.name} must return losses of floats, got {losses.dtype}")
        return losses

    def _check_array(self, outputs: Any) -> None:
        if self.kind and not isinstance(outputs, jax.Array):
            raise ConfigurationError(
                f"JaxModel: {self.name} takes one array of outputs, and apply returns a {type(outputs).__name__}; "
                "return the outputs alone, or give a function of (outputs, y) as loss, and outputs="
            )

    def task(self, target_shape: Shape, num_classes: int | None) -> Task:
        """What the outputs stand for under this loss."""
        if self.kind == "softmax-cross-entropy" and target_shape == () and num_classes is not None:
            return Task("classification", num_classes)
        if self.kind == "binary-cross-entropy" and len(target_shape) <= 1:
            count = target_shape[0] if target_shape else 1
            return Task("classification", 2) if count == 1 else Task("multilabel", count)
        if self.kind == "squared-error" and len(target_shape) <= 1 and num_classes is None:
            return Task("regression")
        return Task("other")

    def predictions(self, outputs: Any) -> Any:
        """Probabilities where the outputs are logits, else the outputs."""
        self._check_array(outputs)
        function = _PREDICTIONS.get(self.kind)
        return outputs if function is None else function(outputs)


def _rows(array: Any) -> Any:
    """(n, k), where one number an example may come as (n,)."""
    return array.reshape(-1, 1) if array.ndim == 1 else array


def _check_axes(name: str, outputs: Any, axes: int) -> None:
    if outputs.ndim != axes:
        raise ConfigurationError(
            f"JaxModel: {name} takes outputs with {axes} axes, got shape {outputs.shape}; give a function of "
            "(outputs, y) for others"
        )


def _alike(outputs: Any, y: Any) -> Any:
    if outputs.shape != y.shape:
        raise ConfigurationError(
            f"JaxModel: the outputs have shape {outputs.shape} and the targets {y.shape}; give both one shape"
        )
    return y
