"""The gradient of a whole objective on real examples, against central differences in float64."""

from __future__ import annotations

import numpy as np

from distsgd.core.errors import UserCodeError
from distsgd.core.layout import Layout
from distsgd.data.examples import Examples
from distsgd.data.loader import Loader
from distsgd.nn.objective import Objective
from distsgd.testing import GradientCheck, check_gradient

_EXAMPLES = 8
_EVERY_PARAMETER = 2000
"""Up to this many parameters each one is checked; above it, random directions through each array are."""


def check_objective(objective: Objective, examples: Examples, seed: int) -> GradientCheck:
    """Checks a few examples in training mode, from the objective's own initial values."""
    dtype = np.dtype(np.float64)
    layout, running = Layout.of(objective.parameter_shapes()), Layout.of(objective.state_shapes())
    params, state = layout.views(np.zeros(layout.size)), running.views(np.zeros(running.size))
    objective.initialize(params, state, seed)
    statistics = Layout.of(objective.statistics_shapes())
    count = min(_EXAMPLES, len(examples))
    batch = Loader(examples, objective, dtype, seed).batch(
        np.arange(count), state.read_only(), statistics=statistics.views(np.zeros(statistics.size))
    )
    start = np.nan if objective.overwrites_gradients() else 0.0
    try:
        return check_gradient(
            objective.loss_and_grad,
            params,
            batch,
            per_parameter=layout.size <= _EVERY_PARAMETER,
            seed=seed,
            start=start,
        )
    except ValueError as error:
        raise UserCodeError(f"the gradient could not be checked: {error}") from None
