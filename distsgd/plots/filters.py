"""The weights of the first layer, as images: what each unit or each filter looks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isqrt, prod, sqrt
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.plots.canvas import WIDTH, NothingToDraw, diverging, heading
from distsgd.plots.images import as_images, coloured, image_shape, mosaic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Filters:
    """The first layer's weights as images, strongest first where there are more than are shown.

    name     of the parameter
    images   (n, h, w), or (n, h, w, 3) where they look at three colours
    units    which unit or filter each is
    total    how many the layer has
    classes  whether each unit is a class of its own, because there is no other layer
    """

    name: str
    images: Array
    units: tuple[int, ...]
    total: int
    classes: bool = False

    @property
    def is_chosen(self) -> bool:
        """Whether some are not shown."""
        return len(self.units) < self.total


def find_filters(params: Mapping[str, Array], example_shape: Shape, num_classes: int | None, most: int) -> Filters:
    """The first parameter that looks at images as a whole, or in squares of pixels.

    Shapes decide: (filters, channels, k, k) is a convolution, (units, pixels) dense, (filters, channels k²) under a
    name with `conv` a convolution. Raises NothingToDraw where there is none.
    """
    if image_shape(example_shape) is None:
        raise NothingToDraw(f"filters: examples of shape {example_shape} are no images")
    channels = example_shape[0] if len(example_shape) == 3 and example_shape[0] in (1, 3) else 1
    channels = 3 if len(example_shape) == 3 and example_shape[-1] == 3 and example_shape[0] != 3 else channels
    for name in sorted(params, key=_natural):
        images = _as_filters(name, np.asarray(params[name]), example_shape, channels)
        if images is not None:
            weights = [key for key in params if params[key].ndim > 1]
            classes = params[name].ndim == 2 and len(weights) == 1 and len(images) == num_classes
            units = _strongest(images, most)
            return Filters(name, images[units], tuple(units.tolist()), len(images), classes)
    raise NothingToDraw("filters: no parameter has the shape of a first layer that looks at images")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts dense2 before dense10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _as_filters(name: str, weight: Array, example_shape: Shape, channels: int) -> Array | None:
    if weight.ndim == 4 and weight.shape[1] == channels and weight.shape[2:] != (1, 1):
        moved = np.moveaxis(weight, 1, -1)
        return moved[..., 0] if channels == 1 else moved
    if weight.ndim != 2:
        return None
    if weight.shape[1] == prod(example_shape):
        return as_images(weight, example_shape)
    edge = isqrt(weight.shape[1] // channels)
    if "conv" in name and edge >= 2 and weight.shape[1] == channels * edge * edge:
        return _as_filters(name, weight.reshape(len(weight), channels, edge, edge), example_shape, channels)
    return None


def _strongest(images: Array, most: int) -> Array:
    """Which are shown: all in their own order, or the `most` with the largest norm, largest first."""
    if len(images) <= most:
        return np.arange(len(images))
    norms = np.square(images.astype(np.float64)).reshape(len(images), -1).sum(axis=1)
    return np.argsort(-norms, kind="stable")[:most]


def draw_filters(filters: Filters) -> Figure:
    """The figure: blue weights are negative, orange ones positive; filters of three colours in those colours."""
    count = len(filters.units)
    captions = filters.classes or (count <= 32 and not filters.is_chosen)
    columns = min(12, ceil(sqrt(count))) if count > 12 else min(count, 5)
    limit = _limit(filters.images)
    rgb = filters.images.ndim == 4
    tiles = _in_colours(filters.images) if rgb else coloured(filters.images, diverging(), limit)
    table = mosaic(tiles, columns, (0.27 if captions else 0.1, 0.1))
    figure, panel = table.show(min(WIDTH - 1.35, 1.15 * columns), beside=1.25)
    if captions:
        for unit, (left, top) in zip(filters.units, table.corners, strict=True):
            caption = f"class {unit}" if filters.classes else str(unit)
            panel.text(left + table.width / 2, top + 1.02 * table.height, caption, ha="center", va="top", fontsize=8)
    heading(figure, _title(filters, rgb))
    if not rgb:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        scale = ScalarMappable(Normalize(-limit, limit), diverging())
        height = min(1.0, 3.5 / figure.get_size_inches()[1])
        figure.colorbar(
            scale, ax=panel, shrink=height, aspect=25 * height, label="weight", extend="both", panchor=False
        )
    return figure


def _limit(images: Array) -> float:
    """Where the colours end: 99.5 % of the weights are within, so that a few large ones don't wash the others out."""
    return float(np.quantile(np.abs(images.astype(np.float64)), 0.995)) or 1.0


def _in_colours(images: Array) -> Array:
    """Each filter (h, w, 3) in its own colours: grey is 0, its largest weight as bright or as dark as can be."""
    largest = np.abs(images).max(axis=(1, 2, 3), keepdims=True)
    return np.rint(127.5 + 127.5 * images / np.where(largest > 0, largest, 1.0)).astype(np.uint8)


def _title(filters: Filters, rgb: bool) -> str:
    what = "filters" if filters.name.rpartition(".")[0].startswith("conv") else "units"
    which = f"the strongest {len(filters.units)} of {filters.total:,} {what}" if filters.is_chosen else f"all {what}"
    colours = " (each on its own scale, 0 is grey)" if rgb else ""
    return f"First-layer weights: {filters.name}, {which}{colours}"
