"""The shape in which a model takes examples."""

from __future__ import annotations

from math import prod

from distsgd.device import Shape
from distsgd.errors import ConfigurationError
from distsgd.layers import Layer


def accepted_shape(layer: Layer, example_shape: Shape) -> Shape:
    """The shape in which `layer` takes examples of `example_shape`: theirs, or else flat.

    Raises ConfigurationError, the layer's own for their shape, where it takes neither.
    """
    try:
        layer.output_shape(example_shape)
        return example_shape
    except ConfigurationError as error:
        flat = (prod(example_shape),)
        try:
            layer.output_shape(flat)
        except ConfigurationError:
            raise error from None
        return flat
