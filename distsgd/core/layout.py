"""All parameters are one contiguous buffer; a Layout says where each named array lies in it.

One flat buffer means one reduction, one fused update and one write to disk. Gradients and optimizer state have the
same layout, so a span of one is the same span of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from distsgd.core.device import Array, Shape, in_host_memory
from distsgd.core.errors import ConfigurationError, UnknownNameError

_NAMES_SHOWN = 10


class Views(Mapping[str, Array]):
    """Named views of one flat buffer: `views["dense1.weight"]`, or `views.scope("dense1")["weight"]`.

    Writing into a view writes into the buffer, and so does assigning: `grads["w"] = value` is `grads["w"][...] = value`
    for a value of the view's own shape. `flat` is the whole buffer.

    Parameters
    ----------
    arrays : mapping of str to array
        Views of `flat`, by name.
    flat : array
        The buffer, one-dimensional.
    writable : bool, default True
        Whether assigning is allowed.

    Raises
    ------
    UnknownNameError
        For a name that isn't there.
    ConfigurationError
        Where a value of another shape is assigned, or any to views that are read-only.

    Examples
    --------
    >>> views = Layout.of({"dense1.weight": (2, 1), "dense1.bias": (2,)}).views(np.zeros(4))
    >>> views.scope("dense1")["bias"] = [1.0, 2.0]
    >>> views.flat.tolist()
    [0.0, 0.0, 1.0, 2.0]
    """

    __slots__ = ("_arrays", "_scopes", "_writable", "flat")

    def __init__(self, arrays: Mapping[str, Array], flat: Array, writable: bool = True) -> None:
        self._arrays, self._writable = dict(arrays), writable
        self._scopes: dict[str, Views] = {}
        self.flat = flat

    def __getitem__(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            names = list(self._arrays)
            shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
            raise UnknownNameError(f"there is no array {name!r}; expected one of: {shown or 'none'}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        array = self[name]
        if not self._writable:
            raise ConfigurationError(
                f"{name}: parameters and running statistics are read-only here; the optimizer and update_state change "
                "them, and a function writes into its gradients"
            )
        if value is array:
            return  # the end of `grads["w"] += value`, which has added in place
        shape = tuple(value.shape) if hasattr(value, "shape") else np.shape(value)
        if shape != array.shape:
            raise ConfigurationError(
                f"{name}: expected a value of shape {array.shape}, got {shape}; to fill the array with a "
                f"value of another shape, assign to [{name!r}][...]"
            )
        if in_host_memory(array):
            np.copyto(array, value, casting="same_kind")
        else:
            array[...] = value

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def scope(self, prefix: str) -> Views:
        """The views of one layer. Kept, so that asking again is cheap.

        Parameters
        ----------
        prefix : str
            The layer's name.

        Returns
        -------
        Views
            The arrays whose names begin with the prefix and a dot, by the rest of their names.
        """
        found = self._scopes.get(prefix)
        if found is None:
            head = prefix + "."
            inside = {name[len(head) :]: array for name, array in self._arrays.items() if name.startswith(head)}
            found = self._scopes[prefix] = Views(inside, self.flat, self._writable)
        return found

    def read_only(self) -> Views:
        """The same arrays for reading.

        Returns
        -------
        Views
            NumPy refuses to write into these arrays; another device's can't be protected.
        """
        return Views({name: _read_only(array) for name, array in self._arrays.items()}, _read_only(self.flat), False)


def _read_only(array: Array) -> Array:
    view = array.view()
    if in_host_memory(view):
        view.flags.writeable = False
    return view


@dataclass(frozen=True)
class Layout:
    """Names and shapes, in order; `size` elements in all, with no gaps.

    Parameters
    ----------
    names, shapes
        As many of both, usually from `Layout.of`.

    Examples
    --------
    >>> layout = Layout.of({"weight": (2, 3), "bias": (2,)})
    >>> layout.size, layout.spans["bias"]
    (8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Shape]) -> Layout:
        """The layout of these named shapes, in the mapping's order.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            The shape of each array, by name.

        Returns
        -------
        Layout
            The arrays one after the other.

        Raises
        ------
        ConfigurationError
            For a length below 1.
        """
        for name, shape in shapes.items():
            if any(length < 1 for length in shape):
                raise ConfigurationError(f"parameter {name!r}: every length must be at least 1, got shape {shape}")
        return cls(tuple(shapes), tuple(tuple(int(n) for n in shape) for shape in shapes.values()))

    @cached_property
    def spans(self) -> dict[str, slice]:
        """Where each name lies in the flat buffer."""
        edges = [0, *accumulate(map(prod, self.shapes))]
        return dict(zip(self.names, map(slice, edges, edges[1:]), strict=True))

    @cached_property
    def size(self) -> int:
        """Elements in all."""
        return sum(prod(shape) for shape in self.shapes)

    def views(self, flat: Array) -> Views:
        """Named views of a flat buffer.

        Parameters
        ----------
        flat : array
            A one-dimensional buffer of `size` elements.

        Returns
        -------
        Views
            Each array, by name; writing into one writes into the buffer.

        Raises
        ------
        ConfigurationError
            For a buffer of another shape.
        """
        if flat.shape != (self.size,):
            raise ConfigurationError(
                f"a buffer of shape {flat.shape} does not fit the layout, which needs ({self.size},); "
                "was it made for the same model?"
            )
        return self.rows(flat)

    def rows(self, flats: Array) -> Views:
        """Named views of several buffers at once.

        Parameters
        ----------
        flats : array
            The buffers, (number of buffers, `size`).

        Returns
        -------
        Views
            Each array, by name, with the buffers on an axis more in front.
        """
        pairs = zip(self.spans.items(), self.shapes, strict=True)
        return Views({name: flats[..., at].reshape(flats.shape[:-1] + shape) for (name, at), shape in pairs}, flats)
