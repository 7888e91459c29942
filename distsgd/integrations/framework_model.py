"""What models of other frameworks have alike: their losses, inputs as they are stored, and state that is averaged."""

from __future__ import annotations

from typing import Any

import numpy as np

from distsgd import Task
from distsgd.nn import Array, Objective, Shape, Views

EXAMPLES = "(examples)"
"""The name, beside a microbatch's statistics, of the number of its examples; no buffer or state can have it."""


class FrameworkModel(Objective):
    """The base class. Its statistics are a microbatch's own running state, if any, beside `EXAMPLES`.

    declared_task  what outputs stand for, where the user says so
    """

    declared_task: Task | None
    _losses: Any

    inputs_as_stored = True

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.__post_init__()  # type: ignore[attr-defined]

    def task(self, target_shape: Shape, num_classes: int | None) -> Task | None:
        return self.declared_task or self._losses.task(target_shape, num_classes)

    def targets(self, y: Array, dtype: np.dtype) -> Array:
        return np.moveaxis(y, 0, -1)

    def overwrites_gradients(self) -> bool:
        return True

    def combine_statistics(self, left: Views, right: Views) -> None:
        """The mean of both states, weighted by examples."""
        if EXAMPLES not in left:  # the state is constant
            return
        count, added = float(left[EXAMPLES]), float(right[EXAMPLES])
        for name in left:
            if name != EXAMPLES:
                left[name][...] += (right[name] - left[name]) * (added / (count + added))
        left[EXAMPLES][...] = count + added

    def update_state(self, state: Views, statistics: Views) -> None:
        for name in statistics:
            if name != EXAMPLES:
                state[name][...] = statistics[name]
