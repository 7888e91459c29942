"""The gradient of a whole objective on real examples, against central differences in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distsgd.core import random
from distsgd.core.device_options import FULL
from distsgd.core.errors import UserCodeError
from distsgd.core.layout import Layout
from distsgd.data.examples import Examples
from distsgd.testing import GradientCheck, check_gradient
from distsgd.training.step import TrainingStep

_EXAMPLES = 8
_EVERY_PARAMETER = 2000
"""Up to this many parameters each one is checked; above it, random directions through each array are."""


def check_step(step: TrainingStep, examples: Examples, seed: int) -> tuple[GradientCheck, str]:
    """(what a check of a few examples in training mode finds, in which numbers and where the gradient was computed).

    A GPU computes in the dtype that it trains in. At the objective's own initial values, but for arrays of zeros, such
    as biases: with these, wherever an image is blank, what goes into ReLU lies on its kink, which has no derivative.
    """
    device, objective = step.device, step.objective.scaled(1)
    dtype = np.dtype(np.float64) if device.host_memory else step.loader.dtype
    layout, running = Layout.of(objective.parameter_shapes()), Layout.of(objective.state_shapes())
    params, state = layout.views(np.zeros(layout.size, dtype)), running.views(np.zeros(running.size, dtype))
    objective.initialize(params, state, seed)
    for name, array in params.items():
        if not array.any():
            array += 0.01 * random.normal(array.shape, seed, f"check {name}")
    statistics = Layout.of(objective.statistics_shapes())
    loader = replace(step.loader, examples=examples, dtype=dtype, augmentation=None)
    batch = loader.batch(
        np.arange(min(_EXAMPLES, len(examples))),
        running.views(device.put(state.flat)).read_only(),
        statistics=statistics.views(device.put(np.zeros(statistics.size))),
    )
    try:
        found = check_gradient(
            objective.loss_and_grad,
            params,
            batch,
            per_parameter=layout.size <= _EVERY_PARAMETER,
            seed=seed,
            start=np.nan if objective.overwrites_gradients() else 0.0,
        )
    except ValueError as error:
        raise UserCodeError(f"the gradient could not be checked: {error}") from None
    return found, f"{dtype}{'' if device.precision == FULL else ', products too,'} on {device}"
