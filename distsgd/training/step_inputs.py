"""The inputs of a recorded step, which lie at the same places in each step."""

from __future__ import annotations

from typing import NamedTuple

from distsgd.core.device import Array
from distsgd.data.loader import GatheredBatch


class StepInputs(NamedTuple):
    """What a recorded step reads from its device's memory, at the same place in each step.

    rows        the examples where they come from the host; None where the data set lies on the device
    numbers     the rows of the data set, (n,) int64
    clock       epoch and step, (2,) uint64
    scalars     the optimizer's, (s,) float64; NaN where nothing is updated any more
    non_finite  (ranks,) float64: not 0 from the first step on in which a rank has found a non-finite number
    """

    rows: GatheredBatch | None
    numbers: Array
    clock: Array
    scalars: Array
    non_finite: Array
