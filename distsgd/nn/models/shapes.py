"""The shape in which a model takes examples."""

from __future__ import annotations

from math import prod

from distsgd.core.device import Shape
from distsgd.core.errors import ConfigurationError
from distsgd.nn.layers import Layer


def as_images(shape: Shape) -> Shape:
    """(height, width) as (1, height, width), images of one channel; any other shape as it is."""
    return (1, *shape) if len(shape) == 2 else shape


def accepted_shape(layer: Layer, example_shape: Shape) -> Shape:
    """The shape in which `layer` takes examples of `example_shape`: theirs, or images of one channel, or else flat.

    Raises ConfigurationError, the layer's own for their shape, where it takes none of them.
    """
    images = as_images(example_shape)
    problem: ConfigurationError | None = None
    for shape in dict.fromkeys((example_shape, images, (prod(example_shape),))):
        try:
            layer.output_shape(shape)
            return shape
        except ConfigurationError as error:
            problem = problem or error
    assert problem is not None
    raise problem
