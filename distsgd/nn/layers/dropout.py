"""Dropout: noise in training that depends on (seed, epoch, step, microbatch, path) and never on the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from distsgd.core.device import Array, Shape
from distsgd.core.kernels import kernels_for
from distsgd.core.layout import Views
from distsgd.core.ranges import number_in
from distsgd.nn.batch import Batch
from distsgd.nn.layers.base import Backward, Layer, image_shape


@dataclass(frozen=True)
class Dropout(Layer):
    """In training y := x m / (1 - rate) with m 1 or 0, 0 with probability `rate`; otherwise y := x.

    This is "inverted" dropout: scaled in training, so that evaluation has nothing to do.

    Parameters
    ----------
    rate : float, default 0.5
        The probability with which a value is dropped, below 1.
    channels : bool, default False
        Whether whole channels of images (channels, height, width, n) are dropped, independently for each example:
        neighbouring pixels are so similar that a single dropped one can be inferred.

    References
    ----------
    .. [1] Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov, "Dropout: a simple way to prevent neural
       networks from overfitting", JMLR 15, 2014.
    .. [2] Tompson, Goroshin, Jain, LeCun & Bregler, "Efficient object localization using convolutional networks",
       CVPR 2015.
    """

    rate: float = 0.5
    channels: bool = False

    kind: ClassVar[str] = "dropout"

    def __post_init__(self) -> None:
        number_in("[0, 1)", "dropout rate", self.rate)

    def output_shape(self, shape: Shape) -> Shape:
        return image_shape(shape, "channel dropout") if self.channels else shape

    def forward(self, params: Views, x: Array, batch: Batch, path: str) -> tuple[Array, Backward]:
        if not batch.training or self.rate == 0.0:
            return x, lambda dy, grads: dy
        mask = self.mask(x, batch, path)
        return self.keep(x, mask), lambda dy, grads: self.keep(dy, mask)

    def mask(self, x: Array, batch: Batch, path: str) -> Array:
        """Which values a microbatch keeps.

        Parameters
        ----------
        x : array
            Its inputs, (…, n).
        batch : Batch
            The microbatch, whose random numbers decide.
        path : str
            The layer's name in the model.

        Returns
        -------
        array
            Booleans that fit the inputs.
        """
        shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1]) if self.channels else x.shape
        found: Array = kernels_for(x).keep_mask(x, shape, 1.0 - self.rate, batch.random_stream("dropout " + path))
        return found

    def keep(self, values: Array, mask: Array) -> Array:
        """The values where the mask is true, divided by the probability of that; 0 elsewhere.

        Parameters
        ----------
        values, mask : array
            As `mask` has and returns them.

        Returns
        -------
        array
            Of the values' shape.
        """
        kept: Array = values * mask
        kept *= 1.0 / (1.0 - self.rate)
        return kept
