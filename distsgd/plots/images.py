"""Examples and weights as images: which shapes are some, and many of them side by side in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distsgd.core.device import Array, Shape
from distsgd.plots.canvas import WIDTH, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

_LEAST, _MOST = 3, 512
"""Pixels along an edge, from where to where numbers side by side are taken for an image."""
_TILE = 72
"""Pixels that a tile's longer edge is enlarged to, at least, so that pixels stay sharp squares wherever it is shown."""


def image_shape(shape: Shape) -> Shape | None:
    """(height, width) or (height, width, 3) of examples of this shape, None where they are no images.

    (h, w) and (1, h, w) are grey, (3, h, w) and (h, w, 3) coloured.
    """
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    elif len(shape) == 3 and shape[0] == 3:
        shape = (*shape[1:], 3)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        return None
    return shape if all(_LEAST <= edge <= _MOST for edge in shape[:2]) else None


def as_images(rows: Array, shape: Shape) -> Array:
    """Examples (n, …) of `shape` as (n, height, width) or (n, height, width, 3); see image_shape."""
    found = image_shape(shape)
    assert found is not None, f"{shape} is no image"
    if len(found) == 3 and shape[0] == 3:
        return np.moveaxis(rows.reshape(len(rows), *shape), 1, -1)
    return rows.reshape(len(rows), *found)


def pictured(images: Array) -> Array:
    """Images (n, h, w) or (n, h, w, 3) as RGB bytes (n, h, w, 3), over the range of all of them together.

    Grey images are shown as ink on paper: where most pixels are dark, dark and light change places.
    """
    values = images.astype(np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    values = (values - low) / (high - low if high > low else 1.0)
    if values.ndim == 3:
        if np.median(values) < 0.5:
            values = 1.0 - values
        values = np.repeat(values[..., None], 3, axis=-1)
    return np.rint(255.0 * values).astype(np.uint8)


def coloured(values: Array, colours: Colormap, limit: float) -> Array:
    """Values (n, h, w) as RGB bytes (n, h, w, 3) by a diverging map that ends at -limit and limit."""
    shades: Array = colours((values / limit + 1.0) / 2.0)[..., :3]
    return np.rint(255.0 * shades).astype(np.uint8)


@dataclass(frozen=True)
class Mosaic:
    """Tiles side by side in one array (height, width, 3): each one's (left, top), and their size, in its pixels."""

    pixels: Array
    corners: Sequence[tuple[float, float]]
    width: int
    height: int

    def show(self, across: float, *, beside: float = 0.0) -> tuple[Figure, Axes]:
        """A figure of the page's width with the tiles `across` inches wide, and `beside` inches for a scale."""
        high = across * self.pixels.shape[0] / self.pixels.shape[1]
        figure = new_figure(high + 0.45)
        grid = figure.add_gridspec(1, 2, width_ratios=(across + beside, max(WIDTH - across - beside, 1e-3)))
        panel = figure.add_subplot(grid[0, 0])
        panel.imshow(self.pixels, interpolation="none")
        panel.set_axis_off()
        panel.set_anchor("NW")
        return figure, panel


def mosaic(tiles: Array, columns: int, gap: tuple[float, float]) -> Mosaic:
    """Tiles (n, h, w, 3) on white, row by row, enlarged by a whole factor where they are small.

    gap   white space below each row and between columns, in parts of a tile's height and width
    """
    count, height, width, _ = tiles.shape
    factor = max(1, -(-_TILE // max(height, width)))
    tiles = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor, width * factor
    down, right = height + round(gap[0] * height), width + round(gap[1] * width)
    rows = -(-count // columns)
    whole = np.full((rows * down, columns * right - (right - width), 3), 255, np.uint8)
    corners = []
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * down, (index % columns) * right
        whole[top : top + height, left : left + width] = tile
        corners.append((float(left), float(top)))
    return Mosaic(whole, corners, width, height)
