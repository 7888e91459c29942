"""JAX functions as models: the same bits on any number of ranks, and all of distsgd's files, checks and restarts.

Importing this module sets NPROC=1 in the environment where JAX hasn't started yet, so that it computes with one core
in each process: its bits depend on the number of cores. See `distsgd.integrations.jax_cores`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np

from distsgd import ConfigurationError, Task
from distsgd.integrations.framework_model import EXAMPLES, FrameworkModel
from distsgd.integrations.jax_cores import CORES, DOUBT
from distsgd.nn import Array, Batch, Shape, Views

import jax  # isort: skip  (after jax_cores, which counts JAX's cores)
from distsgd.integrations.jax_calls import call_of, linen_call, linen_module  # isort: skip
from distsgd.integrations.jax_losses import ExampleLosses  # isort: skip
from distsgd.integrations.jax_trees import NamedTree  # isort: skip

__all__ = ["JaxModel"]

_EVALUATED_TOGETHER, _LEAST_TOGETHER = 1 << 20, 32
"""Numbers of inputs up to which examples are evaluated together, and the least number of examples."""
_NOT_COMPILED = (
    jax.errors.TracerArrayConversionError, jax.errors.TracerIntegerConversionError, jax.errors.UnexpectedTracerError
)  # fmt: skip
_ALIGNED = 64
"""Bytes at whose multiples JAX uses memory where it lies."""


@dataclass(eq=False)
class JaxModel(FrameworkModel):
    """A JAX function with its parameters and loss, for `distsgd.fit`: on the CPU, with one core on each rank.

    The parameters are any pytree: their arrays of floats are trained, all other leaves stay as they are. When the fit
    ends, `params` and `state` hold the best values on every rank. Inputs and targets are passed as they are stored,
    examples first: floats in the parameters' dtype, integers as int32. A dictionary of arrays, `fit(model, {"ids": ids,
    "mask": mask}, y)`, is passed as one, or by names where `apply` has these arguments. Functions are compiled once for
    each shape.

    Parameters
    ----------
    apply : function
        `apply(params, x) -> outputs`, and where the model needs them, by these names and in any order: `state`, for
        which it returns (outputs, next state); `rng` or `key`, a key that is a function of (seed, epoch, step,
        microbatch); `training`, `train` or `is_training`, or their opposites `deterministic` and `inference`. `apply`
        of Haiku's transformed functions has this form. `module.apply` of a flax.linen module is called as Flax does
        it, with its keys for dropout and its collections of state.
    params : pytree
        The initial parameters, float32 or float64; for flax.linen all variables that `module.init` returns.
    loss : str or function
        "softmax-cross-entropy", "binary-cross-entropy", "squared-error", or a function of (outputs, y) that returns a
        loss for each example, (n,), such as optax's.
    state : pytree, optional
        The initial state, such as running statistics.
    outputs : function, optional
        What is measured and predicted, (n, …), of what the function returns. By default all of it: probabilities under
        a cross-entropy.
    declared_task : Task, optional
        What the outputs stand for; by default what a loss with a name says.

    Raises
    ------
    ConfigurationError
        For a function of another form, and for parameters of other dtypes.

    Notes
    -----
    A step in training starts from the state before it. The next state is the mean, weighted by examples, of those that
    the microbatches return, added up in the tree's order: for batch normalization, of the means and the variances in
    each microbatch. Several microbatches then have at least 8 examples each.

    Examples
    --------
    >>> import distsgd
    >>> params = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}
    >>> model = JaxModel(lambda params, x: x @ params["w"] + params["b"], params, "softmax-cross-entropy")
    >>> x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 1])
    >>> result = distsgd.fit(model, (x, y), epochs=2, batch_size=4, microbatches=2, validation_fraction=0)
    >>> result.predict(x).shape, bool((model.params["w"] == result.params["w"]).all())
    ((4, 3), True)
    """

    apply: Callable[..., Any]
    params: Any
    loss: Any
    state: Any = None
    outputs: Callable[[Any], Any] | None = None
    declared_task: Task | None = None

    thread_safe = False

    def __post_init__(self) -> None:
        if jax.default_backend() != "cpu":
            raise ConfigurationError(
                f"JaxModel: JAX computes on {jax.default_backend()}, and distsgd takes its arrays on the CPU; set "
                "JAX_PLATFORMS=cpu in the environment"
            )
        self._losses = ExampleLosses(self.loss)
        self._module = linen_module(self.apply)
        params, state, apply = self.params, self.state, self.apply
        if self._module is not None:
            if state is not None:
                raise ConfigurationError(
                    "JaxModel: with module.apply of Flax, state is part of params; leave state out"
                )
            params, state, apply = linen_call(self._module, params)
        self._call = call_of(apply, state is not None)
        self._params = NamedTree(params, "params", floats_alone=True)
        self._params.check_trained()
        self._state = NamedTree(state, "state", floats_alone=False)
        self._gradient = jax.jit(jax.value_and_grad(self._total, has_aux=True), static_argnums=6)
        self._evaluate = jax.jit(self._scored)
        self._predicted = jax.jit(self._predictions)
        self._shared: tuple[Any, list[Any]] = (None, [])
        self._doubt: str | None = DOUBT
        self._is_traced = False

    def user_functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.apply,)

    def parameter_shapes(self) -> Mapping[str, Shape]:
        return self._params.shapes

    def state_shapes(self) -> Mapping[str, Shape]:
        return self._state.shapes

    def statistics_shapes(self) -> Mapping[str, Shape]:
        return {EXAMPLES: (), **self._state.shapes} if self._call.takes_state else {}

    def initialize(self, params: Views, state: Views, seed: int) -> None:
        dtype = next(iter(self._params.arrays.values())).dtype
        if params.flat.dtype != dtype:
            raise ConfigurationError(
                f"JaxModel: the parameters are {dtype}, and the run computes in {params.flat.dtype}; give "
                f'dtype="{dtype}", or convert them'
            )
        self._params.write(params, "the parameter")
        self._state.write(state, "the state's")

    def environment(self) -> Mapping[str, str]:
        found = {
            "JAX's version": f"{version('jax')} with jaxlib {version('jaxlib')}",
            "JAX's number of cores": str(CORES),
            "JAX's result of a product": _probe(),
        }
        return found if self._doubt is None else found | {"doubt": self._doubt}

    def loss_and_grad(self, params: Views, grads: Views, batch: Batch) -> tuple[float, int]:
        with _width(params):
            given = (
                self._leaves(params), self._state_leaves(batch), *self._data(params, batch, slice(None)),
                _key_words(batch),
            )  # fmt: skip
            if batch.training and not self._is_traced:
                self._check_traces(given)
            (_, (losses, state)), found = self._gradient(*given, batch.training)
            for name, gradient in zip(self._params.names, found, strict=True):
                np.copyto(grads[name], np.asarray(gradient))
            if batch.statistics:
                batch.statistics[EXAMPLES][...] = len(batch)
                for name, value in zip(self._state.names, state, strict=True):
                    batch.statistics[name][...] = np.asarray(value)
            return _sum(losses, batch.weights), len(batch)

    def score(self, params: Views, scratch: Views, batch: Batch) -> tuple[float, int, Array | None]:
        loss_sum, outputs = 0.0, []
        with _width(params):
            given = self._leaves(params), self._state_leaves(batch)
            for part in _parts(batch):
                losses, found = self._evaluate(*given, *self._data(params, batch, part), _key_words(batch))
                loss_sum += _sum(losses, None if batch.weights is None else batch.weights[part])
                outputs.append(found)
            measured = all(isinstance(one, jax.Array) for one in outputs)
            return loss_sum, len(batch), _batch_last(outputs) if measured else None

    def predict(self, params: Views, batch: Batch) -> Array:
        with _width(params):
            given = self._leaves(params), self._state_leaves(batch)
            return _batch_last([
                self._predicted(*given, self._inputs(params, batch, part), _key_words(batch)) for part in _parts(batch)
            ])  # fmt: skip

    def running(self) -> AbstractContextManager[None]:
        return self._released()

    def take_best(self, params: Views, state: Views) -> None:
        self.params, own = self.unflatten(params, state), self.unflatten_state(state)
        self.state = own if self._module is None else None

    def unflatten(self, params: Mapping[str, Array], state: Mapping[str, Array] | None = None) -> Any:
        """The pytree that `params` was, with the arrays of a result.

        Parameters
        ----------
        params, state : mapping of str to array
            `result.params`, and for flax.linen with collections of state also `result.state`.

        Returns
        -------
        pytree
            JAX arrays in the structure of `params`.
        """
        found = self._params.unflatten(params)
        if self._module is None:
            return found
        return {"params": found, **(self.unflatten_state(state or {}) or {})}

    def unflatten_state(self, state: Mapping[str, Array]) -> Any:
        """The pytree that `state` was, with the arrays of a result.

        Parameters
        ----------
        state : mapping of str to array
            `result.state`.

        Returns
        -------
        pytree
            JAX arrays in the structure of `state`; None where the model has none.
        """
        return self._state.unflatten(state) if self._call.takes_state else None

    def _check_traces(self, given: tuple[Any, ...]) -> None:
        """Notes a doubt where the function is another one each time that it is traced: compiled, it repeats itself."""
        texts = [_traced(partial(self._total, training=True), given) for _ in range(2)]
        if texts[0] != texts[1] and self._doubt is None:
            self._doubt = (
                "apply or the loss is another function each time that JAX traces it, and each rank compiles its own: "
                "random numbers of NumPy or Python, or a counter, are constants in it; use the argument key"
            )
        self._is_traced = True

    @contextmanager
    def _released(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._shared = (None, [])

    def _outputs_of(self, leaves: Any, state: Any, x: Any, words: Any, training: bool) -> tuple[Any, Any]:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        own = self._state.tree(state) if self._call.takes_state else None
        return self._call(self._params.tree(leaves), own, x, key, training)

    def _total(
        self, leaves: Any, state: Any, x: Any, y: Any, weights: Any, words: Any, training: bool
    ) -> tuple[Any, Any]:
        """The sum of the losses, and beside it (the losses, the arrays of the next state)."""
        found, after = self._outputs_of(leaves, state, x, words, training)
        losses = self._losses.of_examples(found, y, len(y))
        total = (losses if weights is None else losses * weights).sum()
        return total, (losses, self._state.leaves_of(after, "the returned state") if self._call.takes_state else [])

    def _scored(self, leaves: Any, state: Any, x: Any, y: Any, weights: Any, words: Any) -> tuple[Any, Any]:
        found, _ = self._outputs_of(leaves, state, x, words, False)
        losses = self._losses.of_examples(found, y, len(y))
        return losses, found if self.outputs is None else self.outputs(found)

    def _predictions(self, leaves: Any, state: Any, x: Any, words: Any) -> Any:
        found, _ = self._outputs_of(leaves, state, x, words, False)
        return self._losses.predictions(found) if self.outputs is None else self.outputs(found)

    def _leaves(self, params: Views) -> list[Any]:
        """The parameters as arguments: without a copy where they lie as JAX needs them, and kept for a whole run."""
        kept, leaves = self._shared
        if kept is not params:
            leaves = [_shared(params[name]) for name in self._params.names]
            self._shared = (params, leaves)
        return leaves

    def _state_leaves(self, batch: Batch) -> list[Any]:
        arrays = self._state.arrays
        return [np.asarray(batch.state[name]).astype(arrays[name].dtype) for name in self._state.names]

    def _data(self, params: Views, batch: Batch, part: slice) -> tuple[Any, Any, Any]:
        dtype = _dtype(params)
        weights = None if batch.weights is None else _batch_first(batch.weights[part], dtype)
        return self._inputs(params, batch, part), _batch_first(batch.y[..., part], dtype), weights

    def _inputs(self, params: Views, batch: Batch, part: slice) -> Any:
        """An array, or arrays by name."""
        x, dtype = batch.x[..., part], _dtype(params)
        if x.dtype.names is None:
            return _batch_first(x, dtype)
        return {name: _batch_first(np.moveaxis(x[name], 0, -1), dtype) for name in x.dtype.names}


def _dtype(params: Views) -> np.dtype:
    """Of the parameters: of a result's arrays, the flat buffer says nothing."""
    return next(iter(params.values())).dtype


@contextmanager
def _width(params: Views) -> Iterator[None]:
    """Numbers of 64 bits in JAX where the parameters have them, whatever the process has set.

    What JAX can't compile is named: its own errors describe traces, in several lines.
    """
    wide = bool(_dtype(params) == np.float64)
    enable = jax.enable_x64 if hasattr(jax, "enable_x64") else import_module("jax.experimental").enable_x64
    try:
        with enable(wide):
            yield
    except (jax.errors.ConcretizationTypeError, *_NOT_COMPILED) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            "JaxModel: apply and the loss are compiled by jax.jit, and can't be: compute with jax.numpy, branch with "
            f"jnp.where or jax.lax.cond, and keep no arrays from one call to the next; JAX says: {reason}"
        ) from error


def _traced(function: Callable[..., Any], given: tuple[Any, ...]) -> tuple[str, str]:
    """A function's operations, without addresses, and a digest of its constants."""
    traced, digest = jax.make_jaxpr(function)(*given), sha256()
    for one in traced.consts:
        if isinstance(one, np.ndarray | jax.Array):
            is_key = jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key)
            digest.update(np.asarray(jax.random.key_data(one) if is_key else one).tobytes())
    return re.sub(r"0x[0-9a-f]+", "", str(traced)), digest.hexdigest()


def _shared(array: Array) -> Any:
    """The array as an argument of a compiled function, without a copy where it begins at a multiple of 64 bytes.

    Others stay NumPy's: the call copies them. JAX's own import copies them asynchronously, and may wait forever for a
    copy that nothing holds any more.
    """
    if array.ctypes.data % _ALIGNED or not array.flags.c_contiguous or not array.size:
        return array
    return jax.device_put(array, may_alias=True)


def _batch_first(array: Array, dtype: np.dtype) -> Array:
    """An array (n, …) of a batch's (…, n): floats in the parameters' dtype, integers of 64 bits as JAX takes them."""
    found = np.moveaxis(array, -1, 0)
    if found.dtype.kind == "f":
        return np.ascontiguousarray(found, dtype)
    if found.dtype.kind in "iu" and dtype == np.float32 and found.dtype.itemsize > 4:
        narrow = found.astype(np.int32)
        if not np.array_equal(narrow, found):
            raise ConfigurationError(
                "JaxModel: the data holds integers that 32 bits can't hold, and JAX takes no others beside float32; "
                'give smaller ones, or dtype="float64"'
            )
        return narrow
    return np.ascontiguousarray(found.astype(found.dtype.newbyteorder("=")))


def _key_words(batch: Batch) -> Array:
    """The 64 bits of a key of JAX's: of this microbatch in training, else of the seed."""
    words = batch.random_words(1, "JAX" if batch.training else "JAX in evaluation")
    return words.view(np.uint32)


def _sum(losses: Any, weights: Array | None) -> float:
    wide = np.asarray(losses).astype(np.float64)
    return float((wide if weights is None else wide * weights).sum())


def _parts(batch: Batch) -> Iterator[slice]:
    """Few enough examples at a time for the cache and for memory: a function of their shape alone."""
    x, count = batch.x, len(batch)
    size = x.dtype.itemsize // 4 if x.dtype.names else prod(x.shape[:-1])
    together = max(_EVALUATED_TOGETHER // max(size, 1), _LEAST_TOGETHER)
    yield from (slice(start, min(start + together, count)) for start in range(0, max(count, 1), together))


def _batch_last(outputs: list[Any]) -> Array:
    if not all(isinstance(one, jax.Array) and one.ndim for one in outputs):
        raise ConfigurationError(
            f"JaxModel: the function returns a {type(outputs[0]).__name__}; say with outputs= which array of it are "
            "the predictions, (n, …), such as outputs=lambda returned: returned[0]"
        )
    found = np.concatenate([np.asarray(one) for one in outputs])
    return np.moveaxis(found.reshape(len(found), -1), 0, -1)


def _probe() -> str:
    """Digits of what JAX computes here: equal where its kernels and its number of cores are."""
    x = np.divide(np.arange(64 * 784) % 977 - 431, 113, dtype=np.float32).reshape(64, 784)
    found = jax.jit(lambda x: (x.T @ x, x @ x.T, jax.numpy.tanh(x).sum(1)))(x)
    return sha256(b"".join(np.asarray(one).tobytes() for one in found)).hexdigest()[:12]
