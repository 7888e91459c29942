"""L1 and L2 terms, weight decay and frozen parameters: the elements of the flat buffer that they apply to.

They are added once, to the summed and divided gradient, by the rank that owns the elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from distsgd.core.device import Array
from distsgd.core.errors import ConfigurationError
from distsgd.core.layout import Layout


@dataclass(frozen=True)
class Segment:
    """Elements [start, stop) of the flat buffer that are treated alike."""

    start: int
    stop: int
    penalized: bool
    frozen: bool


@dataclass(frozen=True)
class Regularization:
    """loss + l1 Σ|w| + l2 Σw² over the penalized parameters, with gradient l1 sign(w) + 2 l2 w.

    Parameters
    ----------
    l1, l2 : float, default 0.0
        The factors.
    penalize : tuple of str, default ("weights",)
        Name patterns (`dense1.*`), or `weights`: all parameters of two or more dimensions, without biases and
        normalization. Weight decay holds for the same parameters.
    freeze : tuple of str, default ()
        Name patterns of parameters that stay as they are.
    """

    l1: float = 0.0
    l2: float = 0.0
    penalize: tuple[str, ...] = ("weights",)
    freeze: tuple[str, ...] = ()

    @property
    def penalizes(self) -> bool:
        """Whether the loss has such terms."""
        return bool(self.l1 or self.l2)

    def freezes(self, name: str) -> bool:
        """Whether a parameter stays as it is.

        Parameters
        ----------
        name : str
            The parameter's name.

        Returns
        -------
        bool
            Whether a pattern of `freeze` matches it.
        """
        return any(fnmatchcase(name, pattern) for pattern in self.freeze)

    def segments(self, layout: Layout, penalizing: bool = True, apart: bool = False) -> list[Segment]:
        """The whole flat buffer in order, cut where treatment changes.

        Parameters
        ----------
        layout : Layout
            The parameters' layout.
        penalizing : bool, default True
            Whether any parameters are penalized.
        apart : bool, default False
            Whether each array of parameters is a segment of its own.

        Returns
        -------
        list of Segment
            Runs of elements that are treated alike.

        Raises
        ------
        ConfigurationError
            For a pattern that matches no name.
        """
        _check_patterns("penalize", [p for p in self.penalize if p != "weights"], layout.names)
        _check_patterns("freeze", self.freeze, layout.names)
        found: list[Segment] = []
        for name, shape in zip(layout.names, layout.shapes, strict=True):
            span = layout.spans[name]
            by_kind = "weights" in self.penalize and len(shape) >= 2
            penalized = penalizing and (by_kind or any(fnmatchcase(name, pattern) for pattern in self.penalize))
            frozen = self.freezes(name)
            if found and not apart and (found[-1].penalized, found[-1].frozen) == (penalized, frozen):
                found[-1] = replace(found[-1], stop=span.stop)
            else:
                found.append(Segment(span.start, span.stop, penalized, frozen))
        return found

    def add_gradient(self, params: Array, grads: Array) -> None:
        """Adds the terms' gradient.

        Parameters
        ----------
        params : array
            Penalized parameters (n,).
        grads : array
            Their gradient (n,), to be changed in place.
        """
        if self.l1:
            grads += np.sign(params) * self.l1
        if self.l2:
            grads += params * (2.0 * self.l2)

    def loss(self, params: Array, segments: Sequence[Segment], block: int) -> float:
        """l1 Σ|w| + l2 Σw² in float64, added over fixed blocks of the flat buffer in order.

        Parameters
        ----------
        params : array
            The flat buffer.
        segments : list of Segment
            What `segments` returned.
        block : int
            Elements of one block.

        Returns
        -------
        float
            The terms' sum.
        """
        total = 0.0
        if not self.penalizes:
            return total
        for segment in segments:
            if not segment.penalized:
                continue
            for start in range(segment.start, segment.stop, block):
                values = params[start : min(start + block, segment.stop)].astype(np.float64)
                total += self.l1 * float(np.sum(np.abs(values))) + self.l2 * float(np.sum(np.square(values)))
        return total


def _check_patterns(option: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigurationError(
                f"{option}: {pattern!r} matches no parameter; the parameters are {', '.join(names)}"
            )
