"""Pytrees as named arrays, and back: floats are trained, everything else stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distsgd import ConfigurationError
from distsgd.nn import Array, Shape, Views

_PLAIN = (dict, list, tuple)
_TAKEN = ("float32", "float64")


class NamedTree:
    """The arrays of a pytree by name, such as `dense.kernel`.

    names      of the leaves that are arrays of the tree, in order
    arrays     their values when the model was made
    """

    def __init__(self, tree: Any, what: str, floats_alone: bool) -> None:
        paths, self._structure = jax.tree_util.tree_flatten_with_path(tree)
        self._leaves = [leaf for _, leaf in paths]
        self._places: list[int] = []
        self.names: list[str] = []
        if floats_alone:
            _check_no_python_floats(tree, what)
        for place, (path, leaf) in enumerate(paths):
            if not isinstance(leaf, jax.Array | np.ndarray) or not _is_taken(leaf, floats_alone):
                continue
            self.names.append(jax.tree_util.keystr(path, simple=True, separator=".") or what)
            self._places.append(place)
        twice = {name for name in self.names if self.names.count(name) > 1}
        if twice:
            raise ConfigurationError(f"JaxModel: two arrays of {what} are called {twice.pop()}; rename one of its keys")
        self.arrays = {name: np.asarray(self._leaves[at]) for name, at in zip(self.names, self._places, strict=True)}

    @property
    def shapes(self) -> dict[str, Shape]:
        """The arrays' shapes by name."""
        return {name: tuple(array.shape) for name, array in self.arrays.items()}

    def check_trained(self) -> None:
        """Raises ConfigurationError where there is nothing to train, or where dtypes can't be trained."""
        if not self.arrays:
            raise ConfigurationError("JaxModel: params holds no array of floats; there is nothing to train")
        first, dtype = next((name, array.dtype) for name, array in self.arrays.items())
        for name, array in self.arrays.items():
            if array.dtype.name not in _TAKEN:
                raise ConfigurationError(f"JaxModel: {name} is {array.dtype}; give parameters of float32 or float64")
            if array.dtype != dtype:
                raise ConfigurationError(
                    f"JaxModel: {first} is {dtype} and {name} {array.dtype}; give all parameters one dtype"
                )

    def write(self, views: Views, what: str) -> None:
        """Puts the initial values where distsgd keeps them. Raises ConfigurationError where they don't fit exactly."""
        for name, array in self.arrays.items():
            views[name][...] = array
            if not np.array_equal(views[name].astype(array.dtype), array, equal_nan=array.dtype.kind == "f"):
                raise ConfigurationError(
                    f"JaxModel: {what} {name} holds {array.dtype} numbers that the run's {views.flat.dtype} can't hold "
                    "exactly; give smaller ones"
                )

    def tree(self, leaves: Any) -> Any:
        """The pytree with these arrays in place of its own, in the order of `names`."""
        full = list(self._leaves)
        for place, leaf in zip(self._places, leaves, strict=True):
            full[place] = leaf
        return jax.tree_util.tree_unflatten(self._structure, full)

    def leaves_of(self, tree: Any, what: str) -> list[Any]:
        """The arrays of another pytree of this structure. Raises ConfigurationError for another structure."""
        leaves, structure = jax.tree_util.tree_flatten(tree)
        if structure != self._structure:
            raise ConfigurationError(f"JaxModel: {what} has the structure {structure}, expected {self._structure}")
        return [leaves[place] for place in self._places]

    def unflatten(self, arrays: Mapping[str, Array]) -> Any:
        """The pytree with arrays by name: JAX arrays of their own, in the tree's dtypes."""
        missing = [name for name in self.names if name not in arrays]
        if missing:
            raise ConfigurationError(
                f"JaxModel: there is no array {missing[0]!r}; give those of a result of this model"
            )
        own = [np.array(arrays[name]).astype(_floats_kept(arrays[name], self.arrays[name])) for name in self.names]
        return self.tree([jax.device_put(one) for one in own])


def _floats_kept(given: Array, own: Array) -> np.dtype:
    """The dtype of an array: integers as they were, floats as they are given."""
    return given.dtype if own.dtype.kind == "f" else own.dtype


def _is_taken(leaf: Any, floats_alone: bool) -> bool:
    if floats_alone:
        return bool(jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating))
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.numpy.number)) or leaf.dtype == np.bool_


def _check_no_python_floats(tree: Any, what: str) -> None:
    """Raises ConfigurationError for a number in plain containers, of which it isn't known whether it is trained."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda one: type(one) not in _PLAIN)[0]:
        if isinstance(leaf, float | complex):
            where = jax.tree_util.keystr(path)
            raise ConfigurationError(
                f"JaxModel: {what}{where} is the Python number {leaf!r}; make it an array to train it, "
                "jnp.asarray(…), or keep it out of the tree"
            )
