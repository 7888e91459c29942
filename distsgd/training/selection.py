"""What the validations of a run are judged by, and which parameters it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from distsgd.core.device import host_copy
from distsgd.parallel import Communicator
from distsgd.training.early_stopping import StoppingRule, reaches
from distsgd.training.run_state import RunState
from distsgd.training.step import TrainingStep

_LOSS = "validation_loss"


@final
@dataclass
class Selection:
    """Judges each validation: whether its parameters are the best so far, and when the run is over.

    rule          decides by the value called `monitor`; None where nothing is validated. It is rank 0's.
    monitor       the name of that value
    ties          what is the better of two equal values: "loss", the one with the lower validation loss, or "first".
                  The rule knows nothing of ties: they neither extend patience nor restart it, and its state is as if
                  they hadn't been.
    target        (name, value) that ends the run as soon as a validation reaches it
    test_at_best  whether the test set is scored with each new best
    stop_step     the step from which the run is over by the rule, None as things stand; the same on all ranks
    """

    rule: StoppingRule | None = None
    monitor: str = ""
    ties: str = "loss"
    target: tuple[str, float] | None = None
    test_at_best: bool = True
    stop_step: int | None = field(default=None, init=False)

    def begin(self, communicator: Communicator) -> None:
        """All ranks learn what rank 0's rule has decided in the steps before. Collective."""
        rule = self.rule
        if rule is not None:
            self.stop_step = communicator.on_root(rule.stop_step)

    def judge(self, communicator: Communicator, progress: RunState, record: Mapping[str, Any]) -> bool:
        """Takes in the record of a validation; whether its parameters are the best so far. Collective."""
        rule = self.rule
        if rule is None:
            return False

        def decide() -> tuple[bool, int | None]:
            improved = rule.validated(progress.step, record[self.monitor])
            return improved or self._breaks_tie(record, progress.best), rule.stop_step()

        improved, self.stop_step = communicator.on_root(decide)
        progress.scores = {name: value for name, value in record.items() if isinstance(value, float)}
        return improved

    def _breaks_tie(self, record: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        """Whether this record equals the best in what is watched, and has a lower loss."""
        if self.ties == "first" or best is None or record[self.monitor] != best.get(self.monitor):
            return False
        return bool(record[_LOSS] < best.get(_LOSS, math.nan))

    def keep(self, step: TrainingStep, progress: RunState, record: dict[str, Any]) -> None:
        """Marks the record as the best, and keeps it; rank 0 keeps the parameters in place."""
        kept = ("step", "epoch", "train_loss")
        progress.best = {
            key: value for key, value in record.items() if key in kept or key.startswith(("validation_", "test_"))
        }
        record["best"] = True
        if step.reduction.communicator.is_root:
            progress.best_params = host_copy(step.reduction.params)
            progress.best_running = step.running.flat.copy()

    def put_best_in_place(self, communicator: Communicator, step: TrainingStep, progress: RunState) -> None:
        """All ranks take the best parameters and running statistics that rank 0 has kept, if any. Collective."""
        best, running = progress.best_params, step.running
        if communicator.broadcast_object(best is not None):
            step.reduction.load_params(best)
            if len(running):
                if progress.best_running is not None:
                    running.flat[:] = progress.best_running
                communicator.transport.broadcast(running.flat)

    def reached(self, progress: RunState) -> bool:
        """Whether the last validation reached the target."""
        if self.target is None or progress.scores is None:
            return False
        return reaches(self.target, progress.scores)
